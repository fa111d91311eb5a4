"""The parser against transcripts: every row of the contract, for every split of the bytes.

The cases are text under ``tests/cases/http1``; ``tests/transcripts.py`` says how they read. Each is
fed whole, byte by byte, cut in two at every position, and with more bytes behind it.
"""

from __future__ import annotations

import random
import sys

import pytest

from selectserve.errors import ProtocolError
from selectserve.grammar import Limits
from selectserve.http1 import CLOSED, NEED_DATA, Data, EndOfMessage, Request, RequestParser

from .support import assert_linear
from .transcripts import CASES, difference, escape, read_cases, read_rows, render_request

FOLDER = CASES / "http1"
TRANSCRIPTS = [case for path in sorted(FOLDER.glob("*.txt")) for case in read_cases(path)]
TAIL = b"GET /tail HTTP/1.1\r\nHost: tail\r\n\r\n"
TAIL_EVENTS = [
    "Request GET /tail HTTP/1.1 (keep-alive)",
    "  raw_path /tail",
    "  query_string",
    "  field host: tail",
    "EndOfMessage",
]
MAX_CUTS = 1000  # of longer cases the ends and the neighbourhood of every line end are cut


class Reader:
    """Feed a parser and write down its events as a transcript has them."""

    def __init__(self, limits=None):
        self.parser = RequestParser(Limits(**(limits or {})))
        self.lines = []
        self.data = None  # what came in a row, since where it is cut depends on the reads
        self.last = "NEED_DATA"

    def feed(self, data):
        self.parser.receive_data(data)
        self.ask()

    def feed_eof(self):
        self.parser.receive_eof()
        self.ask()

    def ask(self):
        """Take every event there is."""
        while True:
            try:
                event = self.parser.next_event()
            except ProtocolError as exc:
                self.last = f"ProtocolError {exc.status} {exc.reason}"
                with pytest.raises(ProtocolError) as again:
                    self.parser.next_event()
                assert again.value is exc, "the error is final, and stays the same one"
                return
            assert not self.last.startswith("ProtocolError"), f"{event} after {self.last}"
            if event is NEED_DATA or event is CLOSED:
                self.last = repr(event)
                return
            if type(event) is Data:
                assert type(event.data) is bytes and event.data
                if self.data is None:
                    self.data = []
                self.data.append(event.data)
            else:
                self.flush()
                self.write(event)

    def flush(self):
        """Write the data that came in a row."""
        if self.data is not None:
            self.lines.append("Data " + escape(b"".join(self.data)))
            self.data = None

    def write(self, event):
        """Write a Request or an EndOfMessage."""
        if type(event) is Request:
            for name, value in event.headers:
                assert type(name) is bytes and type(value) is bytes
            self.lines += render_request(event)
        else:
            assert type(event) is EndOfMessage
            self.lines.append("EndOfMessage")
            self.lines += [
                f"  trailer {escape(name)}: {escape(value)}".rstrip()
                for name, value in event.trailers
            ]

    def events(self):
        """Return all lines, with what the parser said last."""
        self.flush()
        return [*self.lines, self.last]


def read(parts, limits=None, eof=False):
    """Return the events of ``parts``, one read each."""
    reader = Reader(limits)
    for part in parts:
        reader.feed(part)
    if eof:
        reader.feed_eof()
    return reader.events()


def cuts(data):
    """Return where to cut ``data`` in two: everywhere, or where it matters when it is long."""
    if len(data) <= MAX_CUTS:
        return range(1, len(data))
    places = {*range(1, 100), *range(len(data) - 100, len(data)), *range(0, len(data), 997)}
    position = data.find(b"\r\n")
    while position >= 0 and len(places) < MAX_CUTS:
        places.update(range(position - 1, position + 4))
        position = data.find(b"\r\n", position + 1)
    return sorted(place for place in places if 0 < place < len(data))


