"""Command line, environment and ``run()``: how a server starts, what it says, how it ends."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from .support import DEADLINE, OUR_FILES, ROOT, Lines, RawClient, run_server, server_command
from .test_logging import HANDSHAKE


def fails(done, code, *words):
    """The command ended with ``code``, one clear message, and no traceback of ours."""
    assert done.returncode == code, done.stderr
    for word in words:
        assert word in done.stderr, f"{word!r} is not in:\n{done.stderr}"
    assert "http://127" not in done.stderr, "it must not have served"


def fails_plainly(done, code, *words):
    """The same, for what needs no traceback at all."""
    fails(done, code, *words)
    assert "Traceback" not in done.stderr, done.stderr


@pytest.fixture
def module(tmp_path):
    """Write a module for the server to import, and return the folder."""

    def write(source, name="usersapp"):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return tmp_path

    return write


# -- start ----------------------------------------------------------------------------------------


def test_the_first_command_of_a_newcomer(serve):
    server = serve("examples.hello:app")
    with server.connect() as client:
        response = client.get("/")
        assert response.status == 200 and b"ello" in response.body


def test_no_app_serves_the_welcome_page(serve):
    """… which shows what it saw of the request, safely."""
    server = serve("--log-level", "info")
    with server.connect() as client:
        response = client.get("/<script>?<b>", "X-Seen: <i>by the page</i>")
        assert response.status == 200 and response.get("content-type").startswith(b"text/html")
        assert b"&lt;i&gt;by the page" in response.body
        assert b"<script>?" not in response.body and b"<i>by" not in response.body
    with server.connect() as client:
        client.request("GET", "/", *HANDSHAKE, "Sec-WebSocket-Version: 13")
        assert client.read_response().status == 403
    assert "Traceback" not in server.log_text()


def test_the_url_that_is_printed_is_real(serve):
    """PR-02, PR-03: one line on stderr, port 0 shown as the real one."""
    server = serve("tests.apps:app")
    lines = [line for line in server.log_text().split("\n") if "http://" in line]
    assert len(lines) == 1 and f"http://127.0.0.1:{server.port}" in lines[0] and server.port > 0
    with server.connect() as client:
        assert client.get("/hello").body == b"hello"


def test_ipv6_url_has_brackets(serve):
    """PR-02, PR-21."""
    server = serve("tests.apps:app", "--host", "::1")
    assert f"http://[::1]:{server.port}" in server.log_text()


def test_a_host_name(serve):
    server = serve("tests.apps:app", "--host", "localhost")
    with RawClient((socket.gethostbyname("localhost"), server.port)) as client:
        assert client.get("/hello").body == b"hello"


def test_version():
    done = run_server("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"selectserve \d+\.\d+\.\d+\S*\n", done.stdout)


def test_help_names_every_option_of_the_issue():
    """PR-08."""
    done = run_server("--help")
    assert done.returncode == 0 and done.stderr == ""
    for (
        name
    ) in """host port log-level access-log no-access-log use-colors lifespan interface factory
                   app-dir root-path header server-header date-header backlog limit-concurrency
                   limit-max-requests version uds fd""".split():
        assert f"--{name}" in done.stdout


def test_unix_socket(serve, tmp_path):
    """PR-18, PR-19, HS-23, HS-24: served, its address in the scope, removed at the end."""
    path = str(tmp_path / "socket")
    server = serve("tests.apps:app", "--uds", path)
    with RawClient(path) as client:
        scope = ast.literal_eval(client.get("/scope").body.decode())
        assert tuple(scope["server"]) == (path, None)
        assert scope.get("client") is None
    server.wait_for_access('"GET /scope HTTP/1.1" 200')
    assert server.stop() == 0
    assert not os.path.exists(path)


def test_a_stale_socket_file_is_replaced_and_another_file_is_not(serve, tmp_path):
    """PR-19."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    with serve("tests.apps:app", "--uds", str(path)):
        with RawClient(str(path)) as client:
            assert client.get("/hello").body == b"hello"
    other = tmp_path / "precious"
    other.write_text("not a socket")
    fails_plainly(run_server("tests.apps:app", "--uds", str(other)), 3, "precious")
    assert other.read_text() == "not a socket"


