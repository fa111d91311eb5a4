r"""Transcripts: bytes in, events out, in a text file that reads like the protocol.

    == a name for people
    rows: request-line/too-long, h11 CVE-2025-43859
    rfc: 9112 §3
    limits: request_line=100
    > GET /{a*90} HTTP/1.1
    > Host: a
    >
    ! eof
    < ProtocolError 414

``>`` is a line from the client and ends in CRLF, unless its last character is a backslash. In it
``\r \n \t \0 \xNN \\`` are bytes, and ``{text*N}`` repeats. ``! eof`` ends the client's side.

``<`` is an event, with what is indented below it:

    < Request POST /a?b HTTP/1.1 (keep-alive, length 3)
    <   raw_path /a                optional: compared when it is there
    <   query_string b             the same
    <   field host: a              the same: either all fields are listed or none
    < Data abc                     what came in a row is one piece here
    < EndOfMessage
    <   trailer name: value        always compared
    < CLOSED
    < ProtocolError 400 bare       a word that the reason contains, when there is one

The flags of a request are ``keep-alive`` or ``close``, then ``length N``, ``chunked``, ``expect``,
``upgrade``. A transcript that says nothing else ends in NEED_DATA.
"""

from __future__ import annotations

import re
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CASES = Path(__file__).resolve().parent / "cases"
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))|\{([^{}]+)\*(\d+)\}", re.DOTALL)
PLAIN = {"r": b"\r", "n": b"\n", "t": b"\t", "0": b"\0", "\\": b"\\"}


class Case:
    """One transcript."""

    def __init__(self, name: str, place: str) -> None:
        self.name = name
        self.place = place  # file:line
        self.rows: list[str] = []
        self.rfc = ""
        self.limits: dict[str, int] = {}
        self.data = b""
        self.eof = False
        self.expected: list[str] = []

    def __repr__(self) -> str:
        return f"{self.place} {self.name}"


def unescape(text: str) -> bytes:
    """Return the bytes that ``text`` stands for."""
    data, position = b"", 0
    for match in ESCAPE.finditer(text):
        data += text[position : match.start()].encode()
        position = match.end()
        if match[1]:
            data += bytes([int(match[1], 16)])
        elif match[2]:
            data += PLAIN[match[2]]
        else:
            data += unescape(match[3]) * int(match[4])
    return data + text[position:].encode()


def escape(data: bytes) -> str:
    """Return ``data`` as a transcript spells it, with long runs repeated."""
    text = repr(bytes(data))[2:-1].replace("\\'", "'").replace('\\"', '"')
    return re.sub(r"([^\\{}])\1{19,}", lambda m: f"{{{m[1]}*{len(m[0])}}}", text)


def read_cases(path: Path) -> list[Case]:
    """Read the transcripts of one file; a line that is none of its own is an error."""
    cases: list[Case] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        kind, _, rest = line.partition(" ")
        if not line.strip() or line.startswith("#"):
            continue
        if kind == "==":
            cases.append(Case(rest, f"{path.name}:{number}"))
        elif kind == "rows:":
            cases[-1].rows = [row.strip() for row in rest.split(",")]
        elif kind == "rfc:":
            cases[-1].rfc = rest
        elif kind == "limits:":
            cases[-1].limits = {
                name: int(value)
                for name, _, value in (item.partition("=") for item in rest.split())
            }
        elif kind == ">":
            assert not cases[-1].eof, f"{path.name}:{number}: bytes behind eof"
            held = rest.endswith("\\") and not rest.endswith("\\\\")
            cases[-1].data += unescape(rest[:-1] if held else rest) + (b"" if held else b"\r\n")
        elif line == "! eof":
            cases[-1].eof = True
        elif kind == "<":
            cases[-1].expected.append(rest)
        else:
            raise ValueError(f"{path.name}:{number}: {line!r} is no line of a transcript")
    return cases


def read_rows(path: Path) -> dict[str, str]:
    """Read a ROWS file: ``id | what it says`` on each line."""
    rows = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip() and not line.startswith("#"):
            name, _, meaning = line.partition("|")
            assert name.strip() not in rows, f"{name.strip()} is there twice"
            rows[name.strip()] = meaning.strip()
    return rows


def groups(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Put each event together with what is indented below it."""
    result: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.startswith("  "):
            result[-1][1].append(line)
        else:
            result.append((line, []))
    return result


def difference(expected: list[str], seen: list[str]) -> str:
    """Return "" when the events are as the transcript says, else the two, one above the other."""
    wanted = [line if is_error(line) else escape(unescape(line)) for line in expected]
    if not wanted or not (is_error(wanted[-1]) or wanted[-1] == "CLOSED"):
        wanted.append("NEED_DATA")
    pairs = list(zip(groups(seen), groups(wanted)))
    equal = len(groups(seen)) == len(groups(wanted)) and all(
        same_event(*one, *other) for one, other in pairs
    )
    return "" if equal else "\n  ".join(["expected:", *wanted]) + "\n  ".join(["\nseen:", *seen])


def same_event(seen: str, details: list[str], wanted: str, mentioned: list[str]) -> bool:
    """Compare an event; of its details only the kinds that the transcript mentions."""
    kinds = {line.split()[0] for line in mentioned} | {"trailer"}
    compared = [line for line in details if line.split()[0] in kinds]
    if not is_error(wanted):
        return seen == wanted and compared == mentioned
    _, allowed, word = (wanted + " ").split(" ", 2)
    _, status, reason = (seen + "  ").split(" ", 2)
    return (
        is_error(seen) and status in allowed.split("|") and word.strip().lower() in reason.lower()
    )


def is_error(line: str) -> bool:
    """True for the line of a ProtocolError."""
    return line.startswith("ProtocolError ")


def render_request(event: Any) -> list[str]:
    """Return a Request as a transcript has it, with every detail."""
    flags = ["keep-alive" if event.keep_alive else "close"]
    if event.content_length is not None:
        flags.append(f"length {event.content_length}")
    for name, flag in (
        ("chunked", event.chunked),
        ("expect", event.expect_continue),
        ("upgrade", event.upgrade),
    ):
        if flag:
            flags.append(name)
    assert event.has_body == (event.chunked or bool(event.content_length))
    return [
        f"Request {event.method} {escape(event.target)} HTTP/{event.http_version}"
        f" ({', '.join(flags)})",
        f"  raw_path {escape(event.raw_path)}".rstrip(),
        f"  query_string {escape(event.query_string)}".rstrip(),
        *(f"  field {escape(name)}: {escape(value)}".rstrip() for name, value in event.headers),
    ]
