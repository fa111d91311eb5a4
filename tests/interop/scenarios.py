"""What a client can do with an app, told as what it sees: each returns a dict of observations.

The same scenario runs against the same app under selectserve and under uvicorn; the two
observations are compared. A scenario also asserts what must be true of both.
"""

from __future__ import annotations

import re
import sys
from socket import SHUT_RDWR

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from .apps import CHUNKS, FILE

SCENARIOS = {}
# Header fields that tell the server's name or the moment, or carry a random number.
VOLATILE = (b"date", b"server", b"last-modified", b"expires")


def scenario(function):
    """Register ``function`` under its name."""
    SCENARIOS[function.__name__] = function
    return function


def seen(response):
    """Reduce a response to what a client can tell: field order between names means nothing."""
    headers = []
    for name, value in response.headers:
        if name.lower() == b"allow":  # made of a set
            value = b", ".join(sorted(value.split(b", ")))
        if name.lower() not in VOLATILE and (name.lower(), value) != (b"connection", b"keep-alive"):
            headers.append((name.lower(), value))
    return {
        "status": response.status,
        "headers": sorted(headers),
        "body": response.body,
        "complete": response.complete,
    }


def get(server, target, status=200, body=None, method="GET", send=b"", headers=()):
    """Make one request on a connection of its own; return what was seen."""
    with server.connect() as client:
        client.request(method, target, *headers, body=send)
        response = client.read_response(method)
        assert response.status == status, (response, server.log_text())
        assert body is None or response.body == body
        return seen(response)


def wait_for(server, *marks):
    """Wait until the app has told all ``marks``."""
    for mark in marks:
        server.wait_for_log(f"^APP {mark}")


@scenario
def asynchronous(server):
    return get(server, "/async", body=b"async")


@scenario
def synchronous(server):
    return get(server, "/sync", body=b"sync")


