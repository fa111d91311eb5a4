"""websocket: frames in, events out, and the way back. No socket, no clock, no log.

RFC 6455 §5 to §8 and permessage-deflate (RFC 7692 §7.2), after the handshake. WebSocket has
http1's four verbs: ``receive_data`` and ``receive_eof`` take what came, ``next_event`` says what
it means, or NEED_DATA and returns, ``data_to_send`` gives what is to be written. Its state is the
method that reads next:

    read_frame > read_payload > read_frame …   and after the Close event read_nothing

and its lifecycle the table WEBSOCKET_LIFECYCLE. It promises the same events for every split of
the bytes (only which fault of a broken compressed message is seen first may differ), one Close at
the end, no exception for anything a peer can send, and a bound on all that it holds.
"""

from __future__ import annotations

from codecs import utf_8_decode
from io import BytesIO
from struct import Struct

from .deflate import FLUSHED, INFLATE_IN, Deflater
from .errors import ProtocolError
from .http1 import NEED_DATA, NeedData

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Literal, NoReturn, Union

    from .deflate import DeflateParameters

    WebSocketEvent = Union["Text", "Binary", "Ping", "Pong", "Close", NeedData]
    WebSocketState = Literal["open", "closing", "closed", "failed", "lost", "unanswered"]
    Cause = Literal["send close", "receive close", "fail", "eof"]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
FIN, RSV, RSV1, MASKED, CONTROL_BIT = 0x80, 0x70, 0x40, 0x80, 0x08
LENGTH_16 = Struct(">BBH")
LENGTH_64 = Struct(">BBQ")
# RFC 6455 §7.4 and IANA's registry; 1004, 1005, 1006 and 1015 never stand in a frame.
CLOSE_CODES, APP_CODES = {1000, 1001, 1002, 1003, *range(1007, 1015)}, range(3000, 5000)

MAX_FRAGMENTS = 16384  # of one message, and one more for every 32 bytes: each costs time
SMALL_MESSAGE = 64  # shorter ones are not compressed: they gain nothing and cost 5 µs
TRANSLATE_FROM = 1024  # bytes; see unmask

WEBSOCKET_LIFECYCLE: dict[WebSocketState, dict[Cause, WebSocketState]] = {
    "open": {
        "send close": "closing",
        "receive close": "closed",  # and answered at once
        "fail": "failed",
        "eof": "lost",
    },
    "closing": {"receive close": "closed", "fail": "failed", "eof": "unanswered"},
    "closed": {},
    "failed": {},
    "lost": {},
    "unanswered": {},
}
WEBSOCKET_WHY = {
    "closing": "a close frame was sent already, and nothing follows it (RFC 6455 §5.5.1)",
    "closed": "both sides have said Close",
    "failed": "the peer broke the protocol and was told so in a close frame",
    "lost": "the connection was lost",
    "unanswered": "the connection was lost after our close frame",
}


class Text:
    """A text message, whole."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"<Text {len(self.text)} characters>"


class Binary:
    """A binary message, whole."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<Binary {len(self.data)} bytes>"


class Ping:
    """A ping; its pong is queued already."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<Ping {self.data!r}>"


class Pong:
    """A pong, asked for or not."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<Pong {self.data!r}>"


class Close:
    """The end: no event follows.

    ``code`` is the peer's (1005: it gave none), 1006 when the connection was lost, or the one we
    failed the connection with; then ``failure`` says why, and is empty otherwise.
    """

    __slots__ = ("code", "failure", "reason")

    def __init__(self, code: int, reason: str = "", failure: str = "") -> None:
        self.code = code
        self.reason = reason
        self.failure = failure

    def __repr__(self) -> str:
        return f"<Close {self.code} {self.failure or self.reason!r}>"


class MaskTables(dict[int, bytes]):
    """For each byte of a mask, the table that bytes.translate needs to XOR with it."""

    __slots__ = ()

    def __missing__(self, byte: int) -> bytes:
        table = self[byte] = bytes(value ^ byte for value in range(256))
        return table


MASK_TABLES = MaskTables()


