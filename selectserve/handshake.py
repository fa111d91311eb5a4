"""handshake: how an HTTP request becomes a WebSocket (RFC 6455 §4).

Pure functions over a Request that is there already: ``wants_websocket`` tells it from ordinary
HTTP, ``read_handshake`` reads it strictly or raises the ProtocolError that answers it, and
``accept_head`` makes the head of the 101 when the app has accepted. Nothing here waits, and
nothing is written by itself: upgrade decides, and hands the bytes that followed the request
to the WebSocket machine.
"""

from __future__ import annotations

from binascii import b2a_base64

from .deflate import negotiate_deflate
from .errors import ProtocolError
from .grammar import TOKEN, field_list
from .response import check_pair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .deflate import DeflateParameters
    from .http1 import Request

    Headers = list[tuple[bytes, bytes]]

ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# Fields of the 101 that the app must not give: they are made here, or have no place there.
OURS_IN_ACCEPT = frozenset(b"upgrade connection content-length transfer-encoding".split())


class Handshake:
    """A request that is a valid opening handshake (RFC 6455 §4.2.1), and what answers it.

    ``accept`` proves to the client that its key was read; ``deflate`` is None without compression.
    """

    __slots__ = ("accept", "deflate", "subprotocols")

    def __init__(
        self, accept: bytes, subprotocols: list[str], deflate: DeflateParameters | None
    ) -> None:
        self.accept = accept
        self.subprotocols = subprotocols
        self.deflate = deflate

    def __repr__(self) -> str:
        return f"<Handshake {self.subprotocols!r} {self.deflate!r}>"


def wants_websocket(request: Request) -> bool:
    """Return True when ``request`` asks for a WebSocket; any other is ordinary HTTP.

    Both fields are lists in any case (RFC 6455 §4.2.1). HTTP/1.0 and other methods are not
    excluded here: they are for read_handshake to refuse, with a reason.
    """
    headers = request.headers
    return b"websocket" in field_list(headers, b"upgrade") and b"upgrade" in field_list(
        headers, b"connection"
    )


def read_handshake(request: Request, *, deflate: bool) -> Handshake:
    """Read ``request`` as an opening handshake (RFC 6455 §4.2.1); raise ProtocolError."""
    if request.method != "GET":
        raise ProtocolError(
            f"a WebSocket handshake is a GET, not a {request.method}",
            405,
            headers=[(b"allow", b"GET")],
        )
    if request.http_version != "1.1":
        raise ProtocolError("a WebSocket handshake needs HTTP/1.1")
    if request.has_body:
        raise ProtocolError("a WebSocket handshake has no body")
    headers = request.headers
    if field_values(headers, b"sec-websocket-version") != [b"13"]:
        raise ProtocolError(
            "this server speaks WebSocket version 13",
            426,
            headers=[(b"upgrade", b"websocket"), (b"sec-websocket-version", b"13")],
        )
    keys = field_values(headers, b"sec-websocket-key")
    if len(keys) != 1:
        raise ProtocolError(f"a WebSocket handshake has one Sec-WebSocket-Key, not {len(keys)}")
    key = keys[0]
    if key[22:] != b"==" or key[:22].translate(None, BASE64):
        raise ProtocolError(f"Sec-WebSocket-Key {key[:40]!r} is not 16 bytes in base64")
    subprotocols: list[str] = []
    for item in field_items(headers, b"sec-websocket-protocol"):
        if TOKEN.fullmatch(item) is None:
            raise ProtocolError(f"Sec-WebSocket-Protocol {item[:40]!r} is not a token")
        subprotocols.append(item.decode())
    offers = field_items(headers, b"sec-websocket-extensions") if deflate else []
    return Handshake(accept_key(key), subprotocols, negotiate_deflate(offers))


def field_values(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of all field lines called ``name``."""
    return [value for field, value in headers if field == name]


def field_items(headers: Headers, name: bytes) -> list[bytes]:
    """Return the members of a list-valued field as they are: their case matters here."""
    items = b",".join(field_values(headers, name)).split(b",")
    return [item for item in (item.strip(b" \t") for item in items) if item]


def accept_head(
    handshake: Handshake,
    subprotocol: str | None,
    headers: Iterable[tuple[bytes, bytes]],
    defaults: bytes = b"",
) -> bytes:
    """Return the head of the 101 answer (RFC 6455 §4.2.2).

    ``headers`` are the app's, ``defaults`` are whole lines, but for those that it gives itself.
    Raise TypeError or ValueError for what the app must not say.
    """
    lines = [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Sec-WebSocket-Accept: " + handshake.accept + b"\r\n",
    ]
    if subprotocol is not None:
        if not isinstance(subprotocol, str):
            raise TypeError(f"subprotocol must be a str or None, not {subprotocol!r}")
        if subprotocol not in handshake.subprotocols:
            offered = ", ".join(handshake.subprotocols) or "none"
            raise ValueError(
                f"subprotocol {subprotocol!r} was not offered by the client (offered: {offered}); "
                "accept one of scope['subprotocols'], or None"
            )
        lines.append(b"Sec-WebSocket-Protocol: " + subprotocol.encode() + b"\r\n")
    if handshake.deflate is not None:
        lines.append(b"Sec-WebSocket-Extensions: " + handshake.deflate.answer + b"\r\n")
    ours = len(lines)
    for pair in headers:
        name, value = check_pair(tuple(pair))
        lower = name.lower()
        if lower in OURS_IN_ACCEPT or lower.startswith(b"sec-websocket-"):
            hint = " (use 'subprotocol')" if lower == b"sec-websocket-protocol" else ""
            raise ValueError(f"header {name!r} of websocket.accept is the server's to set{hint}")
        if lower in (b"server", b"date"):
            kept = [line for line in defaults.splitlines(True) if not line.startswith(lower + b":")]
            defaults = b"".join(kept)
        lines.append(name + b": " + value + b"\r\n")
    lines.insert(ours, defaults)
    lines.append(b"\r\n")
    return b"".join(lines)


def accept_key(key: bytes) -> bytes:
    """Return the proof that the handshake was understood (RFC 6455 §4.2.2, 5.4)."""
    try:
        from hashlib import sha1
    except ImportError as exc:
        raise ProtocolError("no WebSocket here: this Python has no hashlib", 501) from exc
    return b2a_base64(sha1(key + ACCEPT_GUID, usedforsecurity=False).digest(), newline=False)
