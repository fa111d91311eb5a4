"""response: the way back. What the app says becomes bytes with exactly one framing.

ResponseWriter is sans-I/O like the parser: the cycle calls ``start`` and ``send`` and hands the
bytes they return to the transport. The head is held back until the first body message, so that
a whole answer leaves with its length and in one piece. Everything is validated before anything
is written: a name that is no token, or CR, LF or NUL in a value, never reaches the wire.

    idle > waiting (begin) > held (start) > length | chunked | until-close | bodiless > complete
"""

from __future__ import annotations

from http import HTTPStatus

from .grammar import MAX_CACHED_LINE, MAX_CACHED_LINES, SECRET, TOKEN, field_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    KnownHead = tuple[bytes, int | None, int | None]
    Framing = Literal[
        "idle", "waiting", "held", "length", "chunked", "until-close", "bodiless", "complete"
    ]

STATUS_LINES = {
    int(status): f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode()
    for status in HTTPStatus
    if status >= 200
}
ONE_PIECE = 16384  # a larger body is not copied behind its head
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Fields of the app's that the writer has to know of: framing, persistence, and our defaults.
SPECIAL_IN_RESPONSE = frozenset(
    b"content-length transfer-encoding connection date server trailer".split()
)
# Fields that are ours alone: they say how this connection frames and ends the message.
OURS_ALONE = frozenset((b"transfer-encoding", b"connection", b"trailer"))
# RFC 9110 §6.5.1: what a trailer section must not carry
FORBIDDEN_TRAILERS = frozenset(
    b"content-length transfer-encoding host connection trailer te upgrade content-encoding "
    b"content-type content-range set-cookie authorization www-authenticate cache-control "
    b"expires date location max-forwards vary expect".split()
)


class DefaultLines:
    """The header lines that every answer carries unless the app gave its own (RFC 9110 §6.6.1)."""

    __slots__ = ("block", "date", "server")

    def __init__(self, date: bytes = b"", server: bytes = b"") -> None:
        self.set(date, server)

    def set(self, date: bytes, server: bytes) -> None:
        """Take the line of this second, and those that stay."""
        self.date, self.server = date, server
        self.block = server + date


class ResponseLines(dict["tuple[bytes, ...]", bytes]):
    """Header pairs of responses seen before, validated and encoded; bounded, without secrets."""

    __slots__ = ("heads", "special")

    def __init__(self) -> None:
        super().__init__()
        self.special: dict[tuple[bytes, ...], tuple[bytes, bytes]] = {}
        # Whole heads, by status and headers: status and header lines, the Content-Length, and
        # the same if that is the length of a body
        self.heads: dict[tuple[int, tuple[Iterable[bytes], ...]], KnownHead] = {}

    def __missing__(self, pair: tuple[bytes, ...]) -> bytes:
        name, value = check_pair(pair)
        line = name + b": " + value + b"\r\n"
        lower = name.lower()
        if lower in SPECIAL_IN_RESPONSE:
            if lower == b"content-length" and not (value.isdigit() and len(value) <= 18):
                raise ValueError(f"content-length must be a number, not {value[:40]!r}")
            if lower in OURS_ALONE:
                line = b""
            self.special[pair] = (lower, value)
            self[pair] = line
        elif len(line) <= MAX_CACHED_LINE and not SECRET.search(name):
            self[pair] = line
        return line

    def make_room(self) -> None:
        """Forget all when full: simpler than an order of use, and as good for real apps."""
        self.clear()
        self.special.clear()
        self.heads.clear()

    def may_keep(self, pairs: Sequence[tuple[bytes, ...]], special: Sequence[object]) -> bool:
        """Tell whether a head may be remembered: no secret in it, and no say in persistence."""
        if len(self.heads) >= MAX_CACHED_LINES:
            self.heads.clear()
        plain = all(pair[0].lower() == b"content-length" for pair in pairs if pair in self.special)
        return plain and len(special) < 2 and all(pair in self for pair in pairs)


def check_pair(pair: Sequence[bytes]) -> tuple[bytes, bytes]:
    """Return ``pair`` as name and value; raise TypeError or ValueError that names the header."""
    if len(pair) != 2:
        raise TypeError(f"a header is a pair of bytes (name, value), not {pair!r}")
    name, value = pair
    if type(name) is not bytes or type(value) is not bytes:
        raise TypeError(f"header name and value must be bytes, not {pair!r}: encode them")
    if TOKEN.fullmatch(name) is None:
        raise ValueError(f"header name {name!r} is not a token (RFC 9110 §5.1)")
    if b"\n" in value or b"\r" in value or b"\0" in value:
        raise ValueError(f"header {name!r} has CR, LF or NUL in its value {value[:80]!r}")
    return name, value


def without_length(lines: bytes) -> bytes:
    """Drop the Content-Length from header lines: a 204 has none (RFC 9110 §8.6)."""
    kept = [
        line for line in lines.split(b"\r\n") if not line.lower().startswith(b"content-length:")
    ]
    return b"\r\n".join(kept)


