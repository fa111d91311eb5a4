"""asyncio inside apps: all of it works, misuse is answered, and nothing outlives the server."""

from __future__ import annotations

import ast
import os
import re
import signal
import socket
import sys
import threading

import pytest

from selectserve.reactor import Reactor

from .support import run_server

PLAIN = {
    "sleep": True,
    "gather": (["a", "b", "c"], ["b", "c", "a"]),
    "call_order": [1, 2, 3],
    "wait_for": "timed out",
    "queue": [0, 1, 2, 3, 4],
    "locks": [1, 1, 1, 1],
    "to_thread": ("by request", True),
    "executors": (7, 3),
    "from_thread": 42,
    "subprocesses": (b"cba", 3),
    "streams": (300_001, b"XXX"),
    "unix_streams": b"HELLO\n",
    "udp": b"HELLO",
    "readers": (["write", b"data"], (True, False, False)),
    "signals": (True, True),
    "take_sigterm": True,
    "context": ("by lifespan", "by request"),
    "identity": (True,) * 7,
    "at_import": ("item", True),
    "async_generator": "closed",
    "primitives": "from a thread",
    "many_tasks": 1000,
    "watch_disconnect": True,
}

APP_OF_MODULE = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = made if isinstance(made, str) else await made
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body.encode()})
"""


def ask(client, name):
    """Return what the app ``name`` answers."""
    response = client.get("/" + name)
    assert response.status == 200, response
    return response.body


@pytest.mark.parametrize("name", PLAIN)
def test_asyncio_works_inside(module_serve, name):
    with module_serve("tests.apps_aio:app").connect() as client:
        for _ in range(2):  # the second request must not see the first
            body = ask(client, name)
            assert body == PLAIN[name] or ast.literal_eval(body.decode()) == PLAIN[name]


@pytest.mark.parametrize(
    "name, answer", [("task_group", [0, 1, 2, "in the group"]), ("timeout", ("timed out", 0))]
)
def test_asyncio_since_3_11(module_serve, name, answer):
    with module_serve("tests.apps_aio:app").connect() as client:
        body = ask(client, name)
        if sys.version_info < (3, 11):
            assert body == b"'none'"
        else:
            assert ast.literal_eval(body.decode()) == answer


def test_the_start_line_names_the_mode(serve):
    assert serve("tests.apps_aio:app").wait_for_log(r"running on .*\((\w+)")[1] == "asyncio"
    assert serve("tests.apps:app").wait_for_log(r"running on .*\((\w+)")[1] == "native"
    forced = serve("tests.apps:app", "--loop", "asyncio")
    assert forced.wait_for_log(r"running on .*\((\w+)")[1] == "asyncio"
    with forced.connect() as client:
        assert ask(client, "hello") == b"hello"


def test_many_requests_at_once(module_serve):
    server = module_serve("tests.apps_aio:app")
    clients = [server.connect() for _ in range(20)]
    for client in clients:
        client.request("GET", "/sleep")
    for client in clients:
        assert client.read_response().body == b"True"
        client.close()


def test_pipelined_requests_keep_their_order(module_serve):
    with module_serve("tests.apps_aio:app").connect() as client:
        names = ["sleep", "context", "wait_for", "queue", "gather"] * 4
        client.send(b"".join(f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for name in names))
        for name in names:
            assert ast.literal_eval(client.read_response().body.decode()) == PLAIN[name]


def test_a_closed_descriptor_that_is_still_watched_harms_no_client(serve):
    """The number goes to the next client, whose connection must neither fail nor be cut off."""
    server = serve("tests.apps_aio:app")
    with server.connect() as first:
        ask(first, "close_watched")
        with server.connect() as second:  # has the number
            assert ask(second, "sleep") == b"True"
            assert ask(first, "remove_closed") == b"False"
            assert ask(second, "sleep") == b"True"
    assert server.stop() == 0
    assert "Traceback" not in server.log_text() and "APP called" not in server.log_text()


def test_one_byte_wakes_for_all_and_the_next_is_not_lost():
    reactor = Reactor()
    done = []
    for number in range(3):
        reactor.call_from_thread(lambda number=number: done.append(number))
    assert reactor.wakeup_receiver.recv(10, socket.MSG_PEEK) == b"\0"
    reactor.tick()
    assert done == [0, 1, 2]
    late = threading.Timer(0.01, reactor.call_from_thread, [lambda: done.append("late")])
    late.start()
    reactor.call_later(5.0, lambda: done.append("nobody woke it"))
    while len(done) < 4:
        reactor.tick()
    assert done[3:] == ["late"]
    late.join()
    reactor.close()


# -- receive() ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, mark, answer",
    [
        ("receive_timeout", "receive given up", (b"body", True)),
        ("two_receivers", "one cancelled", (b"body", True)),
    ],
)
def test_a_cancelled_receive_takes_nothing_with_it(serve, name, mark, answer):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        client.send(f"POST /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n".encode())
        server.wait_for_log(mark)
        client.send(b"body")
        assert ast.literal_eval(client.read_response().body.decode()) == answer
        assert ask(client, "sleep") == b"True"


def test_disconnect_reaches_a_task_that_waits(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        client.request("GET", "/disconnect")
        server.wait_for_log("APP waiting")
        client.reset()
    server.wait_for_log("APP http.disconnect")


# -- misuse ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/system_exit", "/late_system_exit"])
def test_system_exit_is_a_500_and_the_server_goes_on(serve, target):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get(target).status == 500
    server.wait_for_log("SystemExit: 7")
    with server.connect() as client:
        assert ask(client, "sleep") == b"True"


def test_a_failure_after_a_wait_is_told_once(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get("/late_failure").status == 500
    with server.connect() as client:
        assert ask(client, "collect") == b"True"
    assert server.stop() == 0
    assert server.log_text().count("Traceback") == 1
    assert server.log_text().count("LookupError: after a wait") == 1


@pytest.mark.parametrize("target", ["/late_failure", "/late_system_exit", "/system_exit"])
def test_the_traceback_is_the_apps_from_its_first_line_on(serve, target):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get(target).status == 500
    assert server.stop() == 0
    lines = re.findall(r'^  File "(.*)", line \d+, in (.*)$', server.log_text(), re.MULTILINE)
    assert [name for _, name in lines][:1] == ["app"] and lines[-1][1] == target[1:], lines
    assert all(file.endswith("apps_aio.py") for file, _ in lines), lines


@pytest.mark.skipif(not hasattr(sys, "getrefcount"), reason="PyPy forgets when it collects")
def test_what_a_failed_request_held_is_let_go_at_once(serve):
    """A stream's generator, for one, whose finally wants to know that its client has left."""
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get("/fail_with_a_note").status == 500
        server.wait_for_log("APP forgotten")


