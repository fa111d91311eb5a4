"""An app that imports next to nothing, so that it shows what the server itself imports."""

import sys

HEAVY = """
    asyncio ssl typing inspect dataclasses multiprocessing urllib.request ctypes
    concurrent.futures email http.client tempfile subprocess
""".split()


def seen():
    """Return the heavy modules that are there."""
    return [name for name in HEAVY if name in sys.modules]


async def show_imports(scope, receive, send):
    """Answer with them."""
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan here")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr(seen()).encode()})


if __name__ == "__main__":  # what comes by itself: typing with `python -m`, before 3.10…
    import logging  # noqa: F401  # …and since 3.14 dataclasses, with traceback

    print(seen())
