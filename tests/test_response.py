"""The writer: whatever the app says, the wire shows one response with exactly one framing."""

from __future__ import annotations

import http
import itertools

import pytest

from selectserve.response import DefaultLines, ResponseLines, ResponseWriter, plain_answer

from .support import RecordedClient

DEFAULTS = DefaultLines(b"date: today\r\n", b"server: us\r\n")
BODIES = [[b""], [b"abc"], [b"abc", b""], [b"abc", b"defg"], [b"", b"abc"], [b"a", b"", b"bc", b""]]


def write(writer, pieces, status=200, headers=(), trailers=None):
    """Return what a response in ``pieces`` looks like on the wire."""
    writer.start(status, headers, trailers is not None)
    out = [
        data for n, piece in enumerate(pieces, 1) for data in writer.send(piece, n < len(pieces))
    ]
    if trailers is not None:
        out += writer.send_trailers(trailers, False)
    assert all(type(data) is bytes for data in out)
    return b"".join(out)


def begun(method="GET", version="1.1", keep_alive=True):
    """Return a writer that expects the response to such a request."""
    writer = ResponseWriter(DEFAULTS)
    writer.begin(method, version, keep_alive)
    return writer


@pytest.mark.parametrize("status", [200, 204, 299, 304, 404])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_every_shape_of_response_has_one_framing(method, version, status):
    """All pieces, lengths right and wrong, kept and closing connections."""
    for pieces, declared, keep_alive in itertools.product(
        BODIES, [None, "right", "less", "more"], [True, False]
    ):
        body = b"".join(pieces)
        length = {None: None, "right": len(body), "less": len(body) - 1, "more": len(body) + 1}
        size = length[declared]
        if size is not None and size < 0:
            continue
        headers = [] if size is None else [(b"Content-Length", b"%d" % size)]
        writer = begun(method, version, keep_alive)
        client = RecordedClient(write(writer, pieces, status, headers) + b"NEXT")
        if writer.framing == "until-close" or not writer.keep_alive:
            del client.buffer[-4:]
        response = client.read_response(method)
        case = f"{pieces} {declared} {keep_alive}: {response}"

        bodiless = method == "HEAD" or status in (204, 304)
        assert response.status == status, case
        assert response.body == (b"" if bodiless else body if size is None else body[:size]), case
        assert response.complete == (bodiless or declared != "more"), case
        assert bool(writer.fault) == (not bodiless and declared in ("less", "more")), case
        assert response.get("date") == b"today" and response.get("server") == b"us", case
        if version == "1.0":
            assert not response.all("transfer-encoding"), case
        if status == 204:
            assert not response.all("content-length"), case
        elif size is not None:
            assert response.get("content-length") == b"%d" % size, case
        assert (response.get("connection") == b"close") == (
            not keep_alive or response.framing == "close"
        ), case
        if version == "1.0" and response.get("connection") != b"close":
            assert response.get("connection") == b"keep-alive", case
        if response.framing == "close" or response.get("connection") == b"close":
            assert not writer.keep_alive, case
        assert bytes(client.buffer) == (b"NEXT" if writer.keep_alive else b""), case
        assert writer.keep_alive == (
            keep_alive and response.framing != "close" and not writer.fault
        ), case


def test_a_whole_response_is_head_and_body_in_order():
    writer = begun()
    data = write(writer, [b"abc"], headers=[(b"X-One", b"1"), (b"x-two", b"2")])
    assert data == (
        b"HTTP/1.1 200 OK\r\nX-One: 1\r\nx-two: 2\r\nserver: us\r\ndate: today\r\n"
        b"content-length: 3\r\n\r\nabc"
    )


def test_the_head_is_held_until_the_first_piece():
    writer = begun()
    writer.start(200, [])
    assert b"".join(writer.send(b"", True)).endswith(b"transfer-encoding: chunked\r\n\r\n")
    assert writer.send(b"", True) == [], "an empty piece must not end a chunked body"
    assert b"".join(writer.send(b"a" * 17, True)) == b"11\r\n" + b"a" * 17 + b"\r\n"
    assert b"".join(writer.send(b"b", False)) == b"1\r\nb\r\n0\r\n\r\n"


