"""http1: bytes in, events out. No socket, no clock, no log.

RequestParser is fed with ``receive_data`` and ``receive_eof`` and asked with ``next_event``; when
it cannot go on it says NEED_DATA and returns. Its state is the method that reads next:

    read_idle > read_request_line > read_header_section > read_sized > read_end > read_idle
        read_chunk_size > read_chunk_data > read_chunk_end > read_chunk_size … > read_trailers
    a plain head that is here whole: read_idle > read_sized or read_end; after a request that is
    the last of its connection: read_nothing; after an error: read_failure, which repeats it.

The events are the same for every split of the bytes over reads, but for Data, which may come in
more pieces. Where two implementations on a path could read a byte differently it is refused (RFC
9112 throughout), and nothing after the bad byte is ever parsed. The way back is the room response.
"""

from __future__ import annotations

from .errors import ProtocolError
from .grammar import (
    BARE_LINE_END,
    CHUNK_LINE,
    METHODS,
    PLAIN_REQUEST_LINE,
    FieldLines,
    Limits,
    check_coding,
    field_list,
    parse_length,
    parse_request_line,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn, Union

    Headers = list[tuple[bytes, bytes]]
    HTTPEvent = Union["Request", "Data", "EndOfMessage", "NeedData", "Closed"]

MAX_EMPTY_LINES = 4  # RFC 9112 §2.2 asks for "at least one"; a few more cost nothing
MAX_CHUNK_LINE = 4096  # size and extensions; nobody is known to send over 100 bytes
NOT_IN_TRAILERS = frozenset(b"host content-length transfer-encoding".split())


class NeedData:
    """The type of NEED_DATA: no event can be made of the bytes received so far."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "NEED_DATA"


class Closed:
    """The type of CLOSED: the client ended its side between two requests."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "CLOSED"


NEED_DATA = NeedData()
CLOSED = Closed()


class Request:
    """The head of a request (RFC 9112 §3, §5); Data events and one EndOfMessage follow.

    ``method`` and ``http_version`` ("1.0", "1.1") are str, ``target`` the bytes as sent,
    ``raw_path`` and ``query_string`` its parts; header names are lower-case, values as received.
    ``content_length`` is None when the body is chunked or absent; ``keep_alive`` says that the
    client will send more, ``upgrade`` and ``expect_continue`` that it asks for a 101 or a 100.
    """

    __slots__ = (
        "chunked",
        "content_length",
        "expect_continue",
        "headers",
        "http_version",
        "keep_alive",
        "memo",
        "method",
        "query_string",
        "raw_path",
        "target",
        "upgrade",
    )

    def __init__(
        self, method: str, target: bytes, raw_path: bytes, query_string: bytes, http_version: str
    ) -> None:
        self.method = method
        self.target = target
        self.raw_path = raw_path
        self.query_string = query_string
        self.http_version = http_version
        self.headers: Headers = []
        self.keep_alive = http_version == "1.1"
        self.expect_continue = False
        self.upgrade = False
        self.content_length: int | None = None
        self.chunked = False
        self.memo: Any = None  # of who serves it: the same request may come again

    def twin(self) -> Request:
        """Return a copy that may be changed: the parser may show this one again."""
        twin = Request.__new__(Request)
        for name in Request.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    @property
    def has_body(self) -> bool:
        """True when Data events may follow."""
        return self.chunked or bool(self.content_length)

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.target[:80]!r} HTTP/{self.http_version}>"


