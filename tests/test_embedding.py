"""A server inside another program: on a thread, turned by hand, several, and what goes wrong."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import threading

import pytest

import selectserve
from selectserve.embed import HandTurned

from .support import DEADLINE, ROOT, RawClient
from .tiny import app


def get(server, path="/"):
    """Return the body that a server on a thread answers with."""
    with RawClient(("127.0.0.1", server.port)) as client:
        return client.get(path).body


async def failing(scope, receive, send):
    """Fail to start."""
    await receive()
    raise ValueError("the database is gone")


# -- on a thread ---------------------------------------------------------------------------------


def test_it_serves_while_the_block_lasts():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with selectserve.serving(app) as server:
        assert server.url == f"http://127.0.0.1:{server.port}" and server.urls == [server.url]
        assert get(server) == b"hello from anywhere"
        assert handlers == [
            signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        ]
    assert not server.thread.is_alive()
    with pytest.raises(ConnectionRefusedError):
        RawClient(("127.0.0.1", server.port))
    assert server.close() is True, "closing again is nothing"


def test_several_at_once():
    with selectserve.serving(app) as one, selectserve.serving(app) as two:
        assert one.port != two.port
        assert get(one) == get(two) == b"hello from anywhere"


def test_it_can_be_closed_from_any_thread():
    server = selectserve.serving(app)
    results = []
    threads = [threading.Thread(target=lambda: results.append(server.close())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert results == [True, True, True] and not server.thread.is_alive()


def test_it_can_be_closed_by_its_own_app():
    holder = []

    async def last(scope, receive, send):
        await app(scope, receive, send)
        if scope["type"] == "http":
            assert holder[0].close() is False

    holder.append(selectserve.serving(last))
    assert get(holder[0]) == b"hello from anywhere"
    holder[0].thread.join(DEADLINE)
    assert not holder[0].thread.is_alive()


def test_a_unix_socket(tmp_path):
    path = str(tmp_path / "s")
    with selectserve.serving(app, uds=path) as server:
        assert server.url == f"unix:{path}" and server.port == 0
        with RawClient(path) as client:
            assert client.get("/").status == 200
    assert not (tmp_path / "s").exists()


def test_what_is_wrong_is_raised_where_it_was_asked_for(capfd):
    with pytest.raises(selectserve.ConfigError, match="nosuch"):
        selectserve.serving("nosuch:app")
    with pytest.raises(selectserve.ConfigError, match="unknown option"):
        selectserve.serving(app, colour="red")
    with pytest.raises(selectserve.ConfigError, match="no workers"):
        selectserve.serving(app, workers=2)
    with pytest.raises(selectserve.ConfigError, match="no workers"):
        selectserve.by_hand(app, reload=True)
    with selectserve.serving(app) as server:
        with pytest.raises(selectserve.ConfigError, match="in use"):
            selectserve.serving(app, port=server.port)
    assert capfd.readouterr() == ("", ""), "it is the host who decides what is said"


@pytest.mark.parametrize("start", [selectserve.serving, selectserve.by_hand])
def test_a_failed_startup_is_raised_with_its_cause(start):
    with pytest.raises(selectserve.ConfigError, match="the database is gone") as caught:
        start(failing, lifespan="on")
    assert isinstance(caught.value.__cause__, ValueError) and caught.value.exit_code == 3


@pytest.mark.parametrize("start", [selectserve.serving, selectserve.by_hand])
def test_what_the_module_of_the_app_raises_is_raised(start, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "crooked.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        start("crooked:app")


@pytest.mark.parametrize("start", [selectserve.serving, selectserve.by_hand])
def test_a_module_that_ends_the_program_does_not_end_the_host(start, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "leaving.py").write_text("import sys; sys.exit(7)\n")
    with pytest.raises(selectserve.ConfigError, match=r"'leaving:app' has called exit\(7\)") as e:
        start("leaving:app")
    assert isinstance(e.value.__cause__, SystemExit)


def test_a_lifespan_runs_to_its_end():
    seen = []

    async def with_lifespan(scope, receive, send):
        if scope["type"] == "lifespan":
            for word in ("startup", "shutdown"):
                seen.append((await receive())["type"])
                await send({"type": f"lifespan.{word}.complete"})
        else:
            await app(scope, receive, send)

    with selectserve.serving(with_lifespan) as server:
        assert seen == ["lifespan.startup"] and get(server) == b"hello from anywhere"
    assert seen == ["lifespan.startup", "lifespan.shutdown"]
    with selectserve.by_hand(with_lifespan):
        assert len(seen) == 3
    assert len(seen) == 4


def test_an_app_on_asyncio_works_on_a_thread():
    import asyncio

    async def on_asyncio(scope, receive, send):
        if scope["type"] == "lifespan":
            raise RuntimeError("none")
        await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(None, int)
        await app(scope, receive, send)

    with selectserve.serving(on_asyncio, loop="asyncio") as server:
        assert get(server) == b"hello from anywhere"

    async def host():
        """A host that has a running loop itself, like a notebook."""
        with selectserve.serving(on_asyncio) as server:
            return await asyncio.get_running_loop().run_in_executor(None, get, server)

    assert asyncio.run(host()) == b"hello from anywhere"


HOST = """
import selectserve, sys, threading
from tests.tiny import app
{}
print("the host goes on")
"""


def run_host(body):
    """Run a host program to its end."""
    return subprocess.run(
        [sys.executable, "-c", HOST.format(body)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )


def test_a_forgotten_server_does_not_keep_the_program():
    done = run_host("selectserve.serving(app)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the host goes on\n", "")


def test_an_app_that_never_ends_is_left_behind():
    body = """
