"""WebSocket over a real socket: every WS row of ASGI, the handshake, deadlines and bounds."""

from __future__ import annotations

import json
import os
import signal
import zlib

import pytest

from .support import RawClient, Server

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def encode(opcode, payload=b"", fin=True, masked=True, rsv1=False):
    """Return a client's frame."""
    first = (0x80 if fin else 0) | (0x40 if rsv1 else 0) | opcode
    size = len(payload)
    mask = b"\x01\x02\x03\x04" if masked else b""
    bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 65536:
        head = bytes((first, bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, bit | 127)) + size.to_bytes(8, "big")
    if masked:
        pad = (mask * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(
            size, "big"
        )
    return head + mask + payload


class WebSocketClient(RawClient):
    """A raw client that can shake hands and read frames."""

    def shake(self, path="/", *headers, version="13", key=KEY, extra=b""):
        """Send a handshake, and ``extra`` bytes in the same segment; return the answer's head."""
        lines = [f"GET {path} HTTP/1.1", "Host: test", "Upgrade: websocket", "Connection: Upgrade"]
        lines += [f"Sec-WebSocket-Key: {key}", f"Sec-WebSocket-Version: {version}", *headers]
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + extra)
        return self.read_response()

    def read_frame(self):
        """Return (opcode, payload, rsv1) of the next frame, or None at the end of the stream."""
        head = self.read_exactly(2)
        if len(head) < 2:
            return None
        assert not head[1] & 0x80, "a server's frames are not masked"
        size = head[1] & 0x7F
        if size > 125:
            size = int.from_bytes(self.read_exactly(2 if size == 126 else 8), "big")
        return head[0] & 0x0F, self.read_exactly(size), bool(head[0] & 0x40)

    def read_close(self):
        """Return (code, reason) of the close frame that is next."""
        opcode, payload, _ = self.read_frame()
        assert opcode == CLOSE, (opcode, payload)
        return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    def end(self, code=1000):
        """Answer the server's close, and see it close the connection."""
        self.send(encode(CLOSE, code.to_bytes(2, "big")))
        return self.is_closed()


@pytest.fixture(scope="module")
def server():
    with Server("tests.apps_websocket:app", "--ws-ping-interval", "0") as running:
        yield running


@pytest.fixture
def client(server):
    with WebSocketClient(server.address) as connected:
        yield connected


def last(server, name):
    """Return what the app noted under ``name``, once it has."""
    for _ in range(2000):
        with server.connect() as asking:
            noted = json.loads(asking.get(f"/last?{name}").body)
        if noted is not None:
            return noted
    raise AssertionError(f"the app noted nothing about {name}")


def opened(client, path="/", *headers):
    response = client.shake(path, *headers)
    assert response.status == 101, response
    return response


# -- handshake -------------------------------------------------------------------------------


def test_the_101_is_complete(client):
    response = opened(client)
    assert response.get("sec-websocket-accept") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert response.get("upgrade").lower() == b"websocket"
    assert response.get("connection").lower() == b"upgrade"
    for absent in ("content-length", "transfer-encoding", "sec-websocket-protocol"):
        assert response.get(absent) is None
    assert response.get("sec-websocket-extensions") is None


def test_lists_in_any_case_are_a_handshake(client):
    client.send(
        b"GET / HTTP/1.1\r\nHost: test\r\n"
        b"upgrade: foo/1, WebSocket\r\nCONNECTION: keep-alive, UPGRADE\r\n"
        b"sec-websocket-key: " + KEY.encode() + b"\r\nsec-websocket-version: 13\r\n\r\n"
    )
    assert client.read_response().status == 101


