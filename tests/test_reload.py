"""--reload: what counts as a change, and a server that starts anew without losing a request."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from selectserve.reload import Watcher

from .support import DEADLINE, ROOT, RawClient, run_server, server_command

SETSID = shutil.which("setsid")
SOURCE = """
{more}

async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await {send}({{"type": "http.response.body", "body": {answer}}})
"""
STREAM = """
import sys
from selectserve import Event

async def stream(message):
    print("APP streams", file=sys.stderr, flush=True)
    await Event().wait()
"""


@pytest.mark.skipif(os.name != "posix", reason="this system has no unix sockets")
def test_no_socket_file_stays_when_another_address_is_taken(tmp_path):
    """Which only listening tells: of two sockets that are bound, here both ours."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    path = tmp_path / "socket"
    twice = ("--bind", address, "--bind", address)
    done = run_server("tests.tiny:app", "--reload", "--bind", f"unix:{path}", *twice)
    assert done.returncode == 3 and "the address is in use" in done.stderr
    assert not path.exists()


# -- what counts as a change -----------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    for name in ("app.py", "package/module.py", "notes.txt", ".git/hook.py", "venv/pyvenv.cfg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
    (tmp_path / "venv/library.py").write_text("")
    (tmp_path / "__pycache__").mkdir()
    return tmp_path


def changes(watcher, tree):
    return [str(Path(path).relative_to(tree)) for path in watcher.look()]


def test_changed_added_and_removed_files(tree):
    watcher = Watcher([str(tree)])
    assert changes(watcher, tree) == []
    (tree / "app.py").write_text("1")
    (tree / "package/new.py").write_text("")
    (tree / "package/module.py").unlink()
    assert changes(watcher, tree) == ["app.py", "package/module.py", "package/new.py"]
    assert changes(watcher, tree) == []
    os.utime(tree / "app.py", (1, 1))
    os.replace(tree / "package/new.py", tree / "package/module.py")  # as editors save
    assert changes(watcher, tree) == ["app.py", "package/module.py", "package/new.py"]


@pytest.mark.parametrize(
    "name", ["notes.txt", ".git/hook.py", "venv/library.py", "__pycache__/app.py", ".#app.py",
             "app.py~", "app.pyc"],
)  # fmt: skip
def test_files_of_no_interest(tree, name):
    watcher = Watcher([str(tree)])
    (tree / name).write_text("changed")
    assert changes(watcher, tree) == []


def test_included_and_excluded(tree):
    (tree / "templates").mkdir()
    watcher = Watcher(
        [str(tree)], ["*.txt", "templates/*.html"], ["generated*", "package/migrations/*"]
    )
    (tree / "package/migrations").mkdir()
    for name in ("notes.txt", "templates/a.html", "a.html", "generated_x.py",
                 "package/migrations/m.py"):  # fmt: skip
        (tree / name).write_text("changed")
    assert changes(watcher, tree) == ["notes.txt", "templates/a.html"]


def test_a_dangling_link_hides_nothing(tree):
    (tree / "lock.py").symlink_to(tree / "nowhere")
    watcher = Watcher([str(tree)])
    (tree / "app.py").write_text("1")
    assert changes(watcher, tree) == ["app.py"]
    (tree / "nowhere").write_text("")
    assert changes(watcher, tree) == ["lock.py"]


def test_a_folder_that_vanishes_is_a_change(tree):
    watcher = Watcher([str(tree)])
    shutil.rmtree(tree / "package")
    assert changes(watcher, tree) == ["package/module.py"]


def test_files_that_are_added_by_name(tree, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "module.py"
    elsewhere.write_text("")
    born = elsewhere.stat().st_mtime_ns
    watcher = Watcher([str(tree)])
    known, gone = str(tree / "app.py"), str(tree / "gone.txt")
    assert watcher.add([str(elsewhere), known, gone], born) == []
    assert watcher.look() == []
    elsewhere.write_text("1")
    assert watcher.look() == [str(elsewhere)]
    late = elsewhere.with_name("late.py")
    late.write_text("")
    assert watcher.add([str(late)], born - 1) == [str(late)], "it changed after the start"
    assert watcher.look() == []


# -- a server that starts anew ---------------------------------------------------------------------


@pytest.fixture
def module(tmp_path):
    """Write the app's module; not in one second with a size that was there before."""

    def write(answer, more="", send="send"):
        (tmp_path / "reloaded.py").write_text(SOURCE.format(answer=answer, more=more, send=send))
        return tmp_path

    return write


@pytest.fixture
def reloading(serve, module):
    """A server of that module that looks twenty times a second."""

    def start(*arguments, **options):
        folder = module("b'first'")
        return serve(
            "reloaded:app", "--lifespan", "off", "--reload", "--reload-delay", "0.05", *arguments,
            cwd=folder, env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}, **options,
        )  # fmt: skip

    return start


def get(server) -> bytes:
    with server.connect() as client:
        response = client.get("/", "Connection: close")
        assert response.status == 200 and response.complete
        return response.body