@pytest.mark.parametrize("case", TRANSCRIPTS, ids=repr)
def test_transcript(case):
    """A case gives the same events for every split of its bytes."""
    whole = read([case.data], case.limits, case.eof)
    different = difference(case.expected, whole)
    assert not different, different
    data = case.data
    by_byte = read([data[i : i + 1] for i in range(len(data))], case.limits, case.eof)
    assert by_byte == whole, "byte by byte"
    for cut in cuts(data):
        parts = [data[:cut], data[cut:]]
        assert read(parts, case.limits, case.eof) == whole, f"cut {data[:cut]!r} | {data[cut:]!r}"


@pytest.mark.parametrize("case", [case for case in TRANSCRIPTS if not case.eof], ids=repr)
def test_transcript_with_tail(case):
    """What follows a refused or a last request is never parsed; else it is the next request."""
    reader = Reader(case.limits)
    reader.feed(case.data)
    whole = reader.events()
    if whole[-1] == "NEED_DATA":
        ended = [line for line in whole[:-1] if not line.startswith("  ")]
        if not ended or ended[-1] != "EndOfMessage" or reader.parser.buffered:
            pytest.skip("ends inside a message: a tail would be a part of it")
        heads = [line for line in ended if line.startswith("Request ")]
        if "(keep-alive" in heads[-1]:
            whole[-1:] = [*TAIL_EVENTS, "NEED_DATA"]
    assert read([case.data + TAIL], case.limits) == whole, "in the same read"
    assert read([case.data, TAIL], case.limits) == whole, "in a read of its own"
    cut = max(0, len(case.data) - 1)
    assert read([case.data[:cut], case.data[cut:] + TAIL], case.limits) == whole, "across reads"


def test_every_row_has_a_transcript():
    """The contract, row by row: ROWS lists it, and every transcript names what it shows."""
    rows = read_rows(FOLDER / "ROWS")
    named = {row for case in TRANSCRIPTS for row in case.rows}
    assert not named - set(rows), "transcripts name rows that are not in ROWS"
    assert not set(rows) - named, "rows without a transcript"
    assert all(case.rfc and case.rows for case in TRANSCRIPTS), "a transcript says what it shows"


# -- any bytes, any split ---------------------------------------------------------------------

SEEDS = [case.data for case in TRANSCRIPTS if len(case.data) < 2000]
SPICES = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b";", b",", b"0", b"5", b"ffff", b"\x80",
    b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1",
    b"Connection: close\r\n", b"0\r\n\r\n", b"\r\n\r\n", b"3\r\nabc\r\n", b"GET / HTTP/1.1\r\n",
]  # fmt: skip


def mutated(rng):
    """Return a few real requests in a row, often the same ones, with a few bytes changed."""
    seeds = rng.sample(SEEDS, 2) if rng.random() < 0.5 else SEEDS
    data = bytearray(b"".join(rng.choice(seeds) for _ in range(rng.randint(1, 4))))
    for _ in range(rng.randint(0, 4)):
        place = rng.randint(0, len(data))
        kind = rng.randint(0, 3)
        if kind == 0:
            data[place:place] = rng.choice(SPICES)
        elif kind == 1:
            del data[place : place + rng.randint(1, 8)]
        elif kind == 2:
            data[place : place + 1] = bytes([rng.randrange(256)])
        else:
            other = rng.randint(0, len(data))
            data[place:place] = data[min(place, other) : max(place, other)][:60]
    return bytes(data)


def split(rng, data):
    """Cut ``data`` at random places."""
    places = sorted(rng.randint(0, len(data)) for _ in range(rng.randint(1, 8)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)]) if a < b]