def test_what_is_beyond_the_length_is_never_written():
    writer = begun()
    writer.start(200, [(b"content-length", b"5")])
    assert b"".join(writer.send(b"abc", True)).endswith(b"\r\n\r\nabc")
    assert b"".join(writer.send(b"defg", True)) == b"de"
    assert "more" in writer.fault and not writer.keep_alive


@pytest.mark.parametrize("value", [b"close", b"Close", b"x,close", b"x, CLOSE ,y", b"x,\tclose"])
def test_close_from_the_app(value):
    writer = begun()
    response = RecordedClient(write(writer, [b""], headers=[(b"Connection", value)]))
    assert response.read_response().get("connection") == b"close"
    assert not writer.keep_alive


@pytest.mark.parametrize("value", [b"keep-alive", b"disclose", b"upgrade"])
def test_another_connection_option_from_the_app_closes_nothing(value):
    writer = begun()
    data = write(writer, [b""], headers=[(b"Connection", value)])
    assert RecordedClient(data).read_response().all("connection") == []
    assert writer.keep_alive


@pytest.mark.parametrize("value", [b"chunked", b"gzip", b"identity", b""])
@pytest.mark.parametrize("length", [[], [(b"content-length", b"3")]])
def test_transfer_encoding_from_the_app_is_ignored(value, length):
    headers = [(b"Transfer-Encoding", value), *length]
    response = RecordedClient(write(begun(), [b"abc"], headers=headers)).read_response()
    assert response.framing == "length" and response.body == b"abc"


def test_defaults_give_way_to_the_apps_own():
    headers = [(b"DATE", b"mine"), (b"Server", b"mine")]
    response = RecordedClient(write(begun(), [b""], headers=headers)).read_response()
    assert response.all("date") == response.all("server") == [b"mine"]


@pytest.mark.parametrize("status", [http.HTTPStatus.NOT_FOUND, 404])
def test_a_status_is_an_int_or_an_enum(status):
    data = write(begun(), [b""], status)
    assert data.startswith(b"HTTP/1.1 404 Not Found\r\n")


@pytest.mark.parametrize(
    "status", ["200", None, 200.0, True, b"200", [], 0, -1, 99, 100, 101, 199, 1000, 10**6]
)
def test_what_is_no_final_status(status):
    writer = begun()
    with pytest.raises((TypeError, ValueError)):
        writer.start(status, [])
    assert writer.framing == "waiting", "it is as if nothing had been said"
    assert write(writer, [b"abc"]).endswith(b"abc")


@pytest.mark.parametrize(
    "header",
    [
        ("x", b"v"),
        (b"x", "v"),
        (b"x", None),
        (b"x", 1),
        (b"x",),
        (b"x", b"v", b"w"),
        b"xy",
        b"x: y",
        None,
        (b"", b"v"),
        (b"x y", b"v"),
        (b"x:", b"v"),
        (b" x", b"v"),
        (b"x\r\n", b"v"),
        (b"x\0", b"v"),
        (b"x\xe9", b"v"),
        (b"x", b"a\rb"),
        (b"x", b"a\nb"),
        (b"x", b"\r\n"),
        (b"x", b"a\0"),
        (b"content-length", b"-1"),
        (b"content-length", b"+1"),
        (b"content-length", b""),
        (b"content-length", b"1, 1"),
        (b"content-length", b" 1"),
        (b"content-length", b"1_0"),
        (b"content-length", b"\xd9\xa3"),
        (b"content-length", b"9" * 5000),
    ],
    ids=repr,
)
def test_what_is_no_header(header):
    """Twice, since what was refused once must not be found in a cache."""
    writer = begun()
    for _ in range(2):
        with pytest.raises((TypeError, ValueError)):
            writer.start(200, [(b"x-good", b"1"), header])
        assert writer.framing == "waiting"
    data = write(writer, [b"abc"])
    assert b"x-good" not in data and data.endswith(b"abc")


def test_two_lengths_are_refused():
    for second in (b"3", b"4"):
        with pytest.raises(ValueError, match="content-length"):
            begun().start(200, [(b"Content-Length", b"3"), (b"content-length", second)])


