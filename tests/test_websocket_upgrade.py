"""The protocol between transport, machine and session, where a real socket leaves it to luck."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from selectserve.reactor import NEVER
from selectserve.session import WebSocketSession
from selectserve.transport import LARGE_READ, READ_SIZE
from selectserve.upgrade import FRAMES_READ, WebSocketConnection
from selectserve.websocket import WebSocket

from .test_websocket_e2e import BINARY, CLOSE, TEXT, encode


class Written(SimpleNamespace):
    """A transport that keeps what is written to it."""

    def write(self, pieces):
        self.out += pieces

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


@pytest.fixture
def connection():
    """A WebSocket that is open, and nobody at either end."""
    self = WebSocketConnection.__new__(WebSocketConnection)
    self.service = SimpleNamespace(
        memory=None,
        ws_ping_interval=0,
        ws_max_queue=32,
        connections=set(),
        on_change=None,
        reactor=SimpleNamespace(now=0.0),
    )
    self.transport = Written(read_size=READ_SIZE, trace=None, out=[], reading=True)
    self.machine = WebSocket()
    self.session = WebSocketSession(self, None, None, {})
    self.session.state = "open"
    self.session.inbox.clear()
    self.deadline = SimpleNamespace(at=NEVER, set=lambda at: None, close=lambda: None)
    self.awaited, self.held, self.full, self.early = "data", None, False, b""
    return self


def test_frames_of_64_kib_are_read_whole_from_the_second_on(connection):
    frame, size = encode(BINARY, bytes(65536)), []
    for _ in range(3):
        rest = frame
        while rest:
            size.append(connection.transport.read_size)
            connection.data_received(rest[: size[-1]])
            rest = rest[size[-1] :]
    assert size == [READ_SIZE, FRAMES_READ, FRAMES_READ, FRAMES_READ]
    assert [len(message["bytes"]) for message in connection.session.inbox] == [65536] * 3
    connection.data_received(encode(BINARY, b"small"))
    assert connection.transport.read_size == READ_SIZE


def test_the_rest_of_a_larger_frame_is_read_in_larger_pieces(connection):
    frame = encode(BINARY, bytes(1_000_000))
    connection.data_received(frame[:READ_SIZE])
    connection.data_received(frame[READ_SIZE : READ_SIZE + FRAMES_READ])
    assert connection.transport.read_size == LARGE_READ


def test_a_close_that_was_read_is_told_although_the_connection_is_lost(connection):
    connection.data_received(encode(TEXT, b"last") + encode(CLOSE, b"\x0f\xa0bye"))
    assert connection.held is not None
    assert connection.transport.out == []  # the app may answer first
    connection.connection_lost(ConnectionResetError())
    assert connection.session.inbox[0]["text"] == "last"
    assert connection.session.disconnected == (4000, "bye")
