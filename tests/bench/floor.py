"""The floor: how fast a `selectors` loop answers when it parses nothing at all.

    python tests/bench/floor.py PORT

Every read is answered with the same bytes that `apps:hello` would send, so it is right only for a
client that keeps one short request in flight. It shows what the sockets alone cost in Python: no
server in pure Python can be faster.
"""

from __future__ import annotations

import selectors
import socket
import sys

ANSWER = (
    b"HTTP/1.1 200 OK\r\n"
    b"content-type: text/plain\r\n"
    b"content-length: 13\r\n"
    b"date: Mon, 01 Jan 2024 00:00:00 GMT\r\n"
    b"server: floor\r\n\r\n"
    b"Hello, world!"
)


def serve(port: int) -> None:
    """Answer each read with ANSWER, for ever."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    listener.setblocking(False)

    def accept(_: socket.socket) -> None:
        connection, _address = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, answer)

    def answer(connection: socket.socket) -> None:
        try:
            if connection.recv(65536):
                connection.send(ANSWER)
                return
        except OSError:
            pass
        selector.unregister(connection)
        connection.close()

    selector.register(listener, selectors.EVENT_READ, accept)
    while True:
        for key, _mask in selector.select():
            key.data(key.fileobj)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
