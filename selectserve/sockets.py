"""sockets: where to listen: TCP, unix and inherited sockets, made ready from what the user wrote.

``open_sockets`` turns the options into bound sockets, all of them or a ConfigError; the
listeners take it from there. A name may stand for several addresses, and ``localhost`` and ``*``
for both families. When an address is taken, the message names the process that holds it, where
/proc tells. A unix socket's file is replaced only when nobody answers on it, and removed at the
end only if it is still ours.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys

from .errors import ConfigError
from .systemd import take_inherited

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .config import Config

    Place = tuple[str, str, int]  # kind ("tcp", "unix", "fd", "systemd"), host, path or name, port
    Resolved = list[tuple[int, int, int, Any]]

PORT_TRIES = 20  # ports taken by chance, until one is free in both families
WILDCARD_HOSTS = ("", "*")
# What a kernel without IPv6, or a host without this address, says about one of several.
NO_SUCH_FAMILY = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT))


class SocketFile:
    """The file of a unix socket that we made; ``remove`` deletes it unless it is another's now."""

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)  # the app may go elsewhere
        self.identity = self.look()

    def look(self) -> tuple[int, int] | None:
        """Tell one file from another of the same name."""
        try:
            status = os.lstat(self.path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def remove(self) -> None:
        """Delete the file, once."""
        identity, self.identity = self.identity, None
        if identity is not None and self.look() == identity:
            try:
                os.unlink(self.path)
            except OSError:
                pass  # the directory is not ours to write any more; nothing depends on it


def open_sockets(config: Config) -> tuple[list[socket.socket], list[SocketFile]]:
    """Bind everything the options ask for; on a ConfigError nothing stays open."""
    inherited = take_inherited(os.environ)
    sockets: list[socket.socket] = []
    files: list[SocketFile] = []
    try:
        for kind, where, port in places(config, bool(inherited)):
            if kind == "tcp":
                sockets += open_tcp(where, port, config.reuse_port)
            elif kind == "unix":
                sockets.append(open_unix(where, config.uds_permissions))
                if not where.startswith("@"):
                    files.append(SocketFile(where))
            elif kind == "fd":
                sockets.append(open_fd(find_inherited(where, inherited)))
            else:
                sockets += [open_fd(number) for number, _ in inherited]
    except ConfigError:
        for sock in sockets:
            sock.close()
        for file in files:
            file.remove()
        raise
    return sockets, files


def places(config: Config, activated: bool) -> list[Place]:
    """Tell where to listen: ``--bind`` alone counts if given, then fd, uds, systemd, host."""
    if config.reuse_port and not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError("--reuse-port: this system has no SO_REUSEPORT; leave it out", 3)
    if config.bind:
        return list(map(parse_bind, config.bind))
    if config.fd >= 0:
        return [("fd", str(config.fd), 0)]
    if config.uds:
        return [("unix", config.uds, 0)]
    if activated and "host" not in config.values and "port" not in config.values:
        return [("systemd", "", 0)]
    return [("tcp", config.host, config.port)]


def check_places(config: Config) -> None:
    """Raise ConfigError for a place that is spelled wrong or does not exist; open nothing."""
    for kind, where, port in places(config, False):
        if kind == "tcp":
            resolve(where, port)
        elif kind == "unix":
            check_unix(where)


def parse_bind(text: str) -> Place:
    """Read ``host:port``, ``[v6]:port``, ``unix:path``, ``unix:@name`` or ``fd://N``."""
    if text.startswith("unix:"):
        path = text[5:]
        if path.startswith("//"):  # unix:///run/app.sock
            path = path[2:]
        if not path:
            raise ConfigError(f"--bind {text!r}: the path is missing, as in unix:/run/app.sock", 2)
        return "unix", path, 0
    if text.startswith("fd:"):
        return "fd", text[3:].lstrip("/"), 0
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigError(f"--bind {text!r}: an IPv6 address needs brackets, as in [::1]:8000", 2)
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(
            f"--bind {text!r} is none of host:port, [IPv6]:port, unix:path, unix:@name, fd://N", 2
        )
    return "tcp", host, int(port)


def find_inherited(name: str, inherited: list[tuple[int, str]]) -> int:
    """Return the descriptor for ``fd://3``, or for ``fd://web`` by systemd's FileDescriptorName."""
    if name.isascii() and name.isdigit():
        return int(name)
    for number, known in inherited:
        if known == name:
            return number
    names = ", ".join(known for _, known in inherited) or "none"
    raise ConfigError(f"--bind fd://{name}: no such socket was passed; there are: {names}", 3)


# -- TCP ---------------------------------------------------------------------------------------


def open_tcp(host: str, port: int, reuse_port: bool = False) -> list[socket.socket]:
    """Bind all addresses of ``host``; with port 0 the same free port on each."""
    addresses = resolve(host, port)
    for tries_left in reversed(range(PORT_TRIES)):
        try:
            return bind_all(addresses, host, port, reuse_port)
        except OSError as exc:
            if port or exc.errno != errno.EADDRINUSE or not tries_left:
                raise ConfigError(bind_trouble(f"{host}:{port}", exc, port), 3) from None
    raise AssertionError("the last try raises")


def resolve(host: str, port: int) -> Resolved:
    """Return what getaddrinfo knows of ``host``, each address once; raise ConfigError."""
    names: list[str | None] = [host]
    if host in WILDCARD_HOSTS:
        names = [None]
    elif host == "localhost":  # /etc/hosts often knows one of them only
        names = ["127.0.0.1", "::1"]
    found: Resolved = []
    for name in names:
        # as bytes: for any str Python loads its tables of international names, 1 MB
        known = name.encode() if name is not None and name.isascii() else name
        try:
            infos = socket.getaddrinfo(
                known, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (OSError, ValueError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            raise ConfigError(f"cannot resolve host {host!r}: {reason}", 3) from None
        for family, kind, protocol, _, address in infos:
            if (family, kind, protocol, address) not in found:
                found.append((family, kind, protocol, address))
    return found


def bind_all(addresses: Resolved, host: str, port: int, reuse_port: bool) -> list[socket.socket]:
    """Bind every address; one of several whose family this machine lacks is left out."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, kind, protocol, address in addresses:
            if sockets and not port:
                address = (address[0], sockets[0].getsockname()[1], *address[2:])
            try:
                sockets.append(bind_one(family, kind, protocol, address, reuse_port))
            except OSError as exc:
                if exc.errno not in NO_SUCH_FAMILY or len(addresses) == 1:
                    raise
                missing = exc
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    if not sockets and missing is not None:
        raise ConfigError(bind_trouble(f"{host}:{port}", missing), 3)
    return sockets


def bind_one(
    family: int, kind: int, protocol: int, address: Any, reuse_port: bool
) -> socket.socket:
    """Bind one address."""
    sock = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # on Windows it would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == getattr(socket, "AF_INET6", None):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except BaseException:
        sock.close()
        raise
    return sock


# -- unix and inherited sockets ----------------------------------------------------------------


def check_unix(path: str) -> None:
    """Raise ConfigError where there are no unix sockets, or none of this kind, or no directory."""
    if not hasattr(socket, "AF_UNIX"):
        raise ConfigError("this system has no unix sockets: use --host and --port", 3)
    if path.startswith("@"):
        if not sys.platform.startswith(("linux", "android")):
            raise ConfigError(f"unix:{path}: abstract names are Linux's alone: use a path", 3)
    elif not os.path.isdir(os.path.dirname(path) or "."):
        raise ConfigError(f"cannot listen on unix:{path}: no such directory", 3)


def open_unix(path: str, permissions: int = 0o666) -> socket.socket:
    """Bind a unix socket; a stale file is replaced, anything else at ``path`` is left alone."""
    check_unix(path)
    abstract = path.startswith("@")  # a name that no file stands for
    address: str | bytes = b"\0" + os.fsencode(path[1:]) if abstract else path
    if not abstract:
        remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(address)
        if not abstract:
            os.chmod(path, permissions)  # nobody can connect before listen()
    except OSError as exc:
        sock.close()
        raise ConfigError(bind_trouble(f"unix:{path}", exc), 3) from None
    return sock


def open_fd(number: int) -> socket.socket:
    """Take over a listening socket that was inherited as descriptor ``number``."""
    try:
        sock = socket.socket(fileno=number)
    except OSError as exc:
        raise ConfigError(f"descriptor {number} is not a socket: {exc.strerror}", 3) from None
    if sock.type != socket.SOCK_STREAM:
        sock.detach()
        raise ConfigError(f"descriptor {number} is a socket, but not of a stream (TCP or unix)", 3)
    try:
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except (OSError, AttributeError):
        listening = 1  # this system cannot tell; accept() will
    if not listening:
        sock.detach()
        raise ConfigError(f"descriptor {number} is a socket that does not listen", 3)
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
        raise ConfigError(f"{path} exists and is not a socket: choose another path", 3)
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)  # a server too busy to accept answers EAGAIN at once
    try:
        probe.connect(path)
    except FileNotFoundError:
        pass  # removed meanwhile
    except ConnectionRefusedError:
        # Also of a server that has bound it, and listens once its app has started: /proc knows it.
        state = "00000000 0001 01"
        if os.path.isabs(path) and proc_inodes("/proc/net/unix", 7, " " + path, 3, state, 6):
            raise ConfigError(socket_taken(path), 3) from None
        os.unlink(path)
    except BlockingIOError:
        raise ConfigError(socket_taken(path), 3) from None
    except OSError as exc:
        raise ConfigError(bind_trouble(f"unix:{path}", exc), 3) from None
    else:
        raise ConfigError(socket_taken(path), 3)
    finally:
        probe.close()


# -- who has it, and how it is called ----------------------------------------------------------


def bind_trouble(where: str, exc: OSError, port: int = 0) -> str:
    """Say in one line why ``where`` could not be bound."""
    if exc.errno == errno.EADDRINUSE:
        owner = process_of(port_inodes(port)) if port else ""
        return f"cannot listen on {where}: the address is in use by {owner or 'another process'}"
    if exc.errno == errno.EACCES:
        return f"cannot listen on {where}: permission denied (ports below 1024 are for root)"
    return f"cannot listen on {where}: {exc.strerror or exc}"


def socket_taken(path: str) -> str:
    """Say that a server answers on the unix socket already."""
    owner = process_of(proc_inodes("/proc/net/unix", 7, path, 5, "01", 6))
    return f"cannot listen on unix:{path}: it is in use by {owner or 'another server'}"


def port_inodes(port: int) -> set[str]:
    """Return the inodes of the sockets that listen on TCP ``port`` (Linux)."""
    ending = f":{port:04X}"
    return {
        inode
        for file in ("/proc/net/tcp", "/proc/net/tcp6")
        for inode in proc_inodes(file, 1, ending, 3, "0A", 9)
    }


def proc_inodes(
    file: str, name_at: int, name: str, state_at: int, state: str, inode_at: int
) -> set[str]:
    """Read a table of /proc/net: inodes of the rows whose name and state (columns) fit."""
    found = set()
    states = state.split()
    try:
        with open(file, encoding="utf-8", errors="surrogateescape") as rows:
            for row in rows:
                columns = row.rstrip("\n").split(None, inode_at + 1)  # a path may have spaces
                if columns[state_at : state_at + len(states)] == states and columns[name_at:]:
                    if f" {columns[name_at]}".endswith(name):
                        found.add(columns[inode_at])
    except OSError:
        pass  # not Linux, or not ours to read: the message is only less helpful
    return found


def process_of(inodes: set[str]) -> str:
    """Name the process that holds one of the sockets, "" where that cannot be found out."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    if not wanted:
        return ""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                if not any(os.readlink(entry.path) in wanted for entry in entries):
                    continue
            with open(f"/proc/{pid}/cmdline", "rb") as stream:
                command = stream.read(200).replace(b"\0", b" ").decode("utf-8", "replace").strip()
        except OSError:
            continue  # another user's, or gone meanwhile
        return f"process {pid} ({command})"
    return ""


def describe_address(sock: socket.socket) -> str:
    """Return the address of a socket as people write it, e.g. ``[::1]:8000``."""
    try:
        name = sock.getsockname()
    except OSError:
        return "closed"
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return f"unix:{unix_name(name)}"


def unix_name(name: str | bytes) -> str:
    """Return a unix socket's address as people write it: a path, or ``@name`` if abstract."""
    text = os.fsdecode(name)
    return "@" + text[1:] if text.startswith("\0") else text
