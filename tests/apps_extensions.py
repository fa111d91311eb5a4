"""An app that does what a request tells it to: the field X-Script is a list of steps.

A step is ``("kind", fields)``, a message of type ``http.response.kind``; a ``file`` among the
fields is a path that is opened once a request. What the other steps do is told by their methods. A
step that raises is told and the next one taken, so that a test sees what every ``send()`` did; at
the end one line ``APP tag [...]`` goes to stderr.

$FILES takes away, as another system would, what a test wants to be without: "sendfile", "cache"
(what is read at once), "threads".
"""

from __future__ import annotations

import ast
import errno
import os
import sys

from selectserve import run_in_thread, spawn

from .apps import gate, note, respond

MISSING = os.environ.get("FILES", "").split()


def refuse_sendfile(*_):
    raise OSError(errno.EINVAL, "the file is not one that can be sent")


def not_in_cache(*_):
    raise BlockingIOError(errno.EAGAIN, "the disk would have to be waited for")


if "sendfile" in MISSING:
    os.sendfile = refuse_sendfile
if "cache" in MISSING:
    os.preadv = not_in_cache
if "threads" in MISSING:
    sys.modules["concurrent.futures"] = None


class Turn:
    """``await Turn()`` means: again, next turn."""

    def __await__(self):
        yield


class Play:
    """One request: its open files, what was told, and the steps."""

    def __init__(self, scope, receive, send):
        self.scope, self.receive, self.send = scope, receive, send
        self.files = {}
        self.told = []
        self.task = None

    def file(self, path):
        """Open a file once."""
        if path not in self.files:
            self.files[path] = open(path, "rb")
        return self.files[path]

    async def message(self, kind, fields):
        """Send a message; tell the name of what it raised."""
        message = {"type": kind if "." in kind else f"http.response.{kind}", **fields}
        if isinstance(message.get("file"), str):
            message["file"] = self.file(message["file"])
        try:
            await self.send(message)
        except Exception as exc:
            self.told.append(f"{type(exc).__name__}: {exc}")
        else:
            self.told.append("")

    async def step(self, name, *details):
        """Do one step."""
        method = getattr(self, f"do_{name}", None)
        if method is None:
            await self.message(name, *details or ({},))
        else:
            await method(*details)

    async def do_read(self, path, size):
        """Read from a file as the app's own business."""
        self.file(path).read(size)

    async def do_tell(self, path):
        """Tell where a file stands."""
        self.told.append(self.file(path).tell())

    async def do_number(self, path, kind, fields):
        """Send a message with the descriptor itself as the file."""
        await self.message(kind, {**fields, "file": self.file(path).fileno()})

    async def do_memory(self, kind):
        """Send a message with a file that is none."""
        import io

        await self.message(kind, {"file": io.BytesIO(b"memory")})

    async def do_receive(self):
        """Tell the type of the next message."""
        self.told.append((await self.receive())["type"])

    async def do_gate(self, name):
        """Wait until the test opens a gate (see tests.apps)."""
        await gate(name).wait()

    async def do_turns(self, count):
        """Let others have their turns."""
        for _ in range(count):
            await Turn()

    async def do_spawn(self, *step):
        """Do a step in a task of its own."""
        self.task = spawn(self.step(*step))
        await Turn()

    async def do_cancel(self):
        """Cancel that task."""
        self.task.cancel()
        await self.do_turns(3)

    async def do_close(self, path):
        """Close a file, and open another that gets the same descriptor."""
        self.files.pop(path).close()
        self.file(__file__)

    async def do_raise(self):
        raise RuntimeError("by the script")

    async def do_thread(self):
        """Tell how a thread answers."""
        self.told.append(await run_in_thread(str, "thread"))


async def app(scope, receive, send):
    """Answer GET /scope with the extensions, /gate/NAME by opening that gate; else play."""
    if scope["type"] == "websocket":
        return await deny(scope, receive, send)
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    if scope["path"] == "/scope":
        found = repr(scope["extensions"]).encode()
        for content in scope["extensions"].values():
            content["left"] = "over"
        scope["extensions"]["left"] = "over"
        return await respond(send, found)
    if scope["path"].startswith("/gate/"):
        gate(scope["path"][6:]).set()
        return await respond(send)
    play = Play(scope, receive, send)
    try:
        for step in ast.literal_eval(dict(scope["headers"])[b"x-script"].decode()):
            await play.step(*step)
    finally:
        for file in play.files.values():
            file.close()
        note(scope, play.told)
    return None


async def deny(scope, receive, send):
    """Answer a WebSocket handshake with HTTP: the extensions, in two pieces."""
    await receive()
    kind = "websocket.http.response"
    headers = [(b"x-denied", b"yes")]
    await send({"type": f"{kind}.start", "status": 451, "headers": headers})
    await send({"type": f"{kind}.body", "body": b"no: ", "more_body": True})
    await send({"type": f"{kind}.body", "body": repr(scope["extensions"]).encode()})