@pytest.mark.parametrize("seed", range(20))
def test_any_split_of_any_bytes_gives_the_same_events(seed):
    """Mutated requests parse, or fail with the one error, and always in the same way."""
    rng = random.Random(seed)
    for _ in range(300):
        data = mutated(rng)
        limits = {} if rng.random() < 0.5 else {
            "request_line": rng.randint(10, 60), "header_size": rng.randint(10, 120),
            "header_fields": rng.randint(1, 4), "body_size": rng.randint(1, 12),
        }  # fmt: skip
        eof = rng.random() < 0.5
        whole = read([data], limits, eof)
        for _ in range(4):
            parts = split(rng, data)
            assert read(parts, limits, eof) == whole, f"seed {seed}, {limits}, eof {eof}: {parts}"
        by_byte = read([data[i : i + 1] for i in range(len(data))], limits, eof)
        assert by_byte == whole, f"seed {seed}, {limits}, eof {eof}: {data!r} byte by byte"


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_refused_cleanly(seed):
    """Bytes that never were a request raise the one error or wait; nothing else is ever raised."""
    rng = random.Random(seed)
    for _ in range(400):
        data = bytes(rng.randrange(256) for _ in range(rng.randint(1, 80)))
        last = read([data], eof=True)[-1]
        assert last == "CLOSED" or last.startswith("ProtocolError "), data


# -- time -------------------------------------------------------------------------------------


def one_byte_reads(n):
    value = b"a" * n
    data = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + value + b"\r\n\r\n"
    return [data[i : i + 1] for i in range(len(data))]


def short_fields(n):
    return [b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * n + b"\r\n"]


def different_fields(n):
    return [
        b"GET / HTTP/1.1\r\nHost: a\r\n"
        + b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(n))
        + b"\r\n"
    ]


