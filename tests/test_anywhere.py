"""The built file where there is less: less library, less system, nobody's rights, a host program.

Each case serves for real, HTTP and where it can a WebSocket, on a socket that the test listens on
and hands over: so nothing need be read from a log, which some of these places do not have.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile

import pytest

from .support import DEADLINE, ROOT, RawClient

SMALLER = str(ROOT / "tests" / "smaller.py")
BARE = ["env", "-i", "LC_ALL=C"]  # no HOME, no PATH, no UTF-8


def pythons_for_everybody():
    """Return the interpreters that nobody may run: not those in somebody's home."""
    return [path for path in (sys.executable, "/usr/bin/python3") if is_for_everybody(path)]


def is_for_everybody(program):
    """Tell whether the library of a Python may be read by all."""
    if not os.path.exists(program):
        return False
    done = subprocess.run([program, "-c", "print(__import__('os').__file__)"], capture_output=True)
    path = os.path.realpath(done.stdout.decode().strip())
    while path != "/":
        needed = 0o4 if os.path.isfile(path) else 0o5
        if os.stat(path).st_mode & needed != needed:
            return False
        path = os.path.dirname(path)
    return True


FOR_EVERYBODY = pythons_for_everybody() if os.name == "posix" and os.geteuid() == 0 else []
NOBODY = pytest.mark.skipif(
    not FOR_EVERYBODY, reason="needs root, who can become nobody, and a Python outside of homes"
)


@pytest.fixture
def somewhere(place, tmp_path):
    """Return a context manager that runs a command which serves ``tiny:app``, and checks it."""

    @contextlib.contextmanager
    def run(prefix, *arguments, app="tiny:app", cwd=place, **streams):
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        errors = (tmp_path / "stderr").open("wb")
        command = [*prefix, str(place / "selectserve.py"), app, *arguments]
        command += ["--fd", str(listener.fileno()), "--lifespan", "off"]
        streams = {"stdout": subprocess.DEVNULL, "stderr": errors, **streams}
        process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, pass_fds=[listener.fileno()], **streams
        )
        listener.close()
        errors.close()
        try:
            yield address
            process.send_signal(signal.SIGTERM)
            code = process.wait(DEADLINE)
            said = (tmp_path / "stderr").read_text(errors="replace")
            assert code == 0 and "Traceback" not in said and "has a bug" not in said, said
        finally:
            if process.poll() is None:
                process.kill()
                process.wait(DEADLINE)
            print((tmp_path / "stderr").read_text(errors="replace"))

    return run


def python(*flags, less=()):
    """Return the beginning of a command: Python, and what is taken away from it."""
    return [sys.executable, *flags, *([SMALLER, *less, "--"] if less else [])]


def for_nobody(less):
    """The same, with a Python that nobody can read."""
    return [FOR_EVERYBODY[0], "-I", SMALLER, *less, "--"]


def get(address, path="/"):
    """Return status and body."""
    with RawClient(address) as client:
        response = client.get(path)
        return response.status, response.body


def check_http(address):
    """Two requests on a connection."""
    with RawClient(address) as client:
        assert client.get("/").body == b"hello from anywhere"
        assert client.get("/").body == b"hello from anywhere"


def check_websocket(address, extension=b""):
    """Shake hands, be echoed."""
    with RawClient(address) as client:
        client.upgrade("Sec-WebSocket-Extensions: permessage-deflate")
        head = client.read_head()
        assert head.status == 101
        assert (head.get("sec-websocket-extensions") or b"").startswith(extension)
        assert extension or head.get("sec-websocket-extensions") is None
        text = 1000 * b"hello"  # long enough to be worth compressing
        client.send(b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text)
        first = client.read_exactly(1)[0]
        assert first == (0xC1 if extension else 0x81)
        assert extension or client.read_exactly(3 + len(text))[3:] == text


