"""What has ended is freed at once: no request leaves a cycle of references to the collector.

They look like a leak for as long as the collector takes its time, and then hold everybody up.
"""

from __future__ import annotations

import gc
import importlib.util

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(gc, "set_debug"), reason="this Python does not count its references"
)
HELLO = b"\x81\x85\0\0\0\0hello"  # masked with zeros
CLOSE = b"\x88\x80\0\0\0\0"


def answer_at_once(server, client):
    """The app ends in its first step."""
    assert client.get("/").body == b"done"


def wait_for_body(server, client):
    """The app is parked before it ends."""
    client.send(b"POST /waits HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
    client.send(b"bo")
    client.send(b"dy")
    assert client.read_response().body == b"done"


def answer_beside_a_listener(server, client):
    """The app has a task that waits for the client to leave, and cancels it in the end."""
    assert client.get("/beside").body == b"done"


def raise_in_app(server, client):
    """The traceback holds frames, and frames hold tasks."""
    with server.connect() as other:
        assert other.get("/fails").status == 500


def leave(server, client):
    """The client is gone in the middle."""
    with server.connect() as other:
        other.request("GET", "/left")


def ask_wrongly(server, client):
    """The parser keeps its error."""
    with server.connect() as other:
        other.send(b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n")
        assert other.read_response().status == 400
        other.read_until_close()


def leave_upload(server, client):
    """The body is cut, and the parser says so."""
    with server.connect() as other:
        other.send(b"POST /waits HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab")


def talk(server, client):
    """A whole WebSocket session."""
    with server.connect() as other:
        other.upgrade()
        assert other.read_head().status == 101
        other.send(HELLO)
        assert other.read_exactly(7) == b"\x81\x05hello"
        other.send(CLOSE)
        other.read_until_close()


@pytest.mark.parametrize(
    "act",
    [
        answer_at_once,
        wait_for_body,
        answer_beside_a_listener,
        raise_in_app,
        leave,
        ask_wrongly,
        leave_upload,
        talk,
    ],
)
@pytest.mark.parametrize("mode", ["native", "asyncio", "trio"])
def test_nothing_is_left_to_the_collector(module_serve, mode, act):
    if act is answer_beside_a_listener and mode != "asyncio":
        pytest.skip("tasks are asyncio's")
    if mode == "trio" and importlib.util.find_spec("trio") is None:
        pytest.skip("trio is not installed on this Python")
    server = module_serve("tests.garbage_app:app", "--loop", mode)
    with server.connect() as client:
        act(server, client)
        client.get("/garbage")  # whatever the first one of its kind leaves
        for _ in range(5):
            act(server, client)
        assert client.get("/garbage").body == b"{}"
