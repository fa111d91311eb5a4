"""--trace: the words of each life, exactly; and that they cost nothing while nobody listens."""

from __future__ import annotations

import dis
import json
import re

import pytest

from selectserve.connection import HTTPConnection
from selectserve.narrator import describe_message, parked_at
from selectserve.trace import MOMENTS, Tracer

from .support import ROOT

LINE = re.compile(r" *(\d+\.\d{6})  +(#\d+|-)  (\w+) *(.*)")
APP = "tests.apps_trace:app"


def life(server, number="#1", last="close"):
    """Return what was told of a connection, as (moment, details), until its last moment."""
    server.wait_for_log(rf"{number}  {last}")
    found = [LINE.fullmatch(line) for line in server.log_text().split("\n")]
    return [(match[3], match[4]) for match in found if match and match[2] == number]


def words(told):
    return " ".join(moment for moment, _ in told)


def test_one_kept_request(serve):
    server = serve(APP, "--trace")
    with server.connect() as client:
        client.get("/")
        client.get("/again")
    told = life(server)
    one = "ready read event task send send write flush done"
    assert words(told) == f"accept {one} {one} ready eof event close"
    details = [details for _, details in told]
    assert re.fullmatch(r"from 127\.0\.0\.1:\d+", details[0])
    assert details[1] == "to read"
    assert details[2] == "30 bytes"  # the request line, a Host, and the empty line
    assert details[3] == "<Request GET b'/' HTTP/1.1> (read_idle -> read_end)"
    assert details[4] == "app(GET /)"
    assert details[5] == "http.response.start 200, 1 headers"
    assert details[6] == "http.response.body 5 bytes"
    assert re.fullmatch(r"(\d+) bytes wait", details[7])
    assert re.fullmatch(r"(\d+) of \1 bytes", details[8])
    assert details[9] == "the app has returned"
    assert details[-2] == "CLOSED (read_idle -> read_idle)"


def test_the_seconds_begin_at_the_start_line(serve):
    server = serve(APP, "--trace")
    with server.connect() as client:
        client.get("/")
    life(server)
    text = server.log_text()
    first = LINE.fullmatch(text[text.index("running on") :].split("\n")[1])
    assert first[3] == "ready" and first[4] == "to read: listener"
    before = [LINE.fullmatch(line) for line in text[: text.index("running on")].split("\n")]
    assert [match[3] for match in before if match] == ["task", "done"], "the lifespan"


