"""Streaming: a body that takes its time, and server-sent events. Nobody waits for anybody.

    python -m selectserve examples.stream:app

    curl -N 'localhost:8000/count?to=5&every=0.5'    a line every half second
    curl -N localhost:8000/events                    the time, for as long as you listen
    http://localhost:8000/                           the same in a browser

There is no loop that asks whether the client is still there: when it has left, send() raises an
OSError, which ends the coroutine, and the server takes it for what it is.
"""

import time
from urllib.parse import parse_qsl

from selectserve import sleep

PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Server-sent events</title>
<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; font: 17px/1.5 system-ui, sans-serif }
  body { display: grid; place-content: center; min-height: 90vh; text-align: center }
  output { font-size: 4rem; font-variant-numeric: tabular-nums }
</style>
<p>The server says it is<br><output>&hellip;</output><br><small></small></p>
<script>
  const events = new EventSource("/events")
  events.onmessage = event => {
    document.querySelector("output").textContent = event.data
    document.querySelector("small").textContent = `event ${event.lastEventId}`
  }
</script></html>
"""


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(f"stream speaks http only, not {scope['type']}")
    pages = {"/": page, "/count": count, "/events": events}
    await pages.get(scope["path"], not_found)(scope, send)


async def page(scope, send):
    await start(send, b"text/html; charset=utf-8")
    await send({"type": "http.response.body", "body": PAGE})


async def count(scope, send):
    """Count to ``to``, a line ``every`` so many seconds."""
    query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
    try:
        last, pause = int(query.get("to", 10)), min(float(query.get("every", 0.2)), 60)
    except ValueError:
        await start(send, b"text/plain", status=400)
        return await send({"type": "http.response.body", "body": b"to and every are numbers\n"})
    await start(send, b"text/plain")
    for number in range(1, last + 1):
        await send({"type": "http.response.body", "body": b"%d\n" % number, "more_body": True})
        if number < last:
            await sleep(pause)
    await send({"type": "http.response.body", "body": b""})


async def events(scope, send):
    """Tell the time as server-sent events; who comes back is counted on from where it was."""
    headers = dict(scope["headers"])
    seen = headers.get(b"last-event-id", b"")
    number = int(seen) if seen.isdigit() and len(seen) < 16 else 0
    await start(send, b"text/event-stream", (b"cache-control", b"no-store"))
    while True:
        number += 1
        event = f"id: {number}\ndata: {time.strftime('%H:%M:%S')}\n\n"
        await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        await sleep(1)


async def not_found(scope, send):
    await start(send, b"text/plain", status=404)
    await send({"type": "http.response.body", "body": b"There is /, /count and /events here.\n"})


async def start(send, content_type, *headers, status=200):
    headers = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": status, "headers": headers})
