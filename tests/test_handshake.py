"""The opening handshake (RFC 6455 §4): what is one, what only resembles one, and the answer."""

from __future__ import annotations

import base64
import hashlib
import os
import sys

import pytest

from selectserve.errors import ProtocolError
from selectserve.handshake import Handshake, accept_head, read_handshake, wants_websocket
from selectserve.http1 import Request, RequestParser

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 §1.3
FIELDS = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def request(line="GET /chat HTTP/1.1", more=(), **changes):
    """Return the Request event of a handshake; None takes a field out, a list repeats it.

    Field names are given with ``_``: ``sec_websocket_key=None``.
    """
    fields = {name.lower(): value for name, value in FIELDS.items()}
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [line]
    for name, value in [*fields.items(), *more]:
        values = value if isinstance(value, list) else [] if value is None else [value]
        lines += [f"{name}: {item}" for item in values]
    parser = RequestParser()
    parser.receive_data("\r\n".join([*lines, "", ""]).encode("latin-1"))
    event = parser.next_event()
    assert type(event) is Request
    return event


def refusal(event, **options):
    """Return the error that answers ``event``, which must be recognised as a handshake."""
    assert wants_websocket(event)
    with pytest.raises(ProtocolError) as caught:
        read_handshake(event, deflate=True, **options)
    return caught.value


def head_lines(head):
    """Return the status line and the fields of a head."""
    assert head.endswith(b"\r\n\r\n")
    status, *lines = head[:-4].decode("latin-1").split("\r\n")
    return status, [tuple(line.split(": ", 1)) for line in lines]


def test_the_example_of_the_rfc():
    event = request(
        more=[("Origin", "http://example.com"), ("Sec-WebSocket-Protocol", "chat, superchat")]
    )
    handshake = read_handshake(event, deflate=True)
    assert handshake.subprotocols == ["chat", "superchat"]
    assert handshake.deflate is None
    assert "chat" in repr(handshake)
    assert accept_head(handshake, "chat", []) == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"upgrade": "WebSocket"},
        {"upgrade": "WEBSOCKET"},
        {"upgrade": "h2c, websocket"},
        {"upgrade": ["h2c", "websocket"]},
        {"connection": "upgrade"},
        {"connection": "keep-alive, Upgrade"},
        {"connection": ["keep-alive", "UPGRADE"]},
        {"connection": " Upgrade ,\tkeep-alive"},
        {"content_length": "0"},
    ],
    ids=str,
)
def test_a_handshake_in_other_words(changes):
    event = request(**changes)
    assert wants_websocket(event)
    assert read_handshake(event, deflate=True).subprotocols == []


@pytest.mark.parametrize(
    "changes",
    [
        {"upgrade": None},
        {"upgrade": "h2c"},
        {"upgrade": "websockets"},
        {"upgrade": "web socket"},
        {"upgrade": "websocket/13"},
        {"connection": None},
        {"connection": "keep-alive"},
        {"connection": "close"},
        {"connection": "upgraded"},
        {"upgrade": "", "connection": ""},
    ],
    ids=str,
)
def test_what_is_ordinary_http(changes):
    assert not wants_websocket(request(**changes))