def test_a_post_whose_app_parks_for_its_body(serve):
    server = serve(APP, "--trace")
    with server.connect() as client:
        client.send(b"POST /up HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for_log(r"#1  park .*")
        client.send(b"def")
        assert client.read_response().body == b"6 bytes"
    told = life(server)
    assert words(told) == (
        "accept ready read event event event task event receive event park ready read event event"
        " step receive send send write flush done ready eof event close"
    )
    details = [details for _, details in told]
    assert details[5] == details[7] == "NEED_DATA (read_sized -> read_sized)"
    assert details[8] == "http.request 3 bytes, more to come"
    source = (ROOT / "tests" / "apps_trace.py").read_text().split("\n")
    number = next(n for n, line in enumerate(source, 1) if "await receive()" in line)
    assert details[10] == f"waits for receive at apps_trace.py:{number} in read"
    assert details[15] == f"goes on at apps_trace.py:{number} in read"
    assert details[16] == "http.request 3 bytes"


def test_sleep_and_what_the_app_raises(serve):
    server = serve(APP, "--trace")
    with server.connect() as client:
        assert client.get("/sleep").body == b"slept"
        assert client.get("/raise").status == 500
    told = life(server)
    parks = [details for moment, details in told if moment == "park"]
    assert len(parks) == 1 and re.match(r"waits for sleep at apps_trace.py:\d+ in app", parks[0])
    assert ("done", """the app raised ValueError("a bug of the app's")""") in told


def test_a_client_that_does_not_read(serve):
    server = serve(APP, "--trace")
    with server.connect(receive_buffer=4096) as client:
        client.request("GET", "/flood")
        server.wait_for_log(r"#1  park +waits for send at apps_trace")
        client.reset()
    told = life(server, last="done")  # the app hears of it in the round after the close
    first = [moment for moment, _ in told][: words(told).split().index("park") + 1]
    assert first[-4:] == ["write", "flush", "pause", "park"]
    assert "step" in words(told)


def test_a_websocket(serve):
    server = serve(APP, "--trace")
    with server.connect() as client:
        client.send(
            b"GET /talk HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        server.wait_for_log(r"#1  flush")
        client.send(b"\x81\x82\0\0\0\0hi")
        server.wait_for_log(r"#1  flush", count=2)
        client.send(b"\x88\x80\0\0\0\0")
        told = life(server)
    assert words(told) == (
        "accept ready read event upgrade task receive send write park flush"
        " ready read event event step receive send write park flush"
        " ready read event write step receive done flush close"
    )
    details = [details for _, details in told]
    assert details[4] == "/talk"
    assert details[5] == "app(websocket /talk)"
    assert details[13] == "<Text 2 characters> (read_frame -> read_frame)"
    assert details[17] == "websocket.send 2 characters"


def test_a_broken_request_and_a_deadline(serve):
    server = serve(APP, "--trace", "--timeout-header", "0.01")
    with server.connect() as client:
        client.send(b"GET / HTTP/1.1\r\nHost")
        assert client.read_response().status == 408
    with server.connect() as client:
        client.send(b"GE\x1b[31mT / HTTP/1.1\r\n\r\n")
        assert client.read_response().status == 400
    assert ("timer", "waited too long for the head") in life(server)
    assert any(moment == "event" and "ProtocolError" in d for moment, d in life(server, "#2"))
    assert "\x1b" not in server.log_text()


def test_json(serve):
    server = serve(APP, "--trace", "--trace-format", "json")
    with server.connect() as client:
        client.get("/")
    server.wait_for_log('"moment": "close"')
    lines = [json.loads(line) for line in server.log_text().split("\n") if line[:1] == "{"]
    assert {"at", "connection", "moment", "details"} == set(lines[0])
    assert {line["moment"] for line in lines} <= set(MOMENTS)
    mine = [line for line in lines if line["connection"] == 1]
    assert [line["moment"] for line in mine][:3] == ["accept", "ready", "read"]
    assert [line["at"] for line in mine] == sorted(line["at"] for line in mine)


def test_asyncio_apps_are_told_too(serve):
    server = serve("tests.apps_aio:app", "--trace", "--loop", "asyncio", "--lifespan", "off")
    with server.connect() as client:
        client.get("/sleep")
    told = words(life(server))
    assert told.startswith("accept ready read event task")
    assert "done" in told


def test_every_moment_has_its_meaning_and_is_told_somewhere():
    sources = {path.stem: path.read_text("utf-8") for path in ROOT.glob("selectserve/*.py")}
    told = set()
    for source in sources.values():
        told |= set(re.findall(r'\btrace\(\s*"(\w+)"', source))
        told |= set(
            re.findall(r'\btrace\("(\w+)" if [^"]*else "(\w+)"', source) and ["read", "eof"]
        )
    assert told == set(MOMENTS)


class Lines(list):
    write = list.append


def test_columns_line_up_and_colour_is_for_terminals():
    class Subject:
        number = 12

    lines, clock = Lines(), iter([100.0, 100.5, 101.0, 112.25]).__next__
    trace = Tracer(clock, lines)
    trace("read", Subject, "5 bytes")
    trace("receive", None, "x")
    trace("close", Subject)
    assert lines == [
        "  0.500000    #12  read     5 bytes\n",
        "  1.000000      -  receive  x\n",
        " 12.250000    #12  close\n",
    ]
    painted = Lines()
    Tracer(lambda: 0.0, painted, colour=True)("read", Subject, "\x1b[31m")
    assert painted == ["  0.000000    #12  \x1b[36mread    \x1b[0m \\x1b[31m\n"]


@pytest.mark.parametrize(
    "message, text",
    [
        ({"type": "http.request", "body": b"abc", "more_body": True}, "3 bytes, more to come"),
        ({"type": "http.response.start", "status": 204}, "204, 0 headers"),
        ({"type": "http.response.body"}, "0 bytes"),
        ({"type": "websocket.send", "text": "abc"}, "3 characters"),
        ({"type": "websocket.send", "bytes": b"abcd", "text": None}, "4 bytes"),
        ({"type": "websocket.disconnect", "code": 1001}, "1001"),
    ],
)
def test_messages_are_told_by_type_and_size(message, text):
    assert describe_message(message) == f"{message['type']} {text}"


def test_headers_that_can_be_read_once_are_left_to_who_sends_them():
    headers = iter([(b"a", b"b")])
    message = {"type": "http.response.start", "status": 200, "headers": headers}
    assert describe_message(message) == "http.response.start 200, some headers"
    assert list(headers) == [(b"a", b"b")]


def test_what_is_no_message_is_told_too():
    assert describe_message(None) == "NoneType, which is no message"
    assert describe_message({}) == "None"


def test_where_a_coroutine_is_parked():
    async def outer():
        await inner()

    async def inner():
        await Trap()

    class Trap:
        def __await__(self):
            yield self

    coro = outer()
    coro.send(None)
    waits, frame = parked_at(coro)
    assert frame.f_code.co_name == "__await__"
    assert waits == "its next turn"  # it yielded to nobody we know
    coro.close()


def test_the_hot_path_asks_no_more_than_it_did():
    """start_cycle tests nothing about traces: what the app does is told from outside."""
    names = {i.argval for i in dis.get_instructions(HTTPConnection.start_cycle)}
    assert "trace" not in names
