"""A chat: rooms, names, and nobody who can silence the others by not reading.

    python -m selectserve examples.chat:app            then open http://localhost:8000/ twice

The path is the room: http://localhost:8000/kitchen is another one. A member that does not read does
not hold up who speaks (see rung 09): each has a mailbox of its own, and a task that empties it as
fast as that member reads. A mailbox that is full forgets its oldest line.
"""

import collections
import json

from selectserve import Event, spawn

MAILBOX = 100  # lines that wait for a slow member
HISTORY = 20  # lines that a new member is shown
LONGEST = 2000  # characters of a line

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Chat</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 16px/1.45 system-ui, sans-serif;
          --soft: light-dark(#eef1f5, #24282f); --mine: light-dark(#d7e8ff, #1d3a5f) }
  * { box-sizing: border-box }
  body { margin: 0 auto; max-width: 42rem; height: 100dvh; display: flex; flex-direction: column;
         padding: 0 1rem }
  header { padding: 1rem 0 .5rem; display: flex; justify-content: space-between; align-items: end }
  h1 { margin: 0; font-size: 1.3rem }
  header small, .news { color: color-mix(in srgb, currentcolor 62%, transparent) }
  ol { flex: 1; overflow-y: auto; margin: 0; padding: .5rem 0; list-style: none;
       display: flex; flex-direction: column; gap: .35rem }
  li { align-self: start; max-width: 85%; padding: .45rem .8rem; border-radius: 1rem;
       background: var(--soft); overflow-wrap: anywhere; white-space: pre-wrap }
  li:first-child { margin-top: auto }
  li.mine { align-self: end; background: var(--mine) }
  li.news { align-self: center; background: none; padding: 0; font-size: .85rem }
  li b { display: block; font-size: .8rem }
  form { display: flex; gap: .5rem; padding: .5rem 0 1rem }
  input, button { font: inherit; padding: .55rem .9rem; border-radius: 2rem;
                  border: 1px solid color-mix(in srgb, currentcolor 25%, transparent);
                  background: Field; color: FieldText }
  [name=name] { width: 7rem } [name=text] { flex: 1; min-width: 0 }
  button { background: light-dark(#0b5fc4, #1a66c9); color: #fff; border: 0; cursor: pointer }
</style>
<header><h1>Chat </h1><small id="state" role="status">connecting&hellip;</small></header>
<ol aria-live="polite" aria-label="Messages"></ol>
<form>
  <input name="name" aria-label="Your name" placeholder="Name" maxlength="24">
  <input name="text" aria-label="Message" placeholder="Say something" maxlength="2000"
         autocomplete="off" autofocus>
  <button>Send</button>
</form>
<script>
  const list = document.querySelector("ol"), form = document.querySelector("form")
  const state = document.querySelector("#state")
  const {name, text} = form.elements
  name.value = sessionStorage.name || "guest " + Math.floor(Math.random() * 900 + 100)
  document.querySelector("h1").append(decodeURIComponent(location.pathname).replace(/^\\/$/, ""))
  let socket, pause = 500

  function show(line) {
    const item = list.appendChild(document.createElement("li"))
    if (line.name) item.appendChild(document.createElement("b")).textContent = line.name
    item.append(line.text)
    item.className = line.name ? (line.name === name.value ? "mine" : "") : "news"
    list.scrollTop = list.scrollHeight
  }
  function connect() {
    socket = new WebSocket(location.href.replace(/^http/, "ws"))
    socket.onopen = () => { pause = 500; socket.send(JSON.stringify({name: name.value})) }
    socket.onmessage = event => {
      const line = JSON.parse(event.data)
      if (line.members) state.textContent = line.members + " here"
      if (line.text) show(line)
    }
    socket.onclose = () => {
      state.textContent = "no connection"
      setTimeout(connect, pause = Math.min(pause * 2, 10000))
    }
  }
  form.onsubmit = () => {
    if (text.value && socket.readyState === WebSocket.OPEN) {
      sessionStorage.name = name.value
      socket.send(JSON.stringify({name: name.value, text: text.value}))
      text.value = ""
    }
    return false
  }
  connect()
</script></html>
"""


class Room:
    """Who is here, and what was said last."""

    def __init__(self):
        self.members = set()
        self.history = collections.deque(maxlen=HISTORY)

    def say(self, **line):
        """Put a line into every mailbox. This waits for nobody."""
        text = json.dumps({**line, "members": len(self.members)})
        if "name" in line:
            self.history.append(json.dumps(line))
        for member in self.members:
            member.put(text)


class Member:
    """One WebSocket and its mailbox."""

    def __init__(self, send):
        self.send = send
        self.name = "somebody"
        self.mailbox = collections.deque(maxlen=MAILBOX)
        self.mail = Event()

    def put(self, text):
        self.mailbox.append(text)
        self.mail.set()

    async def deliver(self):
        """Send what is in the mailbox, as fast as this member reads; run as a task."""
        try:
            while True:
                while self.mailbox:
                    await self.send({"type": "websocket.send", "text": self.mailbox.popleft()})
                self.mail.clear()
                await self.mail.wait()
        except OSError:
            pass  # it has left; receive() says so to the other task


rooms = collections.defaultdict(Room)


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await chat(rooms, scope["path"], receive, send)
    elif scope["type"] == "http":
        headers = [(b"content-type", b"text/html; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE.encode()})
    else:
        raise NotImplementedError(f"chat does not speak {scope['type']}")


async def chat(rooms, path, receive, send):
    """One member's stay in one room."""
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    room, member = rooms[path], Member(send)
    member.mailbox.extend(room.history)
    room.members.add(member)
    delivery = spawn(member.deliver())
    try:
        await listen(room, member, receive)
    finally:
        delivery.cancel()
        room.members.discard(member)
        room.say(text=f"{member.name} left")
        if not room.members:
            del rooms[path]


async def listen(room, member, receive):
    """Say in the room what this member says, until it leaves."""
    greeted = False
    while (message := await receive())["type"] == "websocket.receive":
        try:
            line = json.loads(message.get("text") or "{}")
            name, text = str(line.get("name") or "")[:24], str(line.get("text") or "")[:LONGEST]
        except (ValueError, AttributeError):
            continue  # not ours; a chat need not be strict
        member.name = name or member.name
        if not greeted:
            greeted = True
            room.say(text=f"{member.name} is here")
        if text:
            room.say(name=member.name, text=text)
