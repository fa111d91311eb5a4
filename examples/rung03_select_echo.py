"""03 · A select echo: wait for all of them at once.

Read first:  rung02_busy_echo.
New here:    the reactor. The kernel is asked one question, "who of these is ready?", and the only
             wait of the whole program is in it. One turn is a tick(): wait, then call the handler
             of each socket that is ready. A handler never waits: what it was called for can be
             done at once, and then it returns. Serving nobody costs nothing.
Still wrong: send() on a non-blocking socket takes what fits into the kernel's buffer and returns
             how much that was, or raises when it was nothing. Nobody looks, so that a client who
             sends faster than it reads gets a truncated echo. (Rung 02 has the same fault.)

    python -m examples.rung03_select_echo 8000
"""

import contextlib
import selectors
import socket
import sys

READ = selectors.EVENT_READ


class Reactor:
    """Waits until sockets are ready, and calls their handlers."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()

    def register(self, sock, interest, handler):
        """From now on call handler(ready) whenever sock is ready for what interest says."""
        self.selector.register(sock, interest, handler)

    def unregister(self, sock):
        self.selector.unregister(sock)

    def tick(self):
        """One turn: wait, and handle what is ready."""
        for key, ready in self.selector.select():
            key.data(ready)

    def run(self):
        while True:
            self.tick()


def listen(reactor, port, host="127.0.0.1"):
    """Accept clients, and make an Echo of each."""
    listener = socket.create_server((host, int(port)))
    listener.setblocking(False)

    def on_ready(ready):
        with contextlib.suppress(BlockingIOError, ConnectionError):  # gone again already
            Echo(reactor, listener.accept()[0])

    reactor.register(listener, READ, on_ready)
    print("listening on {}:{}".format(*listener.getsockname()), flush=True)


class Echo:
    """One client."""

    def __init__(self, reactor, sock):
        self.reactor = reactor
        self.sock = sock
        sock.setblocking(False)
        reactor.register(sock, READ, self.on_ready)

    def on_ready(self, ready):
        """Echo one piece, or say good-bye."""
        try:
            data = self.sock.recv(1024)
            self.sock.send(data)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        if not data:
            self.reactor.unregister(self.sock)
            self.sock.close()


if __name__ == "__main__":
    reactor = Reactor()
    listen(reactor, *sys.argv[:0:-1])
    with contextlib.suppress(KeyboardInterrupt):
        reactor.run()
