"""One app for each framework, all with the same routes; see ``tests/interop/scenarios.py``."""

from __future__ import annotations

from ...telling import say

FILE = __file__
CHUNKS = [b"chunk %d\n" % number for number in range(5)]


def note(*words):
    """Tell the test something."""
    say("APP", *words)


async def idle_parts():
    """Send a part, and wait for ever for the next."""
    import asyncio  # here: some of the apps do without it

    try:
        yield CHUNKS[0]
        await asyncio.Event().wait()
    finally:
        note("idle closed")


async def failing_parts():
    """Raise behind the first part."""
    import asyncio

    yield CHUNKS[0]
    await asyncio.sleep(0)
    raise ValueError("of the app")


async def measured(parts):
    """Return how many bytes an upload had; tell when the first have come, and its end."""
    size = 0
    try:
        async for part in parts:
            if part and not size:
                note("upload begun")
            size += len(part)
    finally:
        note("upload ended", size)
    return size
