"""--limit-connections: how many connections one address may hold."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess

import pytest

from selectserve.arrival import CountedSet

from .support import DEADLINE, RawClient

APP = ("tests.apps:app", "--lifespan", "off", "--limit-connections", "2")
LINE = b"PROXY TCP4 %b 198.51.100.1 4711 80\r\n"


def is_refused(client: RawClient) -> bool:
    """Tell whether the server closes without a word, whatever we say."""
    with contextlib.suppress(OSError):
        client.request("GET", "/hello")
    return client.is_closed()


def test_the_third_connection_of_an_address(serve):
    server = serve(*APP)
    with server.connect() as first, server.connect() as second:
        assert first.get("/hello").body == second.get("/hello").body == b"hello"
        with server.connect() as third:
            assert is_refused(third)
        server.wait_for_log(r"WARNING: +127\.0\.0\.1 holds 2 connections: another one closed")
        assert first.get("/hello").status == 200
        with contextlib.closing(RawClient(server.address)) as other:
            assert is_refused(other)
        second.request("GET", "/hello", "Connection: close")
        assert second.read_response().complete and second.is_closed()
        with server.connect() as successor:
            assert successor.get("/hello").status == 200
    assert server.stop() == 0


def test_other_addresses_are_not_concerned(serve):
    server = serve(*APP, "--host", "0.0.0.0")
    with server.connect() as first, server.connect() as second:
        assert first.get("/hello").status == second.get("/hello").status == 200
        other = socket.create_connection(
            ("127.0.0.1", server.port), DEADLINE, source_address=("127.0.0.2", 0)
        )
        with other:
            other.sendall(b"GET /hello HTTP/1.0\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.1 200")


def test_a_websocket_counts_on(serve):
    """The connection is the same after the upgrade."""
    server = serve("examples.chat:app", "--limit-connections", "1")
    with server.connect() as client:
        client.request(
            "GET", "/chat", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )  # fmt: skip
        assert client.read_head().status == 101
        with server.connect() as second:
            assert is_refused(second)
        client.reset()
    connected = 0
    while not connected:  # the reset has to be noticed first
        with server.connect() as client:
            client.request("GET", "/")
            with contextlib.suppress(OSError):
                connected = len(client.read_until(b"\r\n"))


def test_behind_the_proxy_protocol_the_clients_are_counted(serve):
    server = serve(*APP, "--proxy-protocol")
    with contextlib.ExitStack() as stack:

        def connect(address: bytes) -> RawClient:
            client = stack.enter_context(server.connect())
            client.send(LINE % address)
            return client

        for address in (b"203.0.113.7", b"203.0.113.8"):
            assert connect(address).get("/hello").status == 200
            assert connect(address).get("/hello").status == 200
        assert is_refused(connect(b"203.0.113.7"))
        server.wait_for_log(r"203\.0\.113\.7 holds 2 connections")


def test_a_handshake_that_is_not_done_counts(serve, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not installed")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=a",
        ],
        cwd=tmp_path, check=True, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    server = serve(
        *APP,
        "--ssl-certfile",
        str(tmp_path / "cert.pem"),
        "--ssl-keyfile",
        str(tmp_path / "key.pem"),
    )
    with server.connect() as first, server.connect() as second, server.connect() as third:
        assert third.is_closed()
        assert first.is_silent(0.05) and second.is_silent(0.05)


def test_unix_peers_have_no_address(serve, tmp_path):
    path = str(tmp_path / "socket")
    serve(*APP, "--uds", path)
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            assert stack.enter_context(RawClient(path)).get("/hello").status == 200


class Member:
    def __init__(self, *peer):
        self.transport = self
        self.peer = peer or None


def test_the_books_are_kept():
    peers = {}
    members, others = CountedSet(peers), CountedSet(peers)
    first, second, local = Member("a", 1), Member("a", 2), Member()
    for member in (first, first, second, local):
        members.add(member)
    assert peers == {"a": 2}
    members.discard(first)
    others.add(first)
    others.discard(second)
    assert peers == {"a": 2}
    for member in (first, second, local):
        members.discard(member)
        others.discard(member)
    assert peers == {} and not members and not others