@pytest.mark.parametrize(
    ("changes", "status", "word"),
    [
        ({"line": "POST /chat HTTP/1.1"}, 405, "GET, not a POST"),
        ({"line": "HEAD /chat HTTP/1.1"}, 405, "HEAD"),
        ({"line": "GET /chat HTTP/1.0"}, 400, "HTTP/1.1"),
        ({"line": "POST /chat HTTP/1.0"}, 405, "POST"),
        ({"content_length": "5"}, 400, "body"),
        ({"transfer_encoding": "chunked"}, 400, "body"),
        ({"sec_websocket_version": None}, 426, "version 13"),
        ({"sec_websocket_version": "12"}, 426, "version 13"),
        ({"sec_websocket_version": "8"}, 426, "version 13"),
        ({"sec_websocket_version": "0"}, 426, "version 13"),
        ({"sec_websocket_version": "14"}, 426, "version 13"),
        ({"sec_websocket_version": "013"}, 426, "version 13"),
        ({"sec_websocket_version": "13.0"}, 426, "version 13"),
        ({"sec_websocket_version": "13, 8"}, 426, "version 13"),
        ({"sec_websocket_version": ""}, 426, "version 13"),
        ({"sec_websocket_version": ["13", "13"]}, 426, "version 13"),
        ({"sec_websocket_version": ["8", "13"]}, 426, "version 13"),
        ({"sec_websocket_version": "8", "sec_websocket_key": None}, 426, "version 13"),
        ({"sec_websocket_key": None}, 400, "not 0"),
        ({"sec_websocket_key": [KEY, KEY]}, 400, "not 2"),
        ({"sec_websocket_key": ""}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": "short"}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": KEY + KEY}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": KEY[:-1]}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": KEY[:-2] + "AA"}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": KEY[:-2] + "A="}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": "!" + KEY[1:]}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": "-_" + KEY[2:]}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": "=" * 24}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": base64.b64encode(b"a" * 15).decode()}, 400, "16 bytes in base64"),
        ({"sec_websocket_key": base64.b64encode(b"a" * 17).decode()}, 400, "16 bytes in base64"),
        ({"sec_websocket_protocol": "a b"}, 400, "token"),
        ({"sec_websocket_protocol": "chat, \xff"}, 400, "token"),
        ({"sec_websocket_protocol": ["chat", "a;b"]}, 400, "token"),
        ({"sec_websocket_protocol": '"chat"'}, 400, "token"),
    ],
    ids=str,
)
def test_what_only_resembles_a_handshake(changes, status, word):
    error = refusal(request(**changes))
    assert error.status == status
    assert word in error.reason
    headers = dict(error.headers)
    if status == 426:
        # RFC 6455 §4.4, RFC 9110 §15.5.22
        assert headers == {b"sec-websocket-version": b"13", b"upgrade": b"websocket"}
    elif status == 405:
        assert headers == {b"allow": b"GET"}  # RFC 9110 §15.5.6
    else:
        assert headers == {}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("change", ["left out", "empty", "twice"])
def test_no_handshake_by_accident(name, change):
    """Each field left out, empty or repeated: HTTP, or a refusal, or the same handshake."""
    value = {"left out": None, "empty": "", "twice": [FIELDS[name]] * 2}[change]
    changes = {name.lower().replace("-", "_"): value}
    if name == "Host":
        if change != "empty":
            with pytest.raises(ProtocolError):
                request(**changes)
        return
    event = request(**changes)
    if change == "twice" and name in ("Upgrade", "Connection"):
        assert wants_websocket(event) and read_handshake(event, deflate=False)
    elif wants_websocket(event):
        assert refusal(event).status in (400, 426)


@pytest.mark.parametrize(
    ("values", "subprotocols"),
    [
        (None, []),
        ("chat", ["chat"]),
        ("b, a,c", ["b", "a", "c"]),
        (["b", "a"], ["b", "a"]),
        (["b, x", "a"], ["b", "x", "a"]),
        ("Chat, chat", ["Chat", "chat"]),
        (", chat,, ", ["chat"]),
        ("", []),
        ("v1.example~com!#$%&'*+-.^_`|", ["v1.example~com!#$%&'*+-.^_`|"]),
    ],
    ids=str,
)
def test_subprotocols_in_the_order_of_the_client(values, subprotocols):
    event = request(sec_websocket_protocol=values)
    assert read_handshake(event, deflate=True).subprotocols == subprotocols


def test_offers_over_several_lines():
    event = request(
        sec_websocket_extensions=[
            "x-other; a=b, permessage-deflate; bogus",
            "permessage-deflate; client_max_window_bits",
        ]
    )
    handshake = read_handshake(event, deflate=True)
    status, fields = head_lines(accept_head(handshake, None, []))
    assert status == "HTTP/1.1 101 Switching Protocols"
    assert dict(fields)["Sec-WebSocket-Extensions"] == (
        "permessage-deflate; client_max_window_bits=12"
    )
    assert read_handshake(event, deflate=False).deflate is None


@pytest.mark.parametrize(
    "value",
    [
        "permessage-deflate;;",
        '";,=',
        ";",
        "=,=",
        "\xff",
        "a" * 5000,
        'x; a="1, permessage-deflate, 2"',
        'x; a="1, permessage-deflate',
    ],
)
def test_no_extension_field_is_an_error(value):
    handshake = read_handshake(request(sec_websocket_extensions=value), deflate=True)
    assert handshake.deflate is None
    assert b"Extensions" not in accept_head(handshake, None, [])


