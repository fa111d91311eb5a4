"""What the tests stand on: a real server, a raw client, and a clock, selector and socket to script.

Nothing here sleeps. Whatever waits has a deadline, and a deadline that passes is a failure that
says what it was waiting for (but in ``is_silent``).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import queue
import random
import re
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

try:
    import pypyjit
except ImportError:
    pypyjit = None

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
OUR_FILES = f"{ROOT / 'selectserve'}{os.sep}"  # the clone may be called so, too
DEADLINE = 30.0  # seconds; generous, since it only ever passes when something is broken
START_DEADLINE = 60.0  # an app's imports, on a machine that has other things to do
# What a server of ours does after a while is asked for by the test that waits for it. No other test
# depends on how slow the machine is: no idle connection ends under it, and a shutdown that would
# wait for its deadline is seen.
PATIENT = {
    f"SELECTSERVE_TIMEOUT_{what}": "300"
    for what in ("KEEP_ALIVE", "HANDSHAKE", "HEADER", "BODY", "GRACEFUL_SHUTDOWN")
}
UNDER_TEST = os.environ.get("SELECTSERVE_UNDER_TEST", "")  # a built selectserve.py, or nothing


def server_command(*arguments: str) -> list[str]:
    """Return the command line of the server under test: the package, or the built single file."""
    if not UNDER_TEST:
        return [sys.executable, "-m", "selectserve", *arguments]
    compiled = UNDER_TEST + "c"  # of python3 -m tests --bundled: saves compiling at each start
    return [sys.executable, compiled if os.path.exists(compiled) else UNDER_TEST, *arguments]


def run_server(
    *arguments: str, deadline: float = DEADLINE, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end: for usage errors, ``--version`` and failing starts."""
    options.setdefault("cwd", ROOT)
    return subprocess.run(
        server_command(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=deadline,
        **options,
    )


def free_ports(number: int) -> list[int]:
    """Return ports that are free now, and that nobody is given who asks the system for any.

    Else a server that ends and starts again may find a client's connection on its own port.
    """
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        first = 32768
    candidates = iter(random.sample(range(first // 2, first), first // 4))
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < number:
            port = next(candidates)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
                ports.append(port)
        return ports


class Lines:
    """The lines of a pipe, read by a thread as they come; ``wait_for`` blocks until one matches."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.lines: list[str] = []
        self.ended = False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self.read, daemon=True)
        self.thread.start()

    def read(self) -> None:
        """Collect lines until the pipe ends."""
        for line in self.pipe:
            with self.changed:
                self.lines.append(line.decode("utf-8", "replace").rstrip("\n"))
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def wait_for(
        self, pattern: str, deadline: float = DEADLINE, start: int = 0, count: int = 1
    ) -> re.Match[str] | None:
        """Return match number ``count`` of ``pattern`` from line ``start`` on, or None."""
        end = time.monotonic() + deadline
        with self.changed:
            while True:
                for line in self.lines[start:]:
                    match = re.search(pattern, line)
                    if match:
                        count -= 1
                        if count == 0:
                            return match
                start = max(start, len(self.lines))
                left = end - time.monotonic()
                if self.ended or left <= 0:
                    return None
                self.changed.wait(left)

    def text(self) -> str:
        """Return what was read so far."""
        with self.changed:
            return "\n".join(self.lines)

    def close(self) -> None:
        """Wait for the end of the pipe, whose writers have been killed, and close it."""
        self.thread.join(DEADLINE)
        self.pipe.close()


class Server:
    """A real server process: ``Server("tests.apps:echo", "--lifespan", "off")``; see ``serve``."""

    def __init__(
        self,
        app: str,
        *arguments: str,
        env: dict[str, str] | None = None,
        cwd: Path = ROOT,
        program: list[str] | None = None,  # another server's, which takes the same arguments
    ) -> None:
        command = server_command(app, *arguments)
        if program is not None:
            command = [*program, app, *arguments]
        if not {"--port", "--uds", "--fd"} & set(arguments):
            command += ["--port", "0"]
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **PATIENT, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.stdout = Lines(self.process.stdout)
        self.stderr = Lines(self.process.stderr)
        self.host, self.port = "127.0.0.1", 0
        self.marks = itertools.count()
        try:
            where = r"https?://(\[[^\]]+\]|[\w.\-]+):(\d+)|unix:\S+"
            url = self.wait_for_log(where, START_DEADLINE)
        except BaseException:
            self.kill()
            raise
        if url[2]:
            self.host, self.port = url[1].strip("[]"), int(url[2])

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect."""
        return self.host, self.port

    def log_text(self) -> str:
        """Return what the server wrote to stderr so far."""
        return self.stderr.text()

    def log_position(self) -> int:
        """Return the number of log lines so far, to be given to ``wait_for_log(start=...)``."""
        return len(self.stderr.lines)

    def wait_for_log(
        self, pattern: str, deadline: float = DEADLINE, start: int = 0, count: int = 1
    ) -> re.Match[str]:
        """Return the match of log line number ``count`` with ``pattern``; fail without it.

        What the server wrote before it answered may be read here only after the answer: a log line
        is waited for; whether one is missing is asked of ``complete_log``.
        """
        match = self.stderr.wait_for(pattern, deadline, start, count)
        assert match, f"no log line matches {pattern!r}; the log:\n{self.log_text()}"
        return match

    def complete_log(self) -> str:
        """Return all that was logged until now, by a server of ``tests.apps:app``."""
        mark = f"mark-{next(self.marks)}"
        with self.connect() as client:
            client.get(f"/mark?{mark}")
        self.wait_for_log(f"APP {mark} is here")
        return self.log_text()

    def wait_for_access(self, pattern: str, deadline: float = DEADLINE) -> re.Match[str]:
        """Return the match of a line of the access log, which goes to stdout."""
        match = self.stdout.wait_for(pattern, deadline)
        assert match, f"no access line matches {pattern!r}; there are:\n{self.stdout.text()}"
        return match

    def connect(self, **options: Any) -> RawClient:
        """Open a connection to the server."""
        return RawClient(self.address, **options)

    def send_signal(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and go on."""
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Return the exit code of a server that ends by itself; fail when it does not in time."""
        try:
            code = self.process.wait(deadline)
            self.stdout.thread.join(DEADLINE)  # all that it wrote is in our hands then
            self.stderr.thread.join(DEADLINE)
            return code
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"the server still runs after {deadline} s; the log:\n{self.log_text()}"
            ) from None

    def stop(self, number: int = signal.SIGTERM, deadline: float = DEADLINE) -> int:
        """Send a signal and return the exit code; fail when the server does not end in time."""
        self.send_signal(number)
        return self.wait(deadline)

    def kill(self) -> None:
        """End the process whatever it does, and close our ends of its pipes."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE)
        self.stdout.close()
        self.stderr.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()


class BadResponse(AssertionError):
    """The server sent bytes that are not a response by RFC 9112."""


class Response:
    """One response as the wire had it; ``complete`` is False when the stream ended inside it."""

    def __init__(self, version: str, status: int, reason: str) -> None:
        self.version = version
        self.status = status
        self.reason = reason
        self.headers: list[tuple[bytes, bytes]] = []  # names as sent
        self.trailers: list[tuple[bytes, bytes]] = []
        self.body = b""
        self.chunks: list[bytes] = []  # the body as the chunked coding cut it
        self.framing = ""  # "none", "length", "chunked" or "close"
        self.raw = b""  # head and body, without the interim responses
        self.interim: list[Response] = []
        self.complete = False

    def all(self, name: str) -> list[bytes]:
        """Return the values of a field, in order."""
        wanted = name.lower().encode()
        return [value for field, value in self.headers if field.lower() == wanted]

    def get(self, name: str) -> bytes | None:
        """Return the value of a field that must not be repeated, None without it."""
        values = self.all(name)
        assert len(values) < 2, f"{name} is there {len(values)} times: {self.headers}"
        return values[0] if values else None

    def __repr__(self) -> str:
        return (
            f"<Response {self.status} {self.headers} {self.body[:80]!r} complete={self.complete}>"
        )


class RawClient:
    """A socket with a deadline and a response parser that forgives nothing."""

    STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-9][0-9]{2}) ([\t \x21-\x7e\x80-\xff]*)")
    FIELD_LINE = re.compile(
        rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[\x21-\x7e\x80-\xff][\t \x21-\x7e\x80-\xff]*)?)"
    )

    def __init__(
        self, address: Any, deadline: float = DEADLINE, receive_buffer: int | None = None
    ) -> None:
        self.deadline = deadline
        self.buffer = bytearray()  # received and not yet read
        self.ended = False  # the server's FIN has been seen
        family = socket.AF_INET
        if isinstance(address, str):
            family = socket.AF_UNIX
        elif ":" in address[0]:
            family = socket.AF_INET6
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(deadline)
        if receive_buffer:  # before connect, or the window is negotiated without it
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(address)
            if family != socket.AF_UNIX:
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            self.socket.close()
            raise

    # -- sending ------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Send all of ``data``."""
        self.socket.settimeout(self.deadline)
        self.socket.sendall(data)

    def get(self, target: str = "/", *headers: str, version: str = "1.1") -> Response:
        """Send a GET and read its response."""
        self.request("GET", target, *headers, version=version)
        return self.read_response()

    def request(
        self, method: str, target: str = "/", *headers: str, body: bytes = b"", version: str = "1.1"
    ) -> None:
        """Send a request with a Host, and a Content-Length when there is a body."""
        lines = [f"{method} {target} HTTP/{version}", "Host: test", *headers]
        if body:
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    def upgrade(self, *headers: str, target: str = "/") -> None:
        """Ask for a WebSocket."""
        own = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
        self.request("GET", target, *own, key, *headers)

    def half_close(self) -> None:
        """Say that no more will be sent; reading goes on."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST instead of a FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    # -- receiving ----------------------------------------------------------------------------

    def receive(self, end: float) -> bool:
        """Add what comes next to the buffer; False at the end of the stream."""
        if self.ended:
            return False
        left = end - time.monotonic()
        if left > 0:
            self.socket.settimeout(left)
            try:
                data = self.socket.recv(65536)
            except socket.timeout:
                pass
            else:
                self.buffer += data
                self.ended = not data
                return bool(data)
        raise AssertionError(f"nothing came in time; unread so far: {bytes(self.buffer[:200])!r}")

    def take(self, size: int) -> bytes:
        """Remove ``size`` bytes from the buffer."""
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_exactly(self, size: int) -> bytes:
        """Return the next ``size`` bytes, fewer only when the stream ended."""
        end = time.monotonic() + self.deadline
        while len(self.buffer) < size and self.receive(end):
            pass
        return self.take(size)

    def read_until(self, mark: bytes) -> bytes:
        """Return the bytes up to and with ``mark``; all there are when the stream ended."""
        end = time.monotonic() + self.deadline
        start = 0
        while True:
            found = self.buffer.find(mark, start)
            if found >= 0:
                return self.take(found + len(mark))
            start = max(0, len(self.buffer) - len(mark) + 1)
            if not self.receive(end):
                return self.take(len(self.buffer))

    def read_until_close(self) -> bytes:
        """Return all bytes up to the server's FIN; a reset is raised as ConnectionResetError."""
        end = time.monotonic() + self.deadline
        while self.receive(end):
            pass
        return self.take(len(self.buffer))

    def is_closed(self) -> bool:
        """Wait for the server's FIN or RST: True when it is the next thing that comes."""
        try:
            return not self.buffer and not self.receive(time.monotonic() + self.deadline)
        except ConnectionError:
            return True

    def is_silent(self, seconds: float = 0.2) -> bool:
        """True when nothing comes, not even a FIN, for ``seconds``: for what must *not* happen."""
        if self.buffer or self.ended:
            return False
        self.socket.settimeout(seconds)
        try:
            data = self.socket.recv(65536)
        except socket.timeout:
            return True
        self.buffer += data
        self.ended = not data
        return False

    def read_response(self, method: str = "GET") -> Response:
        """Read one final response, with its interim responses, as RFC 9112 §6.3 frames it."""
        interim = []
        while True:
            response = self.read_head()
            if response.status >= 200 or response.status == 101:
                break
            self.check_without_body(response)
            interim.append(response)
        response.interim = interim
        self.read_body(response, method)
        return response

    def read_head(self) -> Response:
        """Read a status line and the header section."""
        head = self.read_until(b"\r\n\r\n")
        if not head.endswith(b"\r\n\r\n"):
            raise BadResponse(f"the stream ended inside a response head: {head!r}")
        line, *fields = head[:-4].split(b"\r\n")
        match = self.STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadResponse(f"not a status line: {line!r}")
        response = Response(match[1].decode(), int(match[2]), match[3].decode("latin-1"))
        response.headers = [self.read_field(field) for field in fields]
        response.raw = head
        return response

    def read_field(self, line: bytes) -> tuple[bytes, bytes]:
        """Read one field line."""
        match = self.FIELD_LINE.fullmatch(line)
        if match is None:
            raise BadResponse(f"not a field line: {line!r}")
        return match[1], match[2].rstrip(b" \t")

    def check_without_body(self, response: Response) -> None:
        """RFC 9110 §8.6, RFC 9112 §6.1: no framing fields where there can be no body."""
        for name in ("content-length", "transfer-encoding"):
            if response.all(name):
                raise BadResponse(f"{name} in a {response.status} response: {response.headers}")
        response.framing, response.complete = "none", True

    def read_body(self, response: Response, method: str) -> None:
        """Read the body by the rules of RFC 9112 §6.3, which name exactly one framing."""
        lengths = response.all("content-length")
        codings = response.all("transfer-encoding")
        if lengths and codings:
            raise BadResponse(f"both Content-Length and Transfer-Encoding: {response.headers}")
        if len(lengths) > 1 or len(codings) > 1:
            raise BadResponse(f"repeated framing fields: {response.headers}")
        if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
            raise BadResponse(f"not a length: {lengths[0]!r}")
        if codings and codings[0] != b"chunked":
            raise BadResponse(f"not a coding of ours: {codings[0]!r}")
        if response.status in (101, 204):
            self.check_without_body(response)
        elif method == "HEAD" or response.status == 304:
            response.framing, response.complete = "none", True
        elif codings:
            response.framing = "chunked"
            self.read_chunks(response)
        elif lengths:
            response.framing = "length"
            response.body = self.read_exactly(int(lengths[0]))
            response.raw += response.body
            response.complete = len(response.body) == int(lengths[0])
        else:
            response.framing = "close"
            response.body = self.read_until_close()
            response.raw += response.body
            response.complete = True

    def read_chunks(self, response: Response) -> None:
        """Read a chunked body (RFC 9112 §7.1) and its trailer section."""
        while True:
            line = self.read_until(b"\r\n")
            response.raw += line
            if not line.endswith(b"\r\n"):
                return
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,16}\r\n", line):
                raise BadResponse(f"not a chunk size: {line!r}")
            size = int(line, 16)
            if size == 0:
                break
            data = self.read_exactly(size + 2)
            response.raw += data
            response.body += data[:size]
            response.chunks.append(data[:size])
            if len(data) < size + 2:
                return
            if data[size:] != b"\r\n":
                raise BadResponse(f"no line end after a chunk: {data[size:]!r}")
        while True:
            line = self.read_until(b"\r\n")
            response.raw += line
            if not line.endswith(b"\r\n"):
                return
            if line == b"\r\n":
                response.complete = True
                return
            response.trailers.append(self.read_field(line[:-2]))

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RecordedClient(RawClient):
    """The same parser over bytes that are there already, followed by the end of the stream."""

    def __init__(self, data: bytes) -> None:
        self.deadline = DEADLINE
        self.buffer = bytearray(data)
        self.ended = True


class FakeClock:
    """A monotonic clock that stands still until it is told to go on."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass."""
        assert seconds >= 0, "a monotonic clock never goes back"
        self.now += seconds


HANGUP = 16  # for set_ready: told unasked, also to those who wait for nothing


class FakeSelector:
    """A selector whose test says what is ready: ``selector.set_ready(sock, EVENT_READ)``.

    With a FakeClock a wait in which nothing is ready lets its whole time-out pass at once; a wait
    without time-out and with nothing ready would last for ever, and fails the test.
    """

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.clock = clock
        self.keys: dict[Any, selectors.SelectorKey] = {}
        self.ready: dict[Any, int] = {}
        self.waits: list[float | None] = []  # the time-outs given to select
        self.calls: list[tuple[Any, ...]] = []  # register, modify, unregister, close
        self.closed = False

    def set_ready(self, fileobj: Any, events: int) -> None:
        """Make ``events`` ready at the next select, as far as they are registered."""
        self.ready[fileobj] = self.ready.get(fileobj, 0) | events

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        if fileobj in self.keys:
            raise KeyError(f"{fileobj!r} is already registered")
        if not events or events & ~(selectors.EVENT_READ | selectors.EVENT_WRITE):
            raise ValueError(f"invalid events: {events!r}")
        self.calls.append(("register", fileobj, events))
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        self.keys[fileobj] = selectors.SelectorKey(fileobj, fd, events, data)
        return self.keys[fileobj]

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self.keys[fileobj]
        self.calls.append(("modify", fileobj, events))
        self.keys[fileobj] = selectors.SelectorKey(fileobj, key.fd, events, data)
        return self.keys[fileobj]

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        self.calls.append(("unregister", fileobj))
        self.ready.pop(fileobj, None)
        return self.keys.pop(fileobj)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self.keys[fileobj]

    def get_map(self) -> dict[Any, selectors.SelectorKey]:
        return self.keys

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.waits.append(timeout)
        ready, self.ready = self.ready, {}
        result = []
        for fileobj, events in ready.items():
            key = self.keys.get(fileobj)
            if key is not None and (key.events & events or not key.events and events & HANGUP):
                result.append((key, key.events & events))
        if not result and self.clock is not None:
            assert timeout is not None, "would wait for ever: nothing is ready and no timer is set"
            self.clock.advance(max(0.0, timeout))
        return result

    def close(self) -> None:
        self.calls.append(("close",))
        self.keys.clear()
        self.closed = True


class ScriptedSocket:
    """A non-blocking socket that plays a script.

    ``recv`` and ``send`` take their next step from a list: bytes to be received, the number of
    bytes that a send accepts, or an exception to be raised. After its last step ``recv`` would
    block and ``send`` accepts all. ``sent`` is what was accepted, ``calls`` what was called.
    """

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    numbers = iter(range(1000, 1 << 30))

    def __init__(self, recv: list[Any] | None = None, send: list[Any] | None = None) -> None:
        self.to_receive = list(recv or [])
        self.to_accept = list(send or [])
        self.sent = b""
        self.calls: list[tuple[Any, ...]] = []
        self.options: list[tuple[Any, ...]] = []
        self.closed = False
        self.error = 0  # the SO_ERROR of a connection that was reset
        self.number = next(self.numbers)

    def recv(self, size: int, flags: int = 0) -> bytes:
        self.check_open()
        step = self.to_receive.pop(0) if self.to_receive else BlockingIOError("would block")
        if not isinstance(step, (bytes, bytearray)):
            self.calls.append(("recv", size, step))
            raise step
        data, rest = bytes(step[:size]), step[size:]
        if rest:
            self.to_receive.insert(0, rest)
        self.calls.append(("recv", size, len(data)))
        return data

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        data = self.recv(size or len(buffer), flags)
        buffer[: len(data)] = data
        return len(data)

    def send(self, data: Any, flags: int = 0) -> int:
        self.check_open()
        data = bytes(data)
        step = self.to_accept.pop(0) if self.to_accept else len(data)
        if not isinstance(step, int):
            self.calls.append(("send", len(data), step))
            raise step
        accepted = min(step, len(data))
        self.sent += data[:accepted]
        self.calls.append(("send", len(data), accepted))
        return accepted

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        return self.send(b"".join(bytes(buffer) for buffer in buffers))

    def shutdown(self, how: int) -> None:
        self.check_open()
        self.calls.append(("shutdown", how))

    def close(self) -> None:
        if not self.closed:
            self.calls.append(("close",))
        self.closed = True

    def check_open(self) -> None:
        """A closed descriptor may belong to somebody else by now: using it is a bug of ours."""
        assert not self.closed, "the socket is used after it was closed"

    def fileno(self) -> int:
        return -1 if self.closed else self.number

    def setblocking(self, blocking: bool) -> None:
        self.calls.append(("setblocking", blocking))

    def setsockopt(self, *option: Any) -> None:
        self.options.append(option)

    def getsockopt(self, level: int, option: int) -> int:
        self.check_open()
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        error, self.error = self.error, 0
        return error

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50000

    def names(self) -> list[str]:
        """Return the names of the calls so far, in order."""
        return [call[0] for call in self.calls]


class Askers:
    """Clients that ask one request after the other until told to stop, and remember what failed.

    ``ask(client)``, of a subclass, asks one on a RawClient and returns the response. A connection
    is kept until the server says that it closes it.
    """

    def __init__(self, address: Any, clients: int = 4) -> None:
        self.address = address
        self.ending = threading.Event()
        self.answered = 0
        self.failures: list[str] = []
        self.changed = threading.Condition()
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def ask(self, client: RawClient) -> Response:
        """Ask one request; what it raises is a failure."""
        raise NotImplementedError

    def run(self) -> None:
        """Be one client."""
        client = None
        while not self.ending.is_set():
            try:
                client = client or RawClient(self.address)
                response = self.ask(client)
                assert response.status == 200 and response.complete, response
                if response.get("connection") == b"close":
                    client.close()
                    client = None
            except (OSError, AssertionError) as exc:
                self.failures.append(repr(exc))
                if client is not None:
                    client.close()
                client = None
            with self.changed:
                self.answered += 1
                self.changed.notify_all()
        if client is not None:
            client.close()

    def wait_until(self, enough: Callable[[], bool]) -> None:
        """Go on until ``enough()``."""
        with self.changed:
            assert self.changed.wait_for(enough, DEADLINE), (self.answered, self.failures[:5])

    def go_on(self, requests: int = 100) -> None:
        """Go on until so many more were answered."""
        wanted = self.answered + requests
        self.wait_until(lambda: self.answered >= wanted)

    def end(self) -> Any:
        """Stop, and fail if anything was lost."""
        self.ending.set()
        for thread in self.threads:
            thread.join(DEADLINE)
        assert not self.failures, (len(self.failures), self.answered, self.failures[:5])


def parallel(count: int, function: Any) -> list[Any]:
    """Return ``[function(0), …]``, called in ``count`` threads; the first exception is raised."""
    results: queue.Queue[tuple[int, Any, BaseException | None]] = queue.Queue()

    def call(number: int) -> None:
        try:
            results.put((number, function(number), None))
        except BaseException as exc:
            results.put((number, None, exc))

    for number in range(count):
        threading.Thread(target=call, args=(number,), daemon=True).start()
    gathered = sorted((results.get(timeout=3 * DEADLINE) for _ in range(count)), key=lambda r: r[0])
    for _, _, failure in gathered:
        if failure is not None:
            raise failure
    return [result for _, result, _ in gathered]


@contextlib.contextmanager
def steady_interpreter() -> Iterator[None]:
    """Let equal work take equal time: no garbage collection, no code compiled half-way (PyPy)."""
    set_param = pypyjit.set_param if pypyjit else str
    set_param("off")
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        set_param("default")


def cpu_time(action: Callable[[], Any], repeats: int = 1) -> float:
    """Return the mean CPU time of ``action`` in seconds."""
    if pypyjit:
        gc.collect()  # what zlib holds for an object goes with the object only
    begun = time.process_time()
    for _ in range(repeats):
        action()
    return (time.process_time() - begun) / repeats


def assert_linear(once: Callable[[], Any], twice: Callable[[], Any]) -> None:
    """Hold that ``twice``, with twice the input of ``once``, takes less than three times as long.

    The least of several runs of each counts. They take turns, so that whatever else the machine
    does meets both alike, and go on for as long as that might explain a failure.
    """
    actions, least = (once, twice), [float("inf"), float("inf")]
    with steady_interpreter():
        repeats = max(1, int(0.004 / max(cpu_time(once), 1e-6)))  # long enough for the clock
        for number in range(40):
            least = [min(old, cpu_time(do, repeats)) for old, do in zip(least, actions)]
            if number >= 2 and least[1] < 3 * least[0]:
                return
    raise AssertionError(f"{least[0]:.6f} s for once, {least[1]:.6f} s for twice the input")


def splits(data: bytes) -> Iterator[list[bytes]]:
    """Yield ``data`` whole, byte by byte, and cut in two at every position."""
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    for cut in range(1, len(data)):
        yield [data[:cut], data[cut:]]
