"""WebSocket load: connections that keep a number of messages in flight, and check every byte that
comes back.

    python3 -m tests.bench.websocket_load PORT --connections 64 --in-flight 1 --size 32

Plain blocking sockets behind a selector, frames made beforehand: a message costs it much less than
it costs the servers. Where a server idles nevertheless, the table says so.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import struct
import time

from .load import LoadFailed, Outcome

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
PATIENCE = 10  # seconds without any answer, after which the run has failed


def header(masked: int, size: int) -> bytes:
    """Return the first bytes of a final binary frame (RFC 6455, 5.2)."""
    if size < 126:
        return bytes((0x82, masked | size))
    if size < 65536:
        return struct.pack("!BBH", 0x82, masked | 126, size)
    return struct.pack("!BBQ", 0x82, masked | 127, size)


def frames(size: int) -> tuple[bytes, bytes]:
    """Return one masked frame of `size` random bytes, and the frame that comes back."""
    payload, mask = os.urandom(size), os.urandom(4)
    keys = (mask * (size // 4 + 1))[:size]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(keys, "big")
    sent = header(0x80, size) + mask + masked.to_bytes(size, "big")
    return sent, header(0, size) + payload


def open_websocket(port: int) -> socket.socket:
    """Return a connected socket after the handshake."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(HANDSHAKE)
    answer = b""
    while b"\r\n\r\n" not in answer:
        data = connection.recv(4096)
        if not data:
            break
        answer += data
    if not answer.startswith(b"HTTP/1.1 101") or not answer.endswith(b"\r\n\r\n"):
        raise LoadFailed(f"handshake answered with {answer[:60]!r}")
    # Deadlines in the kernel: settimeout() would cost a poll() before each call.
    connection.setblocking(True)
    limit = struct.pack("ll", PATIENCE, 0)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return connection


class Echo:
    """One connection: sends as many messages as came back."""

    def __init__(
        self, connection: socket.socket, in_flight: int, sent: bytes, expected: bytes
    ) -> None:
        self.connection = connection
        self.size = len(expected)
        self.sent_size = len(sent)
        self.batch = sent * in_flight
        self.expected = expected * (in_flight + 1)
        self.room = self.size * in_flight
        self.partial = 0  # bytes of a message that has not come back whole

    def start(self) -> None:
        """Send the first messages."""
        self.connection.sendall(self.batch)

    def on_readable(self) -> int:
        """Check what came back and send as many messages again; return how many."""
        data = self.connection.recv(self.room)
        partial = self.partial
        end = partial + len(data)
        if not data or data != self.expected[partial:end]:
            raise LoadFailed(f"what came back is not what was sent: {data[:40]!r}")
        count, self.partial = divmod(end, self.size)
        if count:
            self.connection.sendall(self.batch[: count * self.sent_size])
        return count


def websocket_load(
    port: int, connections: int, in_flight: int, size: int, seconds: float
) -> Outcome:
    """Echo messages of `size` bytes for `seconds`, `in_flight` at a time on each connection."""
    sent, expected = frames(size)
    selector = selectors.DefaultSelector()
    echoes = []
    try:
        for _ in range(connections):
            echo = Echo(open_websocket(port), in_flight, sent, expected)
            echoes.append(echo)
            selector.register(echo.connection, selectors.EVENT_READ, echo.on_readable)
        start = now = time.perf_counter()
        for echo in echoes:
            echo.start()
        count = 0
        while now < start + seconds:
            ready = selector.select(PATIENCE)
            if not ready:
                raise LoadFailed(f"no answer for {PATIENCE} s")
            for key, _ in ready:
                count += key.data()
            now = time.perf_counter()
    except OSError as exc:
        raise LoadFailed(f"{type(exc).__name__}: {exc}") from exc
    finally:
        selector.close()
        for echo in echoes:
            echo.connection.close()
    return Outcome(count, now - start, count * len(expected))


def main() -> None:
    """Load one server by hand."""
    parser = argparse.ArgumentParser(description="Echo WebSocket messages and count them.")
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    outcome = websocket_load(
        given.port, given.connections, given.in_flight, given.size, given.seconds
    )
    print(f"{outcome.rate:,.0f} messages/s")


if __name__ == "__main__":
    main()