def test_keyboard_interrupt_stops_the_server(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get("/keyboard_interrupt").status == 500
    assert server.wait() == 0
    assert "APP lifespan shutdown" in server.log_text()


def test_keyboard_interrupt_in_a_part_of_a_request_counts_once(serve):
    """It comes out of the part's task and of the request: the others are not cut off for that."""
    server = serve("tests.apps_aio:app", "--log-level", "debug")
    with server.connect() as client, server.connect() as other:
        other.request("GET", "/sleep")
        assert client.get("/keyboard_interrupt_in_a_part").status == 500
        assert other.read_response().status == 200
    assert server.wait() == 0
    assert "cancelling" not in server.log_text()


def test_loop_stop_is_a_graceful_shutdown(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get("/stop_loop").body == b"'still answered'"
    assert server.wait() == 0
    assert "APP lifespan shutdown" in server.log_text()


def test_a_loop_cannot_be_nested_or_closed(module_serve):
    with module_serve("tests.apps_aio:app").connect() as client:
        run, until, forever, other = ast.literal_eval(ask(client, "nested").decode())
        assert "cannot be called from a running event loop" in run
        assert until == forever == "This event loop is already running"
        assert other == "Cannot run the event loop while another loop is running"
        assert ask(client, "close_loop") == b"'Cannot close a running event loop'"
        assert ask(client, "sleep") == b"True"


def test_failures_in_the_background_are_logged_and_harm_nobody(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert ask(client, "background_failure") == b"'answered'"
        server.wait_for_log("ValueError: in the background")
        server.wait_for_log("invalid literal for int")
        assert ask(client, "sleep") == b"True"


def test_system_exit_in_the_background_ends_the_server_in_order_with_its_code(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get("/background_exit").body == b"'answered'"
    assert server.wait() == 9
    assert "APP lifespan shutdown" in server.log_text()


def test_a_request_that_cancels_itself_is_answered(module_serve):
    server = module_serve("tests.apps_aio:app")
    with server.connect() as client:
        assert client.get("/cancel_self").status >= 500
    with server.connect() as client:
        assert ask(client, "sleep") == b"True"


def test_a_task_factory_of_the_app_makes_the_requests_tasks(serve):
    with serve("tests.apps_aio:app").connect() as client:
        ask(client, "eager_factory")
        assert ast.literal_eval(ask(client, "made_by_factory").decode()) == (True, "by lifespan")


def test_debug_mode_tells_what_blocks(serve):
    server = serve("tests.apps_aio:app", env={"PYTHONASYNCIODEBUG": "1"})
    with server.connect() as client:
        assert ask(client, "block") == b"'blocked'"
        assert ask(client, "gather")
    server.wait_for_log(r"Executing .* took 0\.[1-9]")


# -- shutdown -------------------------------------------------------------------------------------


def test_shutdown_order(serve):
    server = serve("tests.apps_aio:app")
    assert server.stop() == 0
    marks = [line for line in server.log_text().split("\n") if line.startswith("APP")]
    assert marks == ["APP lifespan shutdown, worker at work", "APP worker cancelled"]


def test_shutdown_with_what_does_not_end(serve):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert ask(client, "stubborn") == b"'left'"
    assert server.stop() == 0
    log = server.log_text()
    assert "APP not cancelled" in log
    assert "a task does not end" in log
    assert "APP generator closed" in log
    assert "was destroyed" not in log and "Traceback" not in log


def test_shutdown_cancels_requests_that_do_not_end(serve):
    server = serve("tests.apps_aio:app", "--timeout-graceful-shutdown", "0.2")
    with server.connect() as client:
        client.request("GET", "/hold")
        server.wait_for_log("APP holding")
        assert server.stop() == 0
        assert client.read_response().status == 503
    assert "APP finally" in server.log_text()


# -- asyncio where it was not expected -------------------------------------------------------------


def test_native_mode_hints_at_asyncio(serve):
    server = serve("tests.late_asyncio:app", "--loop", "native")
    for _ in range(2):
        with server.connect() as client:
            start = server.log_position()
            assert client.get("/sleep").status == 500
            server.wait_for_log("start with --loop asyncio", start=start)


@pytest.mark.parametrize(
    "at_import",
    [
        "made = asyncio.run(asyncio.sleep(0, 'made'))",  # as does Django's database: no loop runs
        "made = asyncio.get_running_loop().create_task(asyncio.sleep(0, 'made'))",
    ],
)
def test_modules_may_run_a_loop_and_may_want_one_that_runs(serve, tmp_path, at_import):
    (tmp_path / "module.py").write_text(f"import asyncio\n{at_import}\n" + APP_OF_MODULE)
    server = serve("module:app", "--app-dir", str(tmp_path))
    with server.connect() as client:
        assert client.get("/").body == b"made"
    assert server.stop() == 0 and "Traceback" not in server.log_text()


def test_asyncio_imported_late_steps_the_next_request(serve):
    server = serve("tests.late_asyncio:app")
    assert server.wait_for_log(r"running on .*\((\w+)")[1] == "native"
    with server.connect() as client:
        assert client.get("/").body == b"False"  # bare apps do not pay for asyncio
        assert client.get("/sleep").status == 500
    server.wait_for_log("start with --loop asyncio")
    server.wait_for_log("the app has imported asyncio")
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/sleep").body == b"Task"
        assert client.get("/exit").status == 500
    with server.connect() as client:
        assert client.get("/background").body == b"False"
    assert server.stop() == 0
    # of the request that did the import, and of the one that raised SystemExit
    assert server.log_text().count("Traceback") == 2


def test_trio_that_is_not_installed_is_told_in_one_line(tmp_path):
    (tmp_path / "trio.py").write_text("raise ImportError('none here')")
    done = run_server(
        "tests.apps:app", "--loop", "trio", env={**os.environ, "PYTHONPATH": str(tmp_path)}
    )
    assert done.returncode == 1
    assert "--loop trio: the package trio is not installed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_server(serve, number):
    server = serve("tests.apps_aio:app")
    with server.connect() as client:
        assert ask(client, "take_sigterm") == b"True"
    assert server.stop(number) == 0
