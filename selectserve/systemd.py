"""systemd: the two small protocols a service manager speaks, by hand.

Socket activation: descriptors from 3 on are sockets that the manager opened (LISTEN_PID,
LISTEN_FDS, LISTEN_FDNAMES; sd_listen_fds(3)). Notification: datagrams of NAME=value lines to the
socket in NOTIFY_SOCKET, which say that we are ready, reloading, stopping, or still turning
(sd_notify(3)). Without the variables nothing happens. Both are anybody's to use: s6, runit
wrappers and container managers speak them too.
"""

from __future__ import annotations

import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from .reactor import Reactor

FIRST_DESCRIPTOR = 3  # SD_LISTEN_FDS_START


def take_inherited(environ: MutableMapping[str, str]) -> list[tuple[int, str]]:
    """Return (descriptor, name) of each socket passed to us, once: the variables are removed.

    Removed, so that a child that inherits the environment does not take them for its own.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return []
    inherited = []
    for index in range(int(count)):
        number = FIRST_DESCRIPTOR + index
        try:
            os.set_inheritable(number, False)
        except OSError:
            continue  # closed: open_fd says so, if it is asked for
        inherited.append((number, names[index] if index < len(names) else "unknown"))
    return inherited


def forget_manager(environ: MutableMapping[str, str]) -> None:
    """Remove what says where a service manager listens: it is to hear one process only."""
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        environ.pop(name, None)


class Notifier:
    """Tell the service manager how we are; silent when there is none, or when it is deaf."""

    def __init__(self, environ: MutableMapping[str, str], reactor: Reactor) -> None:
        self.reactor = reactor
        name = environ.get("NOTIFY_SOCKET", "")
        self.address = "\0" + name[1:] if name.startswith("@") else name
        self.fed = False
        self.interval = 0.0
        usec = environ.get("WATCHDOG_USEC", "")
        if environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()) and usec.isdigit():
            self.interval = int(usec) / 2e6  # half of the limit, as sd_watchdog_enabled(3) advises

    def tell(self, *lines: str) -> None:
        """Send ``lines``, e.g. ``READY=1``; never waits."""
        if not self.address.startswith(("/", "\0")):
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                sock.sendto("\n".join(lines).encode(), self.address)
        except OSError:
            pass  # nobody is there to be told

    def tell_ready(self, status: str) -> None:
        """We serve; from now on feed the watchdog, if there is one."""
        self.tell("READY=1", f"STATUS={status}", f"MAINPID={os.getpid()}")
        if self.interval and self.address and not self.fed:
            self.fed = True
            self.feed_watchdog()

    def tell_reloading(self) -> None:
        """We reload; to be followed by tell_ready (Type=notify-reload wants the time)."""
        self.tell("RELOADING=1", f"MONOTONIC_USEC={int(self.reactor.clock() * 1e6)}")

    def tell_stopping(self) -> None:
        """We end."""
        self.tell("STOPPING=1")

    def feed_watchdog(self) -> None:
        """Say that the reactor turns, and again after half of the time that we are given."""
        self.tell("WATCHDOG=1")
        self.reactor.call_later(self.interval, self.feed_watchdog)
