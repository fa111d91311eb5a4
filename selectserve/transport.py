"""transport: moves the bytes of one connection, and never waits for them.

A transport reads when the socket is readable and calls its protocol (``data_received``,
``eof_received``); what that writes is gathered, and leaves at the end of the turn at the
latest. Only after a short write does it ask for EVENT_WRITE. Two watermarks turn a full buffer
into back-pressure (``pause_writing``, ``resume_writing``). There is one way out, ``lost``, whatever
happened, and it releases everything (but ``detach``, which hands the socket on):

    open -> closing (flush what is left) | lingering (so that it is read, too) -> closed
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from .reactor import EVENT_READ, EVENT_WRITE, LOOK, NEVER, Deadline, Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Literal, Protocol, Union

    from .filesend import FileSend

    TransportState = Literal["open", "closing", "lingering", "closed"]
    Piece = Union[bytes, memoryview]

    class ByteProtocol(Protocol):
        """What a transport calls: data_received, then eof_received, at the end connection_lost."""

        def data_received(self, data: bytes) -> None: ...
        def eof_received(self) -> None: ...
        def connection_lost(self, exc: Exception | None) -> None: ...
        def pause_writing(self) -> None: ...
        def resume_writing(self) -> None: ...


READ_SIZE = 65536
LARGE_READ = 262144  # for uploads: a quarter of the turns for the same bytes
HIGH_WATERMARK = 65536  # above it the writer has to wait…
LOW_WATERMARK = 16384  # …until so little is left (asyncio's proportion)
JOIN_LIMIT = 32768  # below it one copy is cheaper than a vector of pieces
MAX_PIECES = 64  # in one sendmsg; IOV_MAX is 1024 on Linux and 16 in POSIX
PROGRESS = 4096  # bytes that count as progress of a slow reader
LINGER_TIME = 2.0  # seconds to let the client read our last words
LINGER_BYTES = 1 << 20  # and how much we let it say meanwhile
# TCP keep-alive: a client that has ended its side is asked every 10 seconds, three times at most.
PROBES = (
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
)
UNREGISTERED = -1  # no interest, not even in the end
HAVE_SENDMSG = hasattr(socket.socket, "sendmsg")
FILE_PIECE = 1 << 19  # bytes of a file that the kernel may take in one turn; more gains little
FILE_READ = 131072  # and that are read where it cannot
# What sendfile says of a file, or a system, that it cannot do it for.
NO_SENDFILE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSOCK, errno.EOPNOTSUPP, errno.ENOTSUP)


class Transport:
    """Own one non-blocking socket: read, write buffer, flush, linger, close.

    ``number`` names the connection in logs and traces; ``peer`` and ``local`` are the addresses
    of the two ends, ``(host, port)`` or None.
    """

    __slots__ = (
        "blocked",
        "deadline",
        "drained_at",
        "file",
        "held",
        "interest",
        "linger_left",
        "local",
        "number",
        "on_flushed",
        "out",
        "out_size",
        "peer",
        "protocol",
        "reactor",
        "read_size",
        "reading",
        "secure",
        "sock",
        "state",
        "trace",
        "unproven",
        "write_timeout",
        "writing_paused",
    )

    sends_files = hasattr(os, "sendfile")

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        number: int = 0,
        peer: tuple[str, int] | None = None,
        local: tuple[str, int | None] | None = None,
        write_timeout: float = 60.0,
    ) -> None:
        self.reactor = reactor
        self.sock = sock
        self.number = number
        self.peer = peer
        self.local = local
        self.write_timeout = write_timeout
        self.state: TransportState = "open"
        self.protocol: ByteProtocol = NO_PROTOCOL
        self.interest = UNREGISTERED  # else the mask registered now; 0 hears of the end only
        self.blocked = False  # the last write was short: EVENT_WRITE tells when to go on
        self.drained_at = -NEVER  # when a slow reader had read it all at last
        self.reading = True
        self.held = False  # nothing is read, whatever the protocol wishes
        self.read_size = READ_SIZE  # its protocol may raise it while much is to come
        self.writing_paused = False
        self.out: list[Piece] = []
        self.out_size = 0
        self.file: FileSend | None = None  # goes behind `out`; blocked, or a thread reads it
        self.linger_left = LINGER_BYTES
        self.unproven = 0  # bytes still to be sent before the write deadline moves on
        self.on_flushed: Callable[[], object] | None = None
        self.deadline: Deadline | None = None  # for a slow reader, and for lingering
        self.secure: dict[str, Any] | None = None  # what TLS agreed on, as the ASGI extension
        self.trace = reactor.trace

    def __repr__(self) -> str:
        return f"<Transport #{self.number} {self.state} {self.out_size} bytes to write>"

    @property
    def peer_name(self) -> str:
        """The client, for the log."""
        return "unix" if self.peer is None else f"{self.peer[0]}:{self.peer[1]}"

    def start(self, protocol: ByteProtocol) -> None:
        """Begin to read, for ``protocol``."""
        self.protocol = protocol
        self.update_interest()

    # -- what the reactor calls ----------------------------------------------------------------

    def on_ready(self, ready: int) -> None:
        """Read or write what can be without waiting: the handler while both may happen."""
        if ready & EVENT_READ:
            self.read(ready)
        if ready & EVENT_WRITE and self.blocked:
            try:
                self.write_on()
            except Exception:  # a bug, as below
                self.lost(None)
                raise

    def read(self, _ready: int) -> None:
        """Receive once, the reactor comes back if there is more: the handler for reading only."""
        if self.held:  # since this turn began
            return
        try:
            data = self.sock.recv(self.read_size)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self.lost(exc)
            return
        if self.trace:
            self.trace("read" if data else "eof", self, f"{len(data)} bytes")
        try:
            if self.state == "lingering":
                self.discard(data)
            else:
                self.received(data)
        except Exception:  # a bug: told by the reactor; this connection must not meet it twice
            self.lost(None)
            raise

    def on_hangup(self, ready: int) -> None:
        """The client is gone, while we wait for nothing of it; with LOOK, only if it really is."""
        if self.state != "closed":
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if error or ready != LOOK:
                self.lost(OSError(error or errno.EPIPE, os.strerror(error or errno.EPIPE)))

    def received(self, data: bytes) -> None:
        """Hand ``data`` to the protocol; b"" is the end of the stream."""
        if data:
            self.protocol.data_received(data)
        else:
            self.reading = False  # or a level-triggered selector would report it for ever
            self.protocol.eof_received()  # which closes, as a rule: one system call, not two
            self.update_interest()

    def flush(self) -> None:
        """Send what was gathered in this turn; ask for EVENT_WRITE only if it did not all go."""
        if self.out and not self.blocked:
            self.transmit()

    def write_on(self) -> None:
        """Go on after a short write."""
        if self.out:
            self.transmit()
        elif self.file is not None:
            self.push_file(self.file)
        if self.file is not None:
            return
        if self.state == "open" and self.writing_paused and self.out_size <= LOW_WATERMARK:
            self.writing_paused = False
            if self.trace:
                self.trace("resume", self, f"{self.out_size} bytes left to write")
            self.protocol.resume_writing()

    # -- what the protocol calls ---------------------------------------------------------------

    def write(self, pieces: list[bytes]) -> None:
        """Gather ``pieces``; they leave at the end of the turn. Dropped when closed."""
        if self.state != "open":
            return
        if not self.out:
            self.reactor.unflushed.append(self)
        self.out += pieces
        size = self.out_size
        for piece in pieces:  # two, as a rule: sum(map(len, pieces)) costs more
            size += len(piece)
        self.out_size = size
        if self.trace:
            self.trace("write", self, f"{size} bytes wait")
        if size > HIGH_WATERMARK:
            self.flush()  # sending now instead of at the end of the turn often makes room
            if self.out_size > HIGH_WATERMARK and not self.writing_paused:
                self.writing_paused = True
                if self.trace:
                    self.trace("pause", self, f"{self.out_size} bytes to write")
                self.protocol.pause_writing()

    def send_file(self, file: FileSend) -> None:
        """Send ``file`` behind what was written, then tell its owner; writing is paused meanwhile.

        Nothing else may be written until then; what ends the connection drops the rest of it.
        """
        if self.out and not self.blocked:
            self.flush()
        if self.state != "open":
            file.close()
            return
        self.file = file
        file.by_kernel = self.sends_files
        if not self.blocked:
            self.push_file(file)
        if self.file is file and not self.writing_paused:
            self.writing_paused = True
            if self.trace:
                self.trace("pause", self, f"{file.left} bytes of a file to send")
            self.protocol.pause_writing()

    def pause_reading(self) -> None:
        """Read nothing until ``resume_reading``: the kernel's buffer fills, the client waits."""
        if self.reading:
            self.reading = False
            if self.trace:
                self.trace("pause", self, "nothing is read: what has come is not wanted yet")
            self.update_interest()

    def hold_reading(self, held: bool) -> None:
        """Read nothing for now, whatever the protocol wishes; or as it wishes again."""
        if held != self.held and self.state == "open":
            self.held = held
            self.update_interest()

    def resume_reading(self) -> None:
        """Read again; not to be called after eof_received."""
        if not self.reading and self.state == "open":
            self.reading = True
            if self.trace:
                self.trace("resume", self, "reading goes on")
            self.update_interest()

    def probe(self) -> None:
        """Have the kernel ask whether the other end is there, while we have nothing to send to it.

        Who has closed its side may still read, or be gone: only an answer to a packet tells.
        """
        try:
            for level, name, value in PROBES:
                if hasattr(socket, name):  # not every system has them all
                    self.sock.setsockopt(level, getattr(socket, name), value)
        except OSError:
            pass  # reset already; or a unix socket, whose end is always told

    def close(self) -> None:
        """Send what is left, then close."""
        if self.state == "open":
            self.drop_file()
            self.state = "closing"
            if self.out:
                self.reading = False
                self.update_interest()
                self.arm(self.write_timeout)
            else:
                self.shut_down()
                self.lost(None)

    def linger(self) -> None:
        """Send what is left, then close in a way that lets the client read it (RFC 9112 §9.6).

        To close with unread input makes TCP send a reset, which may overtake our last words. So
        only our side is closed, and for a moment the client's bytes are thrown away.
        """
        if self.state == "open":
            self.drop_file()
            self.state = "lingering"
            self.reading, self.held = True, False  # what is thrown away takes no room
            self.update_interest()
            self.arm(self.write_timeout if self.out else LINGER_TIME)
            if not self.out:
                self.half_close()

    def abort(self) -> None:
        """Close at once; what was not sent is lost, and the client gets a reset."""
        if self.state != "closed":
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                pass  # already reset by the other side
            self.lost(None)

    def detach(self) -> socket.socket:
        """Let go of the socket and return it: another transport goes on with it."""
        self.state = "closed"
        if self.interest != UNREGISTERED:
            self.interest = UNREGISTERED
            self.reactor.unregister(self.sock)
        if self.deadline is not None:
            self.deadline.close()
        self.protocol = NO_PROTOCOL
        return self.sock

    # -- how it is done ------------------------------------------------------------------------

    def transmit(self) -> None:
        """Send as much as the socket takes: the one place that sends."""
        out = self.out
        try:
            if len(out) == 1:
                sent = self.sock.send(out[0])
            elif self.out_size <= JOIN_LIMIT or not HAVE_SENDMSG:
                sent = self.sock.send(b"".join(out))
            else:
                sent = self.sock.sendmsg(out[:MAX_PIECES])
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as exc:
            self.lost(exc)
            return
        if self.trace:
            self.trace("flush", self, f"{sent} of {self.out_size} bytes")
        if sent == self.out_size:
            out.clear()
            self.out_size = 0
            if self.blocked or self.on_flushed is not None or self.state != "open":
                self.on_all_sent()
        else:
            self.keep(sent)

    def keep(self, sent: int) -> None:
        """Keep what did not go, without copying it, and wait for EVENT_WRITE."""
        out = self.out
        self.out_size -= sent
        self.unproven -= sent
        done = 0
        while sent and sent >= len(out[done]):
            sent -= len(out[done])
            done += 1
        del out[:done]
        if sent:
            out[0] = memoryview(out[0])[sent:]
        self.wait_writable()

    def wait_writable(self) -> None:
        """Wait for EVENT_WRITE, as long as the client makes progress."""
        if self.unproven <= 0 or not self.blocked:  # one byte a minute is not progress
            self.unproven = PROGRESS
            self.arm(self.write_timeout)
        if not self.blocked:
            self.blocked = True
            self.update_interest()

    def on_all_sent(self) -> None:
        """Nothing is left to write: close if that was the last, tell who waited for it."""
        file = self.file
        if file is None:
            self.unblock()
        self.tell_flushed()
        if file is not None:
            self.push_file(file)
        elif self.state == "closing":
            self.shut_down()
            self.lost(None)
        elif self.state == "lingering":
            self.half_close()

    def tell_flushed(self) -> None:
        """Tell who waited until all is sent."""
        on_flushed, self.on_flushed = self.on_flushed, None
        if on_flushed is not None:
            on_flushed()

    def unblock(self) -> None:
        """Wait for EVENT_WRITE no longer."""
        if self.blocked:
            self.blocked = False
            self.drained_at = self.reactor.now
            self.update_interest()
            if self.deadline is not None:
                self.deadline.set(NEVER)

    def push_file(self, file: FileSend) -> None:
        """Go on with a file, nothing else being left: one bounded piece a turn.

        So a long download gets its turn like everybody, and not more. A file whose end comes too
        early has become shorter: the client was promised more, so there is no good end.
        """
        if not file.left:  # what was read of it has left
            self.end_file(file)
        elif not file.by_kernel:
            data = file.read_now(FILE_READ)
            if data is None:
                self.unblock()  # there is nothing to write until the disk has answered
                file.read_later(self.reactor, FILE_READ, self.on_file_read)
            else:
                self.on_file_read(file, data, "")
        else:
            size = min(file.left, FILE_PIECE)
            try:
                sent = os.sendfile(self.sock.fileno(), file.fd, file.offset, size)
            except (BlockingIOError, InterruptedError):
                self.wait_writable()
            except OSError as exc:
                if exc.errno in NO_SENDFILE:
                    file.by_kernel = False
                    self.push_file(file)
                else:
                    self.lost(exc)
            else:
                self.on_file_moved(file, sent)

    def on_file_moved(self, file: FileSend, sent: int) -> None:
        """The kernel has taken ``sent`` bytes; come back when it can take more."""
        if not sent:
            self.break_file(file, "it became shorter")
            return
        file.advance(sent)
        if self.trace:
            self.trace("flush", self, f"{sent} bytes of a file, {file.left} are left")
        if file.left:
            self.unproven -= sent
            self.wait_writable()
        else:
            self.end_file(file)

    def on_file_read(self, file: FileSend, data: bytes, error: str) -> None:
        """Write what was read; come back when it has left."""
        if not data:
            self.break_file(file, error or "it became shorter")
            return
        file.advance(len(data))
        self.write([data])
        self.flush()
        if self.file is file and not self.blocked:
            if file.left:
                self.wait_writable()
            else:
                self.end_file(file)

    def end_file(self, file: FileSend) -> None:
        """The kernel has all of the file."""
        self.drop_file()
        paused, self.writing_paused = self.writing_paused, False
        file.owner.on_file_sent(file)
        if not self.out:
            self.tell_flushed()
        if paused and self.state == "open":
            if self.trace:
                self.trace("resume", self, "the file is sent")
            self.protocol.resume_writing()

    def break_file(self, file: FileSend, reason: str) -> None:
        """The rest of the file cannot be had."""
        self.drop_file()
        file.owner.on_file_broken(file, reason)

    def drop_file(self) -> None:
        """Let go of the file, sent or not; what was is counted."""
        file, self.file = self.file, None
        if file is not None:
            file.close()
            file.owner.body_sent += file.size - file.left
            if not self.out:
                self.unblock()

    def half_close(self) -> None:
        """End our side and give the client a moment to read."""
        self.arm(LINGER_TIME)
        self.shut_down()
        if not self.reading:  # the client has ended its side too
            self.lost(None)

    def shut_down(self) -> None:
        """Send our FIN: close() alone does not while a fork of the app's has the socket, too."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self.lost(exc)

    def discard(self, data: bytes) -> None:
        """Throw away what the client still says, but not for ever."""
        self.linger_left -= len(data)
        if not self.out and (not data or self.linger_left <= 0):
            self.lost(None)
        elif not data:
            self.reading = False
            self.update_interest()

    def arm(self, timeout: float) -> None:
        """Give the client ``timeout`` seconds to read on."""
        if self.deadline is None:
            self.deadline = Deadline(self.reactor, self.on_deadline)
        self.deadline.set(self.reactor.now + timeout)

    def on_deadline(self) -> None:
        """The client reads nothing, or does not stop talking: it is not waited for any longer."""
        if self.trace:
            waits = self.out or self.file
            self.trace("timer", self, "write deadline" if waits else "linger deadline")
        if self.out or self.file is not None:
            self.abort()
        else:
            self.lost(None)

    def update_interest(self) -> None:
        """Tell the selector what is waited for now, if that changed: the one place that does."""
        reads = self.reading and not self.held
        wanted = (EVENT_READ if reads else 0) | (EVENT_WRITE if self.blocked else 0)
        if wanted == self.interest or self.state == "closed":
            return
        others = self.on_ready if wanted else self.on_hangup
        handler = self.read if wanted == EVENT_READ else others
        if self.interest == UNREGISTERED:
            self.reactor.register_own(self.sock, wanted, handler)
        else:
            self.reactor.modify(self.sock, wanted, handler)
        self.interest = wanted

    def lost(self, exc: Exception | None) -> None:
        """The one way out: release everything, then tell the protocol once; None: our wish."""
        if self.state == "closed":
            return
        self.state = "closed"
        if self.trace:
            self.trace("close", self, exc or f"{self.out_size} bytes left unsent")
        if self.interest != UNREGISTERED:
            self.interest = UNREGISTERED
            self.reactor.unregister(self.sock)
        self.blocked = False  # the rest of this turn must not touch the socket
        self.sock.close()
        self.out.clear()
        self.drop_file()
        if self.deadline is not None:
            self.deadline.close()
            self.deadline = None
        protocol, self.protocol = self.protocol, NO_PROTOCOL
        on_flushed, self.on_flushed = self.on_flushed, None
        protocol.connection_lost(exc)  # which may ask how much never left
        self.out_size = 0
        if on_flushed is not None:
            on_flushed()


class NoProtocol:
    """Stands in before the first protocol and after the last."""

    __slots__ = ()

    def data_received(self, data: bytes) -> None:
        """Nobody is told."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is told."""

    def eof_received(self) -> None:
        """Nobody is told."""

    pause_writing = resume_writing = eof_received


NO_PROTOCOL = NoProtocol()