def test_any_key_is_answered():
    for _ in range(50):
        key = base64.b64encode(os.urandom(16))
        event = request(sec_websocket_key=key.decode())
        proof = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        _, fields = head_lines(accept_head(read_handshake(event, deflate=False), None, []))
        assert dict(fields)["Sec-WebSocket-Accept"] == base64.b64encode(proof).decode()


def test_without_hashlib_the_answer_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "hashlib", None)
    error = refusal(request())
    assert (error.status, "hashlib" in error.reason) == (501, True)


# -- the answer -----------------------------------------------------------------------------------


@pytest.fixture
def handshake():
    return Handshake(b"proof", ["chat", "superchat"], None)


def test_headers_of_the_app_keep_their_order_and_number(handshake):
    pairs = [(b"set-cookie", b"a=1"), (b"x-b", b""), (b"Set-Cookie", b"b=2; \xff")]
    head = accept_head(handshake, None, pairs, b"date: today\r\nserver: s\r\n")
    assert head_lines(head)[1] == [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", "proof"),
        ("date", "today"),
        ("server", "s"),
        ("set-cookie", "a=1"),
        ("x-b", ""),
        ("Set-Cookie", "b=2; \xff"),
    ]


def test_a_default_that_the_app_gives_itself_is_not_said_twice(handshake):
    pairs = [(b"Date", b"never"), (b"x-date", b"1")]
    head = accept_head(handshake, None, pairs, b"date: today\r\nserver: s\r\n")
    assert head_lines(head)[1][3:] == [("server", "s"), ("Date", "never"), ("x-date", "1")]
    head = accept_head(handshake, None, [(b"server", b"mine")], b"server: s\r\ndate: today\r\n")
    assert head_lines(head)[1][3:] == [("date", "today"), ("server", "mine")]


def test_headers_may_be_lists_from_any_iterable(handshake):
    head = accept_head(handshake, None, iter([[b"x-a", b"1"]]))
    assert head.endswith(b"x-a: 1\r\n\r\n")


@pytest.mark.parametrize(
    ("pair", "error", "word"),
    [
        ((b"sec-websocket-protocol", b"chat"), ValueError, "use 'subprotocol'"),
        ((b"Sec-WebSocket-Accept", b"x"), ValueError, "server's"),
        ((b"sec-websocket-extensions", b"permessage-deflate"), ValueError, "server's"),
        ((b"sec-websocket-version", b"13"), ValueError, "server's"),
        ((b"Upgrade", b"h2c"), ValueError, "server's"),
        ((b"connection", b"close"), ValueError, "server's"),
        ((b"content-length", b"0"), ValueError, "server's"),
        ((b"Transfer-Encoding", b"chunked"), ValueError, "server's"),
        ((b"", b"a"), ValueError, "token"),
        ((b"a b", b"a"), ValueError, "token"),
        ((b"a:", b"a"), ValueError, "token"),
        ((b"x\r\ny", b"a"), ValueError, "token"),
        ((b"x", b"a\r\nb: c"), ValueError, "CR, LF or NUL"),
        ((b"x", b"a\nb"), ValueError, "CR, LF or NUL"),
        ((b"x", b"a\0b"), ValueError, "CR, LF or NUL"),
        (("x", "a"), TypeError, "bytes"),
        ((b"x", 1), TypeError, "bytes"),
        ((b"x",), TypeError, "pair"),
    ],
    ids=str,
)
def test_headers_that_the_app_must_not_give(handshake, pair, error, word):
    with pytest.raises(error, match=word):
        accept_head(handshake, None, [(b"x-good", b"1"), pair])


@pytest.mark.parametrize(
    ("subprotocol", "error", "word"),
    [
        ("other", ValueError, "chat, superchat"),
        ("Chat", ValueError, "not offered"),
        ("", ValueError, "not offered"),
        ("chat\r\nx: y", ValueError, "not offered"),
        (b"chat", TypeError, "str"),
        (["chat"], TypeError, "str"),
        (0, TypeError, "str"),
    ],
    ids=str,
)
def test_a_subprotocol_is_one_that_was_offered(handshake, subprotocol, error, word):
    with pytest.raises(error, match=word):
        accept_head(handshake, subprotocol, [])
    assert accept_head(handshake, "superchat", []).count(b"superchat") == 1


def test_a_subprotocol_when_none_was_offered():
    with pytest.raises(ValueError, match="offered: none"):
        accept_head(Handshake(b"proof", [], None), "chat", [])