def test_an_inherited_descriptor():
    """PR-20."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = server_command("tests.apps:app", "--fd", str(listener.fileno()))
        process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=[listener.fileno()], stderr=subprocess.PIPE
        )
        try:
            with RawClient(listener.getsockname()) as client:
                assert client.get("/hello").body == b"hello"
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
            process.communicate()


# -- what cannot start ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "app, words",
    [
        ("no_such_module:app", ["no_such_module"]),
        ("tests.no_such_module:app", ["tests.no_such_module"]),
        ("tests.apps:no_such_app", ["tests.apps", "no_such_app"]),
        ("tests.apps:app.deeper.still", ["app.deeper"]),
        ("tests.apps", ["tests.apps", "module:attribute"]),
        ("tests.apps:", ["module:attribute"]),
        (":app", ["module:attribute"]),
        ("./tests/apps.py:app", ["./tests/apps.py:app", "module:attribute"]),
        (".apps:app", ["module:attribute"]),
        ("tests.apps:not_callable", ["not_callable", "callable"]),
    ],
)
def test_a_wrong_app_string(app, words):
    """PR-05."""
    fails_plainly(run_server(app, "--port", "0"), 1, *words)


def test_an_app_that_raises_on_import_shows_its_own_traceback(module):
    """PR-06: the user's lines, and only those."""
    folder = module("def broken():\n    raise LookupError('what the user sees')\n\nbroken()\n")
    done = run_server("usersapp:app", "--app-dir", str(folder))
    fails(done, 1, "LookupError: what the user sees", "usersapp.py", "in broken")
    assert done.stderr.count("Traceback") == 1
    assert "importlib" not in done.stderr and OUR_FILES not in done.stderr


def test_a_syntax_error_in_the_app(module):
    """PR-06."""
    done = run_server("usersapp:app", "--app-dir", str(module("def (:\n")))
    fails(done, 1, "SyntaxError", "usersapp.py")
    assert "importlib" not in done.stderr and OUR_FILES not in done.stderr


def test_a_missing_dependency_is_not_taken_for_a_missing_app(module):
    """PR-06: "no module named usersapp" would be a lie."""
    folder = module("import no_such_dependency\n")
    done = run_server("usersapp:app", "--app-dir", str(folder))
    fails(done, 1, "no_such_dependency", "usersapp.py")


@pytest.mark.parametrize(
    "source",
    [
        "async def app(scope, receive): pass\n",
        "class App:\n    async def __call__(self, scope): pass\n\napp = App()\n",
    ],
    ids=["function", "object"],
)
@pytest.mark.parametrize("mode", ["native", "asyncio"])
def test_an_app_that_takes_other_arguments(module, source, mode):
    folder = module(source)
    done = run_server("usersapp:app", "--app-dir", str(folder), "--port", "0", "--loop", mode)
    fails_plainly(done, 1, "takes no scope, receive and send", "were given")


def test_a_factory_that_raises():
    """PR-06."""
    done = run_server("tests.apps:failing_factory", "--factory")
    fails(done, 1, "RuntimeError: the factory failed", "apps.py")
    assert OUR_FILES not in done.stderr


def test_an_async_factory():
    """It is called: its coroutine would be awaited by nobody, and Python say so at some time."""
    done = run_server("tests.apps:async_factory", "--factory")
    fails_plainly(done, 1, "--factory: 'tests.apps:async_factory' is async")
    assert "RuntimeWarning" not in done.stderr