import time
blocked = threading.Event()
async def stuck(scope, receive, send):
    if scope["type"] == "http":
        blocked.set()
        time.sleep(3600)
server = selectserve.serving(stuck)
import socket
client = socket.create_connection(("127.0.0.1", server.port))
client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
blocked.wait()
import selectserve.embed as embed
vars(sys.modules["selectserve.embed"])["LAST_WAIT"] = 0.01
assert server.close(0.01) is False
"""
    done = run_host(body)
    assert done.returncode == 0 and done.stdout == "the host goes on\n", done.stderr


def test_its_log_is_there_when_asked_for():
    body = """
import urllib.request
with selectserve.serving(app, log_level="info") as server:
    urllib.request.urlopen(server.url).read()
"""
    done = run_host(body)
    assert "selectserve running on http://127.0.0.1:" in done.stderr and '"GET / ' in done.stdout


# -- by hand -------------------------------------------------------------------------------------


def ask(server, results):
    """Ask from a thread, as the server is turned by ours."""
    thread = threading.Thread(target=lambda: results.append(get(server)))
    thread.start()
    return thread


@pytest.mark.parametrize("loop", ["native", "asyncio", "auto"])
def test_it_serves_while_it_is_turned(loop):
    results = []
    with selectserve.by_hand(app, loop=loop) as server:
        assert isinstance(server, HandTurned)
        thread = ask(server, results)
        while not results:
            assert server.tick(DEADLINE)
        thread.join(DEADLINE)
    assert results == [b"hello from anywhere"]
    assert server.tick(0) is False


@pytest.mark.skipif(not hasattr(selectors, "EpollSelector"), reason="no selector that is a file")
def test_inside_a_loop_of_the_host():
    """The host waits for the server as for any other descriptor, and for its next timer."""
    results = []
    loop = selectors.DefaultSelector()
    with loop, selectserve.by_hand(app) as server:
        loop.register(server, selectors.EVENT_READ)
        thread = ask(server, results)
        while not results:
            assert loop.select(server.patience()) or server.patience() is not None
            server.tick(0)
        thread.join(DEADLINE)
        loop.unregister(server)
    assert results == [b"hello from anywhere"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # 3.15
@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_in_a_process_that_the_host_forks_it_has_ended(loop, tmp_path):
    """The selector is one object for both: whatever the child forgot, the parent had, too."""
    path, results = tmp_path / "socket", []
    with selectserve.by_hand(app, loop=loop, bind=["127.0.0.1:0", f"unix:{path}"]) as server:
        with RawClient(("127.0.0.1", server.port)) as client:
            while not server.service.connections:
                server.tick(DEADLINE)
            pid = os.fork()
            if not pid:
                try:
                    with server:
                        client.request("GET", "/")
                        code = 4 if server.tick(0.01) else 7
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] >> 8 == 7
            assert path.exists()
            while not server.service.requests or server.service.cycles:
                server.tick(DEADLINE)
            assert client.read_response().body == b"hello from anywhere"
        thread = ask(server, results)
        while not results:
            server.tick(0.01)
        thread.join(DEADLINE)
    assert results == [b"hello from anywhere"]
    assert not path.exists()


def test_two_by_hand_in_one_loop():
    results = []
    with selectserve.by_hand(app) as one, selectserve.by_hand(app, loop="asyncio") as two:
        threads = [ask(one, results), ask(two, results)]
        while len(results) < 2:
            one.tick(0.01)
            two.tick(0.01)
        for thread in threads:
            thread.join(DEADLINE)
    assert results == [b"hello from anywhere"] * 2


def test_its_own_thread_pool_wakes_it():
    results = []
    with selectserve.by_hand(app) as server:
        thread = threading.Thread(target=lambda: results.append(get(server, "/thread")))
        thread.start()
        while not results:
            server.tick(DEADLINE)
        thread.join(DEADLINE)
    assert results == [b"from a thread"]
