"""Libraries inside and outside of apps, under selectserve and under uvicorn: the same is seen."""

from __future__ import annotations

import asyncio
import importlib.util
import json

import pytest

from ..support import DEADLINE
from .scenarios import get, open_socket

LIBRARIES = {
    "httpx": ["plain 0", "plain 1", "plain 2"],
    "aiohttp": ["plain 0", "plain 1", "plain 2"],
    "websockets": "HELLO",
    "sqlalchemy": ["one", "two"],
    "anyio": ["asyncio", [0, 1, 2], True, "from a process\n", None, 4],
}


def both(pairs, package, app):
    """Return the two servers of ``app``, or skip."""
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed on this Python")
    pair = pairs(f"tests.interop.apps.{app}:app")
    return pair.ours, pair.theirs


@pytest.mark.parametrize("name", LIBRARIES)
def test_libraries_inside(pairs, name):
    for server in both(pairs, name, "libraries_app"):
        body = get(server, f"/{name}")["body"].decode()
        assert (body if name == "websockets" else json.loads(body)) == LIBRARIES[name]


def test_all_libraries_at_once(pairs):
    """Many requests that make requests, each by its own way, on one connection pool."""
    for server in both(pairs, "httpx", "libraries_app"):
        clients = [(name, server.connect()) for name in LIBRARIES if name != "sqlalchemy"]
        for name, client in clients:
            client.request("GET", f"/{name}")
        for name, client in clients:
            assert client.read_response().status == 200, name
            client.close()


def test_server_sent_events(pairs):
    seen = [get(server, "/events") for server in both(pairs, "sse_starlette", "libraries_app")]
    assert seen[0] == seen[1]
    assert seen[0]["body"].count(b"event: count\n") == 3


def test_server_sent_events_end_with_the_client(pairs):
    for server in both(pairs, "sse_starlette", "libraries_app"):
        client = server.connect()
        client.request("GET", "/endless-events")
        client.read_until(b"data: more")
        client.reset()
        server.wait_for_log("^APP events closed")


def test_what_lifespan_holds_is_closed(serve):
    server = serve("tests.interop.apps.libraries_app:app")
    get(server, "/httpx")
    get(server, "/aiohttp")
    assert server.stop() == 0
    assert "APP closed all" in server.log_text()
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize("transport", ["polling", "websocket"])
def test_socketio(pairs, transport):
    import socketio

    async def talk(server):
        client = socketio.AsyncClient()
        came = asyncio.Queue()
        client.on("shouted", came.put)
        client.on("worked", came.put)
        host, port = server.address
        # it gives up after a second, unless told: a busy machine has PyPy take longer
        await client.connect(f"http://{host}:{port}", transports=[transport], wait_timeout=DEADLINE)
        answer = await client.call("shout", "hello", timeout=10)
        await client.emit("later")
        seen = [answer] + [await asyncio.wait_for(came.get(), 10) for _ in range(2)]
        # by polling, disconnect() would wait half a minute for the poll that it has left to end
        await client.eio.disconnect(abort=transport == "polling")
        return seen

    for server in both(pairs, "socketio", "socketio_app"):
        assert asyncio.run(talk(server)) == ["done", "HELLO", 42]


def test_mcp(pairs):
    async def talk(server):
        from mcp import Client

        host, port = server.address
        async with Client(f"http://{host}:{port}/mcp") as client:
            tools = await client.list_tools()
            one = await client.call_tool("add", {"one": 40, "other": 2})
            other = await client.call_tool("shout", {"text": "hello"})
            return (
                sorted(tool.name for tool in tools.tools),
                one.content[0].text,
                other.content[0].text,
            )

    for server in both(pairs, "mcp", "mcp_app"):
        assert asyncio.run(talk(server)) == (["add", "shout"], "42", "HELLO")


def test_graphql_over_http(pairs):
    query = json.dumps({"query": '{ hello(name: "you") }'}).encode()
    seen = [
        get(
            server,
            "/graphql/",
            method="POST",
            send=query,
            headers=["Content-Type: application/json"],
        )
        for server in both(pairs, "strawberry", "strawberry_app")
    ]
    assert seen[0] == seen[1]
    assert json.loads(seen[0]["body"]) == {"data": {"hello": "Hello you"}}


def test_graphql_over_websocket(pairs):
    ours, theirs = both(pairs, "strawberry", "strawberry_app")
    for server in (theirs, ours):
        with open_socket(server, "/graphql/", subprotocols=["graphql-transport-ws"]) as socket:

            def say(type, socket=socket, **rest):
                socket.send(json.dumps({"type": type, **rest}))

            def hear(socket=socket):
                return json.loads(socket.recv(timeout=10))

            say("connection_init")
            assert hear()["type"] == "connection_ack"
            say("subscribe", id="1", payload={"query": "subscription { count(target: 3) }"})
            heard = [hear() for _ in range(4)]
            assert [part["payload"]["data"]["count"] for part in heard[:3]] == [0, 1, 2]
            assert heard[3]["type"] == "complete"
            say("subscribe", id="2", payload={"query": "subscription { count(target: 1000000) }"})
            assert hear()["payload"]["data"] == {"count": 0}
            start = ours.log_position()
    ours.wait_for_log("^APP subscription closed", start=start)  # uvicorn's oldest never tells