def changed(server, position) -> None:
    """Wait for the news and until the old code takes no request any more."""
    server.wait_for_log(r"changed: starting anew", start=position)
    server.wait_for_log(r"listeners closed|ended|was killed", start=position)


def test_a_change_starts_the_server_anew(reloading, module):
    server = reloading()
    assert "reloading when *.py change" in server.log_text()
    for number in range(3):
        position = server.log_position()
        module(f"b'version {number}'" + " " * number)
        changed(server, position)
        assert get(server) == b"version %d" % number, "requests wait for the new code"
    assert server.log_text().count("running on http") == 1
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


def test_a_mistake_is_shown_and_requests_wait_for_its_correction(reloading, module):
    server = reloading()
    module("(")
    server.wait_for_log("SyntaxError")
    server.wait_for_log("ended with exit code 1: waiting for a change")
    with server.connect() as client:
        client.request("GET")
        assert client.is_silent(0.05)
        module("b'corrected'")
        assert client.read_response().body == b"corrected"
    assert server.stop() == 0


def test_a_mistake_before_the_first_start(module):
    """The watcher lives from the beginning; and Ctrl-C ends it while it waits."""
    folder = module("(")
    process = subprocess.Popen(
        server_command("reloaded:app", "--reload", "--port", "0", "--reload-delay", "0.05"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        seen = [process.stderr.readline()]
        while "waiting for a change" not in seen[-1]:
            seen.append(process.stderr.readline())
        module("b'corrected'")
        while "running on http://" not in seen[-1]:
            seen.append(process.stderr.readline())
        port = int(seen[-1].partition("127.0.0.1:")[2].split()[0])
        with RawClient(("127.0.0.1", port)) as client:
            assert client.get().body == b"corrected"
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_change_while_the_app_starts_is_not_lost(reloading, module, tmp_path):
    """An import that takes long has read the old file; the new one counts in the end."""
    server = reloading()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    position = server.log_position()
    module(
        "b'outdated'",
        more="print('APP reads', file=__import__('sys').stderr, flush=True); open('fifo').read()",
    )
    server.wait_for_log("APP reads", start=position)
    position = server.log_position()
    module("b'newest'")
    changed(server, position)
    assert get(server) == b"newest"
    assert server.stop() == 0


def test_modules_that_lie_elsewhere_are_watched(serve, module, tmp_path_factory):
    folder = module("helper.ANSWER", more="import helper")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    helper = elsewhere / "helper.py"
    helper.write_text("ANSWER = b'first'")
    os.utime(helper, (1, 1))
    server = serve(
        "reloaded:app", "--lifespan", "off", "--reload", "--reload-delay", "0.05", cwd=folder,
        env={"PYTHONPATH": f"{ROOT}:{elsewhere}", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert get(server) == b"first"
    position = server.log_position()
    helper.write_text("ANSWER = b'the second'")
    changed(server, position)
    assert get(server) == b"the second"
    assert server.stop() == 0


def test_other_files_on_request(reloading, tmp_path):
    server = reloading("--reload-include", "*.html", "--reload-exclude", "drafts")
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts/a.html").write_text("")
    (tmp_path / "page.html").write_text("")
    changed(server, 0)
    server.wait_for_log(r"INFO: +page\.html changed")
    assert "drafts" not in server.log_text()
    assert server.stop() == 0


def test_a_stream_does_not_hold_the_new_code_up(reloading, module):
    server = reloading()
    position = server.log_position()
    module("b''", more=STREAM, send="stream")
    server.wait_for_log("worker serves", start=position)
    with server.connect() as client:
        client.request("GET")
        server.wait_for_log("APP streams")
        position = server.log_position()
        module("b'after the stream'")
        changed(server, position)
        assert get(server) == b"after the stream"
    assert "telling the long ones" in server.log_text(), "at once, without a soft part"
    assert server.stop() == 0


def test_a_worker_that_dies_is_started_again(reloading):
    server = reloading()
    pid = int(server.wait_for_log(r"\[(\d+)\] worker serves")[1])
    os.kill(pid, signal.SIGKILL)
    server.wait_for_log(rf"worker {pid} was killed by SIGKILL: another starts")
    assert get(server) == b"first"
    assert server.stop() == 0


@pytest.mark.skipif(not SETSID, reason="setsid is not installed")
def test_ctrl_c(reloading):
    server = reloading(program=[SETSID, *server_command()])
    os.killpg(server.process.pid, signal.SIGINT)
    assert server.wait() == 0
    server.stderr.thread.join(DEADLINE)
    assert not server.stderr.thread.is_alive() and "Traceback" not in server.log_text()


def test_a_directory_that_is_not_there():
    done = run_server("tests.apps:app", "--reload", "--reload-dir", "no-such-dir")
    assert done.returncode == 2 and "--reload-dir no-such-dir" in done.stderr


def test_more_workers_make_no_sense(reloading):
    server = reloading("--workers", "3")
    assert "one worker instead of 3" in server.log_text()
    assert server.log_text().count("worker serves") == 1
    assert server.stop() == 0
