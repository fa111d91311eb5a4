"""ASGI as an app and its client see it, over a real socket; the apps are in tests/apps.py.

The letters in the docstrings number the requirements: AP application interface, HS HTTP scope,
RX receive, TX send, ER errors of the app, LS lifespan, RL reliability.
"""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys

import pytest

from .support import OUR_FILES, ROOT, BadResponse, parallel, run_server

pytestmark = pytest.mark.usefixtures("healthy")
SERVED = ("tests.apps:app",)


@pytest.fixture
def server(module_serve):
    """The server most tests share."""
    return module_serve(*SERVED)


@pytest.fixture
def client(server):
    """A connection to it."""
    with server.connect() as client:
        yield client


def value(response):
    """Read back the repr that an app answered with."""
    assert response.status == 200, response
    return ast.literal_eval(response.body.decode())


def scope_of(client, target="/scope", *headers, **options):
    """Return the scope that an app saw."""
    return value(client.get(target, *headers, **options))


# -- AP: the application interface ----------------------------------------------------------------


@pytest.mark.parametrize(
    "app, more",
    [
        ("callable_instance", ()),
        ("bound_method", ()),
        ("partial_function", ()),
        ("partial_instance", ()),
        ("callable_instance.method", ()),
        ("make_app", ("--factory",)),
        ("plain_function", ()),
        ("plain_function", ("--interface", "asgi3")),
        ("wrapper", ()),
        ("plain_instance", ()),
        ("plain_instance.__call__", ()),
        ("partial_wrapper", ()),
        ("partial_named", ()),
    ],
)
def test_shapes_of_asgi_3_apps(serve, app, more):
    """AP-06, AP-09: functions, instances, methods, partials, dotted names, factories."""
    with serve(f"tests.apps:{app}", *more).connect() as client:
        assert client.get("/hello").body == b"hello"
        assert scope_of(client)["asgi"]["version"] == "3.0"


@pytest.mark.parametrize("app", ["ClassApp", "double_function", "wrapping_double_function"])
@pytest.mark.parametrize("more", [(), ("--interface", "asgi2")])
def test_asgi_2_apps(serve, app, more):
    """AP-07, AP-08: called with the scope, then awaited with receive and send."""
    with serve(f"tests.apps:{app}", *more).connect() as client:
        for _ in range(2):
            assert value(client.get("/")) == ("asgi2", "2.0")


def test_the_context_is_each_requests_own(server):
    """AP-15: what a request sets is kept over its awaits and invisible to every other."""

    def ask(number):
        with server.connect() as client:
            return [value(client.get(f"/context?{number}-{turn}")) for turn in range(3)]

    for number, answers in enumerate(parallel(8, ask)):
        assert answers == [("unset", f"{number}-{turn}") for turn in range(3)]


def test_a_bare_yield_lets_others_go_on(server, tag):
    """AP-16: an app that yields for ever leaves room for the request that ends it."""
    with server.connect() as client, server.connect() as other:
        client.request("GET", "/endless_turns?" + tag)
        server.wait_for_log(f"APP {tag} turning")
        assert other.get("/hello").body == b"hello"
        other.get(f"/stop_turns?{tag}")
        assert client.read_response().body == b"stopped"


def test_background_work_does_not_hold_the_connection(server, tag):
    """AP-17: a response is complete when its last message is sent, not when the app returns."""
    with server.connect() as client, server.connect() as other:
        assert client.get(f"/background?gate={tag}").body == b"answered"
        assert client.get("/hello").body == b"hello"
        assert f"APP gate={tag} finished" not in server.complete_log()
        other.get(f"/open_gate?gate={tag}")
        server.wait_for_log(f"APP gate={tag} finished")


def test_an_await_that_nobody_knows_is_an_error_at_its_line(server, client, tag):
    """AP-18: never a hang; the message says what to do, the traceback ends in the user's code."""
    start = server.log_position()
    assert client.get(f"/bad_yield?{tag}").status == 500
    match = server.wait_for_log(rf"APP {tag} (\w+) (.*)", start=start)
    assert "dict" in match[2] and "--loop asyncio" in match[2]
    server.wait_for_log("yield {", start=start)


