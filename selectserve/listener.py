"""listener: a listening socket, from which connections are accepted a few a turn.

A Listener is a handler that accepts at most ``MAX_ACCEPTS`` connections a turn and hands each to
``accepted(listener, sock, address)``; the socket was bound by `sockets`. When
the process is out of descriptors it leaves the selector for a moment instead of
spinning: the clients wait in the backlog and are served when others have left.
"""

from __future__ import annotations

import errno
import socket

from .errors import ConfigError
from .reactor import EVENT_READ, Reactor, Timer
from .sockets import bind_trouble, describe_address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

MAX_ACCEPTS = 64  # a turn; with more, a flood of connects would starve those already here
BACK_OFF = 0.1  # seconds without accepting when out of descriptors or memory
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


def listen_on(sock: socket.socket, backlog: int) -> None:
    """Let clients connect; raise ConfigError if somebody else was faster to listen."""
    try:
        sock.listen(min(backlog, 0x7FFFFFFF))
    except OSError as exc:
        raise ConfigError(bind_trouble(describe_address(sock), exc), 3) from None


class Listener:
    """Accept connections from ``sock``; ``pause`` and ``close`` may be called at any time."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        accepted: Callable[[Listener, socket.socket, Any], None],
        backlog: int = 2048,
    ) -> None:
        self.reactor = reactor
        self.sock = sock
        self.accepted = accepted
        self.backlog = backlog
        self.retry: Timer | None = None
        self.listening = False
        self.refused = 0  # how often the process was out of descriptors
        sock.setblocking(False)

    def __repr__(self) -> str:
        return f"<Listener {describe_address(self.sock)}>"

    def start(self) -> None:
        """Begin to accept; raise ConfigError if somebody else was faster."""
        if not self.listening:
            listen_on(self.sock, self.backlog)
            self.listening = True
            self.reactor.register(self.sock, EVENT_READ, self.on_connect)

    def pause(self) -> None:
        """Accept nothing until ``start``; clients wait in the backlog."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        if self.listening:
            self.listening = False
            self.reactor.unregister(self.sock)

    def on_connect(self, _ready: int) -> bool:
        """Accept those who wait, but only so many that the others get their turn; all: False."""
        for _ in range(MAX_ACCEPTS):
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return False
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    self.back_off()
                    return False
                continue  # the client left before it was accepted: ECONNABORTED and the like
            self.accepted(self, sock, address)
            if not self.listening:  # somebody paused or closed us meanwhile
                return False
        return True

    def accept_rest(self) -> None:
        """Accept all who wait already: closing the last copy of the socket resets them."""
        for _ in range(1 + self.backlog // MAX_ACCEPTS):
            if not self.listening or not self.on_connect(EVENT_READ):
                return

    def back_off(self) -> None:
        """Leave the selector for a moment: a level-triggered listener would spin."""
        self.refused += 1
        self.pause()
        self.retry = self.reactor.call_later(BACK_OFF, self.try_again)

    def try_again(self) -> None:
        """Listen again after a back-off."""
        self.retry = None
        self.start()

    def close(self) -> None:
        """Stop for good and release the socket."""
        self.pause()
        self.sock.close()