class Data:
    """A piece of the body, never empty, as large as the bytes at hand allow."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<Data {len(self.data)} bytes>"


class EndOfMessage:
    """The body is complete; ``trailers`` are kept apart from the headers (RFC 9110 §6.5.1)."""

    __slots__ = ("trailers",)

    def __init__(self, trailers: Headers) -> None:
        self.trailers = trailers

    def __repr__(self) -> str:
        return "<EndOfMessage>"


END = EndOfMessage([])


class RequestParser:
    """Read one connection's requests (RFC 9112), one at a time, in order.

    ``next_event`` returns Request, then Data as it comes, then EndOfMessage, also when there is
    no body; NEED_DATA asks for ``receive_data`` or ``receive_eof``; CLOSED means that no request
    follows. A ProtocolError is final: each later call raises it again.
    """

    __slots__ = (
        "body_left",
        "body_received",
        "buffer",
        "empty_lines",
        "eof",
        "extension_bytes",
        "failure",
        "fields",
        "head",
        "last",
        "limits",
        "position",
        "read",
        "request",
        "scanned",
        "section",
    )

    def __init__(self, limits: Limits | None = None, fields: FieldLines | None = None) -> None:
        self.limits = limits or Limits()
        self.fields = FieldLines() if fields is None else fields
        self.buffer: bytes | bytearray = b""
        self.position = 0  # everything before it has been read
        self.scanned = 0  # no line end that is looked for lies before it
        self.eof = False
        self.empty_lines = 0
        self.head: bytes | bytearray | None = None  # the last plain one: the next may be the same…
        self.section: bytes | bytearray | None = None  # …or have the same fields
        self.last = NO_REQUEST  # what it was read as
        self.request = NO_REQUEST  # the one whose head or body is being read
        self.body_left = 0  # of the whole body, or of the chunk
        self.body_received = 0
        self.extension_bytes = 0
        self.failure: ProtocolError | None = None
        # Plain functions, not bound methods: a parser that refers to itself would have to wait
        # for the garbage collector.
        self.read: Callable[[RequestParser], HTTPEvent] = RequestParser.read_idle

    def __repr__(self) -> str:
        return f"<RequestParser {self.state}, {self.buffered} bytes buffered>"

    @property
    def state(self) -> str:
        """The name of what is read next, for people."""
        return self.read.__name__

    @property
    def buffered(self) -> int:
        """How many received bytes no event has been made of."""
        return len(self.buffer) - self.position

    def receive_data(self, data: bytes) -> None:
        """Take ``data`` as the next bytes of the connection; ask next_event then."""
        position = self.position
        buffer = self.buffer
        if position == len(buffer):  # the common case: nothing is left over, nothing is copied
            self.buffer = data
            self.position = self.scanned = 0
            return
        if type(buffer) is not bytearray:
            self.buffer = buffer = bytearray(buffer)
        if position > 65536 or position * 2 > len(buffer):  # amortised: moves less than was read
            del buffer[:position]
            self.position = 0
            self.scanned = max(0, self.scanned - position)
        buffer += data

    def receive_eof(self) -> None:
        """Note that the client will send nothing more; ask next_event then."""
        self.eof = True

    def next_event(self) -> HTTPEvent:
        """Return the next event, or NEED_DATA, or CLOSED; raise ProtocolError."""
        read = self.read  # not self.read(self): Python would look for a method first
        return read(self)

    def take_whole_body(self) -> bytes:
        """Return the body of the request just read if all of it is here already, else b"".

        It stands for the Data and the EndOfMessage: small bodies come together with their head.
        """
        if self.position + self.body_left > len(self.buffer):
            return b""
        if self.read is not RequestParser.read_sized:
            return b""
        data = self.take_body()
        self.read_end()
        return data

    def take_rest(self) -> bytes:
        """Return the bytes that no event was made of, for whoever reads on after an upgrade."""
        rest = bytes(self.buffer[self.position :])
        self.buffer, self.position = b"", 0
        self.read = RequestParser.read_nothing
        return rest

    # -- states: each returns an event, or says NEED_DATA and stays ---------------------------

    def read_idle(self) -> HTTPEvent:
        """Read a plain head that is here from end to end: most are, and it halves the time.

        One that is the last one again, as clients of APIs repeat theirs, is the same Request.
        Whatever is not so plain is left untouched, for the other states to read step by step.
        """
        buffer, position = self.buffer, self.position
        end = buffer.find(b"\r\n\r\n", position) + 4  # 3 when it is not here
        head = buffer[position:end]  # with its end it is all of the buffer, mostly: no copy
        if head == self.head:
            request, self.head = self.last, head
        else:
            line_end = buffer.find(b"\r\n", position)
            plain = PLAIN_REQUEST_LINE.fullmatch(buffer, position, line_end)
            if plain is None or not 3 < len(head) <= self.limits.plain_head:
                return self.skip_empty_lines()
            name, target, raw_path, query_string = plain.groups(b"")
            request = Request(METHODS[name], target, raw_path, query_string, "1.1")
            section = buffer[line_end + 2 : end - 4]
            if section == self.section:
                request.headers = self.last.headers
                request.content_length = self.last.content_length
                self.head, self.last = head, request
            elif not self.read_plain_section(request, bytes(section)):
                return self.skip_empty_lines()
            elif request.keep_alive and not request.upgrade | request.expect_continue:
                self.head, self.section, self.last = head, section, request
        self.request = request
        self.position = end
        self.empty_lines = 0
        if request.content_length:
            self.body_left = request.content_length
            self.read = RequestParser.read_sized
        else:
            self.read = RequestParser.read_end
        return request

    def read_plain_section(self, request: Request, section: bytes) -> bool:
        """Read all fields into ``request``; False if there is anything to refuse or to stream."""
        lines = section.split(b"\r\n") if section else []
        if len(lines) > self.limits.header_fields:
            return False
        try:
            request.headers, special = self.fields.read(lines)
            apply_framing(request, special)
        except ProtocolError:
            return False
        length = request.content_length
        return not request.chunked and not (length and length > self.limits.body_size > 0)

    def skip_empty_lines(self) -> HTTPEvent:
        """Skip the few empty lines that may stand before a request line (RFC 9112 §2.2)."""
        buffer, position = self.buffer, self.position
        while buffer[position : position + 2] == b"\r\n" and self.empty_lines < MAX_EMPTY_LINES:
            self.empty_lines += 1
            position += 2
        self.position = position
        rest = len(buffer) - position
        if rest == 0:
            return CLOSED if self.eof else NEED_DATA
        if buffer[position] == 0x16:
            self.refuse("TLS handshake on a plain port: an https request to an http port")
        if rest == 1 and buffer[position] == 13:
            return self.wait("before a request line")
        self.scanned = position
        self.read = RequestParser.read_request_line
        return self.read_request_line()

    def read_request_line(self) -> HTTPEvent:
        """Read method, target and version (RFC 9112 §3)."""
        buffer, position = self.buffer, self.position
        limit = self.limits.request_line
        head_only = buffer.startswith(b"HEAD ", position)  # then no refusal has a body
        self.request = BROKEN_HEAD if head_only else NO_REQUEST
        end = buffer.find(b"\r\n", max(position, self.scanned - 1))
        if end < 0 or end - position > limit:
            self.check_unfinished(end, limit, ProtocolError("request line too long", 414), 2)
            return self.wait("inside the request line")
        line = bytes(buffer[position:end])
        try:
            self.request = Request(*parse_request_line(line))
        except ProtocolError as exc:
            self.fail(self.bare_line_end(end + 2, limit) or exc)
        # The CRLF stays: a section is CRLF *( field-line CRLF ) CRLF, also an empty one.
        self.position = self.scanned = end
        self.read = RequestParser.read_header_section
        return self.read_header_section()

    def read_header_section(self) -> HTTPEvent:
        """Read all fields (RFC 9112 §5), and from them how the body is framed (§6)."""
        end = self.section_end()
        if end < 0:
            return self.wait("inside the header section")
        request = self.request
        try:
            request.headers, special = self.read_section(end)
            apply_framing(request, special)
            limit = self.limits.body_size
            if limit and (request.content_length or 0) > limit:
                raise ProtocolError(f"body larger than {limit} bytes", 413)
        except ProtocolError as exc:
            self.fail(self.bare_line_end(end + 4, self.limits.header_size) or exc)
        self.position = self.scanned = end + 4
        self.empty_lines = 0
        if request.chunked:
            self.body_received = self.extension_bytes = 0
            self.read = RequestParser.read_chunk_size
        elif request.content_length:
            self.body_left = request.content_length
            self.read = RequestParser.read_sized
        else:
            self.read = RequestParser.read_end
        return request

    def read_sized(self) -> HTTPEvent:
        """Read a body whose length was declared (RFC 9112 §6.2)."""
        data = self.take_body()
        if not data:
            return self.wait("inside the body")
        if self.body_left == 0:
            self.read = RequestParser.read_end
        return Data(data)

    def read_chunk_size(self) -> HTTPEvent:
        """Read a chunk's size line (RFC 9112 §7.1); extensions are checked and ignored."""
        buffer, position = self.buffer, self.position
        end = buffer.find(b"\r\n", max(position, self.scanned - 1))
        if end < 0 or end - position > MAX_CHUNK_LINE:
            self.check_unfinished(end, MAX_CHUNK_LINE, ProtocolError("chunk size line too long"), 2)
            return self.wait("inside a chunk size line")
        line = bytes(buffer[position:end])
        match = CHUNK_LINE.fullmatch(line)
        if match is None:
            invalid = ProtocolError(f"invalid chunk size line {line[:40]!r}")
            self.fail(self.bare_line_end(end + 2, MAX_CHUNK_LINE) or invalid)
        digits = match[1]
        self.extension_bytes += len(line) - len(digits)
        if self.extension_bytes > self.limits.header_size:
            self.refuse("too many chunk extensions")
        size = int(digits, 16)
        if size == 0:
            self.position = self.scanned = end  # as after a request line
            self.read = RequestParser.read_trailers
            return self.read_trailers()
        self.body_received += size
        limit = self.limits.body_size
        if limit and self.body_received > limit:
            self.fail(ProtocolError(f"body larger than {limit} bytes", 413))
        self.position = end + 2
        self.body_left = size
        self.read = RequestParser.read_chunk_data
        return self.read_chunk_data()

    def read_chunk_data(self) -> HTTPEvent:
        """Read the data of one chunk."""
        data = self.take_body()
        if not data:
            return self.wait("inside a chunk")
        if self.body_left == 0:
            self.read = RequestParser.read_chunk_end
        return Data(data)

    def read_chunk_end(self) -> HTTPEvent:
        """Read the CRLF behind a chunk's data: exactly that (RFC 9112 §7.1)."""
        position = self.position
        end = bytes(self.buffer[position : position + 2])
        if end != b"\r\n":
            if end not in (b"", b"\r"):
                self.refuse("chunk data not followed by CRLF")
            return self.wait("behind a chunk")
        self.position = self.scanned = position + 2
        self.read = RequestParser.read_chunk_size
        return self.read_chunk_size()

    def read_trailers(self) -> HTTPEvent:
        """Read the trailer section (RFC 9112 §7.1.2), which is never merged into the headers."""
        end = self.section_end()
        if end < 0:
            return self.wait("inside the trailer section")
        try:
            trailers, special = self.read_section(end)
            for name, _ in special:
                if name in NOT_IN_TRAILERS:
                    raise ProtocolError(f"{name.decode()} in the trailer section")
        except ProtocolError as exc:
            self.fail(self.bare_line_end(end + 4, self.limits.header_size) or exc)
        self.position = self.scanned = end + 4
        self.read_end()
        return EndOfMessage(trailers)

    def read_end(self) -> HTTPEvent:
        """Say that the message is complete, and go on with the next one if there may be one."""
        if self.request.keep_alive:
            self.read = RequestParser.read_idle
        else:
            self.read = RequestParser.read_nothing
        self.request = NO_REQUEST  # what is refused from here on was no part of it
        return END

    def read_nothing(self) -> HTTPEvent:
        """Let pass what follows the last request: no byte of it is parsed (RFC 9112 §9.6)."""
        self.buffer, self.position = b"", 0
        return CLOSED if self.eof else NEED_DATA

    def read_failure(self) -> HTTPEvent:
        """Raise again what was raised: nothing after a bad byte is read."""
        assert self.failure is not None
        raise self.failure

    # -- what the states share ----------------------------------------------------------------

    def take_body(self) -> bytes:
        """Take what is there of the body, or of the chunk; b"" when nothing is."""
        position = self.position
        data = bytes(self.buffer[position : position + self.body_left])
        self.position = position + len(data)
        self.body_left -= len(data)
        if self.position == len(self.buffer):  # or a paused upload would be here twice
            self.buffer, self.position, self.scanned = b"", 0, 0
        return data

    def section_end(self) -> int:
        """Find the empty line that ends a section, or -1; refuse what can no longer be one."""
        position, limit = self.position, self.limits.header_size
        end = self.buffer.find(b"\r\n\r\n", max(position, self.scanned - 3))
        if end < 0 or end - position > limit:
            self.check_unfinished(end, limit, ProtocolError("header section too large", 431), 4)
        return end

    def read_section(self, end: int) -> tuple[Headers, Headers]:
        """Read the field lines between the CRLF at ``position`` and the empty line at ``end``."""
        start = self.position + 2
        if end < start:
            return [], []
        lines = bytes(self.buffer[start:end]).split(b"\r\n")
        if len(lines) > self.limits.header_fields:
            raise ProtocolError("too many header fields", 431)
        return self.fields.read(lines)

    def check_unfinished(self, end: int, limit: int, too_long: ProtocolError, mark: int) -> None:
        """Fail on a bare CR or LF at once, then on too many bytes; else remember the scan.

        ``mark`` is the length of what ends the line or section: all but its last byte may be
        here without the limit being reached.
        """
        bare = self.bare_line_end(len(self.buffer) if end < 0 else end, limit)
        if bare is not None:
            self.fail(bare)
        if end >= 0 or len(self.buffer) - self.position >= limit + mark:
            self.fail(too_long)
        self.scanned = len(self.buffer)

    def bare_line_end(self, end: int, limit: int) -> ProtocolError | None:
        """Look for a CR or an LF alone (RFC 9112 §2.2) in the first ``limit`` bytes before end.

        It comes before every other fault of the same line or section, because the same bytes
        in smaller reads would have been refused for it.
        """
        buffer = self.buffer
        end = min(end, self.position + limit)
        start = max(self.position, self.scanned - 1)
        if end > start and buffer[end - 1] == 13:
            end -= 1  # what follows decides
        if start == self.position < end and buffer[start] == 10:
            # The pattern would look behind it, at a byte of the message before.
            return ProtocolError("bare LF where a line begins: lines end with CRLF")
        match = BARE_LINE_END.search(buffer, start, end)
        if match is None:
            return None
        what = "CR" if match[0] == b"\r" else "LF"
        near = bytes(buffer[max(self.position, match.start() - 20) : match.start() + 1])
        return ProtocolError(f"bare {what} at the end of {near!r}: lines end with CRLF")

    def wait(self, where: str) -> HTTPEvent:
        """Say NEED_DATA, or fail when no more can come."""
        if self.eof:
            self.refuse(f"the client closed {where}")
        return NEED_DATA

    def refuse(self, reason: str) -> NoReturn:
        """Fail with a plain 400."""
        self.fail(ProtocolError(reason))

    def fail(self, error: ProtocolError) -> NoReturn:
        """Raise ``error`` now and whenever asked again."""
        self.failure = error
        self.read = RequestParser.read_failure
        self.buffer, self.position = b"", 0
        raise error


