"""Workers and their supervisor: real processes, told by signals, seen through sockets and logs."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from .support import (
    DEADLINE,
    ROOT,
    Askers,
    Lines,
    RawClient,
    Response,
    parallel,
    run_server,
    server_command,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX signals are what it is about")
APP = ("tests.apps_workers:app", "--lifespan", "off", "--no-access-log")
WRK, SETSID = shutil.which("wrk"), shutil.which("setsid")
STARTS = pytest.mark.parametrize("start", ["fork", "spawn"])


def get(server, target="/pid", *headers) -> str:
    with server.connect() as client:
        response = client.get(target, "Connection: close", *headers)
        assert response.status == 200 and response.complete, response
        return response.body.decode()


def workers(server, start=0) -> list[int]:
    """Return the pids of the workers that began to serve, in order."""
    return [
        int(match[1])
        for line in server.stderr.lines[start:]
        if (match := re.search(r"\[(\d+)\] worker serves", line))
    ]


def wait_for_workers(server, number, start=0) -> list[int]:
    """Wait until so many workers have begun to serve since ``start``; return their pids."""
    with server.stderr.changed:
        assert server.stderr.changed.wait_for(
            lambda: len(workers(server, start)) >= number, DEADLINE
        ), server.log_text()
    return workers(server, start)


def restart(server) -> None:
    """Restart the workers, and wait until none of the old ones accepts any more."""
    position = server.log_position()
    old = workers(server)[-2:]
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("restarted: all workers are new", start=position)
    for pid in old:
        server.wait_for_log(rf"\[{pid}\] shutting down", start=position)


def all_have_ended(server) -> bool:
    """Wait for the end of everybody who could write to the log."""
    server.stderr.thread.join(DEADLINE)
    return not server.stderr.thread.is_alive()


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def quiet(server) -> bool:
    """No traceback, no complaint, no bug."""
    return not re.search(r"Traceback|ERROR|CRITICAL|Exception", server.log_text())


class Load(Askers):
    """Clients that ask on kept connections; ``end`` tells who answered."""

    def __init__(self, address, clients=4, target="/pid") -> None:
        self.target = target
        self.answers: list[bytes] = []
        super().__init__(address, clients)

    def ask(self, client) -> Response:
        response = client.get(self.target)
        self.answers.append(response.body)
        return response

    def wait_for(self, wanted) -> None:
        """Go on until ``wanted(bodies)``."""
        self.wait_until(lambda: wanted(self.answers))

    def end(self) -> set[int]:
        """Stop, fail if anything was lost, and return the pids of those who answered."""
        super().end()
        return set(map(int, self.answers))


# -- serving ---------------------------------------------------------------------------------------


@STARTS
def test_workers_share_a_port(serve, start):
    """PR-22: they are others than the supervisor, all answer, and all end with it."""
    server = serve(*APP, "--workers", "2", "--worker-start", start)
    assert "(2 workers, process" in server.log_text()
    pids = workers(server)
    assert len(set(pids)) == 2 and server.process.pid not in pids
    for stopped, other in (pids, pids[::-1]):
        os.kill(stopped, signal.SIGSTOP)
        try:
            assert int(get(server)) == other  # whichever is free
        finally:
            os.kill(stopped, signal.SIGCONT)
    assert server.stop() == 0
    assert all_have_ended(server) and quiet(server)
    with pytest.raises(ConnectionRefusedError):
        server.connect()


def test_the_environment_gives_the_number(serve):
    server = serve(*APP, env={"WEB_CONCURRENCY": "3"})
    assert len(workers(server)) == 3
    assert server.stop() == 0


def test_a_system_without_fork(serve, tmp_path):
    """Workers are new processes there; all the rest is the same."""
    (tmp_path / "sitecustomize.py").write_text("import os\ndel os.fork\n")
    server = serve(*APP, "--workers", "2", env={"PYTHONPATH": str(tmp_path)})
    first, second = workers(server)
    assert int(get(server)) in (first, second)
    os.kill(first, signal.SIGKILL)
    server.wait_for_log(f"worker {first} was killed by SIGKILL")
    wait_for_workers(server, 3)
    restart(server)
    assert int(get(server)) in workers(server)[3:]
    assert server.stop() == 0 and all_have_ended(server)


def test_wrong_numbers():
    done = run_server(*APP, "--workers", "0")
    assert done.returncode == 2 and "--workers" in done.stderr
    done = run_server(*APP, env={**os.environ, "WEB_CONCURRENCY": "many"})
    assert done.returncode == 2 and "WEB_CONCURRENCY" in done.stderr


def test_a_unix_socket_is_removed_at_the_end_only(serve, tmp_path):
    path = str(tmp_path / "socket")
    server = serve(*APP, "--workers", "2", "--uds", path)
    os.kill(workers(server)[0], signal.SIGTERM)
    wait_for_workers(server, 3)
    with RawClient(path) as client:
        assert client.get("/pid").status == 200
    assert server.stop() == 0
    assert not os.path.exists(path)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_the_service_manager_hears_of_the_supervisor_only(serve, tmp_path, start):
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        notify.settimeout(DEADLINE)
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000000"}
        server = serve(*APP, "--workers", "2", "--worker-start", start, env=environ)
        ready = notify.recv(1000).decode()
        assert "READY=1" in ready and f"MAINPID={server.process.pid}" in ready
        assert notify.recv(1000) == b"WATCHDOG=1"
        assert get(server, "/managed") == "[]"
        server.send_signal(signal.SIGHUP)
        assert "RELOADING=1" in notify.recv(1000).decode()
        assert "READY=1" in notify.recv(1000).decode()
        assert server.stop() == 0
        assert notify.recv(1000) == b"STOPPING=1"
        notify.setblocking(False)
        with pytest.raises(BlockingIOError):
            notify.recv(1000)


def test_preload_imports_the_app_once(serve):
    server = serve(*APP, "--workers", "2", "--preload")
    get(server)
    assert re.findall(r"APP imported in (\d+)", server.log_text()) == [str(server.process.pid)]
    assert server.stop() == 0


def test_without_preload_the_supervisor_stays_clean(serve):
    server = serve(*APP, "--workers", "2")
    imported = set(re.findall(r"APP imported in (\d+)", server.log_text()))
    assert imported == set(map(str, workers(server)))
    assert server.stop() == 0


# -- run() -----------------------------------------------------------------------------------------


PROGRAM = """
    import os, sys
    from selectserve import run

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"from a program"})

    if __name__ == "__main__":
        run(%s, workers=2, port=0, lifespan="off", worker_start="%s")
        print("behind run", os.getpid(), flush=True)