def test_no_heavy_module_is_imported_to_serve_a_plain_app(serve):
    """The bridge needs no asyncio, and nothing else that costs start-up time."""
    command = [sys.executable, "-m", "tests.plain_app"]
    bare = ast.literal_eval(subprocess.check_output(command, cwd=ROOT, text=True))
    with serve("tests.plain_app:show_imports").connect() as client:
        for _ in range(2):
            assert value(client.get("/")) == bare


def test_extensions_are_dicts(client):
    """AP-14."""
    extensions = scope_of(client)["extensions"]
    assert all(type(name) is str and type(item) is dict for name, item in extensions.items())
    assert not {"tls", "http.response.debug", "http.response.push"} & set(extensions)


# -- HS: the HTTP scope ---------------------------------------------------------------------------


def test_scope_of_a_plain_request(server, client):
    """HS-01 to HS-19: every key, exactly."""
    scope = scope_of(client, "/scope/a%20b%2F?x=1?y", "X-A: 1", "x-b:2", "X-A:  3 ")
    assert scope["type"] == "http"
    assert scope["asgi"]["version"] == "3.0"
    spec = tuple(map(int, scope["asgi"]["spec_version"].split(".")))
    assert (2, 4) <= spec <= (2, 5)
    assert scope["http_version"] == "1.1"
    assert scope["method"] == "GET"
    assert scope["scheme"] == "http"
    assert scope["path"] == "/scope/a b/"
    assert scope["raw_path"] == b"/scope/a%20b%2F"
    assert scope["query_string"] == b"x=1?y"
    assert scope["root_path"] == ""
    assert type(scope["headers"]) is list
    assert scope["headers"] == [(b"host", b"test"), (b"x-a", b"1"), (b"x-b", b"2"), (b"x-a", b"3")]
    peer = client.socket.getsockname()
    assert tuple(scope["client"]) == peer and type(scope["client"][1]) is int
    assert tuple(scope["server"]) == (server.host, server.port)
    allowed = {"type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "extensions"}
    allowed |= {"query_string", "root_path", "headers", "client", "server", "state"}
    assert set(scope) <= allowed


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_http_version(client, version):
    """HS-03."""
    assert scope_of(client, version=version)["http_version"] == version


@pytest.mark.parametrize(
    "method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW", "M-SEARCH"]
)
def test_methods_reach_the_app(client, method):
    """HS-04, HS-05."""
    client.request(method, "/scope")
    assert value(client.read_response())["method"] == method


@pytest.mark.parametrize(
    "raw, path",
    [
        ("/scope/%2F", "/scope//"),
        ("/scope/%2f%41", "/scope//A"),
        ("/scope/%2520", "/scope/%20"),
        ("/scope/a+b;c,d", "/scope/a+b;c,d"),
        ("/scope/%C3%A9%e2%82%ac", "/scope/é€"),
        ("/scope//x", "/scope//x"),
        ("/scope/./../x", "/scope/./../x"),
        ("/scope/%00%0d%0a", "/scope/\0\r\n"),
        ("/scope/~!$&'()*=:@", "/scope/~!$&'()*=:@"),
    ],
)
def test_path_is_decoded_once_and_not_normalised(client, raw, path):
    """HS-07, HS-08, HS-10."""
    scope = scope_of(client, raw)
    assert (scope["path"], scope["raw_path"]) == (path, raw.encode())


@pytest.mark.parametrize(
    "raw", ["/scope/%FF", "/scope/%zz", "/scope/%", "/scope/%4", "/scope/%c3%28"]
)
def test_an_undecodable_path_is_no_server_error(client, raw):
    """HS-09."""
    response = client.get(raw)
    assert response.status in (200, 400)
    if response.status == 200:
        scope = value(response)
        assert type(scope["path"]) is str and scope["raw_path"] == raw.encode()


@pytest.mark.parametrize(
    "target, query",
    [("/scope", b""), ("/scope?", b""), ("/scope?a=%41+b", b"a=%41+b"), ("/scope??", b"?")],
)
def test_query_string_is_raw(client, target, query):
    """HS-11."""
    assert scope_of(client, target)["query_string"] == query


