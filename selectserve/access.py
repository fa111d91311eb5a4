"""access: the access line in the user's words: apache's tokens as gunicorn spells them, or JSON.

Without ``--access-log-format`` none of this is used; the cycle writes its own line. A format is
taken apart once, at start, and a token that does not exist is refused there. What came from the
client is escaped, so that one request is one line and a quote cannot end its field.
"""

from __future__ import annotations

import json
import os
import re

from .asgi import client_name
from .errors import ConfigError
from .logs import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime
    from typing import Any, Callable, Optional

    from .asgi import HTTPCycle
    from .http1 import Request
    from .service import Service

    Token = Callable[["Exchange"], str]
    Address = Optional[tuple[str, int]]

ACCESS_FORMATS = {
    "common": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s',
    "combined": '%(h)s %(l)s %(u)s %(t)s "%(r)s" %(s)s %(b)s "%(f)s" "%(a)s"',
}
ACCESS_TOKEN = re.compile(r"%\((?:\{([^}]+)\}([io])|([a-zA-Z]+))\)s|%%")
CLIENT_LEFT, CUT_OFF = " (client left)", " (cut off)"  # marks: before the last byte did; by us
MONTH_NAMES = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def asked_for(request: Request, method: str = "") -> str:
    """Name a request in the log, as it came: the app may have done anything to its scope."""
    return f"{method or request.method} {request.raw_path.decode('latin-1')}"


class Exchange:
    """One request and its answer, as the log sees them.

    ``ended`` is on the wall clock, ``seconds`` the duration; ``mark`` says who ended it before its
    last byte had left, "" nobody.
    """

    __slots__ = (
        "answer_headers",
        "client",
        "ended",
        "mark",
        "request",
        "seconds",
        "size",
        "status",
    )

    def __init__(
        self,
        request: Request,
        client: Address,
        status: int,
        size: int = 0,
        seconds: float = 0.0,
        answer_headers: Iterable[Iterable[bytes]] = (),
        mark: str = "",
    ) -> None:
        self.request = request
        self.client = client
        self.status = status
        self.size = size
        self.seconds = seconds
        self.answer_headers = answer_headers
        self.mark = mark
        self.ended = 0.0

    def header(self, name: bytes) -> str:
        """Return a request header, "" without it."""
        return find_header(self.request.headers, name)

    def host(self) -> str:
        """Return the client's address."""
        return self.client[0] if self.client is not None else "unix"

    def begun(self) -> datetime:
        """Return the local time at which the request came."""
        from datetime import datetime, timezone  # 2 ms that only some need

        return datetime.fromtimestamp(self.ended - self.seconds, timezone.utc).astimezone()


def log_exchange(service: Service, exchange: Exchange) -> None:
    """Write the access line of an answer that no cycle wrote."""
    access_log = service.access_log
    if access_log is None:
        return
    if access_log.form is not None:
        access_log.write(access_log.form.line(exchange))
        return
    one = exchange
    access_log.write(plain_line(one.request, one.client, one.status, one.size, one.seconds))


def log_cycles(
    service: Service, cycles: list[HTTPCycle], unsent: int, ended: str, eof: bool
) -> None:
    """Write the access line of each answer; the last ``unsent`` bytes have never left.

    ``ended`` is the mark of an end that came before them, "" without one; ``eof`` says that the
    client has ended its side.
    """
    access_log = service.access_log
    if access_log is None:
        return
    if unsent:
        for cycle in reversed(cycles):
            kept = min(cycle.body_size, unsent)
            cycle.body_sent -= kept
            unsent -= kept
    now = service.reactor.clock()
    for cycle in cycles:
        request, client, size = cycle.request, cycle.client, cycle.body_size
        status = int(cycle.status) or 499  # nginx's number for one that left before an answer
        took = now - cycle.started_at
        mark = ended
        if cycle.state != "complete" or not (cycle.writer.keep_alive or is_whole(cycle)):
            mark = CLIENT_LEFT if eof and cycle.disconnected else ended or CUT_OFF
        if access_log.form is None:
            access_log.write(plain_line(request, client, status, size, took) + mark)
        else:
            headers = cycle.response_headers
            exchange = Exchange(request, client, status, size, took, headers, mark)
            access_log.write(access_log.form.line(exchange))


def is_whole(cycle: HTTPCycle) -> bool:
    """Tell whether the client was sent as much as it was told to expect, if it was."""
    declared = find_header(cycle.response_headers, b"content-length")
    return cycle.bodiless or not declared.isdecimal() or cycle.body_sent >= int(declared)


def plain_line(request: Request, client: Address, status: int, size: int, seconds: float) -> str:
    """Describe what was asked, what was answered, how much and how long."""
    return (
        f'{client_name(client)} - "{request.method} {request.target.decode("latin-1")} '
        f'HTTP/{request.http_version}" {status} {size} {seconds * 1000:.1f}ms'
    )


def find_header(headers: Iterable[Iterable[bytes]], name: bytes) -> str:
    """Return the values of a header, joined, "" without it."""
    if not isinstance(headers, (list, tuple)):
        return ""  # an iterator of the app's, which is used up
    values = [value for field, value in headers if field.lower() == name]
    return b", ".join(values).decode("latin-1")