def apply_framing(request: Request, special: Headers) -> None:
    """Read what the special fields say of body, connection and host; raise ProtocolError."""
    modern = request.http_version == "1.1"
    host = length = coding = None
    typed = persistence = False
    for name, value in special:
        if name == b"host":
            if host is not None:
                raise ProtocolError("more than one host field")
            host = value
        elif name == b"connection":
            persistence = persistence or value.lower() != b"keep-alive" or not modern
        elif name == b"content-length":
            if length is not None:
                raise ProtocolError("more than one content-length field")
            length = value
        elif name == b"content-type":
            if typed:
                raise ProtocolError("more than one content-type field")
            typed = True
        elif name == b"transfer-encoding":
            if coding is not None:
                raise ProtocolError("more than one transfer-encoding field")
            coding = value
        elif name == b"upgrade":
            request.upgrade = modern
        else:  # expect
            if modern and value.lower() != b"100-continue":
                raise ProtocolError(f"unknown expectation {value[:40]!r}", 417)
            request.expect_continue = modern
    if persistence:  # else it is as most browsers say, and as it is anyway
        # RFC 9112 §9.3: close wins over keep-alive, in whatever order they come
        options = field_list(request.headers, b"connection")
        request.keep_alive = b"close" not in options and (modern or b"keep-alive" in options)
    if coding is not None:
        if length is not None or not modern:
            raise ProtocolError("transfer-encoding with content-length, or in HTTP/1.0")
        check_coding(coding.lower())
        request.chunked = True
    elif length is not None:
        request.content_length = parse_length(length)
    if host is None and modern:
        raise ProtocolError("HTTP/1.1 request without Host")
    if request.target[0] != 47 and request.target != b"*":
        # RFC 9112 §3.2.2: the authority of an absolute-form target replaces the Host field
        authority = request.target.split(b"/", 3)[2].partition(b"?")[0]
        request.headers = [
            (name, authority if name == b"host" else value) for name, value in request.headers
        ]


NO_REQUEST = Request("", b"", b"", b"", "1.1")
BROKEN_HEAD = Request("HEAD", b"", b"", b"", "1.1")