@pytest.mark.parametrize("family, host", [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_in_use(family, host):
    """PR-04: uvicorn's exit code, one line that names the port."""
    with socket.create_server((host, 0), family=family) as listener:
        port = str(listener.getsockname()[1])
        done = run_server("tests.apps:app", "--host", host, "--port", port)
        fails_plainly(done, 3, port, "in use")


def test_a_host_that_is_not_ours():
    fails_plainly(
        run_server("tests.apps:app", "--host", "192.0.2.1", "--port", "0"), 3, "192.0.2.1"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--no-such-option"], ["--no-such-option"]),
        (["--port", "http"], ["--port", "http"]),
        (["--port", "65536"], ["--port", "65536"]),
        (["--port", "-1"], ["--port"]),
        (["--lifespan", "maybe"], ["--lifespan", "maybe"]),
        (["--log-level", "loud"], ["--log-level", "loud"]),
        (["--header", "no colon"], ["--header", "no colon"]),
        (["--header", "bad name:x"], ["--header", "bad name"]),
        (["--header", "x:a\nb"], ["--header"]),
        (["--loop", "uvloop"], ["--loop", "uvloop"]),
        (["--http", "h11"], ["--http", "h11"]),
        (["--ws", "wsproto"], ["--ws", "wsproto"]),
        (["--root-path", "api"], ["--root-path", "api"]),
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments, words):
    """PR-08: exit code 2, the option named, in one or two lines."""
    done = run_server("tests.apps:app", *arguments)
    fails_plainly(done, 2, *words)
    assert done.stderr.count("\n") <= 4, done.stderr


@pytest.mark.parametrize("option", ["--loop", "--http", "--ws"])
def test_options_of_uvicorn_that_mean_nothing_here(serve, option):
    with serve("tests.apps:app", option, "auto").connect() as client:
        assert client.get("/hello").body == b"hello"


# -- options --------------------------------------------------------------------------------------


def test_the_current_directory_is_importable(serve, module, monkeypatch):
    """PR-09."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    folder = module("from tests.apps import app\n")
    with serve("usersapp:app", cwd=folder).connect() as client:
        assert client.get("/hello").body == b"hello"


def test_app_dir(serve, module):
    """PR-09."""
    folder = module("from tests.apps import app\n")
    with serve("usersapp:app", "--app-dir", str(folder), env={"PYTHONPATH": str(ROOT)}) as server:
        with server.connect() as client:
            assert client.get("/hello").body == b"hello"


@pytest.mark.parametrize("given", ["/api", "/api/"])
def test_root_path(serve, given):
    """PX-01."""
    with serve("tests.apps:record_scope", "--root-path", given).connect() as client:
        scope = ast.literal_eval(client.get("/a?b").body.decode())
        assert scope["root_path"] == "/api"
        assert scope["path"] == "/api/a" and scope["raw_path"] == b"/api/a"


def test_headers_of_the_command_line(serve):
    """PX-06."""
    server = serve(
        "tests.apps:app", "--header", "X-One: 1", "--header", "x-two:2:3",
        "--no-server-header", "--no-date-header",
    )  # fmt: skip
    with server.connect() as client:
        for path in ("/hello", "/raise_before", "/not-there"):
            response = client.get(path)
            assert (response.get("x-one"), response.get("x-two")) == (b"1", b"2:3")
            assert response.all("server") == response.all("date") == []
            if response.get("connection") == b"close":
                client.close()
                client = server.connect()
        client.close()


def test_a_server_header_of_the_command_line(serve):
    with serve("tests.apps:app", "--header", "Server: mine").connect() as client:
        assert client.get("/hello").all("server") == [b"mine"]
        assert client.get("/respond_with?h=server:apps").all("server") == [b"apps"]


def test_no_access_log(serve):
    """PX-07."""
    with serve("tests.apps:app", "--no-access-log") as server:
        with server.connect() as client:
            assert client.get("/hello").status == 200
        assert server.stop() == 0
        server.stdout.close()
        assert "/hello" not in server.stdout.text() + server.log_text()


def test_log_level(serve):
    with serve("tests.apps:app", "--log-level", "info") as server:
        assert server.stop() == 0
        assert "INFO" in server.log_text()


def test_no_colours_unless_on_a_terminal_or_asked(serve):
    with serve("tests.apps:app") as server, server.connect() as client:
        client.get("/hello")
        server.wait_for_access("/hello")
        assert "\x1b[" not in server.log_text() + server.stdout.text()
    with serve("tests.apps:app", "--use-colors") as server, server.connect() as client:
        client.get("/hello")
        server.wait_for_access("/hello")
        assert "\x1b[" in server.log_text() + server.stdout.text()


def test_the_environment(serve):
    """Every option has its variable; the command line wins."""
    environment = {
        "SELECTSERVE_HEADER": "x-env: 1",
        "SELECTSERVE_SERVER_HEADER": "false",
        "SELECTSERVE_ROOT_PATH": "/env",
    }
    server = serve("tests.apps:record_scope", "--root-path", "/given", env=environment)
    with server.connect() as client:
        response = client.get("/a")
        assert response.get("x-env") == b"1" and response.all("server") == []
        assert ast.literal_eval(response.body.decode())["root_path"] == "/given"


def test_a_wrong_variable_is_named():
    done = run_server("tests.apps:app", env={**os.environ, "SELECTSERVE_PORT": "http"})
    fails_plainly(done, 2, "SELECTSERVE_PORT", "http")


def test_limit_concurrency(serve, tag):
    """RL-19: over the limit an immediate 503 that says when to come back; then served again."""
    server = serve("tests.apps:app", "--limit-concurrency", "3", "--lifespan", "off")
    with server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.request("GET", f"/gated?gate={tag}")
        server.wait_for_log(f"APP gate={tag} begun")
        with server.connect(), server.connect() as over:
            refused = over.get("/hello")
            assert refused.status == 503 and refused.complete
            assert refused.get("connection") == b"close" and refused.get("retry-after")
        second.close()
        first.close()
    with server.connect() as client:
        assert client.get(f"/open_gate?gate={tag}").status == 200


def test_limit_max_requests(serve):
    """PR-25: exactly so many are answered, then the process ends by itself."""
    server = serve("tests.apps:app", "--limit-max-requests", "3")
    with server.connect() as client:
        statuses = []
        for number in range(3):
            response = client.get(f"/hello?{number}")
            statuses.append(response.status)
            if response.get("connection") == b"close" and number < 2:
                client.close()
                client = server.connect()
        assert statuses == [200] * 3
        assert response.get("connection") == b"close", "the last answer says that it is the last"
    assert server.wait() == 0


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_idle_server_ends_at_once(serve, number):
    """PR-10, PR-12."""
    server = serve("tests.apps:app")
    assert server.stop(number) == 0
    assert "Traceback" not in server.log_text()
    with pytest.raises(ConnectionRefusedError):
        server.connect()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_idle_connections_do_not_hold_the_end(serve, number):
    """PR-11: kept connections, silent ones, half a head: all are closed."""
    server = serve("tests.apps:app")
    with server.connect() as kept, server.connect() as silent, server.connect() as half:
        assert kept.get("/hello").body == b"hello"
        half.send(b"GET / HTTP/1.1\r\nHo")
        assert server.stop(number) == 0
        assert kept.is_closed() and silent.is_closed() and half.is_closed()
    assert "Traceback" not in server.log_text()


def test_a_request_in_progress_is_completed(serve, tag):
    """PR-13, PR-14: an upload, a stream; and a pipelined request that is not begun any more."""
    server = serve("tests.apps:app")
    with server.connect() as upload, server.connect() as stream:
        stream.request("GET", f"/stream?parts=200&size=65536&{tag}")
        assert stream.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
        head = f"POST /streaming_messages?{tag} HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc"
        upload.send(head.encode())
        server.wait_for_log(rf"APP {tag} .*b'abc'")
        server.send_signal(signal.SIGTERM)
        server.wait_for_log("shutting down")
        with pytest.raises(OSError):
            server.connect()
        upload.send(b"def" + b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
        response = upload.read_response()
        assert response.body == b"done" and response.get("connection") == b"close"
        assert upload.is_closed()
        assert stream.read_until_close().endswith(b"\r\n0\r\n\r\n")
    assert server.wait() == 0


def test_an_import_that_takes_its_time_can_be_interrupted(module):
    """Ctrl-C ends it like any start: no traceback, exit code 0."""
    folder = module("""
        import time
        print("importing", flush=True)
        for _ in range(600):
            time.sleep(0.1)  # not 60: Python does not notice a signal that comes just before
    """)
    command = server_command("usersapp:app", "--app-dir", str(folder), "--port", "0")
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, said
    assert "stopped while loading the app" in said and "Traceback" not in said


def test_a_third_signal_ends_a_step_that_never_does(serve, module):
    """Nobody comes to read of the signals then: the handler itself does, the third time."""
    folder = module("""
        async def app(scope, receive, send):
            assert scope["type"] == "http"
            print("for ever", flush=True)
            while True:
                pass
    """)
    server = serve("usersapp:app", "--app-dir", str(folder), "--slow-step", "0")
    with server.connect() as client:
        client.request("GET", "/")
        assert server.stdout.wait_for("for ever")
        for _ in range(100):  # three at least: who comes too soon is not counted
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(DEADLINE / 100)
                break
        assert server.process.poll() == 1, server.log_text()
    server.wait_for_log("exiting at once, in the middle of a step")


def test_a_second_signal_skips_the_drain(serve, tag):
    """PR-15."""
    server = serve("tests.apps:app")
    with server.connect() as client:
        client.request("GET", f"/gated?gate={tag}")
        server.wait_for_log(f"APP gate={tag} begun")
        server.send_signal(signal.SIGINT)
        server.wait_for_log("shutting down")
        server.stop(signal.SIGINT)
    assert "Traceback" not in server.log_text()


def test_the_drain_ends_in_time(serve, tag):
    """PR-16: given up after the time-out, the app is cancelled so that its ``finally`` runs."""
    server = serve("tests.apps:app", "--timeout-graceful-shutdown", "0.3")
    with server.connect() as client:
        client.request("GET", f"/with_finally?{tag}")
        server.wait_for_log(f"APP {tag} begun")
        assert server.stop(signal.SIGTERM) == 0
        server.wait_for_log(f"APP {tag} finally")


THREADS_AT_WORK = """
    import atexit, asyncio, sys, threading, selectserve

    atexit.register(print, "at exit", flush=True)

    def work():
        print("at work", flush=True)
        threading.Event().wait()

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        if scope["path"] == "/executor":
            await asyncio.to_thread(work)
        elif scope["path"] == "/pool":
            await selectserve.run_in_thread(work)
        threading.Thread(target=work).start()
        if scope["path"] == "/thread":
            await selectserve.sleep(1000)
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})

    def wsgi(environ, start_response):
        work()
