"""04 · Buffers and watermarks: what cannot leave yet is kept, and not too much of it.

Read first:  rung03_select_echo.
New here:    a transport moves the bytes of one connection, a protocol says what they mean. write()
             never waits: it keeps. flush() sends once, at the end of the tick, and only what a
             short send has left makes us wait for EVENT_WRITE. Above the high watermark the
             protocol is told to pause, and stops reading: who does not read is not read from.
Still wrong: nobody has a deadline: a client that neither reads nor leaves keeps its place for ever.
             And the server cannot be told to finish and stop, only be killed.

    python -m examples.rung04_buffers 8000
"""

import contextlib
import selectors
import socket
import sys

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
HIGH_WATER, LOW_WATER = 65536, 16384  # bytes kept for a client: stop above, go on below


class Reactor:
    """Waits until sockets are ready, and calls their handlers."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()
        self.register = self.selector.register  # (sock, interest, handler)
        self.modify, self.unregister = self.selector.modify, self.selector.unregister
        self.unflushed = set()  # transports with something new to send

    def tick(self):
        """One turn: wait, handle what is ready, flush."""
        for key, ready in self.selector.select():
            key.data(ready)
        while self.unflushed:
            self.unflushed.pop().flush()


class Transport:
    """Moves the bytes of one connection, and tells its protocol what happens."""

    def __init__(self, reactor, sock, protocol):
        self.reactor, self.sock, self.protocol = reactor, sock, protocol
        self.state = "open"  # then "closing", while the buffer empties, then "closed"
        self.buffer = bytearray()  # written by the protocol, not yet taken by the kernel
        self.paused = False  # the protocol was told to pause_writing
        self.reading = self.interest = READ  # does the protocol read; what the selector was told
        sock.setblocking(False)
        reactor.register(sock, READ, self.on_ready)
        protocol.connection_made(self)

    def on_ready(self, ready):
        if ready & WRITE:
            self.flush()
        if ready & READ and self.state == "open":
            self.read()

    def read(self):
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            return self.abort()
        if data:
            return self.protocol.data_received(data)
        self.protocol.eof_received()

    def write(self, data):
        """Keep data; it leaves at the end of this tick."""
        self.buffer += data
        self.reactor.unflushed.add(self)
        if len(self.buffer) > HIGH_WATER and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def flush(self):
        try:
            del self.buffer[: self.sock.send(self.buffer)]
        except BlockingIOError:
            pass
        except OSError:  # it may also be closed already: then abort() has nothing to do
            return self.abort()
        if self.state == "closing" and not self.buffer:
            return self.abort()
        if self.paused and len(self.buffer) < LOW_WATER:
            self.paused = False
            self.protocol.resume_writing()
        interest = self.reading if self.state == "open" else 0
        interest |= WRITE if self.buffer else 0
        if interest != self.interest:
            self.interest = interest
            self.reactor.modify(self.sock, interest, self.on_ready)

    def close(self):
        """Read no more, send what is left, then close."""
        if self.state == "open":
            self.state = "closing"
            self.reactor.unflushed.add(self)

    def abort(self):
        if self.state != "closed":
            self.state = "closed"
            self.reactor.unregister(self.sock)
            self.sock.close()
            self.protocol.connection_lost()


class Protocol:
    def connection_made(self, transport):
        self.transport = transport

    def eof_received(self):
        self.transport.close()

    def connection_lost(self): ...

    def pause_writing(self):
        self.transport.reading = 0  # the flush at the end of the tick tells the selector

    def resume_writing(self):
        self.transport.reading = READ


class Echo(Protocol):
    def data_received(self, data):
        self.transport.write(data)


def listen(reactor, make_protocol, port, host="127.0.0.1"):
    """Accept clients, and give each a transport and a protocol."""
    listener = socket.create_server((host, int(port)))
    listener.setblocking(False)

    def on_ready(ready):
        with contextlib.suppress(BlockingIOError, ConnectionError):  # gone again already
            Transport(reactor, listener.accept()[0], make_protocol())

    reactor.register(listener, READ, on_ready)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)
    return listener


if __name__ == "__main__":
    reactor = Reactor()
    listen(reactor, Echo, *sys.argv[:0:-1])
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            reactor.tick()
