"""listener: a listening socket, from which connections are accepted a few a turn.

``open_*`` bind (the only place that does); a Listener is a handler that accepts at most
``MAX_ACCEPTS`` connections a turn and hands each to ``accepted(listener, sock, address)``. When
the process is out of descriptors it stops listening to the selector for a moment instead of
spinning: the clients wait in the backlog and are served when others have left.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from .errors import ConfigError
from .reactor import EVENT_READ, Reactor, Timer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

MAX_ACCEPTS = 64  # a turn; with more, a flood of connects would starve those already here
BACK_OFF = 0.1  # seconds without accepting when out of descriptors or memory
EXHAUSTED = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


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
            try:
                self.sock.listen(self.backlog)
            except OSError as exc:
                raise ConfigError(bind_trouble(describe_address(self.sock), exc), 3) from None
            self.listening = True
            self.reactor.register(self.sock, EVENT_READ, self.on_connect)

    def pause(self) -> None:
        """Accept nothing until ``start``; clients wait in the backlog."""
        if self.listening:
            self.listening = False
            self.reactor.unregister(self.sock)

    def on_connect(self, _ready: int) -> None:
        """Accept those who wait, but only so many that the others get their turn."""
        for _ in range(MAX_ACCEPTS):
            try:
                sock, address = self.sock.accept()
            except BlockingIOError:
                return
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    self.back_off()
                    return
                continue  # the client left before it was accepted: ECONNABORTED and the like
            self.accepted(self, sock, address)
            if not self.listening:  # somebody paused or closed us meanwhile
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
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        self.sock.close()


def open_tcp(host: str, port: int, reuse_port: bool = False) -> socket.socket:
    """Bind ``host``:``port``; raise ConfigError that names what is wrong."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise ConfigError(f"cannot resolve host {host!r}: {exc.strerror}") from None
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows it would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise ConfigError("this system has no SO_REUSEPORT: leave the option out")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == getattr(socket, "AF_INET6", None):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError as exc:
        sock.close()
        raise ConfigError(bind_trouble(f"{host}:{port}", exc), 3) from None
    except ConfigError:
        sock.close()
        raise
    return sock


def open_unix(path: str, permissions: int | None = None) -> socket.socket:
    """Bind a unix socket; a stale file is replaced, anything else at ``path`` is left alone."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("this system has no unix sockets: use --host and --port")
    abstract = path.startswith("@")
    address: str | bytes = b"\0" + os.fsencode(path[1:]) if abstract else path
    if not abstract:
        remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address)
        if permissions is not None and not abstract:
            os.chmod(path, permissions)
    except OSError as exc:
        sock.close()
        raise ConfigError(bind_trouble(f"unix:{path}", exc), 3) from None
    return sock


def open_fd(number: int) -> socket.socket:
    """Take over a listening socket that was inherited as descriptor ``number``."""
    try:
        sock = socket.socket(fileno=number)
    except OSError as exc:
        raise ConfigError(f"descriptor {number} is not a socket: {exc.strerror}") from None
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (OSError, AttributeError):
        listening = 1  # this system cannot tell; accept() will
    if not listening:
        sock.detach()
        raise ConfigError(f"descriptor {number} is a socket that does not listen")
    return sock


def remove_stale(path: str) -> None:
    """Unlink a socket file that nobody listens on; raise ConfigError on anything else."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as exc:
        raise ConfigError(bind_trouble(f"unix:{path}", exc), 3) from None
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{path} exists and is not a socket: choose another path")
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.settimeout(1.0)
    try:
        probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        os.unlink(path)
    except OSError as exc:
        raise ConfigError(bind_trouble(f"unix:{path}", exc), 3) from None
    else:
        raise ConfigError(f"another server is listening on unix:{path}", 3)
    finally:
        probe.close()


def bind_trouble(where: str, exc: OSError) -> str:
    """Say in one line why ``where`` could not be bound."""
    if exc.errno == errno.EADDRINUSE:
        return f"cannot listen on {where}: the address is in use by another process"
    if exc.errno == errno.EACCES:
        return f"cannot listen on {where}: permission denied (ports below 1024 are for root)"
    return f"cannot listen on {where}: {exc.strerror or exc}"


def describe_address(sock: socket.socket) -> str:
    """Return the address of a socket as people write it, e.g. ``[::1]:8000``."""
    try:
        name = sock.getsockname()
    except OSError:
        return "closed"
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(name, bytes):
        return "unix:@" + os.fsdecode(name[1:])
    return f"unix:{name}"