def test_headers_may_be_any_iterables():
    headers = ([name, b"v"] for name in (b"a", b"b"))
    response = RecordedClient(write(begun(), [b""], headers=headers)).read_response()
    assert [name for name, _ in response.headers[:2]] == [b"a", b"b"]


def test_trailers_follow_a_chunked_body():
    """In the trailer section (RFC 9112 §7.1.2), and the message ends behind them."""
    data = write(begun(), [b"abc"], trailers=[(b"X-Sum", b"1"), (b"x-sum", b"2")])
    client = RecordedClient(data + b"NEXT")
    response = client.read_response()
    assert (response.framing, response.body, response.complete) == ("chunked", b"abc", True)
    assert response.trailers == [(b"X-Sum", b"1"), (b"x-sum", b"2")]
    assert bytes(client.buffer) == b"NEXT"


@pytest.mark.parametrize(
    "method, version, headers",
    [("GET", "1.0", []), ("HEAD", "1.1", []), ("GET", "1.1", [(b"content-length", b"3")])],
)
def test_trailers_are_dropped_where_there_is_no_place_for_them(method, version, headers):
    writer = begun(method, version)
    data = write(writer, [b"abc"], headers=headers, trailers=[(b"x-sum", b"1")])
    response = RecordedClient(data).read_response(method)
    assert response.complete and response.trailers == []
    assert response.body == (b"" if method == "HEAD" else b"abc")
    assert b"x-sum" not in data


@pytest.mark.parametrize(
    "trailer",
    [(b"Content-Length", b"1"), (b"transfer-encoding", b"x"), (b"host", b"a"), (b"x", b"a\nb"),
     (b"x y", b"v"), ("x", b"v")],
)  # fmt: skip
def test_forbidden_trailers(trailer):
    with pytest.raises((TypeError, ValueError)):
        write(begun(), [b"abc"], trailers=[trailer])


def test_one_writer_for_many_responses():
    """Nothing of a response is left for the next."""
    writer = ResponseWriter(DEFAULTS)
    for method, pieces, headers, body in [
        ("HEAD", [b"abc"], [(b"x-first", b"1")], b""),
        ("GET", [b"abc", b"def"], [], b"abcdef"),
        ("GET", [b"abc"], [(b"content-length", b"3")], b"abc"),
        ("GET", [b"", b""], [], b""),
        ("GET", [b"x"], [], b"x"),
    ]:
        writer.begin(method, "1.1", True)
        client = RecordedClient(write(writer, pieces, headers=headers))
        response = client.read_response(method)
        assert response.body == body and response.complete and not client.buffer
        assert bool(response.all("x-first")) == (method == "HEAD")
        assert writer.keep_alive and not writer.fault


def test_known_lines_are_bounded_and_hold_no_secret():
    """The table of lines lives as long as the server: neither growth nor leaks."""
    lines = ResponseLines()
    writer = ResponseWriter(DEFAULTS, lines)
    for number in range(5000):
        writer.begin("GET", "1.1", True)
        write(writer, [b""], headers=[(b"x-number", b"%d" % number)])
    assert len(lines) < 3000
    writer.begin("GET", "1.1", True)
    secret = [(b"Set-Cookie", b"SECRET"), (b"authorization", b"SECRET"), (b"x", b"y" * 10000)]
    assert b"SECRET" in write(writer, [b""], headers=secret)
    assert "SECRET" not in repr(dict(lines)) and "y" * 10000 not in repr(dict(lines))


@pytest.mark.parametrize("status, reason", [(400, b"Bad Request"), (599, b"")])
def test_an_answer_of_our_own(status, reason):
    data = plain_answer(status, "what was wrong: é", DEFAULTS, headers=[(b"Retry-After", b"1")])
    response = RecordedClient(data).read_response()
    assert (response.status, response.reason.encode()) == (status, reason)
    assert response.body == "what was wrong: é\n".encode() and response.complete
    assert response.get("connection") == b"close" and response.get("retry-after") == b"1"
    assert response.get("date") == b"today" and response.get("server") == b"us"
    assert response.get("content-type") == b"text/plain; charset=utf-8"
    head = plain_answer(status, "what was wrong: é", DEFAULTS, head_only=True)
    assert head.endswith(b"\r\n\r\n") and RecordedClient(head).read_response("HEAD").body == b""
