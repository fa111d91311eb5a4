"""trio as the reactor's guest: its own primitives work inside apps, and Starlette on it."""

from __future__ import annotations

import ast

import pytest

from .apps import CHUNKS

pytest.importorskip("trio", reason="trio is not installed on this Python")

APP = ("tests.interop.apps.trio_app:app", "--loop", "trio")
PLAIN = {
    "library": ("trio", "Task"),
    "sleep": True,
    "nursery": [0, 1, 2],
    "timeout": True,
    "threads": ("by lifespan", None, "from a thread"),
    "context": ("by lifespan", "by request"),
    "streams": b"HELLO",
    "process": b"hello",
    "primitives": "from a thread",
}


@pytest.mark.parametrize("name", PLAIN)
def test_trio_works_inside(module_serve, name):
    with module_serve(*APP).connect() as client:
        for _ in range(2):
            assert ast.literal_eval(client.get("/" + name).body.decode()) == PLAIN[name]


def test_starlette_on_trio(module_serve):
    with module_serve(*APP).connect() as client:
        for path, body in (("async", b"async"), ("sync", b"sync"), ("stream", b"".join(CHUNKS))):
            response = client.get(f"/starlette/{path}")
            assert response.body == body
            assert response.get("x-middleware") == b"here"


def test_requests_at_once_and_pipelined(module_serve):
    server = module_serve(*APP)
    clients = [server.connect() for _ in range(10)]
    for client in clients:
        client.send(b"GET /sleep HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    for client in clients:
        assert [client.read_response().body for _ in range(3)] == [b"True"] * 3
        client.close()


@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_who_needs_trio_is_told_where_it_is(serve, loop):
    server = serve("tests.interop.apps.trio_app:app", "--loop", loop, "--lifespan", "off")
    with server.connect() as client:
        assert client.get("/sleep").status == 500
    server.wait_for_log("this app needs trio: start with --loop trio")


def test_the_start_line_names_trio(module_serve):
    module_serve(*APP).wait_for_log(r"running on .*\(trio")


def test_a_cancelled_receive_takes_nothing_with_it(serve):
    server = serve(*APP)
    with server.connect() as client:
        client.send(b"POST /receive_timeout HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
        server.wait_for_log("receive given up")
        client.send(b"body")
        assert client.read_response().body == b"b'body'"


def test_disconnect_reaches_the_app(serve):
    server = serve(*APP)
    with server.connect() as client:
        client.request("GET", "/disconnect")
        server.wait_for_log("APP waiting")
        client.reset()
    server.wait_for_log("APP http.disconnect")


@pytest.mark.parametrize("name", ["fail", "fail_in_nursery", "system_exit"])
def test_failures_are_a_500_and_the_server_goes_on(serve, name):
    server = serve(*APP)
    with server.connect() as client:
        assert client.get("/" + name).status == 500
    server.wait_for_log("SystemExit: 7" if name == "system_exit" else "ValueError: of the app")
    with server.connect() as client:
        assert client.get("/sleep").body == b"True"
    assert server.stop() == 0


def test_keyboard_interrupt_in_a_nursery_stops_the_server(serve):
    """trio has put it into a group, and that into another."""
    server = serve(*APP)
    with server.connect() as client:
        assert client.get("/interrupt_in_nursery").status == 500
    assert server.wait() == 0
    assert "APP lifespan shutdown" in server.log_text()


def test_shutdown(serve):
    server = serve(*APP, "--timeout-graceful-shutdown", "0.2")
    with server.connect() as client:
        client.request("GET", "/hold")
        server.wait_for_log("APP holding")
        assert server.stop() == 0
        assert client.read_response().status == 503
    marks = [line for line in server.log_text().split("\n") if line.startswith("APP")]
    assert marks == ["APP holding", "APP finally", "APP lifespan shutdown", "APP worker cancelled"]
    assert "Traceback" not in server.log_text()


def test_a_thread_at_work_does_not_hold_the_end(serve):
    """Trio cannot cancel who waits for one: its run is left."""
    server = serve(*APP, "--timeout-graceful-shutdown", "0")
    with server.connect() as client:
        client.request("GET", "/thread_at_work")
        server.wait_for_log("APP at work")
        assert server.stop() == 0
    assert "APP lifespan shutdown" in server.log_text()
    assert "Traceback" not in server.log_text()