def test_headers_are_exactly_what_came(client):
    """HS-13 to HS-17: nothing joined, dropped, reordered or decoded."""
    client.send(
        b"POST /scope HTTP/1.1\r\nHOST: a\r\nCookie: a=1\r\nX:\r\nTransfer-Encoding: Chunked\r\n"
        b"cookie: b=2\r\nX: \t1,  2\xff\xe9 \t\r\nConnection: keep-alive\r\nx_y: 3\r\n\r\n0\r\n\r\n"
    )
    assert value(client.read_response())["headers"] == [
        (b"host", b"a"),
        (b"cookie", b"a=1"),
        (b"x", b""),
        (b"transfer-encoding", b"Chunked"),
        (b"cookie", b"b=2"),
        (b"x", b"1,  2\xff\xe9"),
        (b"connection", b"keep-alive"),
        (b"x_y", b"3"),
    ]


def test_absolute_form(server, client):
    """HS-20: path and query of the target; its authority is the Host; the server is our address."""
    scope = scope_of(client, "http://example.com:81/scope/a?b")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (
        "/scope/a",
        b"/scope/a",
        b"b",
    )
    assert dict(scope["headers"])[b"host"] == b"example.com:81"
    assert tuple(scope["server"]) == (server.host, server.port)


def test_asterisk_form(serve):
    """HS-21."""
    with serve("tests.apps:record").connect() as client:
        client.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n")
        assert value(client.read_response())[:3] == ("OPTIONS", b"*", b"")


def test_a_scope_belongs_to_one_request(client):
    """HS-22: the app empties every container of its scope, and the next request's is whole."""
    client.request("POST", "/scope?1", "X-Only: first", body=b"abc")
    first = value(client.read_response())
    second = scope_of(client, "/scope?2")
    assert (b"x-only", b"first") in first["headers"]
    assert second["headers"] == [(b"host", b"test")]
    assert second["asgi"] == first["asgi"] and second["extensions"] == first["extensions"]
    assert second["query_string"] == b"2"


def test_concurrent_requests_do_not_mix(server):
    """HS-22."""

    def ask(number):
        with server.connect() as client:
            for turn in range(10):
                body = b"%d-%d" % (number, turn) * 100
                client.request("POST", f"/echo?{number}", body=body)
                assert client.read_response().body == body
            return True

    assert all(parallel(16, ask))


def test_ipv6(serve):
    """HS-25: two items each, without flow and scope."""
    server = serve("tests.apps:app", "--host", "::1")
    with server.connect() as client:
        scope = scope_of(client)
        assert tuple(scope["server"]) == ("::1", server.port)
        assert tuple(scope["client"]) == client.socket.getsockname()[:2]


# -- RX: receive ----------------------------------------------------------------------------------


def test_a_request_without_body_is_one_empty_message(client):
    """RX-01."""
    (message,) = value(client.get("/messages"))
    assert message == {"type": "http.request", "body": b"", "more_body": False}