class AccessFormat:
    """Make lines of exchanges; ``wall_clock`` gives seconds since the epoch."""

    def __init__(self, text: str, wall_clock: Callable[[], float]) -> None:
        self.wall_clock = wall_clock
        self.parts: list[Token] = []
        self.as_json = text == "json"
        if not self.as_json:
            self.parse(ACCESS_FORMATS.get(text, text))

    def parse(self, text: str) -> None:
        """Take the format apart; raise ConfigError for a token that does not exist."""
        at = 0
        for match in ACCESS_TOKEN.finditer(text):
            self.add_literal(text[at : match.start()])
            header, side, letter = match.groups()
            if header is not None:
                self.parts.append(header_token(header, side))
            elif letter is None:
                self.parts.append(lambda _exchange: "%")
            elif letter in ACCESS_TOKENS:
                self.parts.append(ACCESS_TOKENS[letter])
            else:
                raise ConfigError(f"--access-log-format: there is no token %({letter})s", 2)
            at = match.end()
        self.add_literal(text[at:])
        if ACCESS_TOKEN.sub("", text) == text:
            raise ConfigError(
                f"--access-log-format {text!r} has no token: write it as %(h)s, or name one of "
                f"{', '.join(ACCESS_FORMATS)}, json",
                2,
            )

    def add_literal(self, text: str) -> None:
        """Add what stands between two tokens."""
        if "%" in text:
            raise ConfigError(
                f"--access-log-format: what is {text[text.index('%') :]!r}? Write %% for %", 2
            )
        if text:
            self.parts.append(lambda _exchange: text)

    def line(self, exchange: Exchange) -> str:
        """Write the line."""
        exchange.ended = self.wall_clock()
        if self.as_json:
            return json.dumps(json_fields(exchange))
        return "".join([part(exchange) for part in self.parts])


def header_token(name: str, side: str) -> Token:
    """Return the token for a header of the request (i) or of the answer (o)."""
    field = name.lower().encode("latin-1")
    if side == "i":
        return lambda exchange: quotable(exchange.header(field))
    return lambda exchange: quotable(find_header(exchange.answer_headers, field))


def quotable(text: str) -> str:
    """Make client's text fit to stand between quotes, "-" for none."""
    return printable(text).replace('"', "\\x22") or "-"


def request_target(exchange: Exchange) -> str:
    """Return the target as it was sent."""
    return exchange.request.target.decode("latin-1")


def access_time(exchange: Exchange) -> str:
    """Write the time as apache does, whatever the locale."""
    begun = exchange.begun()
    return f"[{begun:%d}/{MONTH_NAMES[begun.month - 1]}/{begun:%Y:%H:%M:%S %z}]"


def basic_user(exchange: Exchange) -> str:
    """Return the name that Basic authentication gives (RFC 7617), unchecked."""
    scheme, _, coded = exchange.header(b"authorization").partition(" ")
    if scheme.lower() != "basic":
        return "-"
    from binascii import Error, a2b_base64

    try:
        return quotable(a2b_base64(coded.strip()).decode("utf-8", "replace").partition(":")[0])
    except (Error, ValueError):
        return "-"


def json_fields(exchange: Exchange) -> dict[str, Any]:
    """Return what a JSON line holds."""
    request = exchange.request
    fields = {
        "time": exchange.begun().isoformat(timespec="milliseconds"),
        "client": exchange.host(),
        "port": exchange.client[1] if exchange.client is not None else None,
        "method": request.method,
        "path": request.raw_path.decode("latin-1"),
        "query": request.query_string.decode("latin-1"),
        "protocol": f"HTTP/{request.http_version}",
        "status": exchange.status,
        "bytes": exchange.size,
        "ms": round(exchange.seconds * 1000, 3),
        "host": exchange.header(b"host"),
        "referer": exchange.header(b"referer"),
        "user_agent": exchange.header(b"user-agent"),
        "request_id": exchange.header(b"x-request-id"),
        "client_left": exchange.mark == CLIENT_LEFT,
        "cut_off": exchange.mark == CUT_OFF,
    }
    return {name: value for name, value in fields.items() if value not in ("", None, False)}


ACCESS_TOKENS: dict[str, Token] = {
    "h": lambda exchange: printable(exchange.host()),
    "l": lambda exchange: "-",
    "u": basic_user,
    "t": access_time,
    "r": lambda exchange: quotable(
        f"{exchange.request.method} {request_target(exchange)} HTTP/{exchange.request.http_version}"
    ),
    "m": lambda exchange: exchange.request.method,
    "U": lambda exchange: quotable(exchange.request.raw_path.decode("latin-1")),
    "q": lambda exchange: quotable(exchange.request.query_string.decode("latin-1")),
    "H": lambda exchange: f"HTTP/{exchange.request.http_version}",
    "s": lambda exchange: str(exchange.status),
    "B": lambda exchange: str(exchange.size),
    "b": lambda exchange: str(exchange.size or "-"),
    "f": lambda exchange: quotable(exchange.header(b"referer")),
    "a": lambda exchange: quotable(exchange.header(b"user-agent")),
    "T": lambda exchange: str(int(exchange.seconds)),
    "M": lambda exchange: str(int(exchange.seconds * 1000)),
    "D": lambda exchange: str(int(exchange.seconds * 1_000_000)),
    "L": lambda exchange: f"{exchange.seconds:.6f}",
    "p": lambda exchange: str(os.getpid()),
}


# -- request ids -------------------------------------------------------------------------------

REQUEST_ID = re.compile(rb"[A-Za-z0-9._~+/=:@-]{1,128}")


class RequestIds:
    """Give every request an id: the one it came with, or a new one, random then counted."""

    def __init__(self) -> None:
        self.prefix = os.urandom(8).hex()
        self.count = 0

    def give(self, request: Request) -> bytes:
        """Return the id; the request's header X-Request-ID says the same from now on."""
        given = [value for name, value in request.headers if name == b"x-request-id"]
        if len(given) == 1 and REQUEST_ID.fullmatch(given[0]):
            return given[0]
        self.count += 1
        made = b"%s-%x" % (self.prefix.encode(), self.count)
        kept = [pair for pair in request.headers if pair[0] != b"x-request-id"]
        request.headers = [*kept, (b"x-request-id", made)]
        return made
