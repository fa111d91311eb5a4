"""selectserve.gunicorn.Worker under a real gunicorn."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from selectserve.gunicorn import GunicornWorker

from ..support import DEADLINE, ROOT, UNDER_TEST, Lines, RawClient

pytest.importorskip("gunicorn", reason="gunicorn is not installed")
pytestmark = pytest.mark.skipif(bool(UNDER_TEST), reason="a single file has no worker for gunicorn")
APP = "tests.apps_workers:app"


class Gunicorn:
    """A gunicorn with our workers; its log is on stderr, the access log on stdout."""

    def __init__(self, *arguments: str, app: str = APP, env=None) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "-k", "selectserve.gunicorn.Worker",
                "-b", "127.0.0.1:0", "--access-logfile", "-", *arguments, app,
            ],
            cwd=ROOT,
            env={**os.environ, "SELECTSERVE_LIFESPAN": "off", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        self.access, self.log = Lines(self.process.stdout), Lines(self.process.stderr)
        self.port = 0

    def wait_for(self, pattern: str, start: int = 0) -> re.Match[str]:
        match = self.log.wait_for(pattern, DEADLINE, start)
        assert match, self.log.text()
        return match

    def connect(self) -> RawClient:
        if not self.port:
            self.port = int(self.wait_for(r"selectserve running on https?://127.0.0.1:(\d+)")[1])
        return RawClient(("127.0.0.1", self.port))

    def get(self, target: str = "/pid") -> str:
        with self.connect() as client:
            response = client.get(target, "Connection: close")
            assert response.status == 200, response
            return response.body.decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self.access.close()
        self.log.close()


@pytest.fixture
def gunicorn(tmp_path):
    started = []

    def start(*arguments: str, env=None, **options: str) -> Gunicorn:
        home = {"HOME": str(tmp_path), **(env or {})}  # gunicorn has files there
        started.append(Gunicorn(*arguments, env=home, **options))
        return started[-1]

    yield start
    for process in started:
        process.close()


def test_it_serves_and_ends(gunicorn):
    server = gunicorn("-w", "2")
    pid = int(server.get())
    assert pid != server.process.pid
    assert server.access.wait_for(r'^127\.0\.0\.1 - - \[.*\] "GET /pid HTTP/1\.1" 200 \d+')
    # gunicorn loses a TERM that comes between its fork and the signals of its worker
    assert server.log.wait_for("selectserve running on", count=2)
    assert server.stop() == 0
    assert re.search(rf"\[{pid}\] \[INFO\] shutting down", server.log.text())
    assert not re.search("Traceback|ERROR|CRITICAL", server.log.text())


def test_a_request_in_progress_survives_a_reload(gunicorn):
    """HUP: gunicorn starts new workers and sends TERM to the old ones."""
    server = gunicorn("-w", "1")
    with server.connect() as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for("APP upload begun")
        old = int(server.wait_for(r"Booting worker with pid: (\d+)")[1])
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(rf"\[{old}\] \[INFO\] shutting down")
        client.send(b"def")
        assert client.read_response().body == b"6 %d" % old
    assert int(server.get()) != old
    assert server.stop() == 0


def test_gunicorns_settings_count(gunicorn):
    server = gunicorn(
        "--limit-request-line", "100", "--limit-request-fields", "5", "--max-requests", "3",
        "--forwarded-allow-ips", "127.0.0.1",
    )  # fmt: skip
    with server.connect() as client:
        assert client.get("/" + "x" * 200).status == 414
    with server.connect() as client:
        assert client.get("/pid", *(f"X-{n}: 1" for n in range(9))).status == 431
    with server.connect() as client:
        assert client.get("/pid", "X-Forwarded-For: 203.0.113.7").status == 200
    assert server.access.wait_for(r'^203\.0\.113\.7 .*"GET /pid')
    first = int(server.wait_for(r"Booting worker with pid: (\d+)")[1])
    assert int(server.get()) == int(server.get()) == first
    server.wait_for(rf"\[{first}\] \[INFO\] Worker exiting")
    assert int(server.get()) != first
    assert server.stop() == 0


def test_a_blocked_worker_is_killed_by_gunicorn(gunicorn):
    """The reactor gives the signs of life, so that one that does not turn gives none."""
    server = gunicorn("--timeout", "2")
    with server.connect() as client:
        client.request("GET", "/block?seconds=60")
        pid = int(server.wait_for(r"WORKER TIMEOUT \(pid:(\d+)\)")[1])
        assert b"200 OK" not in client.read_until_close()
    server.wait_for(rf"\[{pid}\] \[INFO\] Worker exiting")
    assert int(server.get()) != pid
    assert server.stop() == 0


def test_a_busy_worker_is_left_alone(gunicorn):
    server = gunicorn("--timeout", "1")
    assert server.get("/busy?seconds=3") == server.get()
    assert "TIMEOUT" not in server.log.text()
    assert server.stop() == 0


def test_workers_end_when_gunicorn_is_killed(gunicorn):
    server = gunicorn("-w", "2")
    server.get()
    server.process.kill()
    server.wait_for("gunicorn is gone")
    server.log.thread.join(DEADLINE)
    assert not server.log.thread.is_alive()


def test_log_files_are_opened_anew(gunicorn, tmp_path):
    log = tmp_path / "log"
    server = gunicorn("--access-logfile", str(log))
    server.get()
    log.rename(tmp_path / "old")
    server.process.send_signal(signal.SIGUSR1)
    server.wait_for("Handling signal: usr1")
    while not log.exists() or "GET /pid" not in log.read_text():
        server.get()
    assert server.stop() == 0


def test_int_is_quick(gunicorn):
    server = gunicorn()
    with server.connect() as client:
        client.send(b"POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        server.wait_for("APP upload begun")
        assert server.stop(signal.SIGINT) == 0
        assert b"503" in client.read_until_close()


def test_an_app_that_cannot_be_loaded(gunicorn):
    server = gunicorn(app="tests.apps_workers:nothing")
    assert server.process.wait(DEADLINE) != 0
    server.wait_for("Failed to find attribute 'nothing'")


def test_a_startup_that_fails_ends_gunicorn(gunicorn):
    server = gunicorn(app="tests.apps_workers:failing_lifespan", env={"SELECTSERVE_LIFESPAN": "on"})
    assert server.process.wait(DEADLINE) == 3
    server.wait_for("no database")


def test_options_of_a_derived_class():
    """As with uvicorn's worker."""
    derived = type("Derived", (GunicornWorker,), {"CONFIG_KWARGS": {"loop": "asyncio"}})
    assert derived.CONFIG_KWARGS["loop"] == "asyncio" and GunicornWorker.CONFIG_KWARGS == {}
    import selectserve.gunicorn

    with pytest.raises(AttributeError):
        selectserve.gunicorn.nothing  # noqa: B018
    assert issubclass(selectserve.gunicorn.Worker, GunicornWorker)
