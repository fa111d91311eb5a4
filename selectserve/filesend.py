"""filesend: a file on its way to a client: which bytes of it, and how to come by them.

The cycle makes a FileSend of a message of the app's and gives it to the transport. That lets the
kernel copy the bytes, or asks for them piece by piece where the kernel cannot: over TLS, on
another system. Such a piece comes at once when it is in the page cache; else a thread waits for
the disk. The descriptor is ours alone, opened for pathsend and duplicated for zerocopysend, so
that the app may close its own whenever it likes; it is closed exactly once, whatever happens.

    pending -> (the transport: kernel, or read and write)* -> closed
"""

from __future__ import annotations

import os
import stat

from .errors import ConfigError
from .reactor import Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    class FileOwner(Protocol):
        """Who is told how it ended; nobody is when the connection was lost or cut meanwhile."""

        body_sent: int

        def on_file_sent(self, file: FileSend) -> None: ...
        def on_file_broken(self, file: FileSend, reason: str) -> None: ...


# A path that names a pipe must not hold up the server: O_NONBLOCK, and what is no file is refused.
OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
HAVE_NOWAIT = hasattr(os, "preadv") and hasattr(os, "RWF_NOWAIT")  # Linux 4.14
HAVE_PREAD = hasattr(os, "pread")


class FileSend:
    """``left`` bytes of a file from ``offset`` on; ``size`` of them in all.

    ``more`` says that the body goes on behind them. ``pool`` returns the executor for reads that
    would wait, or raises ConfigError where there are no threads.
    """

    __slots__ = (
        "busy",
        "by_kernel",
        "closed",
        "fd",
        "left",
        "more",
        "name",
        "offset",
        "owner",
        "pool",
        "size",
    )

    def __init__(
        self,
        owner: FileOwner,
        pool: Callable[[Reactor], Any],
        fd: int,
        offset: int,
        size: int,
        name: str,
        more: bool = False,
    ) -> None:
        self.owner = owner
        self.pool = pool
        self.fd = fd
        self.offset = offset
        self.size = size
        self.left = size
        self.name = name
        self.more = more
        self.by_kernel = False  # decided by the transport
        self.busy = False  # a thread is reading
        self.closed = False

    def __repr__(self) -> str:
        return f"<FileSend {self.name} {self.left} of {self.size} bytes left>"

    def advance(self, size: int) -> None:
        """Take ``size`` bytes for sent."""
        self.offset += size
        self.left -= size

    def close(self) -> None:
        """Close our descriptor; under a thread that reads it not before that has returned."""
        if not self.closed:
            self.closed = True
            if not self.busy:
                os.close(self.fd)

    # -- where the kernel cannot ---------------------------------------------------------------

    def read_now(self, limit: int) -> bytes | None:
        """Return up to ``limit`` of the bytes due, None when the disk would have to be waited for.

        A kernel may answer 0 bytes where it should have said "not now": that is looked at again.
        """
        if not HAVE_NOWAIT:
            return None
        buffer = bytearray(min(self.left, limit))
        try:
            got = os.preadv(self.fd, [buffer], self.offset, os.RWF_NOWAIT)
        except OSError:  # not in the page cache; or a file system that does not know the flag
            return None
        return bytes(memoryview(buffer)[:got]) if got else None

    def read_later(
        self, reactor: Reactor, limit: int, then: Callable[[FileSend, bytes, str], object]
    ) -> None:
        """Read them in a thread, then call ``then(self, data, error)``; never after ``close``."""
        size = min(self.left, limit)
        try:
            pool = self.pool(reactor)
        except ConfigError:  # no threads: everybody waits for the disk, as everywhere without them
            self.end_read(lambda: read_at(self.fd, size, self.offset), then)
            return
        self.busy = True
        future = pool.submit(read_at, self.fd, size, self.offset)
        future.add_done_callback(
            lambda _: reactor.call_from_thread(lambda: self.end_read(future.result, then))
        )

    def end_read(
        self, result: Callable[[], bytes], then: Callable[[FileSend, bytes, str], object]
    ) -> None:
        """Pass on what was read."""
        self.busy = False
        if self.closed:
            os.close(self.fd)
            return
        try:
            data, error = result(), ""
        except OSError as exc:
            data, error = b"", str(exc)
        then(self, data, error)


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read from a place of its own; blocks."""
    if HAVE_PREAD:
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def open_path(path: object, owner: FileOwner, pool: Callable[[Reactor], Any]) -> FileSend:
    """Open the whole file at ``path``; raise OSError or TypeError."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"http.response.pathsend needs a 'path' of type str, not {path!r}")
    fd = os.open(path, OPEN_FLAGS)
    try:
        return FileSend(owner, pool, fd, 0, file_size(fd, path), os.fspath(path))
    except BaseException:
        os.close(fd)
        raise


def share_file(
    file: Any,
    offset: int | None,
    count: int | None,
    more: bool,
    owner: FileOwner,
    pool: Callable[[Reactor], Any],
) -> FileSend:
    """Take ``count`` bytes of an open file from ``offset`` on, like sendfile: not beyond its end.

    Without an offset they are read from where the file stands, and it then stands behind them.
    Raises OSError, TypeError or ValueError.
    """
    for name, value in (("offset", offset), ("count", count)):
        if value is not None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"http.response.zerocopysend: {name} cannot be {value!r}")
    if not isinstance(file, int) and not hasattr(file, "fileno"):
        raise TypeError(f"http.response.zerocopysend needs a 'file' with a fileno(), not {file!r}")
    fd = file if isinstance(file, int) else file.fileno()
    size = file_size(fd, file)
    start = offset
    if start is None:
        start = os.lseek(fd, 0, os.SEEK_CUR) if file is fd else file.tell()
    size = max(0, size - start)
    if count is not None:
        size = min(size, count)
    if offset is None:
        if file is fd:
            os.lseek(fd, start + size, os.SEEK_SET)
        else:
            file.seek(start + size)
    return FileSend(owner, pool, os.dup(fd), start, size, str(getattr(file, "name", file)), more)


def file_size(fd: int, name: object) -> int:
    """Return the size of a regular file; raise OSError for anything else."""
    status = os.fstat(fd)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"a directory cannot be sent: {name!r}")
    if not stat.S_ISREG(status.st_mode):
        raise OSError(f"only a regular file can be sent, no pipe, socket or device: {name!r}")
    return status.st_size