def white_space_in_values(n):
    return [b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a " * n + b"\r\nY:" + b" " * n + b"\r\n\r\n"]


def unfinished_white_space(n):
    return [b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b" \t" * n + b"\x01\r\n\r\n"]


def tiny_chunks(n):
    return [
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * n
        + b"0\r\n\r\n"
    ]


def tiny_chunks_in_small_reads(n):
    data = tiny_chunks(n)[0]
    return [data[i : i + 7] for i in range(0, len(data), 7)]


def tiny_reads_of_a_long_chunk(n):
    data = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % n
    return [data, *([b"xxxx"] * (n // 4)), b"\r\n0\r\n\r\n"]


def long_target(n):
    data = b"GET /" + b"a" * n + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    return [data[i : i + 3] for i in range(0, len(data), 3)]


def pipelined(n):
    return [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * n]


def pipelined_in_small_reads(n):
    data = pipelined(n)[0]
    return [data[i : i + 20] for i in range(0, len(data), 20)]


def long_trailers(n):
    data = (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        + b"A: b\r\n" * n
        + b"\r\n"
    )
    return [data[i : i + 5] for i in range(0, len(data), 5)]


def long_extensions(n):
    extension = b";a=b" * 20
    return [
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + (b"1" + extension + b"\r\nx\r\n") * n
        + b"0\r\n\r\n"
    ]


def quoted_extension(n):
    return [b'POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;a="' + b"\\\\" * n]


def white_space_in_extensions(n):
    return [
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1;a"
        + b" \t" * n
        + b"\x01\r\n"
    ]


def many_extensions(n):
    return [
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1"
        + b";a" * n
        + b"\x01\r\n"
    ]


def odd_host(n):
    return [b"GET / HTTP/1.1\r\nHost: " + b"%41" * n + b"/\r\n\r\n"]


def odd_target(n):
    return [b"GET http://" + b"%41" * n + b"@ HTTP/1.1\r\nHost: a\r\n\r\n"]


def connection_options(n):
    return [b"GET / HTTP/1.1\r\nHost: a\r\nConnection: " + b"a," * n + b"a\r\n\r\n"]


def connection_fields(n):
    return [b"GET / HTTP/1.1\r\nHost: a\r\n" + b"Connection: a, b\r\n" * n + b"\r\n"]


def equal_fields_of_framing(n):
    return [
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"Upgrade: b\r\nExpect: 100-continue\r\n" * n + b"\r\n"
    ]


ADVERSARIES = [
    (one_byte_reads, 8000),
    (short_fields, 8000),
    (different_fields, 3000),
    (white_space_in_values, 20000),
    (unfinished_white_space, 1000),
    (tiny_chunks, 4000),
    (tiny_chunks_in_small_reads, 4000),
    (tiny_reads_of_a_long_chunk, 64000),
    (long_target, 30000),
    (pipelined, 2000),
    (pipelined_in_small_reads, 1500),
    (long_trailers, 4000),
    (long_extensions, 2000),
    (quoted_extension, 900),
    (white_space_in_extensions, 900),
    (many_extensions, 900),
    (odd_host, 400),
    (odd_target, 4000),
    (connection_options, 20000),
    (connection_fields, 400),
    (equal_fields_of_framing, 2000),
]


def parse(parts):
    """Parse ``parts``, with limits far above them."""
    parser = RequestParser(Limits(10**7, 10**7, 10**6))
    try:
        for part in parts:
            parser.receive_data(part)
            while parser.next_event() is not NEED_DATA:
                pass
    except ProtocolError:
        pass


@pytest.mark.parametrize("adversary, n", ADVERSARIES, ids=[a.__name__ for a, _ in ADVERSARIES])
def test_parsing_is_linear(adversary, n):
    """Twice the bytes take less than three times as long (with limits set high)."""
    small, large = adversary(n), adversary(2 * n)
    assert_linear(lambda: parse(small), lambda: parse(large))


# -- a body that has come with its head ------------------------------------------------------------

POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"


def test_a_whole_body_stands_for_its_events():
    parser = RequestParser()
    parser.receive_data(POST + b"hello" + POST + b"again")
    for body in (b"hello", b"again"):
        assert isinstance(parser.next_event(), Request)
        assert parser.take_whole_body() == body
    assert parser.next_event() is NEED_DATA and parser.buffered == 0


def test_a_head_that_comes_again_is_the_same_request():
    """So it must be it from the first byte to the last, and its end must be here."""
    first, other = (b"GET /%b HTTP/1.1\r\nHost: a\r\n\r\n" % path for path in (b"a", b"b"))
    parser = RequestParser()
    requests = []
    for data in (first, first, first[:-1], b"\n", other, POST + b"hello", POST, b"hello"):
        parser.receive_data(data)
        while (event := parser.next_event()) is not NEED_DATA:
            requests += [event] if isinstance(event, Request) else []
    assert [request.raw_path for request in requests] == [b"/a"] * 3 + [b"/b", b"/", b"/"]
    assert requests[0] is requests[1] and requests[4] is requests[5]
    assert len(set(map(id, requests))) == 4  # in two reads it is read step by step


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="slices are CPython's own")
def test_what_is_remembered_of_a_head_is_no_copy():
    """The buffer holds what was read last in any case: large cookies are there once, not twice."""
    parser = RequestParser()
    for number in (1, 1, 2, 2, 2):
        parser.receive_data(b"GET /%d HTTP/1.1\r\nHost: a\r\nCookie: b\r\n\r\n" % number)
        while parser.next_event() is not NEED_DATA:
            pass
        assert parser.head is parser.buffer


@pytest.mark.parametrize("last", [b"", POST + b"hello"], ids=["first", "later"])
@pytest.mark.parametrize("noise", [b"\n\r\n\r\n", b"\0\r\n\r\n", b"a\r\n\r\n", b":\r\n\r\n"])
def test_nothing_is_the_same_as_no_head(last, noise):
    parser = RequestParser()
    parser.receive_data(last + noise)
    with pytest.raises(ProtocolError):
        while parser.next_event() is not NEED_DATA:
            pass


@pytest.mark.parametrize(
    "first, rest", [(POST, b"hello"), (POST + b"hell", b"o"), (CHUNKED[:-9], CHUNKED[-9:])]
)
def test_what_is_not_whole_is_left_to_the_events(first, rest):
    parser = RequestParser()
    parser.receive_data(first)
    assert isinstance(parser.next_event(), Request)
    assert parser.take_whole_body() == b""
    parser.receive_data(rest)
    body = b""
    while isinstance(event := parser.next_event(), Data):
        body += event.data
    assert body == b"hello" and isinstance(event, EndOfMessage)


def test_no_request_has_no_body():
    parser = RequestParser()
    assert parser.take_whole_body() == b""
    parser.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" + POST)
    assert isinstance(parser.next_event(), Request)
    assert parser.take_whole_body() == b""
