"""Processes that the app forks in the middle of a request: they never come back as a server."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from selectserve.signals import hold_back
from selectserve.stray import hear_thread

from .support import DEADLINE, RawClient
from .test_websocket_e2e import TEXT, WebSocketClient

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
APP = "tests.apps_forks:app"
CAME_BACK = r"process \d+, forked by the app, came back to the server and is ended"
# The way that a child goes, its exit code, and a line of the log; "" for none.
WAYS = {
    "leave": (7, ""),
    "late_leave": (7, ""),
    "leave_with_words": (1, "^said by the child"),
    "fail": (1, "^LookupError: in the child"),
    "late_fail": (1, "^LookupError: in the child"),
    "answer": (1, CAME_BACK),
    "late_answer": (1, CAME_BACK),
    "answer_much": (1, CAME_BACK),
    "nothing": (1, CAME_BACK),
    "wait": (1, CAME_BACK),
    "late_wait": (1, CAME_BACK),
    "ask": (1, CAME_BACK),
    "watch": (1, CAME_BACK),
    "threads": (7, ""),
}


# asyncio of Python 3.14 forgets what a task's first step in a fork ended with.
FORGETS = sys.version_info >= (3, 14)


@pytest.mark.parametrize(
    "options", [("--loop", "native"), ("--loop", "asyncio")], ids=lambda o: o[1]
)
@pytest.mark.parametrize("way", WAYS)
def test_a_child_that_comes_back_is_ended(serve, way, options):
    """What it says to the client is not heard, and the server is as it was."""
    code, line = WAYS[way]
    if FORGETS and "asyncio" in options and way in ("leave", "leave_with_words", "fail"):
        code, line, way = 1, CAME_BACK, way.replace("leave_with_words", "leave")
    server = serve(APP, *options)
    with server.connect() as other, server.connect() as client:
        assert other.get("/own_exit").body == b"9!"
        assert client.get(f"/{way}").body == b"%d!" % code
        assert client.get("/own_exit").body == b"9!"
        assert other.get("/own_exit").body == b"9!"
    if line:
        server.wait_for_log(line)
    assert server.stop() == 0
    assert len(re.findall(CAME_BACK, server.log_text())) == (code == 1 and "words" not in way)
    lines = [line for line in server.stdout.lines if "GET /" in line]
    assert [line.split()[-2:][0] for line in lines] == ["2"] * 4 and len(lines) == 4, lines


@pytest.mark.parametrize("way, code", [("leaves", 7), ("returns", 1)])
def test_a_child_of_a_thread_of_asyncio(serve, way, code):
    """It is ended, too: its thread would wait for more to do, and for ever."""
    server = serve(APP, "--loop", "asyncio")
    with server.connect() as client:
        assert client.get(f"/executor_{way}").body == b"%d!" % code
    assert server.stop() == 0
    assert len(re.findall(CAME_BACK, server.log_text())) == (way == "returns")


@pytest.mark.parametrize("loop", ["native", "asyncio"])
@pytest.mark.parametrize("way, code", [("exit", "7"), ("return", "1")])
def test_a_child_of_a_websocket(serve, way, code, loop):
    code = "1" if FORGETS and loop == "asyncio" else code
    server = serve(APP, "--loop", loop)
    with WebSocketClient(server.address) as client:
        client.shake(f"/{way}")
        assert client.read_frame()[:2] == (TEXT, code.encode())
    assert server.stop() == 0


@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_a_child_of_a_task_that_is_no_request(serve, loop):
    server = serve(APP, "--loop", loop)
    with server.connect() as client:
        client.request("GET", "/spawned")
        server.wait_for_access("^became 1$" if FORGETS and loop == "asyncio" else "^became 7$")
    assert server.stop() == 0


@pytest.mark.parametrize("way, code", [("exit", 7), ("return", 1)])
def test_a_child_of_a_wsgi_app(serve, way, code):
    server = serve("tests.apps_forks:wsgi", "--interface", "wsgi")
    with server.connect() as client:
        assert client.get(f"/{way}").body == b"%d!" % code
        assert client.get("/exit").body == b"7!"
    assert server.stop() == 0


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_of_a_worker(serve, tmp_path, start):
    """It leaves alone what others need: the socket's file, the selector, the channel."""
    path = str(tmp_path / "socket")
    server = serve(APP, "--uds", path, "--workers", "2", "--worker-start", start)
    for way in ("leave", "nothing", "fail", "leave"):
        with RawClient(path) as client:
            code, _ = WAYS[way]
            assert client.get(f"/{way}").body == b"%d!" % code
    assert "another starts" not in server.log_text()
    assert server.stop() == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_a_child_that_is_none_of_our_business(serve, loop):
    server = serve(APP, "--loop", loop)
    with server.connect() as client:
        assert client.get("/own_exit").body == b"9!"
        assert client.get("/ended_at_once").body == b"-15!"
        assert client.get("/ended_in_thread").body == b"-15!"
        assert client.get("/by_multiprocessing").body == b"([3, 2], 3)!"
        assert client.get("/by_subprocess").body == b"(4, 4)!"
        assert client.get("/asyncio_in_child").body == b"9!"
    assert server.stop() == 0
    assert not re.search(CAME_BACK, server.log_text())


def test_a_child_that_stays_holds_nothing_of_ours(serve):
    """Neither the port, nor the connection, whose end the client would not see."""
    server = serve(APP)
    with server.connect() as client:
        response = client.get("/stays", "Connection: close")
        assert client.is_closed()
        child = int(response.body[:-1])
        try:
            assert server.process.poll() is None
            server.send_signal()
            server.process.wait(DEADLINE)
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(server.address)
                sock.listen()
        finally:
            os.kill(child, signal.SIGKILL)


def test_the_end_is_seen_whoever_has_the_socket(serve):
    """A fork that no hook tells of has it until its own end."""
    pytest.importorskip("ctypes")
    server = serve(APP)
    with server.connect() as client:
        child = int(client.get("/unseen", "Connection: close").body[:-1])
        try:
            assert client.is_closed()
        finally:
            os.kill(child, signal.SIGKILL)


def test_threads_that_fork_at_once_get_their_own_masks_back():
    hold, go_on = hold_back([signal.SIGTERM])
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread, blocked in ((one, [signal.SIGUSR2]), (other, [])):
            thread.submit(signal.pthread_sigmask, signal.SIG_SETMASK, blocked).result()
        for thread, what in ((one, hold), (other, hold), (one, go_on), (other, go_on)):
            thread.submit(what).result()
        masks = [
            thread.submit(signal.pthread_sigmask, signal.SIG_BLOCK, []).result()
            for thread in (one, other)
        ]
    assert masks == [{signal.SIGUSR2}, set()]


def test_what_else_a_child_tells_the_loop_is_nothing():
    hear_thread(print, "from the child")
    hear_thread(partial(print, "from the child"))
