"""The apps of ``test_websocket_e2e``, chosen by path; ``/last?NAME`` tells what one of them saw."""

from __future__ import annotations

import json

seen = {}  # by name: what the app of a path saw last


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError("no lifespan")
    if scope["type"] == "http":
        await answer_http(scope, receive, send)
        return
    name = scope["path"].strip("/").replace("-", "_") or "echo"
    await globals()[f"ws_{name}"](scope, receive, send)


async def answer_http(scope, receive, send):
    """Tell what the app of the query's name saw; other paths say how they were reached."""
    name = scope["query_string"].decode()
    body = json.dumps(seen.get(name)) if scope["path"] == "/last" else "http"
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body.encode()})


async def ws_echo(scope, receive, send):
    """Echo each message; note how it ended."""
    assert (await receive()) == {"type": "websocket.connect"}
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            seen["echo"] = [message, await receive()]
            return
        await send({**message, "type": "websocket.send"})


async def ws_scope(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    shown = {key: value for key, value in scope.items() if key not in ("state",)}
    await send({"type": "websocket.send", "text": json.dumps(shown, default=lambda b: b.decode())})


async def ws_protocol(scope, receive, send):
    await receive()
    headers = [(b"x-one", b"1"), (b"x-one", b"2")]
    chosen = scope["subprotocols"][-1] if scope["subprotocols"] else None
    await send({"type": "websocket.accept", "subprotocol": chosen, "headers": headers})
    await receive()


async def ws_refuse(scope, receive, send):
    await receive()
    await send({"type": "websocket.close", "code": 4000})
    seen["refuse"] = [await receive(), await receive()]


async def ws_deny(scope, receive, send):
    await receive()
    await send(
        {"type": "websocket.http.response.start", "status": 402, "headers": [(b"x-a", b"b")]}
    )
    await send({"type": "websocket.http.response.body", "body": b"pay ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"first"})
    errors = []
    try:
        await send({"type": "websocket.accept"})
    except Exception as exc:
        errors.append(type(exc).__name__)
    seen["deny"] = [await receive(), errors]


async def ws_deny_wrong(scope, receive, send):
    await receive()
    await send({"type": "websocket.http.response.start", "status": 402})
    refused = []
    for body in ("text", 5, None):
        try:
            await send({"type": "websocket.http.response.body", "body": body})
        except TypeError as exc:
            refused.append(type(exc).__name__)
    await send({"type": "websocket.http.response.body", "body": " ".join(refused).encode()})


async def ws_deny_no_body(scope, receive, send):
    await receive()
    await send({"type": "websocket.http.response.start", "status": 402})


async def ws_raise_before(scope, receive, send):
    raise ValueError("before accept")


async def ws_return_before(scope, receive, send):
    await receive()


async def ws_raise_after(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    raise ValueError("after accept")


async def ws_interrupt(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    raise KeyboardInterrupt


async def ws_return_after(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})


async def ws_close(scope, receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": 3456, "reason": "enough é"})
    errors = []
    for message in ({"type": "websocket.send", "text": "x"}, {"type": "websocket.close"}):
        try:
            await send(message)
        except Exception as exc:
            errors.append(type(exc).__name__)
    seen["close"] = [await receive(), errors]


async def ws_wrong(scope, receive, send):
    """Try every wrong message; say which were refused."""
    await receive()
    refused = []
    for message in ({"type": "websocket.send", "text": "early"}, {"type": "no.such"}, {}):
        refused.append(await raises(send, message))
    for headers in (
        [(b"a\r\nb", b"x")],
        [(b"a", b"x\r\ny: z")],
        [(b"sec-websocket-protocol", b"x")],
    ):
        refused.append(await raises(send, {"type": "websocket.accept", "headers": headers}))
    refused.append(await raises(send, {"type": "websocket.accept", "subprotocol": "not-offered"}))
    await send({"type": "websocket.accept"})
    for message in (
        {"type": "websocket.accept"},
        {"type": "websocket.send"},
        {"type": "websocket.send", "text": "a", "bytes": b"b"},
        {"type": "websocket.send", "text": b"bytes"},
        {"type": "websocket.send", "bytes": "str"},
        {"type": "websocket.close", "code": 1005},
        {"type": "websocket.close", "code": 999},
        {"type": "websocket.close", "reason": "x" * 124},
    ):
        refused.append(await raises(send, message))
    await send({"type": "websocket.send", "text": json.dumps(refused), "bytes": None})


async def raises(send, message):
    try:
        await send(message)
    except Exception:
        return True
    return False


async def ws_wait_before(scope, receive, send):
    """Never accept; note what comes after connect."""
    await receive()
    seen["wait_before"] = await receive()


async def ws_flood(scope, receive, send):
    """Send until the client is gone; note how that was told."""
    await receive()
    await send({"type": "websocket.accept"})
    count = 0
    try:
        while True:
            await send({"type": "websocket.send", "bytes": bytes(65536)})
            count += 1
    except OSError as exc:
        seen["flood"] = [type(exc).__name__, count, await receive()]


async def ws_deaf(scope, receive, send):
    """Accept, then receive nothing until the client has said so over HTTP."""
    from selectserve import sleep

    await receive()
    await send({"type": "websocket.accept"})
    while "listen" not in seen:
        await sleep(0.01)
    count = 0
    while (await receive())["type"] == "websocket.receive":
        count += 1
    seen["deaf"] = count


async def ws_deaf_until_left(scope, receive, send):
    """Send until the client is gone, and only then receive."""
    from selectserve import sleep

    await receive()
    await send({"type": "websocket.accept"})
    try:
        while True:
            await send({"type": "websocket.send", "text": ""})
            await sleep(0.01)
    except OSError:
        messages = [await receive(), await receive()]
        seen["deaf_until_left"] = [messages[0]["text"], messages[1]["code"], messages[1]["reason"]]