def test_length_zero_is_one_empty_message(client):
    """RX-03."""
    client.send(b"POST /messages HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
    (message,) = value(client.read_response())
    assert message["body"] == b"" and not message["more_body"]


@pytest.mark.parametrize("size", [1, 1000, 65535, 65536, 65537, 3_000_000])
def test_a_body_arrives_whole(client, size):
    """RX-03."""
    body = bytes(range(256)) * (size // 256 + 1)
    client.request("POST", "/echo", body=body[:size])
    assert client.read_response().body == body[:size]


def test_messages_have_exact_types(client):
    """RX-02, AP-11."""
    client.request("POST", "/messages", body=b"x" * 300_000)
    seen = value(client.read_response())
    assert b"".join(message["body"] for message in seen) == b"x" * 300_000
    for message in seen:
        assert [type(message[key]) for key in ("type", "body", "more_body")] == [str, bytes, bool]
    assert [message["more_body"] for message in seen] == [True] * (len(seen) - 1) + [False]


def test_chunks_cut_anywhere(client):
    """RX-04: sizes in either case, extensions and trailers dropped, every cut of the bytes."""
    data = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"A;x=y\r\n0123456789\r\n1a\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nX-Trailer: t\r\n\r\n"
    for part in range(1, len(data), 7):
        client.send(data[:part])
        client.send(data[part:])
        assert client.read_response().body == b"0123456789abcdefghijklmnopqrstuvwxyz"


def test_a_body_in_single_bytes(client):
    """RX-03."""
    data = (
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    )
    for position in range(len(data)):
        client.send(data[position : position + 1])
    assert client.read_response().body == b"abc"


def test_a_body_is_streamed(server, client, tag):
    """RX-05: the app is called with the head, and gets each part before the next is sent."""
    client.send(f"POST /streaming_messages?{tag} HTTP/1.1\r\nHost: a\r\n".encode())
    client.send(b"Content-Length: 6\r\n\r\nabc")
    server.wait_for_log(rf"APP {tag} .*b'abc'.*'more_body': True")
    client.send(b"def")
    server.wait_for_log(rf"APP {tag} .*b'def'.*'more_body': False")
    assert client.read_response().body == b"done"


@pytest.mark.parametrize("end", ["close", "reset", "half_close"])
def test_receive_waits_for_the_disconnect(server, tag, end):
    """RX-06, RX-09, TX-22: nothing behind the body until the client is gone; then repeated.

    And an OSError each time, also for the body of an answer whose start has failed that way.
    """
    with server.connect() as client:
        client.request("POST", f"/wait_disconnect?{tag}", body=b"abc")
        server.wait_for_log(f"APP {tag} waiting")
        assert client.is_silent(0.1)
        assert f"APP {tag} {{" not in server.complete_log()
        getattr(client, end)()
        server.wait_for_log(f"APP {tag} OSError ClientDisconnected", count=2)
    log = server.complete_log()
    assert log.count(f"APP {tag} {{'type': 'http.disconnect'}}") == 2
    assert f"APP {tag} sent" not in log


def test_disconnect_behind_a_pipelined_request(server, tag):
    """RX-17: a buffered request does not hide that the client has gone."""
    for end in ("close", "reset"):
        with server.connect() as client:
            client.request("GET", f"/wait_disconnect?{tag}-{end}")
            server.wait_for_log(f"APP {tag}-{end} waiting")
            client.request("GET", "/hello")
            getattr(client, end)()
            server.wait_for_log(rf"APP {tag}-{end} .*'http.disconnect'")


def test_disconnect_at_once_behind_the_response(server, client, tag):
    """RX-07, RX-08: never what is left of the body or the next request; the connection stays."""
    client.request("POST", f"/after_response?{tag}", body=b"left over")
    assert client.read_response().body == b"answered"
    assert client.get("/hello").body == b"hello"
    server.wait_for_log(f"APP {tag} {{'type': 'http.disconnect'}}", count=2)
    assert "left over" not in server.complete_log()


def test_a_complete_body_comes_before_the_end(server, tag):
    """RX-18: the FIN right behind a body does not take it away."""
    with server.connect() as client:
        client.request("POST", f"/echo?{tag}", body=b"x" * 200_000)
        client.half_close()
        assert client.read_response().body == b"x" * 200_000
        assert client.is_closed()


def test_upload_stops_while_the_app_does_not_read(server, tag):
    """RL-03: the body waits in the kernel, not in our memory, and then arrives whole."""
    size = 64 << 20
    with server.connect(deadline=0.5) as client, server.connect() as other:
        head = (
            f"POST /read_when_open?gate={tag} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
        )
        client.send(head.encode())
        server.wait_for_log(f"APP gate={tag} begun")
        client.socket.settimeout(0.5)
        sent = 0
        with pytest.raises(OSError):
            while sent < size:
                sent += client.socket.send(b"x" * 65536)
        assert sent < size
        client.close()
        other.get(f"/open_gate?gate={tag}")
        assert other.get("/hello").body == b"hello"


# -- TX: send -------------------------------------------------------------------------------------


def test_the_shortest_messages(client):
    """TX-01."""
    response = client.get("/defaults")
    assert (response.status, response.body, response.complete) == (200, b"", True)


def test_what_must_raise(server, client):
    """TX-04 to TX-09, TX-30, TX-36: before anything is written, so that the app can go on."""
    response = client.get("/wrong_messages")
    raised = value(response)
    assert [name for name in raised if not name] == []
    assert all(name in ("RuntimeError", "TypeError", "ValueError") for name in raised), raised
    assert response.get("x-list") == b"ok"
    assert not [
        name for name, _ in response.headers if name.startswith(b"x-") and name != b"x-list"
    ]
    assert client.get("/hello").body == b"hello"


def test_messages_behind_the_end_are_ignored(server, client, tag):
    """TX-10: nothing on the wire, the next request unharmed, and no exception."""
    assert client.get(f"/after_complete?{tag}").body == b"complete"
    assert client.get("/hello").body == b"hello"
    server.wait_for_log(rf"APP {tag} raised nothing", count=3)


def test_parts_are_sent_as_they_come(server, tag):
    """TX-11."""
    with server.connect() as client, server.connect() as other:
        client.request("GET", f"/gated_stream?gate={tag}")
        assert client.read_until(b"first").endswith(b"first")
        other.get(f"/open_gate?gate={tag}")
        assert client.read_until(b"0\r\n\r\n").endswith(b"second\r\n0\r\n\r\n")


def test_an_empty_part_sends_the_head_and_does_not_end(server, tag):
    """TX-12, TX-13: as server-sent events need it."""
    with server.connect() as client, server.connect() as other:
        client.request("GET", f"/head_first?gate={tag}")
        head = client.read_until(b"\r\n\r\n")
        assert b"x-sse: 1" in head.lower()
        assert client.is_silent(0.1)
        other.get(f"/open_gate?gate={tag}")
        assert client.read_until(b"0\r\n\r\n") == b"5\r\nevent\r\n0\r\n\r\n"


def test_a_slow_reader_holds_send_back(server, tag):
    """TX-37, RL-01: send() waits; a reset ends it with an OSError (TX-21), then a disconnect."""
    with server.connect(receive_buffer=4096) as client:
        client.request("GET", f"/endless?{tag}")
        client.read_until(b"\r\n\r\n")
        assert f"APP {tag}" not in server.complete_log()
        client.reset()
        server.wait_for_log(f"APP {tag} OSError ClientDisconnected")
        server.wait_for_log(rf"APP {tag} .*'http.disconnect'")


def test_a_slow_reader_gets_everything(server, tag):
    """RL-01: with pauses forced by a small window, no byte is lost or doubled."""
    with server.connect(receive_buffer=4096) as client:
        response = client.get(f"/stream?parts=26&size=200000&{tag}")
        assert response.body == b"".join(bytes([97 + n]) * 200_000 for n in range(26))
        response = client.get(f"/stream?parts=26&size=200000&length=1&{tag}")
        assert response.framing == "length" and len(response.body) == 26 * 200_000
        assert client.get("/big?size=5000000").body == b"x" * 5_000_000
        assert client.get("/hello").body == b"hello"


@pytest.mark.parametrize("path", ["leave_uncaught", "leave_silently"])
def test_a_client_that_left_is_no_error(server, tag, path):
    """TX-23."""
    start = server.log_position()
    with server.connect() as client:
        client.request("GET", f"/{path}?{tag}")
        server.wait_for_log(f"APP {tag} waiting")
    server.wait_for_log(f"APP {tag} disconnected")
    with server.connect() as client:
        assert client.get("/hello").body == b"hello"
    log = "\n".join(server.complete_log().split("\n")[start:])
    assert "ERROR" not in log and "Traceback" not in log


def test_status_may_be_an_enum(client):
    """TX-29."""
    response = client.get("/enum_status")
    assert (response.status, response.body) == (418, b"teapot")


def test_buffers_are_copied(client):
    """TX-34: what the app does to its buffer afterwards changes nothing."""
    assert client.get("/buffers").body == b"abcdef"


# -- ER: errors of the app ------------------------------------------------------------------------


def plain_500(response):
    """A complete 500 that tells nothing of the app (ER-02, ER-03)."""
    assert response.status == 500 and response.complete
    assert b"SECRET" not in response.raw and b"Traceback" not in response.raw
    assert b"ValueError" not in response.raw


@pytest.mark.parametrize("path", ["/raise_before", "/raise_after_start", "/raise_base_exception"])
def test_an_exception_before_the_body_is_a_500(server, client, path):
    """ER-01 to ER-05, ER-13: traceback logged, once, with the user's line last."""
    start = server.log_position()
    plain_500(client.get(path))
    server.wait_for_log(r"(ValueError|Strange): SECRET of the app", start=start)
    log = "\n".join(server.complete_log().split("\n")[start:])
    assert log.count("SECRET of the app") == 1 + log.count("raise ") and "apps.py" in log
    assert OUR_FILES not in log, "our own lines are not the user's business"


def test_an_app_may_do_anything_to_its_scope(server, client, tag):
    """ER-01, ER-02, ER-12: what is logged of a request does not come from there."""
    plain_500(client.get("/raise_with_empty_scope"))
    server.wait_for_log("the app failed: GET /raise_with_empty_scope")
    with server.connect() as other:
        plain_500(other.get("/return_with_empty_scope"))
    server.wait_for_log("the app returned without a response: GET /return_with_empty_scope")


def test_shutdown_with_a_request_whose_scope_is_empty(serve, tag):
    """ER-12: naming the oldest request must not end the drain."""
    server = serve(*SERVED)
    with server.connect() as client:
        client.send(f"POST /read_with_empty_scope?{tag} HTTP/1.1\r\nHost: a\r\n".encode())
        client.send(b"Content-Length: 3\r\n\r\n")
        server.wait_for_log(f"APP {tag} begun")
        server.send_signal()
        server.wait_for_log(r"the oldest POST /read_with_empty_scope, \d")
        client.send(b"abc")
        assert client.read_response().body == b"abc"
    assert server.wait() == 0


def test_an_app_that_cancels_itself_is_a_500(server, client):
    """ER-01, ER-04: only at shutdown it is the server that cancels, and answers 503."""
    plain_500(client.get("/raise_cancelled"))
    server.wait_for_log("the app was cancelled without a response: GET /raise_cancelled")


@pytest.mark.parametrize("path", ["/return_before", "/return_after_start"])
def test_returning_without_a_response_is_a_500(server, client, path):
    """ER-08."""
    start = server.log_position()
    response = client.get(path)
    assert response.status == 500 or not response.complete
    server.wait_for_log("returned", start=start)


@pytest.mark.parametrize("path", ["/raise_mid_body", "/return_mid_body"])
@pytest.mark.parametrize("query", ["", "?length=1"])
def test_a_response_cut_in_the_middle_looks_cut(server, client, path, query):
    """ER-06, ER-07."""
    response = client.get(path + query)
    assert response.status == 200 and not response.complete
    assert client.is_closed()


@pytest.mark.parametrize("path", ["/raise_mid_body", "/return_mid_body"])
def test_a_cut_response_to_1_0_is_not_ended_cleanly(server, client, path):
    """ER-06: where the close is the end of the body, a reset says that it is not complete."""
    client.request("GET", path, version="1.0")
    try:
        data = client.read_until_close()
    except ConnectionResetError:
        return
    assert data.startswith(b"HTTP/1.1 500")


@pytest.mark.parametrize("path", ["/raise_after_complete", "/return_value"])
def test_a_complete_response_stays_complete(client, path):
    """ER-09, ER-10."""
    assert client.get(path).body == b"complete"
    with pytest.raises(AssertionError):  # nothing more comes
        client.deadline = 0.1
        client.read_response()
    client.deadline = 10
    assert client.get("/hello").body == b"hello"


@pytest.mark.parametrize("loop", ["native", "asyncio"])
@pytest.mark.parametrize("path", ["/raise_system_exit", "/raise_generator_exit"])
def test_system_exit_does_not_stop_the_server(module_serve, loop, path):
    """ER-13."""
    server = module_serve(*SERVED, "--loop", loop)
    for _ in range(2):
        with server.connect() as client:
            plain_500(client.get(path))
    with server.connect() as other:
        assert other.get("/hello").body == b"hello"


def test_errors_do_not_wear_the_server_out(server):
    """ER-12."""
    paths = "raise_before raise_mid_body return_before raise_after_complete too_much?parts=abcdefgh"
    for path in paths.split() * 20:
        with server.connect() as client:
            client.request("GET", "/" + path)
            try:
                client.read_response()
            except (BadResponse, ConnectionError):
                pass  # cut off: what a client sees of it is shown above
    with server.connect() as client:
        assert client.get("/hello").body == b"hello"


# -- EX: extensions that the scope offers ---------------------------------------------------------


@pytest.fixture
def offers(client):
    """Tell whether the scope offers an extension; what it does not offer needs no test."""
    offered = scope_of(client)["extensions"]

    def check(name):
        if name not in offered:
            pytest.skip(f"{name} is not offered")

    return check


def test_trailers_for_a_client_that_takes_them(client, offers):
    """EX-02, EX-03."""
    offers("http.response.trailers")
    response = client.get("/trailers", "TE: trailers", "Connection: TE")
    assert (response.body, response.complete) == (b"abc", True)
    assert response.trailers == [(b"x-one", b"1"), (b"x-two", b"2")]
    assert client.get("/hello").body == b"hello"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("target", ["/trailers", "/trailers?length=1"])
@pytest.mark.parametrize("headers", [[], ["TE: trailers"]])
def test_trailers_never_harm_the_framing(server, offers, method, version, target, headers):
    """EX-04, EX-05."""
    offers("http.response.trailers")
    with server.connect() as client:
        client.request(method, target, "Connection: keep-alive", *headers, version=version)
        response = client.read_response(method)
        assert response.complete and response.body == (b"abc" if method == "GET" else b"")
        if not headers or response.framing != "chunked":
            assert response.trailers == []
        if response.framing != "close" and response.get("connection") != b"close":
            assert client.get("/hello").body == b"hello"


def test_early_hints(client, offers):
    """EX-07: before the final head, which they do not change; afterwards they are ignored."""
    offers("http.response.early_hint")
    response = client.get("/early_hints")
    assert [(hint.status, hint.get("link")) for hint in response.interim] == [
        (103, b"</a.css>; rel=preload"),
        (103, b"</b.js>; rel=preload"),
    ]
    assert (response.status, response.body, response.get("x")) == (200, b"partend", b"y")
    assert response.all("link") == []


def test_no_early_hints_for_http_1_0(client, offers):
    """EX-07."""
    offers("http.response.early_hint")
    response = client.get("/early_hints", version="1.0")
    assert response.interim == [] and response.body == b"partend"


# -- LS: lifespan ---------------------------------------------------------------------------------


def test_lifespan_from_startup_to_shutdown(serve):
    """LS-01 to LS-04, LS-08 to LS-11: scope, messages, state, context."""
    server = serve("tests.apps:lifespan_well_behaved")
    scope = ast.literal_eval(server.wait_for_log(r"APP scope (.*)")[1])
    assert scope["type"] == "lifespan" and scope["state"] == {}
    assert scope["asgi"]["version"] == "3.0" and scope["asgi"]["spec_version"] in ("1.0", "2.0")
    server.wait_for_log(r"APP message {'type': 'lifespan.startup'}")
    with server.connect() as client:
        state, name = value(client.get("/1"))
        assert state == {"number": 1, "list": ["/1"], "of the request": 1}
        assert name == "set in lifespan", "a request runs in a copy of the context after startup"
        state, _ = value(client.get("/2"))
        assert state == {"number": 1, "list": ["/1", "/2"], "of the request": 1}
    assert "lifespan.shutdown" not in server.log_text()
    assert server.stop(signal.SIGTERM) == 0
    assert "APP message {'type': 'lifespan.shutdown'}" in server.log_text()
    assert "APP lifespan ended" in server.log_text(), "code behind shutdown.complete runs too"
    assert "Traceback" not in server.log_text()


def test_state_is_a_copy_for_each_request(serve):
    """LS-09: what a request adds is gone, what it finds is shared."""
    server = serve("tests.apps:lifespan_well_behaved")
    with server.connect() as client, server.connect() as other:
        value(client.get("/1"))
        state, _ = value(other.get("/2"))
        assert state["list"] == ["/1", "/2"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_shutdown_comes_with_either_signal(serve, number):
    """LS-10."""
    server = serve("tests.apps:lifespan_well_behaved")
    assert server.stop(number) == 0
    assert "lifespan.shutdown" in server.log_text()


def test_shutdown_comes_behind_the_last_request(serve):
    """LS-10: after the listener is closed and all requests have ended."""
    server = serve("tests.apps:lifespan_gated")
    with server.connect() as client:
        client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n")
        server.wait_for_log("APP begun")
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("shutting down")
        with pytest.raises(OSError):
            server.connect().get("/")
        assert "lifespan.shutdown" not in server.log_text()
        client.send(b"go on")
        response = client.read_response()
        assert response.body == b"ended" and response.get("connection") == b"close"
    assert server.wait() == 0
    log = server.log_text()
    assert log.index("APP ended") < log.index("lifespan.shutdown")


@pytest.mark.parametrize(
    "app, text",
    [
        ("lifespan_startup_fails", "no database today"),
        ("lifespan_startup_fails_quietly", "failed"),
    ],
)
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_failed_startup_ends_with_its_message(app, text, mode):
    """LS-06, LS-07: exit code 3, and the port never serves."""
    done = run_server(f"tests.apps:{app}", "--port", "0", "--lifespan", mode)
    assert done.returncode == 3
    assert text in done.stderr and "Traceback" not in done.stderr
    assert "http://" not in done.stderr


@pytest.mark.parametrize("app", ["lifespan_raises_at_once", "lifespan_raises_on_startup"])
def test_an_app_without_lifespan_is_served(serve, app):
    """LS-05: in auto mode an exception means that there is none."""
    server = serve(f"tests.apps:{app}")
    with server.connect() as client:
        assert client.get("/").status == 200
    assert "Traceback" not in server.log_text()
    assert server.stop() == 0


def test_a_startup_that_broke_is_not_hidden(serve):
    """It asked for its first message and raised then: served, but the log says why."""
    server = serve("tests.apps:lifespan_raises_on_startup")
    server.wait_for_log("startup code broke")


@pytest.mark.parametrize("app", ["lifespan_raises_at_once", "lifespan_raises_on_startup"])
def test_lifespan_on_makes_an_exception_fatal(app):
    """LS-14."""
    done = run_server(f"tests.apps:{app}", "--port", "0", "--lifespan", "on")
    assert done.returncode == 3 and "RuntimeError" in done.stderr
    assert "http://" not in done.stderr


@pytest.mark.parametrize("loop", ["native", "asyncio"])
@pytest.mark.parametrize("mode", ["auto", "on"])
@pytest.mark.parametrize("when", ["at_once", "on_startup"])
@pytest.mark.parametrize("what", ["exits", "interrupts"])
def test_an_exit_in_the_startup_is_one(what, when, mode, loop):
    """To raise one of these is no way to say that there is no lifespan."""
    app = f"tests.apps:lifespan_{what}_{when}"
    done = run_server(app, "--port", "0", "--lifespan", mode, "--loop", loop)
    assert done.returncode == 3 and "lifespan startup failed" in done.stderr
    assert ("SystemExit: 7" if what == "exits" else "KeyboardInterrupt") in done.stderr
    assert "http://" not in done.stderr


def test_lifespan_off(serve):
    """LS-14."""
    server = serve("tests.apps:lifespan_well_behaved", "--lifespan", "off")
    with server.connect() as client:
        assert client.get("/").status == 200
    assert server.stop() == 0
    assert "APP" not in server.log_text()


@pytest.mark.parametrize(
    "app",
    ["lifespan_returns_at_once", "lifespan_returns_after_startup", "lifespan_raises_after_startup"],
)
def test_a_lifespan_that_ends_early_is_no_harm(serve, app):
    """LS-15, LS-19: neither start nor end waits for what is not there any more."""
    server = serve(f"tests.apps:{app}")
    with server.connect() as client:
        assert client.get("/").status == 200
    assert server.stop() in (0, 3)


@pytest.mark.parametrize("app", ["raises", "fails", "tells_and_raises"])
def test_a_lifespan_that_fails_while_serving_says_so(serve, app):
    """LS-19: nobody waits for it then, and there will be no shutdown; Starlette calls it one."""
    server = serve(f"tests.apps:lifespan_{app}_after_startup")
    server.wait_for_log("the app failed: its lifespan, after startup")
    server.wait_for_log("RuntimeError: broke while serving")
    assert server.stop() == 0
    assert re.findall("^(?:ERROR|.*Error): .*", server.log_text(), re.M) == [
        "ERROR:    the app failed: its lifespan, after startup: there will be no shutdown",
        "RuntimeError: broke while serving",
    ]


@pytest.mark.parametrize("app", ["returns_after_startup", "raises_after_startup"])
def test_the_state_outlives_the_lifespan(serve, app):
    """HS-26: its startup was complete."""
    server = serve(f"tests.apps:lifespan_{app}")
    with server.connect() as client:
        assert client.get("/").body.startswith(b"({'from': 'startup'")
    assert server.stop() == 0


@pytest.mark.parametrize(
    "app, text",
    [
        ("lifespan_shutdown_fails", "could not save"),
        ("lifespan_raises_on_shutdown", "shutdown code"),
        ("lifespan_warns_and_raises_on_shutdown", "shutdown code"),
    ],
)
def test_a_failed_shutdown_is_told_and_ends(serve, app, text):
    """LS-12."""
    server = serve(f"tests.apps:{app}")
    assert server.stop() in (0, 3)
    assert text in server.log_text()


def test_wrong_lifespan_messages_raise(serve):
    """LS-16, LS-17."""
    server = serve("tests.apps:lifespan_repeats_messages")
    server.wait_for_log(r"APP raised \['RuntimeError', '(RuntimeError)?'\]")
    with server.connect() as client:
        assert client.get("/").status == 200
    assert server.stop() == 0