def check_status(status: object) -> int:
    """Return ``status`` as a plain int; raise TypeError or ValueError."""
    if not isinstance(status, int) or isinstance(status, bool):
        raise TypeError(f"http.response.start needs an int status, not {status!r}")
    if not 200 <= status <= 999:
        raise ValueError(f"status {int(status)} is not a final status: use 200 to 999")
    return int(status)


class ResponseWriter:
    """Frame the responses of one connection, one after the other (RFC 9112 §6).

    ``keep_alive`` says whether the connection may carry another request afterwards. ``fault`` is
    a sentence when the app broke its own Content-Length; the bytes written are still right.
    """

    __slots__ = (
        "accepts_trailers",
        "declared",
        "defaults",
        "fault",
        "framing",
        "head",
        "head_only",
        "http_version",
        "keep_alive",
        "left",
        "lines",
        "status",
        "trailer_lines",
        "trailers",
        "usual",
        "whole",
    )

    def __init__(self, defaults: DefaultLines, lines: ResponseLines | None = None) -> None:
        self.defaults = defaults
        self.lines = ResponseLines() if lines is None else lines
        self.framing: Framing = "idle"
        self.head = b""
        self.head_only = False
        self.http_version = "1.1"
        self.keep_alive = True
        self.usual = True  # HTTP/1.1, and the client wants a body
        self.declared: int | None = None  # the app's Content-Length
        self.whole: int | None = None  # so much body in one piece is the whole usual answer
        self.left = 0
        self.status = 0
        self.trailers = False
        self.accepts_trailers = False
        self.trailer_lines = b""
        self.fault = ""

    def __repr__(self) -> str:
        return f"<ResponseWriter {self.framing} {self.status}>"

    def begin(self, method: str, http_version: str, keep_alive: bool) -> None:
        """Expect the response to a request; forget the last one."""
        self.framing = "waiting"
        self.head_only = head_only = method == "HEAD"
        self.http_version = http_version
        self.usual = http_version == "1.1" and not head_only
        self.keep_alive = keep_alive

    def start(
        self,
        status: int,
        headers: Iterable[Iterable[bytes]],
        trailers: bool = False,
        accepts_trailers: bool = True,
    ) -> None:
        """Take status and headers and hold them; raise TypeError or ValueError, all unwritten.

        ``trailers`` are promised by the app, and sent if the client accepts them (TE: trailers).
        """
        pairs = tuple(headers)
        try:
            known = self.lines.heads.get((status, pairs))
        except TypeError:  # lists for pairs; or not bytes, encode_head says which
            known = None
        if known is None or trailers or type(status) is float:  # 200.0 is found as 200
            self.trailers = trailers and self.http_version == "1.1"
            self.accepts_trailers = accepts_trailers
            self.head = self.encode_head(status, tuple(map(tuple, pairs)))
            whole = None if trailers or status in (204, 304) else self.declared
        else:
            self.trailers = False
            lines, self.declared, whole = known
            self.head = lines + self.defaults.block
        self.whole = whole if self.usual else None
        self.status = status
        self.framing = "held"

    def encode_head(self, status: int, pairs: tuple[tuple[bytes, ...], ...]) -> bytes:
        """Validate and encode status and headers; remember what may be said again."""
        status_line = STATUS_LINES.get(status)
        if status_line is None or not isinstance(status, int):
            status_line = b"HTTP/1.1 %d \r\n" % check_status(status)
        table = self.lines
        if len(table) > MAX_CACHED_LINES:
            table.make_room()
        lines = status_line + b"".join(map(table.__getitem__, pairs))
        self.declared = None
        special = list(filter(None, map(table.special.get, pairs)))
        full = self.apply_special(status, lines, special)
        if full.startswith(lines) and table.may_keep(pairs, special):
            whole = None if status in (204, 304) else self.declared
            table.heads[status, pairs] = (lines, self.declared, whole)
        return full

    def apply_special(
        self, status: int, lines: bytes, special: Sequence[tuple[bytes, bytes]]
    ) -> bytes:
        """Heed the app's own fields about framing; return its lines with the defaults it left."""
        server, date = self.defaults.server, self.defaults.date
        for name, value in special:
            if name == b"content-length":
                if self.declared is not None:
                    raise ValueError("more than one content-length header")
                self.declared = int(value)
            elif name == b"server":
                server = b""
            elif name == b"date":
                date = b""
            elif name == b"trailer" and self.trailers and self.accepts_trailers:
                lines += b"trailer: " + value + b"\r\n"
            elif name == b"connection" and b"close" in field_list([(name, value)], name):
                self.keep_alive = False
        if status == 204 and self.declared is not None:
            lines = without_length(lines)
        return lines + server + date

    def send(self, data: bytes, more: bool) -> list[bytes]:
        """Frame a piece of the body; return what is to be written, the head first."""
        out: list[bytes] = []
        if self.framing == "held":
            if len(data) == self.whole and self.keep_alive and not more:
                self.framing = "complete"  # what take_head would find out, in a third of the time
                head = self.head + b"\r\n"
                return [head + data] if self.whole < ONE_PIECE else [head, data]
            head, whole = self.take_head(len(data), more)
            if whole:
                return [head, data]
            out.append(head)
        framing = self.framing
        if framing == "length":
            self.left -= len(data)
            if self.left < 0:
                data = data[: self.left]
                self.left = 0
                self.fault = "the app sent more body than its content-length says"
                self.keep_alive = more = self.trailers = False
            elif not more and self.left:
                self.fault = f"the app sent {self.left} bytes less than its content-length says"
                self.keep_alive = self.trailers = False
            if data:
                out.append(data)
        elif framing == "chunked":
            if data:
                out += (b"%x\r\n" % len(data), data, b"\r\n")
            if not more and not self.trailers:
                out.append(b"0\r\n\r\n")
        elif framing == "until-close" and data:
            out.append(data)
        if not more and not self.trailers:
            self.framing = "complete"
        return out

    def begin_file(self, size: int, more: bool) -> list[bytes]:
        """Frame ``size`` bytes that the transport takes from a file; return what goes before them.

        ``end_file`` is to follow. Raises ValueError, with nothing changed, when they are not what
        the content-length leaves: a file is looked at before, so no client has to count its bytes.
        """
        left = self.declared if self.framing == "held" else self.left
        counts = self.framing == "length" or (self.framing == "held" and left is not None)
        if self.framing == "held" and (self.head_only or self.status in (204, 304)):
            counts = False
        if counts and left is not None and (size > left or (size < left and not more)):
            raise ValueError(f"{size} bytes of a file do not make up a content-length of {left}")
        out: list[bytes] = []
        if self.framing == "held":
            out.append(self.take_head(size, more)[0])
        if self.framing == "length":
            self.left -= size
        elif self.framing == "chunked" and size:
            out.append(b"%x\r\n" % size)
        return out

    def end_file(self, size: int, more: bool) -> list[bytes]:
        """Return what goes behind the bytes of the file."""
        end = b"\r\n" if size else b""
        if not more and not self.trailers:
            end += b"0\r\n\r\n"
        chunked = self.framing == "chunked"
        if not more and not self.trailers:
            self.framing = "complete"
        return [end] if end and chunked else []

    def send_trailers(self, headers: Iterable[Iterable[bytes]], more: bool) -> list[bytes]:
        """End a response that promised trailers; they are sent where the framing has a place."""
        lines = self.trailer_lines
        for pair in headers:
            name, value = check_pair(tuple(pair))
            if name.lower() in FORBIDDEN_TRAILERS:
                raise ValueError(f"{name!r} must not be sent as a trailer (RFC 9110 §6.5.1)")
            if self.accepts_trailers:
                lines += name + b": " + value + b"\r\n"
        self.trailer_lines = lines
        if more:
            return []
        framing, self.framing = self.framing, "complete"
        self.trailer_lines = b""
        return [b"0\r\n" + lines + b"\r\n"] if framing == "chunked" else []

    def take_head(self, size: int, more: bool) -> tuple[bytes, bool]:
        """Choose the framing (RFC 9112 §6.3); return the head, and whether this is the whole."""
        head, self.head = self.head, b""
        status = self.status
        declared = self.declared
        whole = False
        if self.trailers:
            more = True
        if self.head_only or status == 204 or status == 304:
            self.framing = "bodiless"
            if self.head_only and declared is None and status not in (204, 304):
                # the same head as for GET, but nothing invented from a body left out
                if more and self.http_version == "1.1":
                    head += b"transfer-encoding: chunked\r\n"
                elif size and not more:
                    head += b"content-length: %d\r\n" % size
        elif declared is not None:
            whole = declared == size and not more
            self.framing = "complete" if whole else "length"
            self.left = declared
        elif not more:
            whole = True
            self.framing = "complete"
            head += b"content-length: %d\r\n" % size
        elif self.http_version == "1.1":
            self.framing = "chunked"
            head += b"transfer-encoding: chunked\r\n"
        else:
            self.framing = "until-close"
            self.keep_alive = False
        if not self.keep_alive:
            return head + b"connection: close\r\n\r\n", whole
        if self.http_version == "1.0":
            return head + b"connection: keep-alive\r\n\r\n", whole
        return head + b"\r\n", whole


def plain_answer(
    status: int,
    text: str,
    defaults: DefaultLines,
    head_only: bool = False,
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """Return a whole answer of the server's own, which is the last on its connection."""
    body = text.encode("utf-8", "replace") + b"\n"
    extra = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
    head = (
        STATUS_LINES.get(status, b"HTTP/1.1 %d \r\n" % status)
        + extra
        + b"content-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n" % len(body)
        + defaults.server
        + defaults.date
        + b"connection: close\r\n\r\n"
    )
    return head if head_only else head + body
