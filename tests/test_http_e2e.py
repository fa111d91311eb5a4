"""HTTP/1.1 over a real socket, against a real process: what the client sees of each rule.

The transcripts of tests/cases/http1 are replayed as they are; what needs an app that behaves in a
certain way comes after them, in the order of the contract's tables.
"""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec

import pytest

from .support import DEADLINE, RawClient, parallel
from .test_http1 import TAIL, TRANSCRIPTS, read
from .transcripts import is_error, unescape

pytestmark = pytest.mark.usefixtures("healthy")
SERVED = ("tests.apps:app", "--lifespan", "off")


@pytest.fixture
def server(module_serve):
    """The server most tests share."""
    return module_serve(*SERVED)


@pytest.fixture
def client(server):
    """A connection to it."""
    with server.connect() as client:
        yield client


def flags(limits):
    """Return the command line of a transcript's limits."""
    return [part for name, value in limits.items() for part in (option(name), str(value))]


def option(name):
    return "--limit-" + name.replace("_", "-")


def check_refusal(response, statuses):
    """An error answer is complete, says what was wrong, and is the connection's last."""
    assert str(response.status) in statuses.split("|"), response
    assert response.complete and response.framing == "length" and response.body
    assert response.get("connection") == b"close"
    assert response.get("date") and response.get("server")
    assert response.get("content-type").startswith(b"text/plain")


def requests_of(case):
    """Return what an app should see of a transcript's requests."""
    seen, lines = [], read([case.data], case.limits, case.eof)
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "Request":
            seen.append([rest.split()[0], b"", b"", [], b""])
        elif line.startswith("  raw_path"):
            seen[-1][1] = unescape(line[11:])
        elif line.startswith("  query_string"):
            seen[-1][2] = unescape(line[15:])
        elif line.startswith("  field "):
            name, _, value = line[8:].partition(":")
            seen[-1][3].append((unescape(name), unescape(value[1:])))
        elif kind == "Data":
            seen[-1][4] = unescape(rest)
    return [tuple(request) for request in seen]


REFUSED = [case for case in TRANSCRIPTS if is_error(case.expected[0]) and not case.eof]
SERVED_CASES = [
    case
    for case in TRANSCRIPTS
    if case.expected[0].startswith("Request")
    and read([case.data], case.limits, eof=True)[-1] == "CLOSED"
]


@pytest.mark.parametrize("case", REFUSED, ids=repr)
def test_refused_transcript(module_serve, case):
    """One complete error answer, nothing of what follows is served, and the close is clean."""
    server = module_serve("tests.apps:record", "--lifespan", "off", *flags(case.limits))
    with server.connect() as client:
        client.send(case.data + TAIL)
        check_refusal(client.read_response(), case.expected[0].split(" ")[1])
        client.half_close()
        assert client.read_until_close() == b""


@pytest.mark.parametrize("case", SERVED_CASES, ids=repr)
def test_served_transcript(module_serve, case):
    """The app sees exactly the requests of the transcript, answered in order."""
    server = module_serve("tests.apps:record", "--lifespan", "off", *flags(case.limits))
    expected = requests_of(case)
    with server.connect() as client:
        client.send(case.data)
        client.half_close()
        for method, *rest in expected:
            response = client.read_response(method)
            assert response.status == 200 and response.complete
            assert ast.literal_eval(response.body.decode()) == (method, *rest)
        assert client.read_until_close() == b""


# -- request line and header section --------------------------------------------------------------


def test_a_tls_client_is_told_in_the_log(server, client):
    start = server.log_position()
    client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    check_refusal(client.read_response(), "400")
    server.wait_for_log("127.0.0.1.*https request to an http port", start=start)


def test_a_long_line_is_refused_without_reading_on(client):
    """414 comes at the limit, however slowly the megabyte is sent."""
    client.send(b"GET /")
    for _ in range(90):
        client.send(b"a" * 100)
    check_refusal(client.read_response(), "414")