"""


@pytest.mark.parametrize("signals", [1, 2])
@pytest.mark.parametrize("way", ["executor", "pool", "thread", "wsgi"])
def test_threads_at_work_do_not_hold_the_end(serve, module, way, signals):
    """They have as long as requests have; a second signal is the end of that, too."""
    folder = module(THREADS_AT_WORK)
    patience = "0" if signals == 1 else "300"
    options = ["--app-dir", str(folder), "--timeout-graceful-shutdown", patience]
    if way == "wsgi":
        options += ["--interface", "wsgi"]
    server = serve(f"usersapp:{'wsgi' if way == 'wsgi' else 'app'}", *options)
    with server.connect() as client:
        client.request("GET", f"/{way}")
        assert server.stdout.wait_for("at work")
        server.send_signal()
        server.wait_for_log("shutting down")
        assert (server.stop() if signals == 2 else server.wait()) == 0
    server.wait_for_log("threads of the app are still at work: ")
    assert server.stdout.lines[-1] == "at exit"
    assert "Traceback" not in server.log_text() and "ignored" not in server.log_text()


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_wait_for_threads(serve, module, number, workers):
    """It comes when all but they has ended; what is to be done at the end, is."""
    folder = module(THREADS_AT_WORK)
    server = serve("usersapp:app", "--app-dir", str(folder), "--workers", workers)
    with server.connect() as client:
        client.request("GET", "/at_once")
        assert server.stdout.wait_for("at work") and client.read_response().status == 200
    server.send_signal(number)
    server.wait_for_log("threads of the app are still at work: ")
    assert server.stop(number) == 0
    assert server.stdout.lines[-1] == "at exit"
    assert "Traceback" not in server.log_text() and "ignored" not in server.log_text()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")
@pytest.mark.parametrize("kind", ["Process", "Thread"])
def test_a_pool_that_its_app_leaves_open_does_not_hold_the_end(serve, module, kind):
    """Its threads are told that nothing more is to come; processes end by theirs."""
    folder = module(f"""
        import asyncio, os, selectserve, concurrent.futures, multiprocessing

        context = multiprocessing.get_context("fork")
        options = {{"mp_context": context}} if "{kind}" == "Process" else {{}}
        pool = concurrent.futures.{kind}PoolExecutor(1, **options)

        async def app(scope, receive, send):
            assert scope["type"] == "http"
            pid = await asyncio.get_running_loop().run_in_executor(pool, os.getpid)
            await send({{"type": "http.response.start", "status": 200}})
            await send({{"type": "http.response.body", "body": b"%d" % pid}})
    """)
    server = serve("usersapp:app", "--app-dir", str(folder))
    with server.connect() as client:
        pid = int(client.get("/").body)
    server.send_signal()
    try:
        server.process.wait(DEADLINE)
    except subprocess.TimeoutExpired:
        os.kill(pid, signal.SIGKILL)  # it has our pipes, and would outlive us
        raise
    assert server.wait() == 0
    assert "Traceback" not in server.log_text() and "ignored" not in server.log_text()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_work_of_threads_is_not_lost(serve, module, workers):
    """Neither in a worker: it may end because it has had its number of requests."""
    folder = module("""
        import threading, time

        def work():
            print("at work\\n", end="", flush=True)  # at once: the access line may come between
            time.sleep(0.3)
            print("done\\n", end="", flush=True)

        async def app(scope, receive, send):
            assert scope["type"] == "http"
            threading.Thread(target=work).start()
            await send({"type": "http.response.start", "status": 200})
            await send({"type": "http.response.body"})
    """)
    server = serve("usersapp:app", "--app-dir", str(folder), "--workers", workers)
    with server.connect() as client:
        assert client.get("/").status == 200
    assert server.stop() == 0
    assert [line for line in server.stdout.lines if "GET" not in line] == ["at work", "done"]


def test_a_start_that_failed_does_not_wait_for_threads(module):
    folder = module("""
        import atexit, threading

        atexit.register(print, "at exit", flush=True)

        async def app(scope, receive, send):
            await receive()
            threading.Thread(target=threading.Event().wait).start()
            await send({"type": "lifespan.startup.failed", "message": "no database"})
    """)
    options = ["--app-dir", str(folder), "--port", "0", "--timeout-graceful-shutdown", "0"]
    done = run_server("usersapp:app", *options)
    assert (done.returncode, done.stdout) == (3, "at exit\n"), done.stderr
    assert "no database" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_app_that_cannot_be_loaded_is_not_held_by_its_threads(module, workers):
    folder = module("""
        import threading

        threading.Thread(target=threading.Event().wait).start()
        raise ImportError("of half an app")
    """)
    options = ["--app-dir", str(folder), "--port", "0", "--workers", workers]
    done = run_server("usersapp:app", *options)
    assert done.returncode == 1, done.stderr
    assert "of half an app" in done.stderr


def test_the_threads_of_a_program_are_waited_for(module):
    """Only the app's have a deadline, and nothing of what stands behind run() is lost."""
    program = """
    def host():
        sys.stdin.read()
        print("the host's is done", flush=True)

    if __name__ == "__main__":
        threading.Thread(target=host).start()
        selectserve.run(app, port=0, timeout_graceful_shutdown=0, access_log=False)
        sys.exit(5)
    """
    folder = module(THREADS_AT_WORK + program)
    process = subprocess.Popen(
        [sys.executable, str(folder / "usersapp.py")], env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = Lines(process.stdout), Lines(process.stderr)
    try:
        port = int(err.wait_for(r"http://127.0.0.1:(\d+)")[1])
        with RawClient(("127.0.0.1", port)) as client:
            client.request("GET", "/thread")
            assert out.wait_for("at work")
            process.send_signal(signal.SIGTERM)
            assert err.wait_for("threads of the app are still at work: ")
        process.stdin.close()
        assert process.wait(DEADLINE) == 5
    finally:
        process.kill()
        process.wait(DEADLINE)
        out.close()
        err.close()
    assert out.lines == ["at work", "the host's is done", "at exit"]
    assert "ignored" not in err.text()


# -- run() ----------------------------------------------------------------------------------------


def test_run_takes_the_same_names(module):
    """selectserve.run(app, **options): an app object, no command line."""
    folder = module("""
        import selectserve
        from tests.apps import app

        selectserve.run(app, port=0, access_log=False, header=[("x-run", "1")])
        print("run has returned")
        """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(folder / "usersapp.py")],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stderr.readline()
        port = int(re.search(r"http://127.0.0.1:(\d+)", line)[1])
        with RawClient(("127.0.0.1", port)) as client:
            assert client.get("/hello").get("x-run") == b"1"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0 and out == "run has returned\n"
    finally:
        process.kill()
        process.communicate()


def test_run_refuses_an_unknown_option(module):
    folder = module("""
        import selectserve

        try:
            selectserve.run("tests.apps:app", prot=0)
        except selectserve.ConfigError as exc:
            print("refused:", exc)
        """)
    done = subprocess.run(
        [sys.executable, str(folder / "usersapp.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert "refused:" in done.stdout and "prot" in done.stdout, done.stderr


def test_the_console_script_is_declared():
    """`pip install .` gives `selectserve`, typed, with nothing else to install."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'selectserve = "selectserve.cli:main"' in text
    assert "dependencies = []" in text
    assert (ROOT / "selectserve" / "py.typed").exists()


# -- the streams ----------------------------------------------------------------------------------


def test_a_log_whose_reader_is_gone_does_not_stop_the_server():
    """PX-11."""
    process = subprocess.Popen(
        server_command("tests.apps:app", "--port", "0"),
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        port = int(re.search(r"http://127.0.0.1:(\d+)", process.stderr.readline())[1])
        process.stderr.close()
        process.stdout.close()
        for _ in range(3):
            with RawClient(("127.0.0.1", port)) as client:
                assert client.get("/hello").body == b"hello"
                client.send(b"bad\r\n\r\n")
                assert client.read_response().status == 400
        process.send_signal(signal.SIGTERM)
        process.wait(DEADLINE)
    finally:
        process.kill()
        process.wait(DEADLINE)
