"""An app for large uploads: it answers with the SHA-256 of the body, which it never holds."""

from __future__ import annotations

from hashlib import sha256


async def app(scope, receive, send):
    digest, more = sha256(), True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return
        digest.update(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": digest.hexdigest().encode()})
