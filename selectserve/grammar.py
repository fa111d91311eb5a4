"""grammar: what a line of HTTP may look like; each rule under the RFC section it comes from.

Pure functions and one table over bytes: called by http1 (requests), response (answers) and
handshake (WebSockets). Each returns what the bytes mean or raises ProtocolError; none guesses,
none is lenient, and none walks over bytes one by one in Python.
"""

from __future__ import annotations

import re

from .errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Headers = list[tuple[bytes, bytes]]

# RFC 9110 §5.6.2: token = 1*tchar
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110 §5.5: field-value of HTAB, SP, VCHAR and obs-text; RFC 9112 §5.1: no space before ":"
FIELD_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)"  # white space: see below
)
# RFC 3986 §3.2.2 uri-host [":" port]; an empty Host is valid (RFC 9112 §3.2)
HOST = re.compile(
    rb"(?:\[[0-9A-Fa-f:.]+\]|\[v[0-9A-Fa-f]+\.[0-9A-Za-z\-._~!$&'()*+,;=:]+\]"
    rb"|(?:[0-9A-Za-z\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)
BARE_LINE_END = re.compile(rb"\r(?!\n)|(?<!\r)\n")
ABSOLUTE_FORM = re.compile(rb"(?i:https?)://([^/?]*)([^?]*)(?:\?(.*))?", re.DOTALL)
# RFC 9112 §7.1.1: chunk-ext, with the BWS that is allowed around ";" and "="
CHUNK_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,16})"
    rb"(?:[ \t]*;[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb"(?:[ \t]*=[ \t]*(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
    rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"))?)*'
)
TARGET_BYTES = bytes(b for b in range(0x21, 0x7F) if b != 0x23)  # no CTL, SP, "#", DEL, obs-text
PLAIN_REQUEST_LINE = re.compile(
    rb"(GET|POST|PUT|DELETE|HEAD|OPTIONS|PATCH|TRACE) "
    rb"((/[\x21\x22\x24-\x3e\x40-\x7e]*)(?:\?([\x21\x22\x24-\x7e]*))?) HTTP/1\.1"
)
METHODS = {
    name.encode(): name
    for name in ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE")
}

MAX_CACHED_LINE = 256
MAX_CACHED_LINES = 1024
MAX_SPECIAL_LINE = 1024
MAX_LENGTH_DIGITS = 18  # checked before int(): Python refuses, slowly, 4300 digits and more
# Fields that carry secrets are parsed anew each time, so that no copy outlives its request.
SECRET = re.compile(rb"cookie|auth|token|secret|key|session", re.IGNORECASE)
# Fields that a proxy may have written, in any spelling; `forwarded` knows which count
FORWARDED_HINT = re.compile(rb"forwarded|x.real.ip")
# Fields that say where a message ends or who shall answer it.
SPECIAL = frozenset(
    b"host content-length transfer-encoding connection expect upgrade content-type".split()
)


class Limits:
    """How much of a request is read; sizes in bytes, 0 for ``body_size`` means no limit."""

    __slots__ = ("body_size", "header_fields", "header_size", "plain_head", "request_line")

    def __init__(
        self,
        request_line: int = 8192,
        header_size: int = 65536,
        header_fields: int = 100,
        body_size: int = 0,
    ) -> None:
        self.request_line = request_line
        self.header_size = header_size
        self.header_fields = header_fields
        self.body_size = body_size
        self.plain_head = min(request_line, header_size)  # a head so short breaks no limit


def field_list(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    """Return the lower-case members of a list-valued field over all its lines (RFC 9110 §5.6.1)."""
    members: list[bytes] = []
    for field, value in headers:
        if field == name:
            members += [item for part in value.split(b",") if (item := part.strip(b" \t").lower())]
    return members


class FieldLines(dict[bytes, "tuple[bytes, bytes]"]):
    """Field lines seen before, parsed: a lookup validates a line, a miss parses it.

    One table serves all connections of a server. It is bounded, holds no line whose name hints
    at a secret, and makes thirteen browser headers cost 2 µs instead of 14. ``special`` keeps
    the lines that say something about framing, so that one pass finds them. ``forwarded`` is
    True once any line looked like a proxy's: until then no request need be searched for one.
    """

    __slots__ = ("forwarded", "special")

    def __init__(self) -> None:
        super().__init__()
        self.forwarded = False
        self.special: dict[bytes, tuple[bytes, bytes]] = {}

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"invalid header field line {line[:40]!r}")
        name, value = match.groups()
        name = name.lower()
        value = value.strip(b" \t")  # a pattern for it would be quadratic in the white space
        pair = (name, value)
        if FORWARDED_HINT.search(name):
            self.forwarded = True
        if name in SPECIAL:
            if len(line) > MAX_SPECIAL_LINE:
                status = 400 if name == b"content-length" else 431
                raise ProtocolError(f"header field {name.decode()} is too long", status)
            if name == b"host" and HOST.fullmatch(value) is None:
                raise ProtocolError(f"invalid Host {value[:40]!r}")
            self.special[line] = self[line] = pair
        elif len(line) <= MAX_CACHED_LINE and not SECRET.search(name):
            self[line] = pair
        return pair

    def read(self, lines: Sequence[bytes]) -> tuple[Headers, Headers]:
        """Parse the lines of one section: all fields, and again those about framing."""
        if len(self) > MAX_CACHED_LINES:
            # Forget all when full, simpler than an order of use; and only here, between two
            # sections: a special line forgotten inside one would be read as ordinary.
            self.clear()
            self.special.clear()
        return list(map(self.__getitem__, lines)), list(filter(None, map(self.special.get, lines)))


def parse_request_line(line: bytes) -> tuple[str, bytes, bytes, bytes, str]:
    """Read ``method SP request-target SP HTTP-version`` (RFC 9112 §3); raise ProtocolError.

    Return method, target, path, query and version; only the path's and query's place in the
    target are found here, nothing is decoded.
    """
    parts = line.split(b" ")
    if len(parts) != 3:
        raise ProtocolError(f"invalid request line {line[:40]!r}")
    name, target, version = parts
    if version == b"HTTP/1.1":
        http_version = "1.1"
    else:
        http_version = parse_version(version)
    method = METHODS.get(name) or parse_method(name)
    if target.translate(None, TARGET_BYTES) or not target:
        raise ProtocolError(f"invalid byte in request target {target[:40]!r}")
    if target[0] != 47:  # "/"
        return parse_other_form(method, target, http_version)
    raw_path, _, query_string = target.partition(b"?")
    return method, target, raw_path, query_string, http_version


def parse_version(version: bytes) -> str:
    """Read a version that is not HTTP/1.1 (RFC 9112 §2.3, RFC 9110 §2.5)."""
    if version == b"HTTP/1.0":
        return "1.0"
    if len(version) != 8 or version[:5] != b"HTTP/" or not re.match(rb"\d\.\d", version[5:]):
        raise ProtocolError(f"invalid HTTP version {version[:40]!r}")
    if version[5:7] != b"1.":
        raise ProtocolError(f"HTTP version {version[5:].decode()} is not supported", 505)
    return "1.1"  # a higher minor version is to be understood as the highest we know


def parse_method(name: bytes) -> str:
    """Read an unregistered method: any token without lower-case letters."""
    if TOKEN.fullmatch(name) is None or name != name.upper():
        raise ProtocolError(f"invalid method {name[:40]!r}")
    if name == b"CONNECT":
        raise ProtocolError("CONNECT is not supported", 501)
    return name.decode()


def parse_other_form(
    method: str, target: bytes, http_version: str
) -> tuple[str, bytes, bytes, bytes, str]:
    """Read a target in absolute-form or asterisk-form (RFC 9112 §3.2.2, §3.2.4)."""
    if target == b"*":
        if method != "OPTIONS":
            raise ProtocolError("request target * is for OPTIONS only")
        return method, target, target, b"", http_version
    match = ABSOLUTE_FORM.fullmatch(target)
    if match is None:
        raise ProtocolError(f"invalid request target {target[:40]!r}")
    authority, path, query_string = match.groups()
    if not authority or authority[:1] == b":" or HOST.fullmatch(authority) is None:
        raise ProtocolError(f"invalid authority in request target {target[:40]!r}")
    return method, target, path or b"/", query_string or b"", http_version


def check_coding(value: bytes) -> None:
    """Accept the transfer coding chunked and no other (RFC 9112 §6.1)."""
    if value == b"chunked":
        return
    codings = [coding.strip(b" \t") for coding in value.split(b",")]
    if not all(map(TOKEN.fullmatch, codings)) or b"chunked" in codings[:-1]:
        raise ProtocolError(f"invalid transfer-encoding {value[:40]!r}")
    raise ProtocolError(f"transfer-encoding {value[:40]!r} is not supported", 501)


def parse_length(value: bytes) -> int:
    """Read a Content-Length: digits and nothing else (RFC 9110 §8.6)."""
    if not value.isdigit():  # bytes.isdigit knows only ASCII digits
        raise ProtocolError(f"invalid content-length {value[:40]!r}")
    digits = value.lstrip(b"0")
    if len(digits) > MAX_LENGTH_DIGITS:
        raise ProtocolError("content-length too large", 413)
    return int(digits or b"0")
