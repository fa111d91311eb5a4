"""The tools of the tests are strict: a client that forgives would hide a fault of the server."""

from __future__ import annotations

import socket
import threading

import pytest

from .support import (
    BadResponse,
    FakeClock,
    FakeSelector,
    RawClient,
    ScriptedSocket,
    assert_linear,
)


@pytest.fixture
def answer():
    """Return a client that is answered with the given bytes, and then with a FIN."""
    listener = socket.create_server(("127.0.0.1", 0))
    clients = []

    def serve_bytes(data):
        peer, _ = listener.accept()
        with peer:
            peer.sendall(data)

    def connect(data):
        thread = threading.Thread(target=serve_bytes, args=(data,), daemon=True)
        thread.start()
        clients.append(RawClient(listener.getsockname()))
        thread.join()
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
    listener.close()


def test_reads_what_is_right(answer):
    client = answer(
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nA:  b \r\nA:\r\n\r\nabc"
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\nT: v\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"
        b"HTTP/1.0 200 OK\r\n\r\nto the end"
    )
    first = client.read_response()
    assert [first.status, first.body, first.complete] == [200, b"abc", True]
    assert first.all("a") == [b"b", b""]
    assert [response.status for response in first.interim] == [100]
    second = client.read_response()
    assert [second.body, second.chunks, second.trailers, second.complete] == [
        b"abc",
        [b"ab", b"c"],
        [(b"T", b"v")],
        True,
    ]
    assert client.read_response("HEAD").body == b""
    last = client.read_response()
    assert [last.version, last.body, last.framing, last.complete] == [
        "1.0",
        b"to the end",
        "close",
        True,
    ]
    assert client.is_closed()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
    ],
)
def test_sees_truncation(answer, data):
    assert answer(data).read_response().complete is False


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\n\n",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    ],
)
def test_refuses_what_is_wrong(answer, data):
    with pytest.raises(BadResponse):
        answer(data).read_response()


def test_a_deadline_is_a_failure():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with RawClient(listener.getsockname(), deadline=0.05) as client:
            with pytest.raises(AssertionError, match="in time"):
                client.read_response()
            assert client.is_silent(0.01)


def test_scripted_socket_plays_its_script():
    script = ScriptedSocket(recv=[b"abcd", ConnectionResetError()], send=[2, BlockingIOError()])
    assert [script.recv(3), script.recv(3)] == [b"abc", b"d"]
    with pytest.raises(ConnectionResetError):
        script.recv(1)
    with pytest.raises(BlockingIOError):
        script.recv(1)
    assert script.send(b"xyz") == 2
    with pytest.raises(BlockingIOError):
        script.send(b"z")
    assert script.send(b"z") == 1
    assert script.sent == b"xyz"
    script.close()
    with pytest.raises(AssertionError):
        script.recv(1)


def test_fake_selector_lets_time_pass_only_when_nothing_is_ready():
    clock = FakeClock()
    selector = FakeSelector(clock)
    one, two = ScriptedSocket(), ScriptedSocket()
    selector.register(one, 1, "data")
    selector.set_ready(one, 3)
    selector.set_ready(two, 1)
    assert [(key.data, events) for key, events in selector.select(5.0)] == [("data", 1)]
    assert clock() == 1000.0
    assert selector.select(5.0) == []
    assert clock() == 1005.0
    with pytest.raises(AssertionError, match="for ever"):
        selector.select(None)


def test_square_time_is_not_linear():
    def run(n):
        return sum(1 for _ in range(n) for _ in range(n))

    with pytest.raises(AssertionError, match="for twice the input"):
        assert_linear(lambda: run(40), lambda: run(80))
