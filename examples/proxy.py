"""A reverse proxy: another server's answers, streamed both ways, with nothing kept.

    UPSTREAM=localhost:9000 python -m selectserve examples.proxy:app

This is what the native primitives are for: a non-blocking socket of one's own, and wait_readable
and wait_writable where a blocking one would have waited. A client that reads slowly parks the app
in send(); then nothing is read from upstream, which has to wait as well; likewise for an upload.
Each request has a connection of its own to upstream, and takes it along when it ends.
"""

import contextlib
import os
import re
import socket
import time

from selectserve import run_in_thread, sleep, spawn, wait_readable, wait_writable

PIECE = 65536  # bytes read at a time
MAX_HEAD = 65536  # bytes of a response's head
PATIENCE = float(os.environ.get("UPSTREAM_TIMEOUT", "60"))  # seconds without a byte from upstream
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;|$)")
STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: .*)?")
# RFC 9110 §7.6.1: these speak of one connection, and end with it. So does Expect: we answer it.
HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade expect".split()
)


class BadUpstream(Exception):
    """Upstream does not speak HTTP, or stops in the middle of it."""


class Upstream:
    """A connection to the other server, and what is read from it."""

    def __init__(self, family):
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.buffer = b""  # read and not yet used
        self.moved = time.monotonic()
        self.overdue = False
        self.watcher = spawn(self.watch())

    async def connect(self, address):
        with contextlib.suppress(BlockingIOError):
            self.sock.connect(address)
        await wait_writable(self.sock)
        error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error and not self.overdue:
            raise OSError(error, os.strerror(error))
        self.check_time()

    async def recv(self):
        """Return some bytes; b"" at the end."""
        if not self.buffer:
            await wait_readable(self.sock)
            self.buffer = self.sock.recv(PIECE)
            self.moved = time.monotonic()
            self.check_time()
        data, self.buffer = self.buffer, b""
        return data

    async def recv_until(self, mark):
        """Return the bytes before ``mark``, and skip it."""
        data = b""
        while mark not in data:
            piece = await self.recv()
            if not piece:
                raise BadUpstream("upstream has closed the connection")
            data += piece
            if len(data) > MAX_HEAD + PIECE:
                raise BadUpstream("upstream does not come to the point")
        data, _, self.buffer = data.partition(mark)
        return data

    async def recv_exactly(self, size):
        """Yield ``size`` bytes, in pieces."""
        while size:
            piece = await self.recv()
            if not piece:
                raise BadUpstream("upstream has closed the connection inside a body")
            piece, self.buffer = piece[:size], piece[size:]
            size -= len(piece)
            yield piece

    async def watch(self):
        """Hang up when nothing has come for PATIENCE seconds; run as a task."""
        while (left := self.moved + PATIENCE - time.monotonic()) > 0:
            await sleep(left)
        self.overdue = True
        self.hang_up()

    def check_time(self):
        if self.overdue:
            raise TimeoutError(f"upstream has said nothing for {PATIENCE} s")

    def hang_up(self):
        """End the connection in both directions, so that whoever waits for it goes on."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.watcher.cancel()
        self.sock.close()


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close"})
    if scope["type"] != "http":
        raise NotImplementedError(f"proxy speaks http only, not {scope['type']}")
    try:
        upstream = await connect(os.environ.get("UPSTREAM", "localhost:9000"))
    except OSError as error:
        return await refuse(send, error)
    sending = spawn(upload(scope, receive, upstream))
    try:
        try:
            status, headers, framing = await recv_head(upstream)
        except (OSError, BadUpstream) as error:
            return await refuse(send, error)
        head = {"type": "http.response.start", "status": status, "headers": end_to_end(headers)}
        await send(head)
        if scope["method"] != "HEAD" and status not in (204, 304):
            async for piece in recv_body(upstream, framing):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        sending.cancel()
        upstream.close()


async def connect(name):
    """Return a connection to the first address of ``name`` that takes one."""
    host, _, port = name.rpartition(":")
    host = host.strip("[]")
    found = await run_in_thread(socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM)
    for number, (family, _, _, _, address) in enumerate(found, 1):
        upstream = Upstream(family)
        try:
            await upstream.connect(address)
            return upstream
        except OSError:
            upstream.close()
            if number == len(found):
                raise
        except BaseException:
            upstream.close()
            raise


async def refuse(send, error):
    status = 504 if isinstance(error, TimeoutError) else 502
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{status}: {error}\n".encode()})


async def upload(scope, receive, upstream):
    """Send the request to upstream; then wait for the client to leave, and hang up."""
    # One task waits to read from upstream and this one to write. A selector knows a descriptor
    # only once, and so this is another descriptor of the same connection.
    with upstream.sock.dup() as writer, contextlib.suppress(ConnectionError):
        head, chunked = request_head(scope)
        await sendall(writer, head)
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return upstream.hang_up()
            data, more = message["body"], message["more_body"]
            if chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
                data += b"" if more else b"0\r\n\r\n"
            await sendall(writer, data)
        while (await receive())["type"] != "http.disconnect":
            pass
        upstream.hang_up()


async def sendall(sock, data):
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await wait_writable(sock)


def request_head(scope):
    """Return the head of the request to upstream, and whether its body goes in chunks."""
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    headers = end_to_end(scope["headers"])
    names = {name for name, _ in scope["headers"]}
    chunked = b"transfer-encoding" in names
    if chunked:
        headers.append((b"transfer-encoding", b"chunked"))
    if scope["client"]:
        headers.append((b"x-forwarded-for", scope["client"][0].encode()))
    headers += [(b"x-forwarded-proto", scope["scheme"].encode()), (b"connection", b"close")]
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n", chunked


def end_to_end(headers):
    """Return the headers without those that end here: the known ones and the ones named there."""
    ending = set(HOP_BY_HOP)
    for name, value in headers:
        if name == b"connection":
            ending.update(token.strip().lower() for token in value.split(b","))
    return [(name, value) for name, value in headers if name not in ending]


async def recv_head(upstream):
    """Return status, headers, and framing of the final response: its length, "chunked" or "end"."""
    while True:
        line, *lines = (await upstream.recv_until(b"\r\n\r\n")).split(b"\r\n")
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise BadUpstream(f"upstream has sent no status line: {line[:40]!r}")
        headers = []
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise BadUpstream(f"upstream has sent no header field: {line[:40]!r}")
            headers.append((name.lower(), value.strip(b" \t")))
        status = int(match[1])
        if status == 101:
            raise BadUpstream("upstream has changed the protocol, which nobody asked for")
        if status >= 200:
            return status, headers, framing_of(headers)


def framing_of(headers):
    """Read RFC 9112 §6.3; what could be read in two ways is refused."""
    codings = [value.lower() for name, value in headers if name == b"transfer-encoding"]
    lengths = [value for name, value in headers if name == b"content-length"]
    if codings == [b"chunked"] and not lengths:
        return "chunked"
    if codings or len(lengths) > 1 or not all(value.isdigit() for value in lengths):
        raise BadUpstream(f"upstream does not say how long its answer is: {codings + lengths}")
    return int(lengths[0]) if lengths else "end"


async def recv_body(upstream, framing):
    """Yield the body in pieces."""
    if framing == "end":
        while piece := await upstream.recv():
            yield piece
    elif framing != "chunked":
        async for piece in upstream.recv_exactly(framing):
            yield piece
    else:
        while size := await recv_chunk_size(upstream):
            async for piece in upstream.recv_exactly(size):
                yield piece
            if await upstream.recv_until(b"\r\n"):
                raise BadUpstream("upstream has sent a chunk of another size than it said")
        while await upstream.recv_until(b"\r\n"):
            pass  # trailers


async def recv_chunk_size(upstream):
    line = await upstream.recv_until(b"\r\n")
    match = CHUNK_SIZE.match(line)
    if match is None:
        raise BadUpstream(f"upstream has sent no chunk size: {line[:40]!r}")
    return int(match[1], 16)