def unmask(data: bytes | bytearray, mask: bytes | bytearray) -> bytes | bytearray:
    """XOR ``data`` with the four bytes of ``mask`` over and over (RFC 6455 §5.3).

    One large int is quickest for short data, four translated strides for long: on CPython 3.9 to
    3.13 (µs) 32 B 0.9/2.3, 512 B 1.9/2.9, 1 KiB 3.1/3.8, 4 KiB 9.8/9.9, 64 KiB 250/125.
    """
    length = len(data)
    if length < TRANSLATE_FROM:
        key = int.from_bytes((mask * ((length + 3) >> 2))[:length], "little")
        return (int.from_bytes(data, "little") ^ key).to_bytes(length, "little")
    if type(data) is not bytes:
        data = bytes(data)  # PyPy slices bytes three times faster than a bytearray
    a, b, c, d = mask
    out = bytearray(length)
    out[0::4] = data[0::4].translate(MASK_TABLES[a])
    out[1::4] = data[1::4].translate(MASK_TABLES[b])
    out[2::4] = data[2::4].translate(MASK_TABLES[c])
    out[3::4] = data[3::4].translate(MASK_TABLES[d])
    return out


class WebSocket:
    """The server's side of an open WebSocket.

    ``max_size`` bounds a message in bytes, after decompression; ``deflate`` is what the handshake
    agreed on. ``state`` is a key of WEBSOCKET_LIFECYCLE.
    """

    __slots__ = (
        "buffer",
        "compressed",
        "declared",
        "deflater",
        "eof",
        "fin",
        "fragments",
        "left",
        "mask",
        "max_size",
        "message",
        "opcode",
        "output",
        "position",
        "read",
        "state",
        "unfinished",
    )

    def __init__(
        self, *, max_size: int = 16777216, deflate: DeflateParameters | None = None
    ) -> None:
        self.max_size = max_size
        self.deflater = Deflater(deflate) if deflate else None
        self.state: WebSocketState = "open"
        self.read: Callable[[WebSocket], WebSocketEvent | None] = WebSocket.read_frame
        self.eof = False
        self.buffer: bytes | bytearray = b""
        self.position = 0  # everything before it has been read
        self.output: list[bytes] = []
        # The frame whose payload is being read
        self.fin = True
        self.left = 0
        self.mask = b""
        # The message of which frames have come
        self.opcode = 0  # 0: none is begun
        self.compressed = False
        self.fragments = 0
        self.declared = 0  # bytes in its frames so far, by their headers
        self.message: BytesIO | None = None
        self.unfinished = b""  # the first bytes of a character whose others have not come

    def __repr__(self) -> str:
        return f"<WebSocket {self.state}, {self.read.__name__}>"

    @property
    def buffered(self) -> int:
        """How many bytes of an unfinished message are held."""
        return self.message.tell() if self.message else 0

    # -- what came ----------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take ``data`` as the next bytes of the connection; ask next_event then."""
        position, buffer = self.position, self.buffer
        if self.read is WebSocket.read_nothing:
            return
        if position == len(buffer):  # the common case: nothing is left over, nothing is copied
            self.buffer, self.position = data, 0
            return
        if type(buffer) is bytearray:
            del buffer[:position]  # moves nothing
        else:
            self.buffer = buffer = bytearray(buffer[position:])
        self.position = 0
        buffer += data

    def receive_eof(self) -> None:
        """Note that the peer will send nothing more; ask next_event then."""
        self.eof = True

    def next_event(self) -> WebSocketEvent:
        """Return the next event, or NEED_DATA; after a Close there is none."""
        event = self.read(self)
        while event is None:
            event = self.read(self)
        if event is NEED_DATA:
            return self.pause()
        return event

    def pause(self) -> WebSocketEvent:
        """Say NEED_DATA, holding no more than needed, or that no more can come (§7.1.5)."""
        if self.position == len(self.buffer):
            self.buffer, self.position = b"", 0
        if self.eof and self.read is not WebSocket.read_nothing:
            return self.end("eof", Close(1006))
        return NEED_DATA

    # -- states: each returns an event, None to be asked again, or NEED_DATA and stays ----------

    def read_frame(self) -> WebSocketEvent | None:
        """Read the header of a frame (RFC 6455 §5.2), and short frames whole."""
        buffer, start = self.buffer, self.position
        if len(buffer) - start < 2:
            return NEED_DATA
        first, second = buffer[start], buffer[start + 1]
        # The short way, for most frames of most connections: a message whole in one frame.
        if 128 <= second < 255 and 0x81 <= first <= 0x82 and not self.opcode:
            begin, length = start + 6, second - 128
            if second == 254:
                begin, length = start + 8, int.from_bytes(buffer[start + 2 : start + 4], "big")
            stop = begin + length
            if stop <= len(buffer) and length <= self.max_size and (second < 254 or length > 125):
                self.position = stop
                data = unmask(buffer[begin:stop], buffer[begin - 4 : begin])
                return self.whole_message(first & 0x0F, data)
        problem = self.check_header(first, second)
        if problem:
            return self.fail(1002, problem)
        opcode, length, begin = first & 0x0F, second & 0x7F, start + 2
        if length > 125:
            begin += 2 if length == 126 else 8
            if len(buffer) < begin:
                return NEED_DATA
            least = 126 if length == 126 else 0x10000
            length = int.from_bytes(buffer[start + 2 : begin], "big")
            if length < least or length >> 63:
                return self.fail(1002, f"frame length {length} is not encoded as it must be")
        if not opcode & CONTROL_BIT:
            problem = self.check_size(first, length)
            if problem:
                return self.fail(1009, problem)
        begin += 4
        if len(buffer) < begin:
            return NEED_DATA
        mask = bytes(buffer[begin - 4 : begin])
        if opcode & CONTROL_BIT:
            return self.read_control(opcode, begin, length, mask)
        self.position = begin
        self.begin_payload(first, length, mask)
        return None

    def read_payload(self) -> WebSocketEvent | None:
        """Read what is there of a data frame's payload."""
        buffer, start = self.buffer, self.position
        take = min(self.left, len(buffer) - start)
        if take < self.left and not take:
            return NEED_DATA
        if self.compressed:
            take = min(take, INFLATE_IN)
        stop = self.position = start + take
        data = unmask(buffer[start:stop], self.mask)
        self.mask = self.mask[take & 3 :] + self.mask[: take & 3]
        self.left -= take
        if self.left == 0:
            self.read = WebSocket.read_frame
            if self.fin and self.message is None and not self.compressed:
                return self.whole_message(self.close_message(), data)
        failure = self.inflate(data) if self.compressed else self.hold(data)
        if failure or self.left or not self.fin:
            return failure
        return self.end_message()

    def read_nothing(self) -> WebSocketEvent | None:
        """Let pass what follows the end (RFC 6455 §1.4)."""
        return NEED_DATA

    # -- frames -------------------------------------------------------------------------------

    def check_header(self, first: int, second: int) -> str:
        """Say which rule of RFC 6455 §5 the first two bytes of a frame break, or nothing."""
        opcode, rsv = first & 0x0F, first & RSV
        if rsv and (rsv != RSV1 or self.deflater is None):
            return "reserved bits are set that no extension uses"
        if rsv and opcode not in (TEXT, BINARY):
            return "the compression bit is set outside the first frame of a message"
        if not second & MASKED:
            return "a frame is not masked"
        if opcode not in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG):
            return f"opcode {opcode:#x} is reserved"
        if not opcode & CONTROL_BIT:
            if opcode == CONTINUATION and not self.opcode:
                return "a continuation frame, but no message has begun"
            if opcode != CONTINUATION and self.opcode:
                return "a new message, but the last one has not ended"
            return ""
        if not first & FIN:
            return "a control frame is fragmented"
        return "a control frame has more than 125 bytes" if second & 0x7F > 125 else ""

    def check_size(self, first: int, length: int) -> str:
        """Say why a message grows too large with this frame, before it is read, or nothing."""
        limit = self.max_size
        if self.compressed if self.opcode else first & RSV1:
            limit += limit // 64 + 64  # deflate may add a little to what it cannot compress
        if self.declared + length > limit:
            return f"a message of more than {self.max_size} bytes"
        if self.fragments >= MAX_FRAGMENTS + self.declared // 32:
            return f"a message of {self.declared} bytes in {self.fragments} frames, and more"
        return ""

    def begin_payload(self, first: int, length: int, mask: bytes) -> None:
        """Note what the header of a data frame said."""
        if not self.opcode:
            self.opcode = first & 0x0F
            self.compressed = bool(first & RSV1)
        self.fin = first >= FIN
        self.fragments += 1
        self.declared += length
        self.left = length
        self.mask = mask
        self.read = WebSocket.read_payload

    def read_control(self, opcode: int, begin: int, length: int, mask: bytes) -> WebSocketEvent:
        """Read a control frame whole (RFC 6455 §5.5); it may stand between fragments."""
        stop = begin + length
        if len(self.buffer) < stop:
            return NEED_DATA
        self.position = stop
        data = bytes(unmask(self.buffer[begin:stop], mask))
        if opcode == CLOSE:
            return self.receive_close(data)
        if opcode == PONG:
            return Pong(data)
        if self.state == "open":
            self.queue(FIN | PONG, data)
        return Ping(data)

    def receive_close(self, data: bytes) -> Close:
        """Read the peer's close frame (RFC 6455 §5.5.1), and answer it if it came first."""
        code, reason = 1005, ""
        if data:
            code = int.from_bytes(data[:2], "big")
            if code not in CLOSE_CODES and code not in APP_CODES:  # as no single byte is
                return self.fail(1002, f"invalid close frame {data[:40]!r}")
            try:
                reason = str(data[2:], "utf-8")
            except UnicodeDecodeError as exc:
                return self.fail(1007, f"the reason of a close frame is not UTF-8: {exc.reason}")
        if self.state == "open":
            self.queue(FIN | CLOSE, data[:2])
        return self.end("receive close", Close(code, reason))

    # -- messages -----------------------------------------------------------------------------

    def whole_message(self, opcode: int, data: bytes | bytearray) -> WebSocketEvent:
        """Return the message whose payload is ``data``."""
        if opcode == BINARY:
            return Binary(data if type(data) is bytes else bytes(data))
        try:
            return Text(data.decode())
        except UnicodeDecodeError as exc:
            return self.fail(1007, f"text is not UTF-8: {exc.reason} at byte {exc.start}")

    def close_message(self) -> int:
        """Begin to count anew, now that a message is whole; return its opcode."""
        opcode = self.opcode
        self.opcode = self.fragments = self.declared = 0
        return opcode

    def hold(self, data: bytes | bytearray) -> Close | None:
        """Keep a piece of a message; text is checked now, to fail at the first bad byte (§8.1)."""
        if self.message is None:
            self.message = BytesIO()
        start = self.message.tell()
        self.message.write(data)
        if self.opcode == TEXT:
            if self.unfinished:
                start -= len(self.unfinished)
                data = self.unfinished + data
            if data[-2:-1] == b"\xed" and data[-1] > 0x9F:
                data = data + b"\x80"  # half a surrogate, of which CPython would await the rest
            try:
                used = utf_8_decode(data, "strict", False)[1]
            except UnicodeDecodeError as exc:
                at = start + exc.start
                return self.fail(1007, f"text is not UTF-8: {exc.reason} at byte {at}")
            self.unfinished = bytes(data[used:])
        return None

    def end_message(self) -> WebSocketEvent:
        """Return the message whose last piece was held."""
        if self.compressed and self.deflater is not None:
            failure = self.inflate(FLUSHED)
            if failure:
                return failure
            self.deflater.end_message()
        if self.unfinished:
            at = self.buffered - len(self.unfinished)
            return self.fail(1007, f"text is not UTF-8: unexpected end of data at byte {at}")
        message, self.message = self.message, None
        opcode = self.close_message()
        if message is None:
            return self.whole_message(opcode, b"")
        # getvalue shares the bytes, getbuffer lends them: a large message is not copied.
        if opcode == BINARY:
            return Binary(message.getvalue())
        return Text(str(message.getbuffer(), "utf-8"))

    def inflate(self, data: bytes | bytearray) -> Close | None:
        """Decompress a piece of a message and hold what it says (RFC 7692 §7.2.2)."""
        deflater = self.deflater
        assert deflater is not None
        while data:
            try:
                out, data = deflater.inflate(data)
            except ProtocolError as exc:
                return self.fail(exc.code, exc.reason)
            if self.buffered + len(out) > self.max_size:
                return self.fail(1009, f"a message of more than {self.max_size} bytes")
            if deflater.streams > MAX_FRAGMENTS:
                return self.fail(1009, f"a message of more than {MAX_FRAGMENTS} streams")
            failure = self.hold(out) if out else None
            if failure:
                return failure
        return None

    # -- the way back ---------------------------------------------------------------------------

    def send_text(self, text: str) -> None:
        """Queue a text message."""
        if not isinstance(text, str):
            raise TypeError(f"a text message is a str, not {type(text).__name__}")
        try:
            data = text.encode()
        except UnicodeEncodeError as exc:
            raise ValueError(
                f"text cannot be sent as UTF-8: lone surrogate {text[exc.start]!r} at {exc.start}"
            ) from None
        self.send_message(FIN | TEXT, data)

    def send_binary(self, data: bytes) -> None:
        """Queue a binary message."""
        self.send_message(FIN | BINARY, check_payload(data))

    def send_ping(self, data: bytes = b"") -> None:
        """Queue a ping of at most 125 bytes."""
        if len(check_payload(data)) > 125:
            raise ValueError(f"a ping has at most 125 bytes, not {len(data)} (RFC 6455 §5.5)")
        if self.state != "open":
            self.refuse("send a ping")
        if self.deflater is not None:
            # Who pings is idle: 38 KiB are let go. A new window needs no word to the peer.
            self.deflater.compressor = None
        self.queue(FIN | PING, data)

    def send_close(self, code: int = 1000, reason: str = "") -> None:
        """Queue a close frame; nothing can be sent behind it."""
        if not isinstance(code, int):
            raise TypeError(f"a close code is an int, not {code!r}")
        if code not in CLOSE_CODES and code not in APP_CODES:
            raise ValueError(
                f"close code {code} cannot be sent: use 1000 to 1003, 1007 to 1014, or 3000 to "
                "4999 for your own (RFC 6455 §7.4)"
            )
        if not isinstance(reason, str):
            raise TypeError(f"a close reason is a str, not {reason!r}")
        data = reason.encode()
        if len(data) > 123:
            raise ValueError(
                f"a close reason has at most 123 bytes of UTF-8, not {len(data)} (RFC 6455 §5.5)"
            )
        self.change("send close")
        self.queue(FIN | CLOSE, code.to_bytes(2, "big") + data)

    def data_to_send(self) -> list[bytes]:
        """Return what is to be written now, and forget it."""
        output, self.output = self.output, []
        return output

    def send_message(self, first: int, data: bytes) -> None:
        """Queue a message in one frame, compressed when that was agreed and may gain anything."""
        if self.state != "open":
            self.refuse("send a message")
        if self.deflater is not None and len(data) >= SMALL_MESSAGE:
            first |= RSV1
            data = self.deflater.deflate(data)
        self.queue(first, data)

    def queue(self, first: int, data: bytes) -> None:
        """Queue a frame."""
        self.output += encode_frame(first, data)

    # -- the lifecycle --------------------------------------------------------------------------

    def change(self, cause: Cause) -> None:
        """Go where WEBSOCKET_LIFECYCLE says; raise RuntimeError where it says nothing."""
        state = WEBSOCKET_LIFECYCLE[self.state].get(cause)
        if state is None:
            self.refuse(cause)
        self.state = state

    def refuse(self, what: str) -> NoReturn:
        """Raise the error that says why ``what`` cannot be done now."""
        raise RuntimeError(f"cannot {what}: {WEBSOCKET_WHY[self.state]}")

    def end(self, cause: Cause, event: Close) -> Close:
        """Let go of everything that is held: no event follows this one."""
        self.change(cause)
        self.read = WebSocket.read_nothing
        self.buffer, self.position = b"", 0
        self.message = self.deflater = None
        return event

    def fail(self, code: int, failure: str) -> Close:
        """Fail the connection (RFC 6455 §7.1.7): tell the peer, unless Close was said already."""
        if self.state == "open":
            self.queue(FIN | CLOSE, code.to_bytes(2, "big") + failure.encode()[:123])
        return self.end("fail", Close(code, "", failure))


def encode_frame(first: int, data: bytes) -> tuple[bytes, ...]:
    """Return a frame, its length in the shortest form (RFC 6455 §5.2)."""
    length = len(data)
    if length < 126:
        return (bytes((first, length)) + data,)
    header = LENGTH_16 if length < 0x10000 else LENGTH_64
    return (header.pack(first, 126 if length < 0x10000 else 127, length), data)


def check_payload(data: bytes) -> bytes:
    """Return ``data`` as bytes; raise TypeError for what is not made of bytes."""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"a binary message is bytes, not {type(data).__name__}")