"""


@pytest.mark.parametrize("app, start", [("app", "fork"), ("'program:app'", "spawn")])
def test_run_with_workers(tmp_path, app, start):
    """What comes behind run() happens once, in the program itself."""
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM % (app, start)))
    process = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for line in process.stderr:
            match = re.search(r"running on http://127.0.0.1:(\d+)", line)
            if match:
                break
        with RawClient(("127.0.0.1", int(match[1]))) as client:
            assert client.get().body == b"from a program"
        process.terminate()
        out, _ = process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.communicate()
    behind = [line for line in out.splitlines() if line.startswith("behind")]
    assert behind == [f"behind run {process.pid}"] and process.returncode == 0


def test_an_object_cannot_be_handed_to_new_processes(tmp_path):
    program = textwrap.dedent(PROGRAM % ("app", "spawn"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 2 and "module:attribute" in done.stderr


# -- failing to start ------------------------------------------------------------------------------


@STARTS
@pytest.mark.parametrize(
    "app, variables, code, words",
    [
        ("tests.apps_workers:nothing", {}, 1, "no attribute 'nothing'"),
        ("tests.apps_workers:app", {"APP_EXIT": "5"}, 5, "exit code 5"),
        ("tests.apps_workers:app", {"APP_EXIT": "0"}, 1, "ended before it served"),
        ("tests.apps_workers:failing_lifespan", {}, 3, "no database"),
        ("tests.apps_workers:app", {"APP_CRASH": "1"}, 1, "was killed by SIGKILL"),
    ],
)
def test_a_worker_that_fails_at_the_start_ends_it_all(start, app, variables, code, words):
    """PR-07: no restart loop, the reason is shown, and the exit code tells."""
    done = run_server(
        app, "--workers", "2", "--port", "0", "--worker-start", start,
        env={**os.environ, **variables}, deadline=3 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "giving up" in done.stderr
    assert done.stderr.count("APP imported") <= (12 if "APP_CRASH" in variables else 2)
    assert "running on" not in done.stderr


def test_a_port_in_use_and_a_preloaded_app_that_fails():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_server(*APP, "--workers", "2", "--port", port)
    assert done.returncode == 3 and "in use" in done.stderr and "Traceback" not in done.stderr
    done = run_server("tests.apps_workers:nothing", "--workers", "2", "--preload")
    assert done.returncode == 1 and done.stderr.count("no attribute 'nothing'") == 1


# -- death and replacement -------------------------------------------------------------------------


@STARTS
def test_killed_workers_are_replaced(serve, start):
    """PR-23: one, then all of them; the port stays served."""
    server = serve(*APP, "--workers", "2", "--worker-start", start)
    first, second = workers(server)
    os.kill(first, signal.SIGKILL)
    server.wait_for_log(rf"ERROR: +worker {first} was killed by SIGKILL: another starts")
    third = wait_for_workers(server, 3)[2]
    for pid in (second, third):
        os.kill(pid, signal.SIGKILL)
    assert len(set(wait_for_workers(server, 5))) == 5
    assert int(get(server)) in workers(server)[3:]
    assert server.stop() == 0


@pytest.mark.parametrize(
    "target, reason",
    [
        ("/crash?signal=SIGSEGV", r"was killed by SIGSEGV \(last request: GET /crash\)"),
        ("/leave?code=7", r"ended with exit code 7 \(last request: GET /leave\)"),
    ],
)
@STARTS
def test_the_reason_of_a_death_is_logged(serve, start, target, reason):
    server = serve(*APP, "--workers", "2", "--worker-start", start)
    with server.connect() as client:
        client.request("GET", target)
        assert client.is_closed()
    server.wait_for_log(rf"ERROR: +worker \d+ {reason}: another starts")
    wait_for_workers(server, 3)
    get(server)
    assert server.stop() == 0


def test_deaths_in_a_row_are_answered_more_and_more_slowly(serve):
    """A worker that dies again and again does not use the machine up."""
    server = serve(*APP, "--workers", "1", "--max-worker-age", "1000")
    for number in range(1, 5):
        os.kill(wait_for_workers(server, number)[-1], signal.SIGKILL)
    wait_for_workers(server, 5)
    assert server.stop() == 0


def test_a_worker_that_is_told_to_end_finishes_and_is_replaced(serve):
    server = serve(*APP, "--workers", "2")
    with server.connect() as client:
        client.request("POST", "/upload", body=b"")
        client.send(b"")
        server.wait_for_log("APP upload begun")
        assert client.read_response().status == 200
    pid = workers(server)[0]
    os.kill(pid, signal.SIGTERM)
    server.wait_for_log(rf"INFO: +worker {pid} ended.*: another starts")
    wait_for_workers(server, 3)
    assert quiet(server) and server.stop() == 0


def test_a_stop_right_after_a_death_ends_everything(serve):
    """PR-24."""
    server = serve(*APP, "--workers", "3")
    for pid in workers(server)[:2]:
        os.kill(pid, signal.SIGKILL)
    assert server.stop() == 0
    assert all_have_ended(server)


@STARTS
def test_no_orphans(serve, start):
    """PR-24: when the supervisor is killed its workers finish what they do, and end."""
    server = serve(*APP, "--workers", "2", "--worker-start", start)
    with server.connect() as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n")
        server.wait_for_log("APP upload begun")
        server.process.kill()
        server.process.wait(DEADLINE)
        server.wait_for_log("the supervisor is gone")
        client.send(b"abc")
        assert client.read_response().body.startswith(b"3 ")
    assert all_have_ended(server)
    with pytest.raises(ConnectionRefusedError):
        server.connect()


@STARTS
@pytest.mark.parametrize("slow", ["0.1", "0"])
def test_no_orphans_that_are_blocked(serve, start, slow):
    """Nobody is left to kill it: it does so itself, after the time that it would have had."""
    options = ("--workers", "2", "--worker-start", start, "--timeout-worker-healthcheck", "1")
    server = serve(*APP, *options, "--slow-step", slow)
    with server.connect() as client:
        client.send(b"GET /block?seconds=600 HTTP/1.1\r\nHost: a\r\n\r\n")
        server.wait_for_log("APP blocks")
        server.process.kill()
        server.process.wait(DEADLINE)
        assert all_have_ended(server)


@pytest.mark.parametrize("options", [(), ("--max-worker-age", "1000")], ids=["alone", "worker"])
def test_what_the_app_forks_is_ended_alone(serve, options):
    """It has inherited the way on which signals come to us, and leaves it."""
    server = serve(*APP, *options)
    there, status, pid = ast.literal_eval(get(server, "/fork"))
    assert there and status == signal.SIGTERM
    assert int(get(server)) == pid
    server.send_signal(signal.SIGUSR1)
    if not options:
        server.wait_for_log("connections, 0 requests in flight")
    assert "shutting down" not in server.log_text()
    assert server.stop() == 0


# -- restarts --------------------------------------------------------------------------------------


@STARTS
def test_a_rolling_restart_loses_nothing(serve, start):
    server = serve(*APP, "--workers", "2", "--worker-start", start)
    old = set(workers(server))
    load = Load(server.address)
    load.go_on()
    for _ in range(2):
        position = server.log_position()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("restarted: all workers are new", start=position)
        new = set(workers(server, position))
        load.wait_for(lambda answers, new=new: set(map(int, answers[-10:])) <= new)
    seen = load.end()
    assert len(new) == 2 and not new & old and seen & old and seen & new
    assert server.stop() == 0
    assert quiet(server)


@pytest.mark.skipif(not WRK, reason="wrk is not installed")
def test_a_rolling_restart_under_wrk(serve):
    """As fast as it goes, on kept connections: not one refused or cut request."""
    server = serve(*APP, "--workers", "2")
    wrk = subprocess.Popen(
        [WRK, "-t1", "-c16", "-d2", f"http://127.0.0.1:{server.port}/pid"],
        stdout=subprocess.PIPE,
        text=True,
    )
    restarts = 0
    while wrk.poll() is None:
        restart(server)
        restarts += 1
    output = wrk.communicate()[0]
    assert "Socket errors" not in output and "Non-2xx" not in output, output
    assert restarts > 1 and int(re.search(r"(\d+) requests in", output)[1]) > 100
    assert server.stop() == 0


def test_a_request_in_progress_survives_a_restart(serve):
    """An upload goes on in the old worker; an idle connection has a last request."""
    server = serve(*APP, "--workers", "2")
    with server.connect() as upload, server.connect() as kept:
        kept_pid = int(kept.get("/pid").body)
        upload.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for_log("APP upload begun")
        restart(server)
        response = kept.get("/pid")
        assert int(response.body) == kept_pid and response.get("connection") == b"close"
        upload.send(b"def")
        response = upload.read_response()
        assert response.body.startswith(b"6 ") and response.get("connection") == b"close"
        assert int(response.body.split()[1]) not in workers(server)[2:]
    server.wait_for_log(rf"worker {kept_pid} ended")
    assert server.stop() == 0


def test_a_restart_brings_new_code_and_broken_code_changes_nothing(serve, tmp_path):
    source = """
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%s"})
    """
    module = tmp_path / "changing.py"
    module.write_text(textwrap.dedent(source % "first"))
    server = serve(
        "changing:app", "--lifespan", "off", "--workers", "2", "--app-dir", str(tmp_path),
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert get(server) == "first"
    module.write_text("def broken(")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("restart given up: the old workers go on")
    assert "SyntaxError" in server.log_text() and get(server) == "first"
    module.write_text(textwrap.dedent(source % "second"))
    restart(server)
    assert get(server) == "second"
    assert server.stop() == 0


@STARTS
def test_a_link_to_the_newest_release_is_followed(serve, tmp_path, start):
    """As deploys do: the link is switched, and HUP or USR2 bring what it names then."""
    source = """
        import os
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"%s in " + os.getcwd().encode()})
    """
    for release in ("first", "second", "third"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "release.py").write_text(textwrap.dedent(source % release))
    current = tmp_path / "current"

    def switch(release):
        (tmp_path / "new").symlink_to(tmp_path / release)
        os.replace(tmp_path / "new", current)

    switch("first")
    server = serve(
        "release:app", "--lifespan", "off", "--workers", "2", "--worker-start", start,
        cwd=current, env={"PYTHONPATH": str(ROOT), "PWD": str(current)},
    )  # fmt: skip
    assert get(server) == f"first in {tmp_path}/first"
    switch("second")
    restart(server)
    assert get(server) == f"second in {tmp_path}/second"
    switch("third")
    server.send_signal(signal.SIGUSR2)
    heir = int(server.wait_for_log(r"process (\d+) has taken over")[1])
    try:
        assert server.process.wait(DEADLINE) == 0
        assert get(server) == f"third in {tmp_path}/third"
    finally:
        os.kill(heir, signal.SIGTERM)
    assert all_have_ended(server) and quiet(server)


def test_restarts_leave_nothing_behind(serve):
    """Neither descriptors nor processes."""
    server = serve(*APP, "--workers", "2")
    descriptors = f"/proc/{server.process.pid}/fd"
    if not os.path.isdir(descriptors):
        pytest.skip("no /proc here")
    before = len(os.listdir(descriptors))
    for number in range(1, 4):
        restart(server)
        for pid in workers(server)[2 * number - 2 : 2 * number]:
            server.wait_for_log(rf"worker {pid} ended")
    position = server.log_position()
    server.send_signal(signal.SIGTTIN)  # in a later turn than what is told of the last end
    server.wait_for_log("wanted from now on: 3 workers", start=position)
    wait_for_workers(server, 1, position)
    assert len(os.listdir(descriptors)) == before + 1  # a worker's channel
    assert server.stop() == 0


def test_one_more_and_one_less(serve):
    """TTIN and TTOU."""
    server = serve(*APP, "--workers", "1", "--max-worker-age", "1000")
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("wanted from now on: 2 workers")
    assert len(wait_for_workers(server, 2)) == 2
    server.send_signal(signal.SIGTTOU)
    ended = int(server.wait_for_log(r"worker (\d+) ended")[1])
    (left,) = set(workers(server)) - {ended}
    assert int(get(server)) == left
    position = server.log_position()
    server.send_signal(signal.SIGTTOU)
    server.wait_for_log("wanted from now on: 1 worker$", start=position)
    assert int(get(server)) == left
    assert server.stop() == 0


def test_log_files_are_opened_anew(serve, tmp_path):
    """USR1: in the supervisor and in every worker."""
    config = tmp_path / "log.json"
    log = tmp_path / "log"
    handler = {"class": "logging.FileHandler", "filename": str(log), "formatter": "plain"}
    console = {"class": "logging.StreamHandler", "formatter": "plain"}
    config.write_text(
        json.dumps(
            {
                "version": 1,
                "formatters": {"plain": {"format": "%(process)d %(message)s"}},
                "handlers": {"file": handler, "console": console},
                "loggers": {
                    "selectserve.error": {"handlers": ["file", "console"], "level": "INFO"},
                    "selectserve.access": {"handlers": ["file"], "level": "INFO"},
                },
            }
        )
    )
    server = serve(
        "tests.apps_workers:app", "--lifespan", "off", "--workers", "2", "--log-config", str(config)
    )
    log.rename(tmp_path / "old")
    server.send_signal(signal.SIGUSR1)
    done = threading.Event()
    seen = set()
    while len(seen) < 2:  # the news reaches each worker in its own time
        assert not done.wait(0.01)
        get(server)
        text = log.read_text() if log.exists() else ""
        seen = set(re.findall(r'^(\d+) .*"GET /pid', text, re.M))
    position = server.log_position()
    server.send_signal(signal.SIGTTIN)
    server.wait_for_log("wanted from now on: 3 workers", start=position)
    assert f"{server.process.pid} wanted from now on: 3 workers" in log.read_text()
    assert server.stop() == 0


# -- a new version takes over ----------------------------------------------------------------------


@STARTS
def test_a_new_version_takes_over(serve, tmp_path, start):
    """USR2, under load: nothing is lost, the old one ends, the socket file stays."""
    path = str(tmp_path / "socket")
    server = serve(
        *APP, "--workers", "2", "--worker-start", start,
        "--bind", f"unix:{path}", "--bind", "127.0.0.1:0",
    )  # fmt: skip
    server.port = int(server.wait_for_log(r"http://127.0.0.1:(\d+)")[1])
    load = Load(server.address)
    load.go_on()
    server.send_signal(signal.SIGUSR2)
    heir = int(server.wait_for_log(r"process (\d+) has taken over")[1])
    try:
        assert server.process.wait(DEADLINE) == 0, server.log_text()
        load.go_on()
        seen = load.end()
        assert len(seen & set(workers(server)[2:])) >= 1
        with RawClient(path) as client:
            assert int(client.get("/pid").body) in workers(server)[2:]
    finally:
        os.kill(heir, signal.SIGTERM)
    assert all_have_ended(server) and quiet(server)
    assert not os.path.exists(path)


def test_the_service_manager_follows_to_the_new_version(serve, tmp_path):
    """It hears of the new main process, whom its watchdog waits for then; of no end."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(path)
        heard = Lines(data for data in iter(lambda: notify.recv(1000), b""))
        named = ["sh", "-c", 'WATCHDOG_PID=$$ exec "$0" "$@"', *server_command()]
        environ = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "200000"}
        server = serve(*APP, "--workers", "2", env=environ, program=named)
        assert heard.wait_for("READY=1") and heard.wait_for("WATCHDOG=1")
        server.send_signal(signal.SIGUSR2)
        heir = int(server.wait_for_log(r"process (\d+) has taken over")[1])
        try:
            assert heard.wait_for(f"^MAINPID={heir}$")
            assert server.process.wait(DEADLINE) == 0
            assert heard.wait_for("WATCHDOG=1", start=len(heard.lines), count=2)
            assert "STOPPING=1" not in heard.text()
        finally:
            os.kill(heir, signal.SIGTERM)
        assert heard.wait_for("STOPPING=1")
        notify.sendto(b"", path)
        heard.close()
    assert all_have_ended(server) and quiet(server)


