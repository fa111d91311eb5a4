"""One FastAPI app in every ``--loop``; natively all of it that does not call anyio."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from .apps import CHUNKS
from .scenarios import open_socket

pytest.importorskip("fastapi", reason="fastapi is not installed on this Python")

APP = "tests.interop.apps.fastapi_any_app:app"
ANSWERS = {
    "/async": (200, {"made": [1, 2, 3]}),
    "/returned": (200, "dependency"),
    "/state": (200, "at startup"),
    "/error": (418, {"detail": "as asked"}),
    "/nothing": (404, {"detail": "Not Found"}),
}


@pytest.fixture(params=["native", "asyncio", "trio"])
def server(request, module_serve):
    if request.param == "trio" and importlib.util.find_spec("trio") is None:
        pytest.skip("trio is not installed on this Python")
    return module_serve(APP, "--loop", request.param)


def test_answers(server):
    with server.connect() as client:
        for path, answer in ANSWERS.items():
            response = client.get(path)
            assert (response.status, json.loads(response.body)) == answer
        assert client.get("/stream").body == b"".join(CHUNKS)
        assert client.get("/header/a?b=c").body == b"a c test"
        client.request("POST", "/item", "Content-Type: application/json", body=b'{"name":"a"}')
        assert client.read_response().status == 422


def test_websocket(server):
    with open_socket(server) as socket:
        socket.send("hello")
        assert socket.recv(timeout=10) == "HELLO"
    server.wait_for_log("^APP websocket closed")


def test_what_anyio_does(server):
    native = "native" in server.wait_for_log(r"running on .*\((.*), process")[1]
    with server.connect() as client:
        response = client.get("/sync")
        if native:
            assert response.status == 500
            server.wait_for_log("start with --loop asyncio")
            return  # a dependency that yields is anyio's, too, but not in FastAPI 0.128
        assert (response.status, response.body) == (200, b'"sync"')
        assert client.get("/dependency").body == b'"dependency"'


@pytest.mark.skipif(
    sys.implementation.name == "pypy",
    reason="PyPy closes a dropped generator when it collects garbage",
)
def test_a_client_leaves_a_stream(server):
    if "native" in server.wait_for_log(r"running on .*\((.*), process")[1]:
        pytest.skip("the stream sleeps by anyio, which knows asyncio and trio only")
    client = server.connect()
    client.request("GET", "/endless")
    client.read_head()
    client.read_exactly(3000)
    client.reset()
    server.wait_for_log("^APP stream closed")
