"""An app that needs nothing but selectserve, for places where there is nothing else."""

import sys


async def app(scope, receive, send):
    """Answer with who we are; echo on a WebSocket."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            message = await receive()
            if message["type"] == "websocket.disconnect":
                return
            await send({"type": "websocket.send", "text": message["text"]})
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": await answer(scope["path"])})


async def answer(path):
    """Say something of the process that serves."""
    import selectserve

    if path == "/thread":
        try:
            return await selectserve.run_in_thread(lambda: b"from a thread")
        except (selectserve.ConfigError, RuntimeError) as exc:
            return str(exc).encode()
    if path == "/copies":  # modules that hold a class Server of ours
        found = [name for name, module in list(sys.modules.items()) if is_copy(module)]
        return " ".join(sorted(found)).encode()
    return b"hello from anywhere"


def is_copy(module):
    """Tell whether a module is the server."""
    return "HTTPConnection" in getattr(module, "__dict__", ())


def wsgi_app(environ, start_response):
    """The same for WSGI."""
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