def test_a_new_version_that_fails_changes_nothing(serve, tmp_path):
    """The file of the unix socket is not its own before it serves."""
    module = tmp_path / "version.py"
    module.write_text("from tests.apps_workers import app")
    path = str(tmp_path / "socket")
    server = serve(
        "version:app", "--lifespan", "off", "--workers", "2", "--app-dir", str(tmp_path),
        "--bind", f"unix:{path}", "--bind", "127.0.0.1:0",
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    module.write_text("import no_such_module")
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("the new version ended with exit code 1: we go on")
    with RawClient(path) as client:
        assert int(client.get("/pid").body) in workers(server)[:2]
    assert server.stop() == 0
    assert not os.path.exists(path)


def test_a_new_version_that_cannot_be_started(serve, tmp_path):
    """The place where we were started is gone."""
    home = tmp_path / "home"
    home.mkdir()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PWD": str(home)}
    server = serve(*APP, "--workers", "2", "--app-dir", str(ROOT), cwd=home, env=environ)
    home.rmdir()
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("ERROR: +no new version can be started: .*No such file or directory")
    assert int(get(server)) in workers(server)
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


def test_a_stop_while_a_new_version_starts(serve, tmp_path):
    """It is told too, wherever it is."""
    module = tmp_path / "version.py"
    module.write_text("from tests.apps_workers import app")
    os.mkfifo(tmp_path / "fifo")
    server = serve(
        "version:app", "--lifespan", "off", "--workers", "2", "--app-dir", str(tmp_path),
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    module.write_text(
        "import sys\nprint('APP waits', file=sys.stderr, flush=True)\n"
        f"open({str(tmp_path / 'fifo')!r}).read()"
    )
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("APP waits")
    assert server.stop() == 0
    assert all_have_ended(server) and quiet(server)


# -- recycling -------------------------------------------------------------------------------------


def test_enough_requests(serve):
    """PR-25: the successor comes first; by how many requests each is told apart by chance."""
    server = serve(
        *APP, "--workers", "2", "--limit-max-requests", "30", "--limit-max-requests-jitter", "20"
    )
    load = Load(server.address)
    wait_for_workers(server, 5)
    seen = load.end()
    assert len(seen) > 2
    served = re.findall(r"is to be replaced: it has served (\d+) requests", server.log_text())
    assert served and all(30 <= int(number) <= 50 for number in served)
    assert server.stop() == 0
    assert quiet(server)


def test_old_age(serve):
    server = serve(*APP, "--workers", "1", "--max-worker-age", "0.3")
    load = Load(server.address, clients=2)
    wait_for_workers(server, 3)
    load.go_on()
    load.end()
    server.wait_for_log(r"worker \d+ is to be replaced: it is old")
    assert server.stop() == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc here")
def test_too_much_memory(serve):
    server = serve(
        *APP, "--workers", "2", "--max-worker-memory", "150M", "--timeout-worker-healthcheck", "6"
    )
    pid = int(get(server, "/leak?megabytes=200"))
    server.wait_for_log(rf"worker {pid} is to be replaced: it uses \d+ MB")
    server.wait_for_log(rf"worker {pid} ended")
    wait_for_workers(server, 3)
    assert server.stop() == 0


# -- workers that do not turn ----------------------------------------------------------------------


def test_a_blocked_worker_is_shown_and_replaced(serve):
    server = serve(*APP, "--workers", "2", "--timeout-worker-healthcheck", "1")
    with server.connect() as client:
        client.request("GET", "/block?seconds=60")
        first = server.wait_for_log(
            r"WARNING: +worker (\d+) has been blocked for 0\.5 s \(last request: GET /block\)"
        )
        server.wait_for_log(r"File .*apps_workers.py.* in blocking_call")
        server.wait_for_log(rf"ERROR: +worker {first[1]} has been blocked for 1\.0 s: killed")
        assert client.is_closed()
    wait_for_workers(server, 3)
    get(server)
    log = server.log_text()
    assert log.index("in blocking_call") < log.index(": killed")
    assert server.stop() == 0


def test_a_lag_is_told(serve):
    server = serve(*APP, "--workers", "2", "--timeout-worker-healthcheck", "6")
    assert int(get(server, "/block?seconds=2.2")) in workers(server)
    server.wait_for_log(r"WARNING: +\[\d+\] nothing went on for \d\.\d s")
    assert server.stop() == 0
    assert "killed" not in server.log_text()


def test_a_busy_worker_that_turns_is_left_alone(serve):
    server = serve(*APP, "--workers", "2", "--timeout-worker-healthcheck", "2")

    def ask(number):
        return int(get(server, "/busy?seconds=4.5"))

    assert set(parallel(4, ask)) <= set(workers(server))
    assert "killed" not in server.log_text() and len(workers(server)) == 2
    assert server.stop() == 0


# -- the end ---------------------------------------------------------------------------------------


def test_requests_are_finished_while_nobody_is_let_in(serve):
    """PR-13, PR-14 with workers."""
    server = serve(*APP, "--workers", "2")
    with server.connect() as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for_log("APP upload begun")
        server.send_signal(signal.SIGTERM)
        for pid in workers(server):
            server.wait_for_log(rf"\[{pid}\] shutting down")
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        client.send(b"def")
        response = client.read_response()
        assert response.body.startswith(b"6 ") and response.get("connection") == b"close"
    assert server.wait() == 0
    assert quiet(server)


@pytest.mark.skipif(not SETSID, reason="setsid is not installed")
@STARTS
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group(serve, start, number):
    """PR-24: Ctrl-C at a terminal reaches everybody at once, and is graceful and quiet."""
    server = serve(
        *APP, "--workers", "2", "--worker-start", start, program=[SETSID, *server_command()]
    )
    with server.connect() as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for_log("APP upload begun")
        os.killpg(server.process.pid, number)
        server.wait_for_log(r"INFO: +shutting down: 2 workers")
        client.send(b"def")
        assert client.read_response().body.startswith(b"6 ")
    assert server.wait() == 0
    assert all_have_ended(server) and quiet(server)


@STARTS
def test_the_supervisors_signals_end_no_worker(serve, start):
    """``systemctl kill`` sends them to everybody, too."""
    server = serve(*APP, "--workers", "2", "--worker-start", start)
    old = workers(server)
    for pid in old:
        for number in (signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU, signal.SIGHUP):
            os.kill(pid, number)
    seen = {int(get(server)) for _ in range(20)}
    assert seen <= set(old) and workers(server) == old
    assert server.stop() == 0 and quiet(server)


def test_a_server_without_supervisor_says_that_it_has_none(serve):
    server = serve(*APP)
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log(r"WARNING: +SIGUSR2 needs a supervisor")
    assert int(get(server)) == server.process.pid
    assert server.stop() == 0


def test_what_an_app_does_with_a_signal_it_goes_on_to_do(serve, tmp_path):
    (tmp_path / "handling.py").write_text(
        "import os, signal\nfrom tests.apps_workers import app, say\n"
        "signal.signal(signal.SIGUSR2, lambda *_: say('APP was signalled'))\n"
    )
    own = ("handling:app", "--app-dir", str(tmp_path), "--lifespan", "off")
    server = serve(*own, env={"PYTHONPATH": str(ROOT)})
    server.send_signal(signal.SIGUSR2)
    server.wait_for_log("APP was signalled")
    assert server.stop() == 0 and "needs a supervisor" not in server.log_text()


@STARTS
def test_ctrl_c_while_the_app_is_imported(tmp_path, start):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        server_command(*APP, "--workers", "2", "--worker-start", start, "--port", "0"),
        cwd=ROOT,
        env={**os.environ, "APP_FIFO": str(fifo)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        lines = [process.stderr.readline() for _ in range(2)]
        assert all("APP imported" in line for line in lines), lines
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(DEADLINE) == 0
        assert "Traceback" not in process.stderr.read()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(
                process.pid, signal.SIGKILL
            )  # workers that wait for the fifo hear nothing else
        process.communicate()


def test_a_second_signal_skips_the_drain_and_a_blocked_worker(serve):
    """PR-15: the one who turns is told, the one who does not is killed."""
    server = serve(*APP, "--workers", "2", "--timeout-graceful-shutdown", "60")
    with server.connect() as client, server.connect() as blocked:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for_log("APP upload begun")
        assert client.is_silent(0.01)
        blocked.request("GET", "/block?seconds=60")
        server.wait_for_log("APP blocks")
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(r"INFO: +shutting down: 2 workers")
        assert server.stop() == 1
        assert blocked.is_closed()
    assert "does not end: killed" in server.log_text()
    assert all_have_ended(server)


def test_a_third_signal_exits_at_once(serve):
    server = serve(*APP, "--workers", "2")
    with server.connect() as blocked:
        blocked.request("GET", "/block?seconds=60")
        server.wait_for_log("APP blocks")
        server.send_signal(signal.SIGTERM)
        server.wait_for_log(r"INFO: +shutting down: 2 workers")
        # Two at once, and of two kinds, or they were one: the second alone kills a worker, too.
        server.send_signal(signal.SIGINT)
        assert server.stop() == 1
    assert all_have_ended(server)
    assert "exiting at once" in server.log_text()