@scenario
def keep_alive(server):
    """Several requests on one connection, pipelined."""
    with server.connect() as client:
        client.send(b"GET /async HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
        answers = [seen(client.read_response()) for _ in range(3)]
        client.request("GET", "/sync")
        return [*answers, seen(client.read_response())]


@scenario
def head(server):
    with server.connect() as client:
        client.request("HEAD", "/async")
        return seen(client.read_response("HEAD"))


@scenario
def not_found(server):
    return get(server, "/nothing/here", status=404)


@scenario
def method_not_allowed(server):
    return get(server, "/async", status=405, method="DELETE")


@scenario
def echo(server):
    """Escapes, non-ASCII and a query: what the app makes of the target."""
    return [
        get(server, "/echo/a%20b/%C3%A9?x=1&y=%26"),
        get(server, "/echo/a//b/../c?"),
        get(server, "/echo/x?q", method="POST", send=b"body"),
    ]


@scenario
def dependency(server):
    observed = get(server, "/dependency", body=b"dependency, sync dependency")
    wait_for(server, "dependency opened", "dependency closed", "sync dependency closed")
    return observed


@scenario
def stream(server):
    with server.connect() as client:
        client.request("GET", "/stream")
        response = client.read_response()
        assert response.body == b"".join(CHUNKS)
        return {**seen(response), "chunks": response.chunks, "next": seen(client.get("/async"))}


@scenario
def sync_stream(server):
    return get(server, "/sync-stream", body=b"".join(CHUNKS))


@scenario
def read_stream(server):
    """A large upload, by length and chunked."""
    by_length = get(server, "/read-stream", method="POST", send=b"x" * 1_000_000, body=b"1000000")
    with server.connect() as client:
        client.send(
            b"POST /read-stream HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n"
        )
        for _ in range(10):
            client.send(b"2710\r\n" + b"y" * 10000 + b"\r\n")
        client.send(b"0\r\n\r\n")
        response = client.read_response()
        assert response.body == b"100000"
        return by_length, seen(response), seen(client.get("/async"))


@scenario
def background(server):
    observed = get(server, "/background", body=b"answered")
    wait_for(server, "background done")
    return observed


@scenario
def file(server):
    with open(FILE, "rb") as file:
        return get(server, "/file", body=file.read())


@scenario
def form(server):
    return get(
        server,
        "/form",
        method="POST",
        send=b"name=J%C3%BCrgen+P.&other=1",
        headers=["Content-Type: application/x-www-form-urlencoded"],
        body="Jürgen P.".encode(),
    )


@scenario
def upload(server):
    part = b"z" * 300_000  # larger than what frameworks keep in memory as one piece
    data = (
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n'
        b"Content-Type: text/plain\r\n\r\n" + part + b"\r\n--cut--\r\n"
    )
    return get(
        server,
        "/upload",
        method="POST",
        send=data,
        headers=["Content-Type: multipart/form-data; boundary=cut"],
        body=b"a.txt 300000",
    )


@scenario
def state(server):
    return get(server, "/state", body=b"at startup")


@scenario
def error(server):
    return get(server, "/error", status=500), get(server, "/async")


@scenario
def error_late(server):
    """A generator raises behind its first part: BaseHTTPMiddleware ends it well, all others cut."""
    with server.connect() as client:
        client.request("GET", "/error-late", "Connection: close")
        response = client.read_head()
        rest = client.read_until_close()
    return response.status, rest, get(server, "/async")


@scenario
def slash(server):
    """Where frameworks send one who has written a slash too many."""
    with server.connect() as client:
        client.send(b"GET /async/?a=b HTTP/1.1\r\nHost: example.com\r\n\r\n")
        return seen(client.read_response())


@scenario
def file_parts(server):
    """Ranges and conditions, where a framework knows them."""
    whole = get(server, "/file")
    headers = dict(whole["headers"])
    with server.connect() as client:
        etag = headers.get(b"etag", b'"none"').decode()
        return [
            seen(client.get("/file", "Range: bytes=5-14")),
            seen(client.get("/file", f"If-None-Match: {etag}")),
            seen(client.get("/async")),
        ]


@scenario
def old_client(server):
    """HTTP/1.0 has neither chunks nor a kept connection."""
    answers = []
    for target in ("/async", "/stream"):
        with server.connect() as client:
            response = client.get(target, version="1.0")
            answers.append((response.status, response.body, response.get("transfer-encoding")))
            assert client.is_closed()
    return answers


@scenario
def asks_before_it_uploads(server):
    with server.connect() as client:
        client.send(
            b"POST /read-stream HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/octet-stream\r\nContent-Length: 5\r\n\r\n"
        )
        assert client.read_head().status == 100
        client.send(b"12345")
        return seen(client.read_response()), seen(client.get("/async"))


@scenario
def client_leaves_upload(server):
    """A client is gone in the middle of its body."""
    start = server.log_position()
    client = server.connect()
    client.send(
        b"POST /read-stream HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
        b"Content-Type: application/octet-stream\r\n\r\n" + b"x" * 1000
    )
    server.wait_for_log("^APP upload begun", start=start)
    client.reset()
    told = server.stderr.wait_for("^APP upload ended (.*)", 5, start)
    get(server, "/async")
    return told and told[1]


@scenario
def client_leaves_stream(server):
    """The generator of a response ends when the client is gone."""
    client = server.connect()
    client.request("GET", "/endless")
    client.read_head()
    client.read_exactly(3000)
    client.reset()
    told = server.stderr.wait_for("^APP stream closed", 5)
    get(server, "/async")
    return "told" if told else "not told"


@scenario
def client_leaves_idle_stream(server):
    """The generator waits for something to send, as server-sent events do: who tells it?"""
    start = server.log_position()
    client = server.connect()
    client.request("GET", "/idle")
    client.read_head()
    client.read_until(CHUNKS[0])
    client.reset()
    told = server.stderr.wait_for("^APP idle closed", 3, start)
    get(server, "/async")
    return "told" if told else "not told"


@scenario
def client_leaves_waiting(server):
    client = server.connect()
    client.request("GET", "/wait-for-client")
    wait_for(server, "waiting")
    client.reset()
    wait_for(server, "client left")
    return get(server, "/async")


# -- WebSocket ------------------------------------------------------------------------------------


def open_socket(server, path="/ws", **options):
    """Open a WebSocket with the websockets package, whose client joins its thread to close.

    PyPy's ``Thread.join`` fails there at random: "cannot release un-acquired lock".
    """
    if sys.implementation.name == "pypy":
        pytest.skip("the client of the websockets package fails at random on PyPy")
    host, port = server.address
    return connect(f"ws://{host}:{port}{path}", proxy=None, **options)


def end_of(socket):
    """Read to the end; return how the server closed."""
    try:
        while True:
            socket.recv(timeout=10)
    except ConnectionClosed as exc:
        received = exc.rcvd
        return (received.code, received.reason) if received else None


@scenario
def websocket(server):
    with open_socket(server, subprotocols=["chat", "other"]) as socket:
        answers = []
        for text in ("hello", "", "é" * 1000, "x" * 100_000):
            socket.send(text)
            answers.append(socket.recv(timeout=10))
        assert answers[:2] == ["HELLO", ""]
        protocol = socket.subprotocol
    server.wait_for_log("^APP websocket closed")
    line = re.search("APP (websocket closed.*)", server.log_text())[1]
    return answers, protocol, line


@scenario
def websocket_client_vanishes(server):
    """No closing handshake: the connection is gone."""
    start = server.log_position()
    with open_socket(server) as socket:
        socket.send("hello")
        assert socket.recv(timeout=10) == "HELLO"
        socket.socket.shutdown(SHUT_RDWR)
        return server.wait_for_log("^APP (websocket closed.*)", start=start)[1]


@scenario
def websocket_closed_by_app(server):
    with open_socket(server) as socket:
        socket.send("close")
        return end_of(socket)


@scenario
def websocket_app_fails(server):
    with open_socket(server) as socket:
        socket.send("fail")
        return end_of(socket)


@scenario
def websocket_refused(server):
    try:
        open_socket(server, "/ws-refused").close()
    except InvalidStatus as exc:
        return exc.response.status_code
    raise AssertionError("the handshake was accepted")
