"""09 · A WebSocket chat.

Read first:  rung08_asgi, whose ASGIConnection and Cycle are extended here.
New here:    the same bytes, read by another parser. A handshake turns the request into a WebSocket
             (RFC 6455): from there on FrameParser makes events of the bytes, Text and Close, and
             begins with what RequestParser has left. A session takes the place of the cycle.
             The chat itself is 12 lines: a room is a set of send()s.
Still wrong: a member that does not read parks the send() of everybody who says something, and so
             silences the room. Nobody pings: a member whose cable was pulled stays for ever. Of the
             frames, only a whole text and a close are understood.

    python -m examples.rung09_chat 8000                     then open http://localhost:8000/ twice
"""

import base64
import collections
import contextlib
import hashlib

from .rung07_http import NEED_DATA, Request
from .rung08_asgi import ASGIConnection, Cycle, serve

MAX_MESSAGE = 1 << 20  # bytes
TEXT, CLOSE = 0x81, 0x88  # the first byte of a frame that nothing continues
Text = collections.namedtuple("Text", "text")
Close = collections.namedtuple("Close", "code")


class FrameParser:
    """Bytes in, events out. A broken rule is a Close, with the code that says so."""

    def __init__(self, buffer):
        self.buffer = buffer

    def receive_data(self, data):
        self.buffer += data

    def next_event(self):
        if len(self.buffer) < 2:
            return NEED_DATA
        kind, size = self.buffer[0], self.buffer[1] - 128
        start = 2 + {126: 2, 127: 8}.get(size, 0)  # a longer size has two or eight bytes of its own
        if size >= 126:
            size = int.from_bytes(self.buffer[2:start], "big")
        if size < 0 or size > MAX_MESSAGE:
            return Close(1002 if size < 0 else 1009)
        end = start + 4 + size
        if len(self.buffer) < end:
            return NEED_DATA
        data = unmask(self.buffer[start + 4 : end], self.buffer[start : start + 4])
        del self.buffer[:end]
        if kind == TEXT:
            return Text(data.decode(errors="replace"))
        return Close(1003 if kind != CLOSE else int.from_bytes(data[:2], "big") or 1005)


def unmask(data, mask):
    """XOR data with the mask over and over, as one large number: a loop would be slow."""
    key = (mask * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(len(data), "big")


def frame(kind, data):
    size = len(data)
    if size < 126:
        return bytes([kind, size]) + data
    wide = size > 65535
    return bytes([kind, 127 if wide else 126]) + size.to_bytes(8 if wide else 2, "big") + data


class Session(Cycle):
    """One WebSocket, as the app sees it."""

    gone = {"type": "websocket.disconnect", "code": 1006}

    def scope(self):
        return {**super().scope(), "type": "websocket", "subprotocols": []}

    async def send(self, message):
        if self.transport.state != "open":
            raise OSError("nobody is listening any more")
        if message["type"] == "websocket.accept":
            self.state = "open"
            self.transport.write(self.handshake())
            self.connection.parser = FrameParser(self.connection.parser.buffer)
            self.connection.reactor.ready.append(self.connection.advance)
        elif message["type"] == "websocket.send":
            self.transport.write(frame(TEXT, message["text"].encode()))
        else:
            self.close(message.get("code", 1000))
        while self.transport.paused and self.transport.state == "open":
            await self.connection.changed.wait()

    def handshake(self):
        key = dict(self.request.headers)[b"sec-websocket-key"]
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        head = b"HTTP/1.1 101 \r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        return head + b"Sec-WebSocket-Accept: %b\r\n\r\n" % base64.b64encode(digest)

    def close(self, code):
        self.transport.write(frame(CLOSE, b"" if code == 1005 else code.to_bytes(2, "big")))
        self.transport.close()


class WebSocketConnection(ASGIConnection):
    """A connection that may turn into a WebSocket."""

    def on_event(self, event):
        if isinstance(event, Request) and (b"upgrade", b"websocket") in event.headers:
            self.cycle = Session(self, event)
            self.cycle.put({"type": "websocket.connect"})
            self.parser.next_event = lambda: NEED_DATA  # until the app accepts
        elif isinstance(event, Text):
            self.cycle.put({"type": "websocket.receive", "text": event.text})
        elif isinstance(event, Close):
            self.cycle.put({"type": "websocket.disconnect", "code": event.code})
            self.cycle.close(event.code)
            self.parser.next_event = lambda: NEED_DATA
        else:
            super().on_event(event)
        self.changed.set()


PAGE = b"""<!doctype html><meta charset=utf-8><title>Chat</title><h1>Chat</h1>
<form><input autofocus placeholder="Say something"></form><pre></pre><script>
const [form, input, pre] = ["form", "input", "pre"].map(name => document.querySelector(name))
const socket = new WebSocket(`ws://${location.host}/`)
socket.onmessage = event => pre.append(event.data, "\\n")
form.onsubmit = () => { socket.send(input.value); input.value = ""; return false }</script>"""
room = set()


async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/html"), (b"content-length", b"%d" % len(PAGE))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": PAGE})
        return
    await receive()  # websocket.connect
    await send({"type": "websocket.accept"})
    room.add(send)
    while (message := await receive())["type"] == "websocket.receive":
        for member in list(room):
            with contextlib.suppress(OSError):  # it has just left
                await member({"type": "websocket.send", "text": message["text"]})
    room.remove(send)


if __name__ == "__main__":
    serve(WebSocketConnection, app)