def test_the_log_says_what_was_wrong_and_where(server, client):
    start = server.log_position()
    client.send(b"GET / HTTP/1.1\r\nHost: a\r\nBad Header: \x1b[31m\r\n\r\n")
    check_refusal(client.read_response(), "400")
    line = server.wait_for_log("Bad Header", start=start).string
    assert "127.0.0.1" in line and "400" in line and "\x1b[31m" not in line


def test_an_error_answer_to_head_has_no_body(client):
    client.send(b"HEAD / HTTP/1.1\r\n\r\n")
    response = client.read_response("HEAD")
    assert response.status == 400 and response.get("connection") == b"close"
    assert client.read_until_close() == b""


def test_an_error_answer_survives_what_the_client_still_sends(server):
    """Lingering close: a client that goes on sending is not answered with a reset."""
    with server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n")
        for _ in range(16):
            client.send(b"x" * 65536)
        check_refusal(client.read_response(), "400")
        client.half_close()
        assert client.read_until_close() == b""


def test_bytes_of_a_bad_head_are_not_used_for_the_next_connection(server):
    with server.connect() as client:
        client.send(b"GET /left-over HTTP/1.1\r\nHo")
    with server.connect() as client:
        assert client.get("/hello").body == b"hello"


# -- body framing ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"Content-Length: 10\r\n\r\n12345",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r",
    ],
    ids=["length", "no last chunk", "no final CRLF", "half a CRLF"],
)
@pytest.mark.parametrize("end", ["half_close", "close", "reset"])
def test_a_body_cut_short_is_a_disconnect(server, tag, data, end):
    """Never a short body that looks complete (RX-10)."""
    with server.connect() as client:
        client.send(f"POST /streaming_messages?{tag} HTTP/1.1\r\nHost: a\r\n".encode() + data)
        server.wait_for_log(rf"APP {tag} .*'more_body': True")
        getattr(client, end)()
        server.wait_for_log(rf"APP {tag} .*'http.disconnect'")
        assert f"APP {tag} {{'type': 'http.request'" in server.log_text()
        assert not re.search(rf"APP {tag} .*'more_body': False", server.complete_log())


@pytest.mark.parametrize("bad", [b"x\r\n", b"3\r\nabcX", b"0\r\nContent-Length: 5\r\n\r\n"])
def test_a_broken_body_is_a_disconnect_and_the_end(server, tag, bad):
    """RX-11: the app is told, the client is answered, nothing behind the error is parsed."""
    with server.connect() as client:
        head = f"POST /streaming_messages?{tag} HTTP/1.1\r\nHost: a\r\n"
        client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
        server.wait_for_log(rf"APP {tag} .*12345")
        client.send(bad + TAIL)
        check_refusal(client.read_response(), "400")
        server.wait_for_log(rf"APP {tag} .*'http.disconnect'")
        client.half_close()
        assert client.read_until_close() == b""


def test_a_body_broken_after_the_response_started_cuts_it(server, tag):
    """What was begun cannot become a 400: it must not look complete either."""
    with server.connect() as client:
        head = f"POST /gated_stream?gate={tag} HTTP/1.1\r\nHost: a\r\n"
        client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        assert b"first" in client.read_until(b"first")
        client.send(b"bad\n")
        rest = client.read_until_close()
        assert not rest.endswith(b"0\r\n\r\n")
    with server.connect() as other:
        assert other.get(f"/open_gate?gate={tag}").body == b"open"


def test_a_declared_body_over_the_limit_never_reaches_the_app(module_serve, tag):
    server = module_serve(*SERVED, "--limit-body-size", "10")
    with server.connect() as client:
        client.request("POST", f"/streaming_messages?{tag}", body=b"01234567890")
        check_refusal(client.read_response(), "413")
        assert f"APP {tag}" not in server.complete_log()


def test_a_chunked_body_over_the_limit_is_cut(module_serve, tag):
    server = module_serve(*SERVED, "--limit-body-size", "10")
    with server.connect() as client:
        head = f"POST /streaming_messages?{tag} HTTP/1.1\r\nHost: a\r\n"
        client.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
        server.wait_for_log(rf"APP {tag} .*12345")
        client.send(b"6\r\n123456\r\n0\r\n\r\n")
        check_refusal(client.read_response(), "413")
        server.wait_for_log(rf"APP {tag} .*'http.disconnect'")


