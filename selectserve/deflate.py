"""deflate: permessage-deflate, the whole of RFC 7692. The only room that knows zlib.

``negotiate_deflate`` answers the offers of a handshake; a Deflater then holds the two windows of
one connection and moves messages through them for WebSocket. It never waits and never makes more
than it was asked for: a bomb is seen in pieces of INFLATE_OUT bytes, and it is for the caller to
stop. Where this Python has no zlib nothing is ever negotiated, and nothing else changes.
"""

from __future__ import annotations

from .errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import zlib

# The largest window either side deflates with, where it is ours to say: 4 KiB. With memLevel 5
# a connection that has sent and received holds 50 KiB; with zlib's defaults it would be 300.
WINDOW_BITS, MEM_LEVEL = 12, 5
LEVEL = 3  # JSON of 1 KiB: 24 µs to 21 %, zlib's default (6) 60 µs to 20 %
INFLATE_IN, INFLATE_OUT = 16384, 65536  # bytes at a time
FLUSHED = b"\x00\x00\xff\xff"  # RFC 7692 §7.2.1: what ends each message and is not sent


class DeflateParameters:
    """What was agreed on permessage-deflate (RFC 7692 §7.1); ``answer`` is the field's value."""

    __slots__ = (
        "answer",
        "client_max_window_bits",
        "client_no_context_takeover",
        "server_max_window_bits",
        "server_no_context_takeover",
    )

    def __init__(
        self,
        server_no_context_takeover: bool = False,
        client_no_context_takeover: bool = False,
        server_max_window_bits: int = 15,
        client_max_window_bits: int = 15,
        answer: bytes = b"permessage-deflate",
    ) -> None:
        self.server_no_context_takeover = server_no_context_takeover
        self.client_no_context_takeover = client_no_context_takeover
        self.server_max_window_bits = server_max_window_bits
        self.client_max_window_bits = client_max_window_bits
        self.answer = answer

    def __repr__(self) -> str:
        return f"<DeflateParameters {self.answer.decode()}>"


def negotiate_deflate(offers: list[bytes]) -> DeflateParameters | None:
    """Choose the first of the client's offers that is valid and can be served, or none.

    A bad offer is declined, not an error (RFC 7692 §5.1, §7.1), also when it is bad enough for
    RFC 6455 §9.1 to fail the connection: without the extension no reading can differ.
    """
    try:
        import zlib  # noqa: F401
    except ImportError:
        return None
    for offer in offers:
        if offer.count(b'"') % 2:
            return None  # a comma inside quotes, which no token has: what follows is no offer
        name, *parameters = [part.strip(b" \t") for part in offer.split(b";")]
        if name == b"permessage-deflate":
            values = deflate_values(parameters)
            if values is not None:
                return accept_deflate(values)
    return None


def deflate_values(parameters: list[bytes]) -> dict[bytes, int] | None:
    """Return the parameters of one offer, None when it must be declined (RFC 7692 §7.1).

    A switch has the value 0; client_max_window_bits without a value says 15, no limit.
    """
    values: dict[bytes, int] = {}
    for parameter in parameters:
        name, equals, value = parameter.partition(b"=")
        if len(value) > 2 and value[:1] == value[-1:] == b'"':
            value = value[1:-1]  # a quoted token, RFC 6455 §9.1
        if name in values:
            return None
        if name in (b"server_no_context_takeover", b"client_no_context_takeover"):
            if equals:
                return None
            values[name] = 0
        elif name in (b"server_max_window_bits", b"client_max_window_bits"):
            if not equals and name == b"client_max_window_bits":
                value = b"15"
            if value not in (b"8", b"9", b"10", b"11", b"12", b"13", b"14", b"15"):
                return None
            values[name] = int(value)
        else:
            return None
    # zlib has no raw deflate with a window of 256 bytes, and the answer must not be larger.
    return None if values.get(b"server_max_window_bits") == 8 else values


def accept_deflate(values: dict[bytes, int]) -> DeflateParameters:
    """Answer a valid offer with what it named and nothing else (RFC 7692 §7.1)."""
    answer = [b"permessage-deflate"]
    for switch in (b"server_no_context_takeover", b"client_no_context_takeover"):
        if switch in values:
            answer.append(switch)
    # We may deflate with a smaller window than the client allows without saying so.
    server_bits = min(values.get(b"server_max_window_bits", 15), WINDOW_BITS)
    client_bits = values.get(b"client_max_window_bits", 15)
    if b"server_max_window_bits" in values:
        answer.append(b"server_max_window_bits=%d" % server_bits)
    if b"client_max_window_bits" in values:
        client_bits = min(client_bits, WINDOW_BITS)
        answer.append(b"client_max_window_bits=%d" % client_bits)
    return DeflateParameters(
        b"server_no_context_takeover" in values,
        b"client_no_context_takeover" in values,
        server_bits,
        client_bits,
        b"; ".join(answer),
    )


class Deflater:
    """The two windows of one connection, each begun at its first compressed message.

    ``streams`` counts the ends of stream inside the message being read.
    """

    __slots__ = ("compressor", "decompressor", "parameters", "streams")

    def __init__(self, parameters: DeflateParameters) -> None:
        self.parameters = parameters
        self.compressor: zlib._Compress | None = None
        self.decompressor: zlib._Decompress | None = None
        self.streams = 0

    def deflate(self, data: bytes) -> bytes:
        """Return the payload that says ``data`` (RFC 7692 §7.2.1)."""
        import zlib  # 0.3 µs; `from zlib import …` would be 2

        compressor = self.compressor
        if compressor is None:
            bits = self.parameters.server_max_window_bits
            compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, -bits, MEM_LEVEL)
        self.compressor = None if self.parameters.server_no_context_takeover else compressor
        return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]

    def inflate(self, data: bytes | bytearray) -> tuple[bytes, bytes]:
        """Return at most INFLATE_OUT bytes that a piece of a message says, and the unread rest.

        The caller asks again with the rest while there is any. Behind the last piece it asks with
        FLUSHED, and calls ``end_message``. Raise ProtocolError (1007).
        """
        import zlib

        decompressor = self.decompressor
        if decompressor is None:
            if self.streams and data is FLUSHED:
                return b"", b""  # nothing came behind the end of a stream, not even what should
            bits = self.parameters.client_max_window_bits
            decompressor = self.decompressor = zlib.decompressobj(-bits)
        try:
            out = decompressor.decompress(data, INFLATE_OUT)
        except zlib.error as exc:
            raise ProtocolError(
                f"a compressed message cannot be inflated: {exc}", code=1007
            ) from exc
        if not decompressor.eof:
            return out, decompressor.unconsumed_tail
        # A block with BFINAL ends the stream and its window (§7.2.3.4); what follows in the
        # message, most often one empty block, is a new stream.
        self.decompressor = None
        self.streams += 1
        return out, b"" if data is FLUSHED else decompressor.unused_data

    def end_message(self) -> None:
        """Forget the window where the client does (RFC 7692 §7.1.1.2)."""
        self.streams = 0
        if self.parameters.client_no_context_takeover:
            self.decompressor = None
