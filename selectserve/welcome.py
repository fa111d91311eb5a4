"""welcome: the app that is served when none is named, so that the very first command works."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .asgi import Receive, Scope, Send

WELCOME_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>selectserve works</title>
<style>
:root {{ color-scheme: light dark; font: 17px/1.55 system-ui, sans-serif }}
body {{ max-width: 42rem; margin: 3rem auto; padding: 0 1rem }}
pre, table {{ background: #8881; border-radius: 6px; padding: .8rem 1rem; overflow-x: auto }}
td {{ padding: .1rem 1rem .1rem 0; vertical-align: top; font-family: ui-monospace, monospace;
      font-size: .85em; overflow-wrap: anywhere }}
</style>
<h1>selectserve works</h1>
<p>This page comes from an ASGI web server that is nothing but Python's standard library:
one thread, one <code>selectors</code> reactor, and coroutines stepped by hand
(Python {python}).</p>
<h2>Serve your own app</h2>
<p>Write <code>main.py</code>:</p>
<pre>async def app(scope, receive, send):
    assert scope["type"] == "http"
    await send({{"type": "http.response.start", "status": 200,
                "headers": [(b"content-type", b"text/plain")]}})
    await send({{"type": "http.response.body", "body": b"Hello, world!"}})</pre>
<p>then run <code>python -m selectserve main:app</code>.</p>
<h2>What it saw of your request</h2>
<table>{rows}</table>
</html>
"""


def escape_html(text: str) -> str:
    """Make ``text`` safe inside the page."""
    for char, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        text = text.replace(char, name)
    return text


async def welcome(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer any request with the page."""
    if scope["type"] == "lifespan":
        raise NotImplementedError("no lifespan")
    if scope["type"] == "websocket":
        await send({"type": "websocket.close"})  # 403: there is nobody to talk to
        return
    client = scope["client"]
    seen = [
        ("client", "unix socket" if client is None else f"{client[0]}:{client[1]}"),
        ("request", f"{scope['method']} {scope['path']} HTTP/{scope['http_version']}"),
        ("query", scope["query_string"].decode("latin-1")),
        *((name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]),
    ]
    rows = "".join(f"<tr><td>{escape_html(name)}<td>{escape_html(value)}" for name, value in seen)
    page = WELCOME_PAGE.format(rows=rows, python=sys.version.split()[0]).encode()
    headers = [(b"content-type", b"text/html; charset=utf-8"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": page})
