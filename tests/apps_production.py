"""Apps for the tests of what stands around an app in production: proxies and TLS."""

from __future__ import annotations

import ast
from hashlib import sha256


async def upload(scope, receive, send):
    """Answer with the SHA-256 of the body, which is never held as a whole."""
    digest, more = sha256(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        digest.update(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": digest.hexdigest().encode()})


async def websocket_scope(scope, receive, send):
    """Send the scope of a WebSocket as its one message."""
    assert scope["type"] == "websocket"
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": repr(scope)})
    await send({"type": "websocket.close"})


def ask_websocket_scope(client):
    """Open a WebSocket on the raw ``client`` and return the scope that the app above saw."""
    client.upgrade()
    head = client.read_head()
    assert head.status == 101, head
    assert client.read_exactly(2) == b"\x81\x7e", "a final text frame of 126 to 65535 bytes"
    size = int.from_bytes(client.read_exactly(2), "big")
    return ast.literal_eval(client.read_exactly(size).decode())
