"""WebSocket clients of others talk to the echo app: compressed or not, large and small."""

from __future__ import annotations

import asyncio
import importlib.util
import random

import pytest

from ..support import DEADLINE

# what each package calls its compression
CLIENTS = [("websockets", "deflate"), ("websockets", None), ("aiohttp", 15), ("aiohttp", 0)]
MESSAGES = [
    "",
    "hello",
    "grüße 🙂",
    "x" * 200_000,
    b"",
    b"\0\1\2",
    random.Random(1).randbytes(70_000),
]


async def talk_websockets(url, way):
    """Echo by the websockets package; return the answers and how it closed."""
    import websockets

    async with websockets.connect(url, compression=way, proxy=None) as socket:
        answers = []
        for message in MESSAGES:
            await socket.send(message)
            answers.append(await socket.recv())
        await socket.close(4321, "enough")
    return answers, socket.close_code


async def talk_aiohttp(url, way):
    """Echo by aiohttp; return the answers and how it closed."""
    import aiohttp

    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=way) as socket:
        answers = []
        for message in MESSAGES:
            await (socket.send_str if isinstance(message, str) else socket.send_bytes)(message)
            answers.append((await socket.receive()).data)
        await socket.close(code=4321, message=b"enough")
    return answers, socket.close_code


@pytest.mark.parametrize("package, way", CLIENTS)
def test_a_client_of_others(serve, package, way):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed on this Python")
    server = serve("tests.apps_websocket:app")
    talk = {"websockets": talk_websockets, "aiohttp": talk_aiohttp}[package]
    url = f"ws://127.0.0.1:{server.port}/echo"
    answers, code = asyncio.run(asyncio.wait_for(talk(url, way), DEADLINE))
    assert answers == MESSAGES
    assert code in (1000, 4321)
    assert server.stop() == 0
