"""One keep-alive connection on a blocking socket, for what wrk cannot do: counted requests, idle
connections, bodies.

It trusts the server: a response has a Content-Length, and nothing follows it unasked.
"""

from __future__ import annotations

import socket

GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
BROWSER = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: keep-alive\r\n"
    b"Cache-Control: max-age=0\r\n"
    b'sec-ch-ua: "Chromium";v="130", "Not?A_Brand";v="99"\r\nsec-ch-ua-mobile: ?0\r\n'
    b'sec-ch-ua-platform: "Linux"\r\nUpgrade-Insecure-Requests: 1\r\n'
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
    b"Chrome/130.0.0.0 Safari/537.36\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8\r\n"
    b"Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\r\n"
)


def post(body: bytes) -> bytes:
    """Return a POST request that carries `body`."""
    return b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Connection:
    """Sends a request, waits for its whole response."""

    def __init__(self, port: int, timeout: float = 30.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.room = memoryview(bytearray(256 * 1024))

    def exchange(self, request: bytes) -> int:
        """Return how long the response body was; anything but 200 is a ConnectionError."""
        self.socket.sendall(request)
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.socket.recv(65536)
            if not more:
                raise ConnectionError(f"the server closed after {data[:40]!r}")
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(f"the server answered {head[:40]!r}")
        length = content_length(head)
        left = length - len(body)
        while left > 0:
            count = self.socket.recv_into(self.room)
            if not count:
                raise ConnectionError(f"the server closed {left} bytes early")
            left -= count
        return length

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def content_length(head: bytes) -> int:
    """Return the Content-Length of a response head."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ConnectionError(f"no Content-Length in {head[:200]!r}")