def fails(place, less, *arguments):
    """Return the one sentence with which a start fails."""
    done = subprocess.run(
        [*python("-I", "-S", less=less), str(place / "selectserve.py"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=place,
        timeout=DEADLINE,
    )
    assert done.returncode in (1, 2), done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# -- less around it ------------------------------------------------------------------------------


def test_isolated_and_without_site(somewhere):
    with somewhere(python("-I", "-S"), "--app-dir", ".") as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


def test_isolated_workers(somewhere, place):
    """The flags are handed on to the processes that a supervisor starts anew."""
    (place / "flagged.py").write_text(
        "import sys\nassert sys.flags.isolated and sys.flags.no_site\nfrom tiny import app\n"
    )
    options = ("--workers", "2", "--worker-start", "spawn")
    with somewhere(python("-I", "-S"), *options, app="flagged:app") as address:
        check_http(address)


def test_no_home_no_locale(somewhere):
    with somewhere([*BARE, *python()]) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


@NOBODY
def test_nobody_in_a_folder_that_is_not_his(somewhere):
    """No right to write anywhere near, no home, no new files."""
    with somewhere([*BARE, *for_nobody(less=["nofiles", "nobody"])]) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


@NOBODY
def test_nobody_on_a_port_of_his_own(place, serve):
    program = [*for_nobody(less=["nobody"]), str(place / "selectserve.py")]
    server = serve("tiny:app", "--lifespan", "off", cwd=place, program=program)
    check_http(server.address)
    assert server.stop() == 0


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare")
def test_a_read_only_file_system(somewhere, place):
    script = 'mount -o remount,ro,bind / && exec "$@"'
    probe = [  # nothing can be written there any more, and so not where we are
        "unshare", "-m", "sh", "-c", 'mount -o remount,ro,bind / && ! touch "$0"', f"{place}/x",
    ]  # fmt: skip
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount anything")
    with somewhere(["unshare", "-m", "sh", "-c", script, "sh", *python()]) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("what", ["full", "closed"])
def test_streams_that_take_nothing(somewhere, stream, what):
    streams, prefix = {}, python()
    if what == "closed":
        number = {"stdout": 1, "stderr": 2}[stream]
        prefix = ["sh", "-c", f'exec "$@" {number}>&-', "sh", *prefix]
        with somewhere(prefix) as address:
            check_http(address)
        return
    with open("/dev/full", "wb") as full:
        streams[stream] = full
        with somewhere(prefix, **streams) as address:
            check_http(address)
            check_websocket(address, b"permessage-deflate")


@pytest.mark.parametrize("options", [("--trace",), ("--workers", "2")], ids=" ".join)
def test_nobody_to_be_told(somewhere, tmp_path, options):
    """With stderr closed there is no narration, and no complaint about that elsewhere."""
    with (tmp_path / "stdout").open("wb") as stdout:
        prefix = ["sh", "-c", 'exec "$@" 2>&-', "sh", *python()]
        with somewhere(prefix, *options, "--no-access-log", stdout=stdout) as address:
            check_http(address)
    assert (tmp_path / "stdout").read_text() == ""


def test_few_descriptors(somewhere):
    with somewhere(python(less=["nofile=32"])) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")
        clients = [RawClient(address) for _ in range(40)]  # more than it can accept
        for client in clients:
            client.close()
        check_http(address)


def test_little_memory(somewhere):
    with somewhere(python("-I", "-S", less=["memory=64"])) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


REFUSED = """
import os, socket
new_file, program = lambda: open("x", "w"), lambda: os.execv("/bin/true", ["x"])
for attempt in (os.fork, socket.socket, new_file, program):
    try: attempt()
    except OSError as exc: print(type(exc).__name__)
"""


def test_all_of_it_at_once(somewhere):
    """No new file, few descriptors, little memory."""
    less = ["nofiles", "nofile=32", "memory=64"]
    with somewhere(python("-I", "-S", less=less)) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


def test_a_kernel_that_refuses(somewhere, tmp_path):
    """The socket was handed over; no other is to be had, no file to write, process or thread."""
    less = ["nofile=32", "memory=64", "seccomp"]
    refused = tmp_path / "refused.py"
    refused.write_text(REFUSED)
    command = [*python("-I", "-S", less=less), str(refused)]
    probe = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if "no seccomp" in probe.stderr or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip(f"seccomp cannot be had here: {probe.stderr.strip()[-200:]}")
    assert probe.stdout.split() == ["PermissionError"] * 4, probe.stderr
    with somewhere(python("-I", "-S", less=less)) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")
        assert get(address, "/thread") == (200, THREADS["nothreads"])


# -- less of the library -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing", ["ssl", "asyncio", "multiprocessing", "ctypes", "mmap", "subprocess,concurrent"]
)
def test_what_it_can_do_without(somewhere, missing):
    with somewhere(python("-I", "-S", less=[f"without={missing}"])) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")


def test_without_zlib(somewhere):
    """Messages are not compressed; that is all."""
    with somewhere(python("-I", "-S", less=["without=zlib"])) as address:
        check_http(address)
        check_websocket(address)


THREADS = {
    "without=threading": b"this Python has no threads, which run_in_thread needs",
    "without=threading,_thread": b"this Python has no threads, which run_in_thread needs",
    "nothreads": b"can't start new thread",
}


@pytest.mark.parametrize("less", THREADS)
def test_without_threads(somewhere, less):
    with somewhere(python("-I", "-S", less=[less])) as address:
        check_http(address)
        check_websocket(address, b"permessage-deflate")
        assert get(address, "/thread") == (200, THREADS[less])
        check_http(address)


def test_without_threads_workers_are_forks(somewhere):
    with somewhere(
        python("-I", "-S", less=["without=threading,_thread"]), "--workers", "2"
    ) as address:
        check_http(address)


def test_without_nearly_everything(somewhere):
    names = "ssl,zlib,asyncio,threading,_thread,multiprocessing,ctypes,mmap,subprocess,concurrent"
    with somewhere(python("-I", "-S", less=["without=" + names])) as address:
        check_http(address)
        check_websocket(address)


@pytest.mark.parametrize(
    ("less", "arguments", "words"),
    [
        ("without=ssl", ("--ssl-certfile", "x.pem"), "built without ssl"),
        ("without=asyncio", ("--loop", "asyncio"), "--loop asyncio: this Python"),
        ("without=threading", ("--loop", "asyncio"), "--loop asyncio: this Python"),
        ("without=threading", ("--interface", "wsgi"), "has no threads, which a WSGI app needs"),
        ("without=threading", ("--reload",), "cannot start other processes"),
        ("without=threading", ("--log-config", "x.ini"), "--log-config: this Python"),
        ("without=subprocess", ("--workers", "2", "--worker-start", "spawn"), "start other"),
        ("nofork", ("--workers", "2"), "no worker can be started: Operation not permitted"),
    ],
)
def test_a_missing_feature_is_one_sentence_when_asked_for(place, less, arguments, words):
    app = "tiny:wsgi_app" if "wsgi" in arguments else "tiny:app"
    assert words in fails(place, [less], app, "--port", "0", *arguments)


def test_fork_forbidden(somewhere):
    with somewhere(python(less=["nofork"])) as address:
        check_http(address)


# -- inside of something else --------------------------------------------------------------------

FETCH = """
def fetch(server):
    import socket
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
        with client.makefile("rb") as stream:
            return stream.read().rpartition(b"\\r\\n")[2].decode()
"""
HOSTS = {
    "on a thread": """
with selectserve.serving("tiny:app", lifespan="off") as server:
    print(fetch(server))
""",
    "in a loop": """
import selectors, threading
server = selectserve.by_hand("tiny:app", lifespan="off")
loop = selectors.DefaultSelector()
loop.register(server, selectors.EVENT_READ)
client = threading.Thread(target=lambda: print(fetch(server)))
client.start()
while client.is_alive():
    loop.select(0.05)
    server.tick(0)
client.join()
server.close()
loop.close()
""",
}


def run_host(path, host, *flags):
    """Run a host program with ``path`` on its sys.path; return what it prints."""
    program = f"import sys; sys.path[:0] = {path!r}\nimport selectserve\n{FETCH}{HOSTS[host]}"
    done = subprocess.run(
        [sys.executable, *flags, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


@pytest.mark.parametrize("host", HOSTS)
def test_inside_a_host_program(place, host):
    assert run_host([str(place)], host, "-I", "-S") == "hello from anywhere\n"


@pytest.mark.parametrize("form", ["file", "package"])
def test_from_an_archive_on_the_path(place, tmp_path, form):
    path = tmp_path / "library.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(place / "tiny.py", "tiny.py")
        if form == "file":
            archive.write(place / "selectserve.py", "selectserve.py")
        else:
            for source in (ROOT / "selectserve").iterdir():
                if source.is_file():
                    archive.write(source, f"selectserve/{source.name}")
    assert run_host([str(path)], "on a thread", "-I", "-S") == "hello from anywhere\n"


def test_in_python_c(place, serve):
    """``run`` serves in ``python -c``, which ends when it is told to."""
    code = "import selectserve, sys; sys.exit(selectserve.run('tiny:app', port=0, lifespan='off'))"
    server = serve("--", cwd=place, program=[sys.executable, "-c", code])
    check_http(server.address)
    assert server.stop() == 0
