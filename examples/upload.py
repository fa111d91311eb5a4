"""Uploads of any size: hashed as they come, watched while they do.

    python -m selectserve examples.upload:app

    curl -T some.iso localhost:8000/some.iso         its size and SHA-256, as JSON
    curl -N localhost:8000/some.iso                  meanwhile, elsewhere: how far it is
    http://localhost:8000/                           both in a browser

The body is never in memory as a whole: receive() gives it in pieces, and while the app does not ask
for the next one the server does not read it, so that the client has to wait.
"""

import hashlib
import json

from selectserve import Event

KEPT = 100  # uploads that are remembered

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Upload</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif }
  body { max-width: 34rem; margin: 4rem auto; padding: 0 1rem }
  progress { width: 100%; height: 1.2rem }
  output { overflow-wrap: anywhere; font: .85em ui-monospace, monospace }
</style>
<h1>Upload</h1>
<p><input type="file" aria-label="File"></p>
<p><progress value="0" aria-label="Progress"></progress></p>
<output></output>
<script>
  const [input, bar, output] = ["input", "progress", "output"].map(n => document.querySelector(n))
  input.onchange = async () => {
    const [file] = input.files
    const path = "/" + encodeURIComponent(`${Date.now()}-${file.name}`)
    const events = new EventSource(path)
    events.onmessage = event => Object.assign(bar, JSON.parse(event.data))
    const response = await fetch(path, {method: "PUT", body: file})
    events.close()
    bar.value = bar.max
    output.textContent = JSON.stringify(await response.json(), null, 1)
  }
</script></html>
"""


class Upload:
    """One upload: how far it is, and an event for those who watch it."""

    def __init__(self):
        self.received = 0
        self.total = None  # when the client has said how much it will be
        self.state = "expected"  # then "running", then "complete" or "broken"
        self.changed = Event()

    def change(self, state):
        self.state = state
        self.changed.set()
        self.changed.clear()

    def progress(self):
        return {"state": self.state, "value": self.received, "max": self.total or self.received}


uploads = {}


def find(path):
    """Return the upload of that name; begin one, and forget the oldest, when there is none."""
    if path not in uploads:
        while len(uploads) >= KEPT:
            del uploads[next(iter(uploads))]
        uploads[path] = Upload()
    return uploads[path]


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(f"upload speaks http only, not {scope['type']}")
    if scope["method"] in ("PUT", "POST"):
        await take(scope, receive, send)
    elif scope["path"] == "/":
        await answer(send, 200, b"text/html; charset=utf-8", PAGE)
    else:
        await watch(find(scope["path"]), send)


async def take(scope, receive, send):
    """Receive the body piece by piece; answer with its size and hash."""
    upload = find(scope["path"])
    if upload.state != "expected":
        upload = uploads[scope["path"]] = Upload()
    length = dict(scope["headers"]).get(b"content-length")
    upload.total = int(length) if length else None
    digest = hashlib.sha256()
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":  # it left before the end
            return upload.change("broken")
        digest.update(message["body"])  # 64 KiB take 0.1 ms; more would belong in a thread
        upload.received += len(message["body"])
        upload.change("running")
        more = message["more_body"]
    upload.change("complete")
    result = {"bytes": upload.received, "sha256": digest.hexdigest()}
    await answer(send, 200, b"application/json", json.dumps(result) + "\n")


async def watch(upload, send):
    """Tell how far an upload is, whenever that has changed and the watcher has room for it."""
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    told = None
    while told is None or told["state"] not in ("complete", "broken"):
        if told == upload.progress():
            await upload.changed.wait()
        told = upload.progress()
        event = f"data: {json.dumps(told)}\n\n".encode()
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def answer(send, status, content_type, text):
    headers = [(b"content-type", content_type)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