@pytest.mark.parametrize(
    "change, status",
    [
        (("Sec-WebSocket-Version: 13", "Sec-WebSocket-Version: 8"), 426),
        (("Sec-WebSocket-Version: 13\r\n", ""), 426),
        ((f"Sec-WebSocket-Key: {KEY}\r\n", ""), 400),
        ((KEY, "c2hvcnQ="), 400),
        ((KEY, KEY[:-2] + "!="), 400),
        (
            (f"Sec-WebSocket-Key: {KEY}", f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Key: {KEY}"),
            400,
        ),
        (("GET / ", "POST / "), 405),
        (("Host: test\r\n", ""), 400),
        (("\r\n\r\n", "\r\nSec-WebSocket-Protocol: \xff\r\n\r\n"), 400),
        (("\r\n\r\n", "\r\nSec-WebSocket-Protocol: a b\r\n\r\n"), 400),
    ],
)
def test_what_only_resembles_a_handshake_is_refused(client, change, status):
    request = (
        "GET / HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    client.send(request.replace(*change).encode("latin-1"))
    response = client.read_response()
    assert response.status == status and response.complete
    if status == 426:
        assert response.get("sec-websocket-version") == b"13"
        assert response.get("upgrade") == b"websocket"
    assert client.is_closed()


@pytest.mark.parametrize(
    "lines", ["Upgrade: websocket", "Connection: Upgrade", "Upgrade: h2c\r\nConnection: Upgrade"]
)
def test_what_does_not_ask_for_a_websocket_is_http(client, lines):
    client.send(f"GET /x HTTP/1.1\r\nHost: test\r\n{lines}\r\n\r\n".encode())
    response = client.read_response()
    assert (response.status, response.body) == (200, b"http")


def test_frames_in_the_same_segment_are_served(client):
    response = client.shake("/", extra=encode(TEXT, b"one") + encode(BINARY, b"two"))
    assert response.status == 101
    assert client.read_frame() == (TEXT, b"one", False)
    assert client.read_frame() == (BINARY, b"two", False)


def test_the_scope(client):
    opened(
        client, "/scope?a=b", "Sec-WebSocket-Protocol: a, b", "Sec-WebSocket-Protocol: c", "X-N: 1"
    )
    scope = json.loads(client.read_frame()[1])
    assert (scope["type"], scope["scheme"], scope["http_version"]) == ("websocket", "ws", "1.1")
    assert (scope["path"], scope["query_string"]) == ("/scope", "a=b")
    assert scope["subprotocols"] == ["a", "b", "c"] and "method" not in scope
    assert ["x-n", "1"] in scope["headers"] and scope["client"][0] == "127.0.0.1"
    assert "websocket.http.response" in scope["extensions"]


def test_subprotocol_and_headers_of_accept(client):
    response = opened(client, "/protocol", "Sec-WebSocket-Protocol: a, b")
    assert response.all("sec-websocket-protocol") == [b"b"]
    assert response.all("x-one") == [b"1", b"2"]


def test_no_subprotocol_none_sent(client):
    assert opened(client, "/protocol").all("sec-websocket-protocol") == []


# -- messages --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1 << 20])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_echo(client, opcode, size):
    opened(client)
    client.send(encode(opcode, b"x" * size))
    assert client.read_frame() == (opcode, b"x" * size, False)


def test_fragments_with_a_ping_between(client):
    opened(client)
    euro = "€".encode()
    client.send(encode(TEXT, b"a" + euro[:1], fin=False) + encode(PING, b"p"))
    client.send(encode(0, euro[1:], fin=False) + encode(0, b"", fin=True))
    assert client.read_frame() == (PONG, b"p", False)
    assert client.read_frame() == (TEXT, b"a" + euro, False)


def test_compressed_both_ways(client):
    response = opened(client, "/", "Sec-WebSocket-Extensions: permessage-deflate")
    assert response.get("sec-websocket-extensions").startswith(b"permessage-deflate")
    deflate = zlib.compressobj(wbits=-15)
    inflate = zlib.decompressobj(wbits=-15)
    for text in (b"hello " * 100, b"hello " * 100):
        data = deflate.compress(text) + deflate.flush(zlib.Z_SYNC_FLUSH)
        client.send(encode(TEXT, data[:-4], rsv1=True))
        opcode, payload, rsv1 = client.read_frame()
        assert (opcode, rsv1) == (TEXT, True)
        assert inflate.decompress(payload + b"\x00\x00\xff\xff") == text


def test_a_bad_extension_offer_is_declined(client):
    response = opened(client, "/", "Sec-WebSocket-Extensions: permessage-deflate; no_such=1")
    assert response.get("sec-websocket-extensions") is None


def test_wrong_messages_of_the_app_are_refused(client):
    opened(client, "/wrong")
    refused = json.loads(client.read_frame()[1])
    assert refused == [True] * len(refused) and len(refused) == 15


# -- the end ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload, code, reason",
    [(b"", 1005, ""), (b"\x03\xe8", 1000, ""), (b"\x0b\xb8bye", 3000, "bye")],
)
def test_the_clients_close_reaches_the_app(server, client, payload, code, reason):
    opened(client)
    client.send(encode(CLOSE, payload))
    opcode, answer, _ = client.read_frame()
    assert opcode == CLOSE and answer[:2] == payload[:2]
    assert client.is_closed()
    expected = {"type": "websocket.disconnect", "code": code, "reason": reason}
    assert last(server, "echo") == [expected, expected]


@pytest.mark.parametrize("leave", ["close", "reset", "half_close"])
def test_a_lost_client_is_1006(leave):
    with Server("tests.apps_websocket:app") as server:
        with WebSocketClient(server.address) as client:
            opened(client)
            getattr(client, leave)()
            assert last(server, "echo")[0]["code"] == 1006


def test_messages_before_a_close_are_delivered(client):
    opened(client)
    client.send(encode(TEXT, b"a") + encode(TEXT, b"b"))
    assert [client.read_frame()[1] for _ in range(2)] == [b"a", b"b"]
    client.send(encode(CLOSE, b"\x03\xe8"))
    assert client.read_close() == (1000, "")
    assert client.is_closed()


@pytest.mark.parametrize(
    "frame, code",
    [
        (encode(TEXT, b"x", masked=False), 1002),
        (encode(3, b"x"), 1002),
        (encode(TEXT, b"x", rsv1=True), 1002),
        (encode(PING, b"x" * 126), 1002),
        (encode(PING, b"x", fin=False), 1002),
        (encode(0, b"x"), 1002),
        (encode(TEXT, b"a", fin=False) + encode(TEXT, b"b"), 1002),
        (encode(CLOSE, b"\x03"), 1002),
        (encode(CLOSE, b"\x03\xed"), 1002),
        (encode(TEXT, b"\xff"), 1007),
        (encode(TEXT, b"\xed\xa0\x80"), 1007),
        (encode(TEXT, b"ok\xed\xa0", fin=False), 1007),  # no third byte makes it valid
        (encode(CLOSE, b"\x03\xe8\xff"), 1007),
    ],
)
def test_broken_frames_are_failed_with_the_right_code(client, frame, code):
    opened(client)
    client.send(frame)
    assert client.read_close()[0] == code
    assert client.is_closed()


def test_what_came_before_a_broken_frame_is_answered(client):
    opened(client)
    client.send(encode(TEXT, b"good") + encode(3, b"bad"))
    assert client.read_frame() == (TEXT, b"good", False)
    assert client.read_close()[0] == 1002


def test_what_came_before_a_close_is_answered(server, client):
    opened(client)
    client.send(encode(TEXT, b"a") + encode(PING, b"p") + encode(TEXT, b"b"))
    client.send(encode(TEXT, b"c") + encode(CLOSE, b"\x0f\xa0bye"))
    frames = [client.read_frame()[:2] for _ in range(5)]
    assert [frame for frame in frames if frame[0] == TEXT] == [
        (TEXT, b"a"),
        (TEXT, b"b"),
        (TEXT, b"c"),
    ]
    assert (PONG, b"p") in frames and frames[-1] == (CLOSE, b"\x0f\xa0")
    assert client.is_closed()
    expected = {"type": "websocket.disconnect", "code": 4000, "reason": "bye"}
    assert last(server, "echo") == [expected, expected]


def test_a_close_is_answered_although_the_app_hears_nothing(server, client):
    opened(client, "/deaf-until-left")
    client.send(encode(TEXT, b"a") + encode(CLOSE, b"\x0f\xa0bye"))
    while (frame := client.read_frame()) == (TEXT, b"", False):
        pass
    assert frame == (CLOSE, b"\x0f\xa0", False)
    assert client.is_closed()
    assert last(server, "deaf_until_left") == ["a", 4000, "bye"]


def test_close_before_accept_is_403(server, client):
    response = client.shake("/refuse")
    assert response.status == 403 and response.complete
    assert client.is_closed()
    assert [message["code"] for message in last(server, "refuse")] == [1006, 1006]


def test_denial_response(server, client):
    response = client.shake("/deny")
    assert (response.status, response.get("x-a"), response.body) == (402, b"b", b"pay first")
    assert client.is_closed()
    message, errors = last(server, "deny")
    assert message["type"] == "websocket.disconnect" and len(errors) == 1


def test_a_body_that_is_not_bytes_is_refused(client):
    response = client.shake("/deny-wrong")
    assert (response.status, response.body) == (402, b"TypeError TypeError TypeError")
    assert client.is_closed()


@pytest.mark.parametrize("path", ["/raise-before", "/return-before", "/deny-no-body"])
def test_no_answer_by_the_app_is_500(server, client, path):
    response = client.shake(path)
    assert response.status == 500 and response.complete
    assert client.is_closed()
    server.wait_for_log(rf"the app (failed|returned without an answer): WebSocket {path}$")


@pytest.mark.parametrize("path, code", [("/raise-after", 1011), ("/return-after", 1000)])
def test_an_app_that_ends_after_accept(client, path, code):
    opened(client, path)
    assert client.read_close()[0] == code
    assert client.end()


@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_keyboard_interrupt_in_an_app_stops_the_server(loop):
    with Server("tests.apps_websocket:app", "--loop", loop) as server:
        with WebSocketClient(server.address) as client:
            opened(client, "/interrupt")
            assert client.read_close()[0] == 1011
            assert client.end()
        assert server.wait() == 0


def test_the_apps_close(server, client):
    opened(client, "/close")
    assert client.read_close() == (3456, "enough é")
    assert client.end()
    message, errors = last(server, "close")
    assert message["type"] == "websocket.disconnect" and isinstance(message["code"], int)
    assert len(errors) == 2


def test_a_client_that_leaves_before_accept(server):
    with WebSocketClient(server.address) as client:
        client.send(
            b"GET /wait-before HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n"
            b"Sec-WebSocket-Key: " + KEY.encode() + b"\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        client.half_close()
        assert client.is_closed()
    assert last(server, "wait_before") == {
        "type": "websocket.disconnect",
        "code": 1006,
        "reason": "",
    }


# -- bounds and deadlines --------------------------------------------------------------------


def rss(server):
    """Return the server's resident memory in MB."""
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def test_a_message_too_large_is_refused_at_its_header(client):
    opened(client)
    client.send(
        encode(BINARY, b"")[:1] + bytes((0xFF,)) + (17 << 20).to_bytes(8, "big") + b"\0" * 4
    )
    assert client.read_close()[0] == 1009


def test_a_bomb_is_1009_and_memory_stays():
    with Server("tests.apps_websocket:app", "--ws-max-size", "4194304") as server:
        with WebSocketClient(server.address) as client:
            opened(client, "/", "Sec-WebSocket-Extensions: permessage-deflate")
            deflate = zlib.compressobj(9, wbits=-15)
            bomb = b"".join(deflate.compress(bytes(1 << 20)) for _ in range(200)) + deflate.flush()
            before = rss(server)
            client.send(encode(BINARY, bomb, rsv1=True))
            assert client.read_close()[0] == 1009
            assert rss(server) - before < 12


def test_an_app_that_does_not_receive_stops_the_reading():
    with Server("tests.apps_websocket:app", "--ws-ping-interval", "0") as server:
        with WebSocketClient(server.address) as client:
            opened(client, "/deaf")
            client.deadline = 2.0
            before = rss(server)
            frame = encode(BINARY, b"x" * 65536)
            sent = 0
            with pytest.raises(OSError):  # the socket is full: nobody reads
                while sent < 1000:
                    client.send(frame)
                    sent += 1
            assert sent < 1000 and rss(server) - before < 20


def test_a_client_that_does_not_read_stops_the_sending(server):
    with WebSocketClient(server.address, receive_buffer=4096) as client:
        opened(client, "/flood")
        before = rss(server)
        assert client.read_frame()[0] == BINARY
        client.reset()
    name, _, message = last(server, "flood")
    assert name == "ClientDisconnected" and message["code"] == 1006
    assert rss(server) - before < 20


def test_pings_of_a_client_that_does_not_read_do_not_pile_up(server):
    with WebSocketClient(server.address, receive_buffer=4096) as client:
        opened(client)
        client.deadline = 2.0
        before = rss(server)
        pings = encode(PING, b"x" * 125) * 500
        with pytest.raises(OSError):
            for _ in range(1000):
                client.send(pings)
        assert rss(server) - before < 20


def test_silence_is_asked_and_then_closed():
    options = ("--ws-ping-interval", "0.2", "--ws-ping-timeout", "2.5")
    with Server("tests.apps_websocket:app", *options) as server:
        with WebSocketClient(server.address) as client:
            opened(client)
            opcode, payload, _ = client.read_frame()
            assert opcode == PING
            client.send(encode(PONG, payload))
            assert client.read_frame()[0] == PING  # asked again, and not answered this time
            assert client.read_close()[0] == 1011
            server.wait_for_log("1011, no byte for 2.5 s after a ping")


def test_without_a_timeout_it_is_asked_again_and_again():
    arguments = ("--ws-ping-interval", "0.05", "--ws-ping-timeout", "0")
    with Server("tests.apps_websocket:app", *arguments) as server:
        with WebSocketClient(server.address) as client:
            opened(client)
            assert [client.read_frame()[0] for _ in range(3)] == [PING] * 3
            client.send(encode(TEXT, b"here"))
            while True:
                frame = client.read_frame()
                if frame[0] != PING:
                    break
            assert frame[:2] == (TEXT, b"here")


def test_shutdown_is_1012():
    """When half of the drain is over, and not before."""
    with Server("tests.apps_websocket:app", "--timeout-graceful-shutdown", "6") as server:
        with WebSocketClient(server.address) as client:
            opened(client)
            server.send_signal(signal.SIGTERM)
            server.wait_for_log("shutting down")
            client.send(encode(TEXT, b"meanwhile"))
            assert client.read_frame()[:2] == (TEXT, b"meanwhile")
            assert "telling" not in server.log_text()
            assert client.read_close()[0] == 1012
            assert client.end()
            assert server.wait() == 0


def test_shutdown_does_not_wait_for_the_answer_to_1012_beyond_its_deadline():
    """Who does not answer sees our close and a clean end, not the reset of a later time-out."""
    with Server("tests.apps_websocket:app", "--timeout-graceful-shutdown", "0.2") as server:
        with WebSocketClient(server.address) as client:
            opened(client)
            server.send_signal(signal.SIGTERM)
            assert client.read_exactly(4) == b"\x88\x02\x03\xf4"
            assert client.socket.recv(1) == b""  # or ConnectionResetError
            assert server.wait() == 0


def test_the_access_log_has_a_line(server, client):
    opened(client, "/scope?logged=1")
    assert server.wait_for_access(r"logged=1.* 101")