@pytest.mark.parametrize("path", ["/unread", "/read_once", "/raise_before", "/not-there"])
@pytest.mark.parametrize("size", [1, 1000, 60000])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_small_unread_body_is_discarded(server, path, size, framing):
    """RX-14, ER-11: the connection lives on or is closed, but no body byte becomes a request."""
    body = (TAIL * (size // len(TAIL) + 1))[:size]
    with server.connect() as client:
        if framing == "length":
            client.request("POST", path, body=body)
        else:
            head = f"POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
            client.send(head.encode() + b"%x\r\n%s\r\n0\r\n\r\n" % (size, body))
        response = client.read_response()
        assert response.complete
        if response.get("connection") != b"close":
            assert client.get("/hello").body == b"hello"
        else:
            client.half_close()
            assert client.read_until_close() == b""


def test_a_large_unread_body_closes_the_connection(client):
    """More than 64 KiB are not read only to be thrown away, and the answer can still be read."""
    client.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
    response = client.read_response()
    assert response.body == b"unread" and response.get("connection") == b"close"
    for _ in range(20):
        client.send(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" * 100)
    client.half_close()
    assert client.read_until_close() == b""


def test_a_large_unread_chunked_body_closes_the_connection(client):
    client.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    response = client.read_response()
    assert response.body == b"unread"
    data = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" * 100
    for _ in range(60):
        client.send(b"%x\r\n%s\r\n" % (len(data), data))
    client.half_close()
    assert client.read_until_close() == b""


@pytest.mark.parametrize("rest", [b"zz\r\n" + TAIL, b"5\r\nabcdeXX" + TAIL, b"5\r\nab", b""])
def test_a_broken_rest_of_an_unread_body_has_no_second_answer(client, rest):
    """It would pass for the answer to the next request; the close says enough (§9.3)."""
    client.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert client.read_response().body == b"unread"
    client.send(rest)
    client.half_close()
    assert client.read_until_close() == b""


# -- Expect, upgrade, persistence -----------------------------------------------------------------

EXPECT = b"POST /%s HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"


def test_100_continue_when_the_app_reads(client):
    client.send(EXPECT % b"echo")
    assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    response = client.read_response()
    assert response.body == b"abc" and not response.interim
    assert client.get("/hello").body == b"hello"


def test_100_continue_when_the_app_reads_behind_its_start(client):
    """The head is held back for the first piece of the body: it does not stand for the 100."""
    client.send(EXPECT % b"start_then_read")
    assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"abc")
    assert client.read_response().body == b"abc"
    assert client.get("/hello").body == b"hello"


def test_100_continue_not_before_the_app_reads(server, tag):
    with server.connect() as client, server.connect() as other:
        client.send(EXPECT % f"read_when_open?gate={tag}".encode())
        server.wait_for_log(rf"APP gate={tag} begun")
        assert client.is_silent(0.1)
        assert other.get(f"/open_gate?gate={tag}").body == b"open"
        assert client.read_until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(b"abc")
        assert client.read_response().body == b"abc"


def test_no_100_continue_for_an_app_that_does_not_read(client):
    """… and the connection ends, since nobody knows whether the body is still to come."""
    client.send(EXPECT % b"unread")
    response = client.read_response()
    assert (response.status, response.interim) == (200, [])
    assert response.get("connection") == b"close"
    client.half_close()
    assert client.read_until_close() == b""


@pytest.mark.parametrize("path", [b"not-there", b"raise_before"])
def test_no_100_continue_before_an_error(client, path):
    client.send(EXPECT % path)
    response = client.read_response()
    assert response.interim == [] and response.get("connection") == b"close"


def test_no_100_continue_when_the_body_is_here(client):
    client.send(EXPECT % b"echo" + b"abc")
    response = client.read_response()
    assert response.body == b"abc" and response.interim == []


def test_no_100_continue_without_a_body(client):
    client.send(b"GET /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n")
    response = client.read_response()
    assert response.status == 200 and response.interim == []
    assert response.get("connection") is None


def test_no_100_continue_on_http_1_0(client):
    client.send(b"POST /echo HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
    assert client.is_silent(0.1)
    client.send(b"abc")
    response = client.read_response()
    assert response.body == b"abc" and response.interim == []


def test_another_expectation(client):
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nExpect: more\r\nContent-Length: 3\r\n\r\n")
    check_refusal(client.read_response(), "417")


@pytest.mark.parametrize("protocol", ["h2c", "foo/2", "h2c, foo"])
def test_an_upgrade_to_something_else_is_ignored(client, protocol):
    """RX-19: the request is served as HTTP, with its body, and the connection goes on."""
    client.request(
        "POST", "/echo", "Connection: Upgrade", f"Upgrade: {protocol}", body=b"body and all"
    )
    response = client.read_response()
    assert (response.status, response.body) == (200, b"body and all")
    assert client.get("/hello").body == b"hello"


def test_1_1_persists_and_says_nothing_of_it(client):
    for _ in range(3):
        response = client.get("/hello")
        assert response.version == "1.1" and response.get("connection") is None


@pytest.mark.parametrize("value", ["close", "Close", "foo, close", "keep-alive, CLOSE"])
def test_close_from_the_client(client, value):
    """TX-27: the answer says so too, and what follows is never parsed."""
    client.send(f"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: {value}\r\n\r\n".encode() + TAIL)
    response = client.read_response()
    assert response.body == b"hello" and response.get("connection") == b"close"
    assert client.is_closed()


def test_1_0_does_not_persist(client):
    client.send(b"GET /hello HTTP/1.0\r\n\r\n" + TAIL)
    response = client.read_response()
    assert response.body == b"hello" and response.get("connection") in (None, b"close")
    assert client.is_closed()


def test_1_0_persists_on_keep_alive_and_the_answer_says_so(client):
    for _ in range(2):
        response = client.get("/hello", "Connection: keep-alive", version="1.0")
        assert response.body == b"hello"
        assert response.get("connection").lower() == b"keep-alive"


def test_a_streamed_answer_to_1_0_ends_with_the_connection(client):
    """TX-18: no chunks for those who cannot read them, even if they asked to keep alive."""
    response = client.get("/stream?parts=3&size=5", "Connection: keep-alive", version="1.0")
    assert response.framing == "close" and response.body == b"aaaaabbbbbccccc"
    assert response.get("connection") in (None, b"close")


def test_pipelined_requests_are_answered_in_order(server, tag):
    """One app call at a time: the second begins when the first is answered (RX-16)."""
    with server.connect() as client, server.connect() as other:
        first, second = f"/gated?gate={tag}-1", f"/gated?gate={tag}-2"
        client.send(
            b"".join(
                f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
                for path in (first, second, *(f"/scope?{n}" for n in range(8)))
            )
        )
        server.wait_for_log(f"APP gate={tag}-1 begun")
        other.get(f"/open_gate?gate={tag}-2")
        assert client.is_silent(0.1)
        assert f"APP gate={tag}-2 begun" not in server.complete_log()
        other.get(f"/open_gate?gate={tag}-1")
        assert client.read_response().body == f"gate={tag}-1".encode()
        assert client.read_response().body == f"gate={tag}-2".encode()
        for number in range(8):
            scope = ast.literal_eval(client.read_response().body.decode())
            assert scope["query_string"] == b"%d" % number


def test_many_pipelined_requests(client):
    """2000 in one write: no recursion, no lost answer, none mixed up."""
    count = 2000
    client.send(
        b"".join(
            b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n%04d" % number
            for number in range(count)
        )
    )
    for number in range(count):
        assert client.read_response().body == b"%04d" % number


def test_reading_stops_while_a_request_is_in_flight(server, tag):
    """Pipelined bytes wait in the kernel, not in our memory (RL-05)."""
    with server.connect(deadline=0.5) as client, server.connect() as other:
        client.request("GET", f"/gated?gate={tag}")
        server.wait_for_log(f"APP gate={tag} begun")
        sent = 0
        with pytest.raises(OSError):  # the send blocks until its deadline
            while sent < 64 << 20:
                client.send(TAIL * 4000)
                sent += len(TAIL) * 4000
        assert sent < 64 << 20
        other.get(f"/open_gate?gate={tag}")
        client.deadline = DEADLINE
        assert client.read_response().body == f"gate={tag}".encode()


def test_half_close_is_answered(client):
    client.request("GET", "/hello")
    client.half_close()
    assert client.read_response().body == b"hello"
    assert client.is_closed()


def test_half_close_does_not_cancel_a_slow_answer(server, tag):
    """RX-18: neither one that has not begun nor one that streams."""
    for path in ("gated", "gated_stream"):
        with server.connect() as client, server.connect() as other:
            client.request("GET", f"/{path}?gate={tag}-{path}")
            client.half_close()
            assert client.is_silent(0.1) or path == "gated_stream"
            other.get(f"/open_gate?gate={tag}-{path}")
            response = client.read_response()
            assert response.complete and response.status == 200
            assert client.is_closed()


def test_half_close_behind_pipelined_requests(client):
    client.send(TAIL * 3)
    client.half_close()
    for _ in range(3):
        assert client.read_response().status == 404
    assert client.is_closed()


# -- responses ------------------------------------------------------------------------------------


def respond(client, query, method="GET", version="1.1"):
    """Ask the app that answers as the query says."""
    client.request(method, f"/respond_with?{query}", version=version)
    return client.read_response(method)


def test_a_given_length(client):
    response = respond(client, "body=abc&h=content-length:3")
    assert (response.framing, response.body) == ("length", b"abc")


def test_a_given_length_over_several_messages(client):
    response = respond(client, "body=abc&parts=3&h=Content-Length:9")
    assert (response.framing, response.body) == ("length", b"abcabcabc")
    assert response.all("content-length") == [b"9"]


def test_one_message_gets_a_length(client):
    response = respond(client, "body=abc")
    assert (response.framing, response.body) == ("length", b"abc")


def test_an_empty_message_gets_a_length(client):
    response = respond(client, "")
    assert (response.framing, response.get("content-length")) == ("length", b"0")


def test_several_messages_are_chunked(client):
    response = respond(client, "body=abc&parts=3")
    assert (response.framing, response.body) == ("chunked", b"abcabcabc")


def test_several_messages_to_1_0_end_with_the_connection(client):
    response = respond(client, "body=abc&parts=3", version="1.0")
    assert (response.framing, response.body) == ("close", b"abcabcabc")


@pytest.mark.parametrize("query", ["body=abc&h=content-length:3", "body=abc&parts=3"])
def test_1_0_never_gets_transfer_encoding(client, query):
    assert respond(client, query, version="1.0").all("transfer-encoding") == []


@pytest.mark.parametrize("parts", ["abcdefgh", "abc|defgh", "abcde|f", "abcde||f"])
def test_more_than_the_length_is_never_sent(server, client, tag, parts):
    """TX-15: the surplus stays here, and the log says whose fault it is."""
    start = server.log_position()
    client.send(f"GET /too_much?tag={tag}&parts={parts} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    response = client.read_response()
    assert (response.body, response.get("content-length")) == (b"abcde", b"5")
    server.wait_for_log(rf"APP tag={tag}&parts={re.escape(parts)} raised \w+Error", start=start)
    assert client.is_silent(0.05) or client.is_closed()


@pytest.mark.parametrize(
    "query", ["body=abc&h=content-length:9", "body=ab&parts=2&h=content-length:9"]
)
def test_less_than_the_length_closes_the_connection(server, client, query):
    """TX-16: the client must be able to see that something is missing."""
    start = server.log_position()
    response = respond(client, query)
    assert response.status == 500 or not response.complete
    assert client.is_closed()
    server.wait_for_log("content-length", start=start)


@pytest.mark.parametrize(
    "query",
    ["body=abc", "body=abc&h=content-length:3", "body=abc&parts=3", "body=abc&parts=1&h=x:y"],
)
def test_head_has_the_same_head_and_no_body(server, query):
    with server.connect() as client:
        got = respond(client, query)
        head = respond(client, query, method="HEAD")
        assert head.status == got.status == 200
        ours = {b"date", b"content-length", b"transfer-encoding"}
        assert [h for h in head.headers if h[0] not in ours] == [
            h for h in got.headers if h[0] not in ours
        ]
        if head.get("content-length") is not None:
            assert head.get("content-length") == got.get("content-length")
        assert client.get("/hello").body == b"hello"


def test_head_keeps_the_length_that_the_app_gives(client):
    """TX-20: it describes what GET would send, not what is sent now."""
    response = respond(client, "h=content-length:12345", method="HEAD")
    assert response.get("content-length") == b"12345"
    assert client.get("/hello").body == b"hello"


def test_head_invents_no_length_from_an_empty_body(client):
    assert respond(client, "", method="HEAD").get("content-length") is None


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize(
    "query", ["", "&body=abc", "&body=abc&parts=3", "&h=content-length:3&body=abc"]
)
def test_204_and_304_have_no_body(client, status, query):
    """TX-19: whatever the app sends, and the connection stays in step."""
    response = respond(client, f"status={status}{query}")
    assert (response.status, response.body) == (status, b"")
    assert response.all("transfer-encoding") == []
    if status == 204:
        assert response.all("content-length") == []
    assert client.get("/hello").body == b"hello"


@pytest.mark.parametrize("value", ["chunked", "gzip", "identity", "gzip,%20chunked"])
@pytest.mark.parametrize("more", ["", "&parts=3", "&h=content-length:3"])
def test_transfer_encoding_is_ours_alone(client, value, more):
    """TX-14: the app's is ignored, the answer stays readable."""
    response = respond(client, f"body=abc&h=Transfer-Encoding:{value}{more}")
    assert response.status == 200 and response.complete
    assert response.body == (b"abcabcabc" if "parts" in more else b"abc")
    assert client.get("/hello").body == b"hello"


@pytest.mark.parametrize("value", ["close", "Close", "keep-alive,%20CLOSE"])
def test_close_from_the_app(client, value):
    response = respond(client, f"body=abc&h=Connection:{value}")
    assert response.body == b"abc" and response.get("connection").lower() == b"close"
    assert client.is_closed()


@pytest.mark.parametrize(
    "header",
    ["a%0d%0ab:c", "a%0ab:c", "a%00:c", "a%20b:c", "%20a:c", ":c", "a:b%0d%0aX-Injected:1",
     "a:b%0aX-Injected:1", "a:b%0dX-Injected:1", "a:b%00c", "a:%0d%0a%0d%0a<html>"],
)  # fmt: skip
def test_injected_headers_are_a_500(server, client, header):
    """TX-24, TX-25: nothing of them reaches the wire, and the log names the header."""
    start = server.log_position()
    response = respond(client, f"body=abc&h=x-first:1&h={header}")
    assert response.status == 500 and response.complete
    assert b"Injected" not in response.raw and b"x-first" not in response.raw.lower()
    server.wait_for_log("header", start=start)


@pytest.mark.parametrize("status", [0, 99, 100, 101, 103, 199, 1000, 65536, -200])
def test_a_status_that_is_none_is_a_500(client, status):
    response = respond(client, f"status={status}&body=abc")
    assert response.status == 500


@pytest.mark.parametrize("status", [200, 201, 206, 299, 302, 404, 418, 451, 500, 599, 999])
def test_any_final_status_is_sent(client, status):
    """TX-29: an unregistered one has an empty reason, and its space."""
    response = respond(client, f"status={status}&body=abc")
    assert (response.status, response.body) == (status, b"abc")
    if status in (299, 599, 999):
        assert response.reason == ""
    if status == 404:
        assert response.reason == "Not Found"


def test_date_and_server_are_there_once(client):
    """TX-28: in IMF-fixdate."""
    response = client.get("/hello")
    day = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    assert re.fullmatch(day + r" \d{4} \d\d:\d\d:\d\d GMT", response.get("date").decode())
    assert response.get("server") == b"selectserve"


@pytest.mark.parametrize("name", ["Date", "date", "SERVER", "server"])
def test_the_apps_own_date_and_server_win(client, name):
    response = respond(client, f"body=abc&h={name}:mine")
    assert response.all(name) == [b"mine"]
    assert len(response.all("date")) == len(response.all("server")) == 1


def test_headers_keep_order_repetition_and_bytes(client):
    """TX-03."""
    response = respond(client, "body=a&h=B:1&h=a:2&h=B:3&h=set-cookie:x&h=set-cookie:y&h=z:%e9%ff")
    own = [h for h in response.headers if h[0].lower() in (b"a", b"b", b"set-cookie", b"z")]
    assert [(name.lower(), value) for name, value in own] == [
        (b"b", b"1"),
        (b"a", b"2"),
        (b"b", b"3"),
        (b"set-cookie", b"x"),
        (b"set-cookie", b"y"),
        (b"z", b"\xe9\xff"),
    ]


def test_many_and_long_headers(client):
    """TX-31."""
    many = "&".join(f"h=x-{number}:{number}" for number in range(300))
    response = respond(client, many)
    assert [response.get(f"x-{number}") for number in range(300)] == [
        b"%d" % number for number in range(300)
    ]
    response = respond(client, "h=x-long:" + "v" * 7000)
    assert response.get("x-long") == b"v" * 7000


def test_head_and_body_leave_in_one_piece(client):
    """RL-10: one send, so that no delayed acknowledgement can part them."""
    client.request("GET", "/hello")
    client.socket.settimeout(client.deadline)
    data = client.socket.recv(65536)
    assert data.startswith(b"HTTP/1.1 200 OK\r\n") and data.endswith(b"\r\n\r\nhello")


# -- many clients ---------------------------------------------------------------------------------


def test_300_clients_at_once(server):
    """RL-11."""

    def ask(number):
        with RawClient(server.address) as client:
            return client.get(f"/scope?{number}").body

    for number, body in enumerate(parallel(300, ask)):
        assert ast.literal_eval(body.decode())["query_string"] == b"%d" % number


def test_resets_leave_nothing(server):
    """RL-12: clients that vanish at any moment cost no descriptor."""
    import os

    descriptors = f"/proc/{server.process.pid}/fd"
    if not os.path.isdir(descriptors):
        pytest.skip("needs /proc")
    with server.connect() as client:
        client.get("/hello")
        before = len(os.listdir(descriptors))
        for number in range(300):
            other = server.connect()
            data = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n12345"
            other.send(data[: number % (len(data) + 1)])
            other.reset()
        # Each answer comes behind the resets of before; a few rounds let the last ones arrive.
        for _ in range(50):
            assert client.get("/hello").body == b"hello"
            if len(os.listdir(descriptors)) <= before:
                break
        assert len(os.listdir(descriptors)) <= before


# -- the access log -------------------------------------------------------------------------------


def test_one_access_line_a_request(server, client, tag):
    assert client.get(f"/hello?{tag}").status == 200
    line = server.wait_for_access(re.escape(tag)).string
    assert re.search(r'127\.0\.0\.1:\d+ - "GET /hello\?\S+ HTTP/1\.1" 200 5 [\d.]+ ?ms', line)


@pytest.mark.parametrize(
    "path, status", [("/not-there", 404), ("/raise_before", 500), ("/return_before", 500)]
)
def test_the_access_line_has_the_status_really_sent(server, client, tag, path, status):
    """PX-07."""
    assert client.get(f"{path}?{tag}").status == status
    server.wait_for_access(rf'"GET {path}\?{tag} HTTP/1.1" {status}')


def test_an_access_line_is_one_line(server, client, tag):
    """PX-09: what looks like a line end or a terminal's escape is neither."""
    client.get(f"/%1b[31m%0aINFO%0d{tag}")
    line = server.wait_for_access(re.escape(tag)).string
    assert "\x1b" not in line and "GET /" in line


def test_the_bytes_of_the_body_are_counted(server, client, tag):
    client.get(f"/stream?parts=10&size=1000&{tag}")
    server.wait_for_access(rf"{tag} HTTP/1.1\" 200 10000 ")


@pytest.mark.parametrize("end", [(), ("Connection: close",)], ids=["kept", "closed"])
def test_an_answer_that_left_at_once_is_logged_at_once(server, client, tag, end):
    """More than the write buffer holds leaves before the app's message is dealt with."""
    assert len(client.get(f"/big?size=200000&{tag}", *end).body) == 200_000
    line = server.wait_for_access(rf'{tag} HTTP/1.1" 200 200000 [\d.]+ms(.*)')
    assert "client left" not in line[1]


@pytest.mark.parametrize("path", ["big", "endless"])
@pytest.mark.parametrize("who, mark", [("client", "client left"), ("server", "cut off")])
def test_an_answer_that_is_not_read_counts_what_has_left(serve, path, who, mark):
    server = serve(*SERVED, "--timeout-graceful-shutdown", "0.1")
    size = 1 << 26
    with server.connect(receive_buffer=4096) as client:
        client.request("GET", f"/{path}?size={size}")
        client.read_head()
        if who == "client":
            client.reset()
        else:
            assert server.stop() == 0
    line = server.wait_for_access(r'HTTP/1.1" 200 (\d+) [\d.]+ms \((.*)\)')
    assert 4096 <= int(line[1]) < size and line[2] == mark


def test_a_stream_that_the_shutdown_cuts_is_marked(serve):
    server = serve(*SERVED, "--timeout-graceful-shutdown", "0.1")
    with server.connect() as client:
        client.request("GET", "/gated_stream?gate=never")
        client.read_until(b"first")
        assert server.stop() == 0
    assert re.search(r'HTTP/1.1" 200 5 [\d.]+ms \(cut off\)', server.stdout.text())


@pytest.mark.parametrize("path", ["raise_mid_body", "return_mid_body"])
def test_an_answer_that_its_app_breaks_off_is_marked(server, client, path, tag):
    client.get(f"/{path}?{tag}")
    server.wait_for_access(rf'{tag} HTTP/1.1" 200 4 [\d.]+ms \(cut off\)')


def test_an_answer_shorter_than_its_declared_length_is_marked(server, client, tag):
    """And no other one: what stands before it on the connection is whole."""
    paths = (f"/too_much?parts=12345&{tag}-whole", f"/too_much?parts=12|3&{tag}-short")
    client.send(b"".join([f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths]))
    assert client.read_response().body == b"12345"
    assert client.read_until_close().endswith(b"\r\n\r\n123")
    server.wait_for_access(rf'{tag}-whole HTTP/1.1" 200 5 [\d.]+ms$')
    server.wait_for_access(rf'{tag}-short HTTP/1.1" 200 3 [\d.]+ms \(cut off\)$')


def test_bytes_beyond_the_declared_length_are_not_counted(server, client, tag):
    client.get(f"/too_much?parts=123456789&{tag}")
    server.wait_for_access(rf'{tag} HTTP/1.1" 200 5 ')


@pytest.mark.parametrize("method, size", [("GET", 22), ("HEAD", 0)])
def test_an_answer_of_the_servers_own_has_bytes_and_time(server, client, tag, method, size):
    client.request(method, f"/raise_before?{tag}")
    client.read_response(method)
    server.wait_for_access(rf'{tag} HTTP/1.1" 500 {size} [\d.]+ms')


@pytest.mark.parametrize("loop", ["native", "asyncio", "trio"])
def test_an_exception_that_cannot_be_printed_is_answered(serve, loop):
    """ER-02: what the app raises may be broken itself."""
    if loop == "trio" and find_spec("trio") is None:
        pytest.skip("trio is not installed on this Python")
    server = serve("tests.apps:app", "--loop", loop)
    with server.connect() as client:
        assert client.get("/raise_unprintable").status == 500
    assert "selectserve has a bug" not in server.log_text()
