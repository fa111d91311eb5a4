"""What is logged, in whose words and where; and that nobody waits for a log."""

from __future__ import annotations

import io
import json
import logging
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from selectserve.access import CLIENT_LEFT, CUT_OFF, AccessFormat, Exchange, RequestIds
from selectserve.errors import ClientDisconnected, ConfigError
from selectserve.http1 import Request
from selectserve.logs import MAX_COMPLAINTS, MAX_KEPT, Complaints, Outlet, is_disconnect
from selectserve.reactor import PIPE_BUF, Reactor

from .support import (
    DEADLINE,
    ROOT,
    FakeClock,
    FakeSelector,
    Lines,
    RawClient,
    ScriptedSocket,
    run_server,
    server_command,
)
from .test_deadlines import Stage, hello

APP = ("tests.apps:app", "--lifespan", "off")
EPOCH = 1_700_000_000.5


def make_request(target=b"/a/b?x=1", *headers, method="GET") -> Request:
    path, _, query = target.partition(b"?")
    request = Request(method, target, path, query, "1.1")
    request.headers = list(headers)
    return request


def line_of(text, request=None, **options) -> str:
    exchange = Exchange(
        request or make_request(), options.pop("client", ("203.0.113.7", 99)),
        options.pop("status", 200), **options,
    )  # fmt: skip
    return AccessFormat(text, lambda: EPOCH).line(exchange)


# -- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, line",
    [
        ("%(h)s %(l)s %(u)s", "203.0.113.7 - -"),
        ("%(r)s|%(m)s|%(U)s|%(q)s|%(H)s", "GET /a/b?x=1 HTTP/1.1|GET|/a/b|x=1|HTTP/1.1"),
        ("%(s)s %(B)s %(b)s", "200 1234 1234"),
        ("%(T)s %(M)s %(D)s %(L)s", "1 1500 1500250 1.500250"),
        ("%(f)s %(a)s", "- -"),
        ("%({x-a}i)s %({X-B}i)s %({x-c}o)s", "- - answer"),
        ("100%% %(s)s", "100% 200"),
        ("%(p)s", str(os.getpid())),
    ],
)
def test_tokens(text, line):
    assert line_of(
        text, size=1234, seconds=1.50025, answer_headers=[(b"X-C", b"answer")]
    ) == line  # fmt: skip


def test_what_the_client_says_stays_in_its_field():
    request = make_request(
        b'/%0a?"',
        (b"user-agent", b'Mozilla" 200 \x1b[31m\x85\xff'),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"authorization", b"Basic em\xc3\xb6"),
    )
    line = line_of('"%(a)s" "%(r)s" %({x-a}i)s %(u)s', request)
    assert line.count('"') == 4 and line.isprintable(), line
    assert line.endswith(" 1, 2 -")
    for given, user in ((b"Basic Ym9iOnNlY3JldA==", "bob"), (b"Bearer x", "-"), (b"Basic !", "-")):
        assert line_of("%(u)s", make_request(b"/", (b"authorization", given))) == user


def test_the_time_is_when_the_request_came(monkeypatch):
    import time

    for zone, shown in (
        ("UTC", "14/Nov/2023:22:13:18 +0000"),
        ("UTC-5:30", "15/Nov/2023:03:43:18"),
    ):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        assert line_of("%(t)s", seconds=2.0).startswith(f"[{shown}")
        assert json.loads(line_of("json", seconds=2.0))["time"].startswith("2023-11-")
    monkeypatch.undo()
    time.tzset()


def test_nothing_to_show():
    assert line_of("%(h)s %(b)s %(q)s", make_request(b"/"), client=None) == "unix - -"
    headers = iter([(b"a", b"b")])  # the app's iterator, used up when it is logged
    assert line_of("%({a}o)s %(s)s", answer_headers=headers) == "- 200"


def test_json():
    request = make_request(
        b"/a?b", (b"host", b"h"), (b"user-agent", b'"\xff'), (b"x-request-id", b"id1")
    )
    line = line_of("json", request, size=5, seconds=0.0123456, mark=CLIENT_LEFT)
    assert "\n" not in line
    assert json.loads(line) == {
        "time": json.loads(line)["time"],
        "client": "203.0.113.7",
        "port": 99,
        "method": "GET",
        "path": "/a",
        "query": "b",
        "protocol": "HTTP/1.1",
        "status": 200,
        "bytes": 5,
        "ms": 12.346,
        "host": "h",
        "user_agent": '"\xff',
        "request_id": "id1",
        "client_left": True,
    }


def test_json_says_who_ended_it():
    for mark, name in ((CLIENT_LEFT, "client_left"), (CUT_OFF, "cut_off"), ("", "")):
        fields = json.loads(line_of("json", mark=mark))
        assert [key for key in fields if fields[key] is True] == [name] * bool(mark)


@pytest.mark.parametrize(
    "text", ["%(Q)s", "plain", "%h %s", "%(h)s %", "%(h)s %(s)d", "%({a}e)s %(h)s"]
)
def test_a_format_that_is_none(text):
    with pytest.raises(ConfigError, match="--access-log-format"):
        AccessFormat(text, lambda: 0.0)


def test_formats_end_to_end(serve):
    server = serve(*APP, "--access-log-format", "combined")
    with server.connect() as client:
        client.get("/hello?a=1", "User-Agent: me", "Referer: http://r/")
        client.get("/nowhere")
        client.send(b"GET / HTTP/9.9\r\n\r\n")
        client.read_response()
    assert server.stdout.wait_for(
        r"^127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:[\d:]{8} [+-]\d{4}\] "
        r'"GET /hello\?a=1 HTTP/1\.1" 200 5 "http://r/" "me"$'
    ), server.stdout.text()
    assert server.stdout.wait_for(r'"GET /nowhere HTTP/1\.1" 404 11 "-" "-"$')


def test_json_end_to_end(serve):
    server = serve(*APP, "--access-log-format", "json", "--request-id")
    with server.connect() as client:
        first = client.get("/hello", "X-Request-ID: given-1")
        second = client.get("/raise_before")
    lines = [server.stdout.wait_for(f".*{path}.*")[0] for path in ("/hello", "/raise_before")]
    seen = list(map(json.loads, lines))
    assert [(one["path"], one["status"]) for one in seen] == [
        ("/hello", 200),
        ("/raise_before", 500),
    ]
    assert seen[0]["request_id"] == "given-1" and seen[1]["request_id"]
    assert first.get("x-request-id") == b"given-1"
    assert second.status == 500
    server.wait_for_log(rf"the app failed: GET /raise_before \[{seen[1]['request_id']}\]")


def test_the_default_line_is_unchanged(serve):
    server = serve(*APP)
    with server.connect() as client:
        client.get("/hello")
    assert server.stdout.wait_for(
        r'^INFO:     127\.0\.0\.1:\d+ - "GET /hello HTTP/1\.1" 200 5 \d+\.\dms$'
    ), server.stdout.text()


@pytest.mark.parametrize("target, size", [("/big?size=200000", 200000), ("/stream?length=1", 15)])
def test_the_line_comes_with_the_last_byte(serve, target, size):
    """Also when it left before the app said that it was the last: the client is still there."""
    server = serve(*APP)
    with server.connect() as client:
        assert len(client.get(target).body) == size
        assert server.stdout.wait_for(rf'"GET {re.escape(target)} HTTP/1.1" 200 {size} [\d.]+ms$')


@pytest.mark.parametrize("method, size", [("GET", 22), ("HEAD", 0)])
def test_a_failure_is_logged_with_its_numbers(serve, method, size):
    server = serve(*APP)
    with server.connect() as client:
        client.request(method, "/raise_before")
        assert client.read_response(method).status == 500
    assert server.stdout.wait_for(rf'"{method} /raise_before HTTP/1\.1" 500 {size} \d+\.\dms$')


def test_a_wrong_format_is_told_at_start():
    done = run_server(*APP, "--access-log-format", "%(nope)s")
    assert done.returncode == 2 and "there is no token %(nope)s" in done.stderr
    assert "Traceback" not in done.stderr


# -- what is an error ------------------------------------------------------------------------------


class Group(Exception):
    """An exception group, which Python has from 3.11 on."""

    @property
    def exceptions(self):
        return self.args


def test_a_group_of_disconnects_is_one():
    """TX-23: send() raises in a task of a group, and the group is what comes out of the app."""
    gone = ClientDisconnected("the client is gone")
    assert is_disconnect(Group(gone, Group(gone)))
    assert not is_disconnect(Group(gone, Group(gone, KeyError("a bug"))))
    assert not is_disconnect(Group())


def framed(cause):
    """Return what a framework makes of it: Litestar streams in a TaskGroup, and raises its own."""
    exc = RuntimeError("exception caught after response started")
    exc.__cause__ = cause
    return exc


def test_a_disconnect_is_known_at_any_remove():
    gone, other = ClientDisconnected("gone"), ValueError("of the app")
    for exc in (gone, framed(gone), Group(gone), framed(Group(gone, framed(Group(framed(gone)))))):
        assert is_disconnect(exc)
    for exc in (other, framed(other), Group(gone, other), framed(Group(framed(Group(other))))):
        assert not is_disconnect(exc)
    other.__context__ = Group(gone, other)  # Starlette raises what was alone in a group
    assert not is_disconnect(other) and not is_disconnect(other.__context__)


class Left(LookupError):
    """What a framework calls it."""


@pytest.mark.parametrize("made", [AttributeError, KeyError, TypeError, UnboundLocalError])
def test_a_bug_in_what_handles_a_disconnect_is_none(made):
    """… which Python calls its context; what was raised from it, or is of a framework, says it."""
    gone = ClientDisconnected("gone")
    bug = made("of the app")
    bug.__context__ = gone
    for exc in (bug, framed(bug), Group(gone, bug)):
        assert not is_disconnect(exc)
    for exc in (Left(), RuntimeError("the stream has ended"), OSError(), Exception()):
        exc.__context__ = gone
        assert is_disconnect(exc)
    bug.__cause__ = gone
    assert is_disconnect(bug)


def test_a_bug_after_a_disconnect_is_logged(serve, tag):
    server = serve("tests.apps:app")
    with server.connect() as client:
        client.request("GET", f"/bug_after_disconnect?{tag}")
        server.wait_for_log(f"APP {tag} begun")
    server.wait_for_log("NameError: name 'undefined' is not defined")
    assert "ClientDisconnected" in server.log_text()


# -- request ids -----------------------------------------------------------------------------------


def test_ids_are_passed_through_or_made():
    ids = RequestIds()
    request = make_request(b"/", (b"x-request-id", b"abc-1.2_3"))
    before = request.headers
    assert ids.give(request) == b"abc-1.2_3" and request.headers is before
    made = set()
    for given in ([], [b""], [b"a b"], [b"x" * 129], [b"\xff"], [b"a", b"b"]):
        request = make_request(b"/", (b"a", b"b"), *((b"x-request-id", one) for one in given))
        one = ids.give(request)
        assert request.headers == [(b"a", b"b"), (b"x-request-id", one)]
        made.add(one)
    assert len(made) == 6
    assert RequestIds().give(make_request()) not in made


def test_ids_end_to_end(serve):
    server = serve(*APP, "--request-id")
    with server.connect() as client:
        response = client.get("/scope")
        own = response.get("x-request-id")
        assert own and f"(b'x-request-id', {own!r})".encode() in response.body
        response = client.get("/scope", "X-Request-ID: from-outside")
        assert response.get("x-request-id") == b"from-outside"
        assert client.get("/hello").get("x-request-id") not in (own, b"from-outside", None)
        made = [client.get("/scope") for _ in range(4)]  # the same request again, and a new id
        ids = [response.get("x-request-id") for response in made]
        assert len(set(ids)) == 4
        assert all(
            response.body.count(b"x-request-id") == 1 and repr(one).encode() in response.body
            for response, one in zip(made, ids)
        )
    plain = serve(*APP)
    with plain.connect() as client:
        assert client.get("/hello").get("x-request-id") is None


HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@pytest.mark.parametrize(
    ("target", "fields", "status"),
    [
        ("/echo", (*HANDSHAKE, "Sec-WebSocket-Version: 13"), 101),
        ("/deny", (*HANDSHAKE, "Sec-WebSocket-Version: 13"), 402),
        ("/refuse", (*HANDSHAKE, "Sec-WebSocket-Version: 13"), 403),
        ("/echo", (*HANDSHAKE, "Sec-WebSocket-Version: 12"), 426),
        ("/last", ("Transfer-Encoding: gzip",), 501),
    ],
)
def test_ids_of_what_no_app_answers(serve, target, fields, status):
    """A WebSocket, a refused one, and a request that is refused: in the answer and in its line."""
    server = serve("tests.apps_websocket:app", "--request-id", "--access-log-format", "json")
    with server.connect() as client:
        client.request("GET", target, *fields)
        own = client.read_head()
        assert own.status == status
    with server.connect() as client:
        client.request("GET", target, "X-Request-ID: of-mine", *fields)
        given = client.read_head()
    assert given.get("x-request-id") == b"of-mine" and own.get("x-request-id")
    for answer in (own, given):
        number = answer.get("x-request-id").decode()
        line = server.stdout.wait_for(f'.*"request_id": "{number}".*')
        assert line, server.stdout.text()
        assert json.loads(line[0])["status"] == status


# -- nobody waits for a log ------------------------------------------------------------------------


def start(*arguments) -> subprocess.Popen:
    """Start a server whose pipes are the test's to read, or not."""
    return subprocess.Popen(
        server_command(*APP, *arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.fixture
def unread():
    """A server of APP whose stdout nobody reads yet: its process, its stderr and its address."""
    process = subprocess.Popen(
        server_command(*APP, "--port", "0"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    log = Lines(process.stderr)
    try:
        yield process, log, ("127.0.0.1", int(log.wait_for(r"http://127\.0\.0\.1:(\d+)")[1]))
    finally:
        process.kill()
        process.wait(DEADLINE)
        process.stdout.close()
        log.close()


def test_a_reader_that_sleeps_stops_nobody(unread):
    """Nobody reads stdout: the pipe is full after 64 KB, and requests go on."""
    process, _, address = unread
    with RawClient(address) as client:
        target = "/hello?" + "x" * 3000
        for _ in range(10):
            client.send(b"".join(request_bytes(target) for _ in range(50)))
            for _ in range(50):
                assert client.read_response().body == b"hello"
        # now somebody reads: whole lines, and how many there were none of
        lines = Lines(process.stdout)
        assert lines.wait_for(r"\d+ log lines were lost: nobody read them"), len(lines.lines)
        client.get("/last")
        assert lines.wait_for('"GET /last')
    text = lines.text().split("\n")
    lost = sum(int(line.split()[0]) for line in text if "were lost" in line)
    kept = [line for line in text if "were lost" not in line]
    assert all(re.fullmatch(r'INFO: .* - "GET /\S+ HTTP/1\.1" \d+ \d+ .*ms', x) for x in kept)
    assert len(kept) + lost == 501


def test_a_reader_that_wakes_up_at_the_end_gets_it_all(unread):
    process, log, address = unread
    with RawClient(address) as client:
        for _ in range(100):  # more than the pipe takes
            assert client.get("/hello?" + "x" * 1500).body == b"hello"
    process.send_signal(signal.SIGTERM)
    assert log.wait_for("shutting down")
    lines = Lines(process.stdout)
    assert process.wait(DEADLINE) == 0
    lines.thread.join(DEADLINE)
    assert (
        len(re.findall(r'^INFO: .* - "GET /\S+ HTTP/1\.1" 200 5 .*ms$', lines.text(), re.M)) == 100
    )


def test_lines_of_several_processes_do_not_mix_in_a_pipe(monkeypatch):
    """What is longer than PIPE_BUF may be torn by another one's write."""
    sizes = []
    write = os.write
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        outlet = Outlet(stream)
        monkeypatch.setattr(
            os, "write", lambda fd, data: sizes.append(len(data)) or write(fd, data)
        )
        outlet.write(("x" * 99 + "\n") * 100)
        monkeypatch.undo()
    assert sum(sizes) == 10_000 == len(os.read(reader, 20_000))
    assert max(sizes) <= PIPE_BUF and not any(size % 100 for size in sizes)
    os.close(reader)


def request_bytes(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode()


def test_a_reader_that_is_gone_stops_nobody():
    process = subprocess.Popen(
        server_command(*APP, "--port", "0"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    address = None
    for line in process.stderr:
        match = re.search(rb"http://127\.0\.0\.1:(\d+)", line)
        if match:
            address = "127.0.0.1", int(match[1])
            break
    process.stdout.close()
    process.stderr.close()
    try:
        for _ in range(20):
            with RawClient(address) as client:
                assert client.get("/hello").body == b"hello"
                assert client.get("/raise_before").status == 500  # logged to stderr
    finally:
        process.kill()
        process.wait(DEADLINE)


def test_a_full_disk_stops_nobody():
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    with open("/dev/full", "w") as full:
        process = subprocess.Popen(
            server_command(*APP, "--port", "0"), cwd=ROOT, stdout=full, stderr=subprocess.PIPE
        )
    log = Lines(process.stderr)
    try:
        match = log.wait_for(r"http://127\.0\.0\.1:(\d+)")
        with RawClient(("127.0.0.1", int(match[1]))) as client:
            for _ in range(20):
                assert client.get("/hello").body == b"hello"
        assert "Traceback" not in log.text()
    finally:
        process.kill()
        process.wait(DEADLINE)
        log.close()


@pytest.mark.parametrize("polled", [False, True])
def test_outlet_writes_lines_whole(monkeypatch, polled):
    if polled:  # as on systems where the pipe cannot be opened once more
        monkeypatch.setattr(os, "open", lambda *_: (_ for _ in ()).throw(OSError()))
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        outlet = Outlet(stream)
        monkeypatch.undo()
        assert outlet.polled == polled or not os.path.exists("/proc/self/fd")
        outlet.write("a\n" * 3000)
        assert os.read(reader, 100_000) == b"a\n" * 3000 and not outlet.kept
        stream.write("the app's, ")  # what the app has printed comes first
        outlet.write("line\n")
        assert os.read(reader, 100) == b"the app's, line\n"
        while not outlet.kept:
            outlet.write("x" * 99 + "\n")
        while len(outlet.kept) <= MAX_KEPT:
            outlet.write("y" * 999 + "\n")
        outlet.write("dropped\n" * 7)
        assert outlet.dropped == 7
        data = b""
        while outlet.kept:
            data += os.read(reader, 1 << 20)
            outlet.drain()
        data += os.read(reader, 1 << 20)
        lines = data.split(b"\n")
        assert {line[:1] for line in lines[:-2]} == {b"x", b"y"}
        assert {len(line) for line in lines[:-2]} == {99, 999}
        assert lines[-2:] == [b"7 log lines were lost: nobody read them", b""]
    os.close(reader)
    text = io.StringIO()
    Outlet(text).write("ä\n")
    assert text.getvalue() == "ä\n"


def test_outlet_encodes_what_it_can(tmp_path):
    with open(tmp_path / "log", "w", encoding="ascii") as stream:
        Outlet(stream).write("ä\udcff\n")
    assert (tmp_path / "log").read_bytes() == b"\\xe4\\udcff\n"


# -- logging configured ----------------------------------------------------------------------------

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"f": {"format": "%(name)s|%(levelname)s|%(message)s"}},
    "handlers": {"file": {"class": "logging.FileHandler", "formatter": "f", "filename": "FILE"}},
    "loggers": {
        "selectserve": {"handlers": ["file"], "level": "INFO", "propagate": False},
    },
}
INI = """
[loggers]
keys=root,server
[handlers]
keys=file
[formatters]
keys=f
[logger_root]
level=WARNING
handlers=
[logger_server]
level=INFO
handlers=file
qualname=selectserve
propagate=0
[handler_file]
class=FileHandler
args=("FILE",)
formatter=f
[formatter_f]
format=%(name)s|%(levelname)s|%(message)s
"""


def log_config(tmp_path, form: str) -> tuple[str, str]:
    log = str(tmp_path / "log.txt")
    path = tmp_path / f"config.{form}"
    path.write_text((json.dumps(CONFIG) if form == "json" else INI).replace("FILE", log))
    return str(path), log


@pytest.mark.parametrize("form", ["json", "ini"])
def test_log_config_and_reopening(tmp_path, form):
    path, log = log_config(tmp_path, form)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        process = subprocess.Popen(
            server_command(*APP, "--log-config", path, "--fd", str(sock.fileno())),
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=[sock.fileno()],
        )  # fmt: skip
        try:
            with RawClient(sock.getsockname()) as client:
                assert client.get("/hello").body == b"hello"
                lines = wait_for_lines(log, 2)
                assert re.match(r"selectserve\.error\|INFO\|selectserve running on ", lines[0])
                assert re.match(
                    r'selectserve\.access\|INFO\|127\.0\.0\.1:\d+ - "GET /hello', lines[1]
                )
                os.rename(log, log + ".1")
                client.get("/hello?moved")
                assert "moved" in wait_for_lines(log + ".1", 3)[2]
                process.send_signal(signal.SIGUSR1)
                for number in range(1000):
                    client.get(f"/hello?{number}")
                    if os.path.exists(log):
                        break
                client.get("/hello?new")
                assert any("new" in line for line in wait_for_lines(log, 1, "new"))
            process.terminate()
            output = process.communicate(timeout=DEADLINE)
            assert output == (b"", b"") and process.returncode == 0
        finally:
            process.kill()
            process.wait(DEADLINE)
            process.stdout.close()
            process.stderr.close()


def wait_for_lines(path, count, text="") -> list[str]:
    """Return the lines of a log file, once there are so many (a request was answered since)."""
    import threading
    import time

    end, pause = time.monotonic() + DEADLINE, threading.Event()
    while time.monotonic() < end:
        if os.path.exists(path):
            with open(path) as stream:
                lines = stream.read().split("\n")[:-1]
            if len(lines) >= count and any(text in line for line in lines):
                return lines
        pause.wait(0.01)
    raise AssertionError(f"{path} does not get {count} lines with {text!r}")


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("missing.json", None, "No such file"),
        ("missing.ini", None, "No such file"),
        ("broken.json", "{", "char 1"),
        ("broken.json", '{"version": 2}', "2"),
        ("broken.json", '{"version": 1, "handlers": {"h": {"class": "no.Such"}}}', "handler 'h'"),
        ("broken.ini", "nonsense", "no section headers|invalid"),
        ("some.yaml", "version: 1", "PyYAML"),
    ],
)
def test_a_bad_log_config_is_one_line(tmp_path, name, text, reason):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    if name.endswith("yaml"):
        try:
            import yaml  # noqa: F401
        except ImportError:
            pass
        else:
            pytest.skip("PyYAML is installed: it is not missed")
    done = run_server(*APP, "--log-config", str(path))
    assert done.returncode == 1, done.stderr
    assert len(done.stderr.strip().split("\n")) == 1 and "--log-config" in done.stderr
    assert re.search(reason, done.stderr), done.stderr


def test_log_config_in_yaml(tmp_path):
    """With a PyYAML, here one that reads JSON, which YAML contains."""
    (tmp_path / "yaml.py").write_text("import json\nsafe_load = json.load\n")
    path, log = log_config(tmp_path, "json")
    os.rename(path, tmp_path / "config.yaml")
    done = run_server(
        *APP, "--log-config", str(tmp_path / "config.yaml"), "--check",
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with open(log) as stream:
        assert "selectserve.error|INFO|the configuration is good" in stream.read()


def test_log_config_in_real_yaml(tmp_path):
    """What is YAML only; and a file that wants to run something."""
    pytest.importorskip("yaml", reason="PyYAML is not installed")
    path = tmp_path / "config.yaml"
    path.write_text(
        "version: 1  # a comment\n"
        'formatters: {f: {format: "%(name)s|%(message)s"}}\n'
        "handlers:\n  h: {class: logging.StreamHandler, formatter: f}\n"
        "loggers:\n  selectserve: {handlers: [h], level: INFO}\n"
    )
    done = run_server(*APP, "--log-config", str(path), "--check")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("selectserve.error|the configuration is good")
    path.write_text(f"!!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    done = run_server(*APP, "--log-config", str(path), "--check")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert not (tmp_path / "made").exists()


def run_code(code: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip


SELF_STOPPING = """
    import logging, os, signal, sys, selectserve
    {before}
    async def app(scope, receive, send):
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        os.kill(os.getpid(), signal.SIGTERM)
        await receive()
        await send({{"type": "lifespan.shutdown.complete"}})
    selectserve.run(app, port=0, {options})
"""


def test_a_dict_and_levels():
    config = {
        "version": 1,
        "handlers": {"h": {"class": "logging.StreamHandler", "level": "DEBUG"}},
        "loggers": {"selectserve": {"handlers": ["h"]}},
    }
    for level, options, shown in (
        ("NOTSET", "", True),
        ("ERROR", "", False),
        ("ERROR", ", log_level='info'", True),
    ):
        config["loggers"]["selectserve"]["level"] = level
        done = run_code(SELF_STOPPING.format(before="", options=f"log_config={config!r}{options}"))
        assert done.returncode == 0, done.stderr
        assert ("shutting down" in done.stderr) == shown, (level, options)


def test_handlers_of_the_host_program_are_respected():
    before = "logging.basicConfig(format='HOST %(name)s %(message)s', level=logging.INFO)"
    done = run_code(SELF_STOPPING.format(before=before, options=""))
    assert done.returncode == 0
    assert "HOST selectserve.error shutting down" in done.stderr
    assert done.stderr.count("shutting down") == 1


def test_the_lines_of_a_turn_are_one_write():
    """Each answer writes its line when it leaves, so all must have left before."""
    program = """
        import selectserve
        from selectserve.logs import AccessLog, access_logger, set_up_logging
        set_up_logging("info", False)
        reactor = selectserve.Reactor()
        log = AccessLog(reactor)
        writes = []
        access_logger.handlers[0].outlet.drain = lambda: writes.append(1)

        class Answer:
            def flush(self):
                log.write("answered")

        reactor.unflushed += [Answer(), Answer(), Answer()]
        reactor.flush()
        print(len(writes), access_logger.handlers[0].outlet.kept.count(b"answered"))
    """
    done = run_code(program)
    assert done.stdout == "1 3\n", done.stderr


def test_logging_that_is_disabled_logs_no_access():
    """``logging.disable`` counts for the lines that pass logging by, too."""
    program = """
        import logging, selectserve
        from selectserve.logs import AccessLog, set_up_logging
        set_up_logging("info", False)
        log = AccessLog(selectserve.Reactor())
        for level, line in ((logging.INFO, "hidden"), (logging.NOTSET, "shown")):
            logging.disable(level)
            log.write(line)
        log.flush()
    """
    done = run_code(program)
    assert done.stdout == "INFO:     shown\n", done.stderr


def test_a_record_that_cannot_be_written_is_dropped():
    from selectserve.logs import LogHandler

    handler = LogHandler(io.StringIO())
    handler.handle(logging.LogRecord("n", 20, "f", 1, "%d", ("no number",), None))
    handler.handle(logging.LogRecord("n", 20, "f", 1, "good", (), None))
    assert handler.stream.getvalue() == "good\n"


# -- hang-up ---------------------------------------------------------------------------------------


def test_a_hang_up_reloads(serve):
    server = serve(*APP)
    start = server.log_position()
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("reloaded: log files and certificates", start=start)
    with server.connect() as client:
        assert client.get("/hello").body == b"hello"
    assert server.stop() == 0


def test_a_terminal_that_is_closed_ends_the_server():
    master, slave = pty.openpty()
    process = subprocess.Popen(
        server_command(*APP, "--port", "0"), cwd=ROOT, stdin=slave, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    log = Lines(process.stderr)
    try:
        assert log.wait_for("running on")
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait(DEADLINE)
        log.close()


@pytest.mark.skipif(
    sys.implementation.name == "pypy",
    reason="PyPy does not tell that a signal was ignored at start",
)
def test_nohup_is_respected():
    process = subprocess.Popen(
        ["nohup", *server_command(*APP, "--port", "0")], cwd=ROOT, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    log = Lines(process.stderr)
    try:
        assert log.wait_for("running on")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
        assert "reloaded" not in log.text()
    finally:
        process.kill()
        process.wait(DEADLINE)
        log.close()


# -- what clients do wrong -------------------------------------------------------------------------


@pytest.fixture
def complaints():
    clock = FakeClock()
    pair = ScriptedSocket(), ScriptedSocket()
    reactor = Reactor(FakeSelector(clock), clock, wakeup_pair=pair)
    yield Complaints(reactor)
    reactor.close()


def test_a_flood_of_complaints_is_a_few_lines_and_a_number(complaints, caplog):
    clock = complaints.reactor.clock
    with caplog.at_level(logging.INFO, "selectserve.error"):
        for number in range(1000):
            complaints.log(logging.INFO, f"wrong {number}\x1b[31m\nforged")
        assert len(caplog.messages) == MAX_COMPLAINTS
        clock.advance(0.999)
        complaints.log(logging.INFO, "the same second")
        assert len(caplog.messages) == MAX_COMPLAINTS
        clock.advance(0.001)
        complaints.log(logging.INFO, "the next")
    assert caplog.messages[MAX_COMPLAINTS:] == [
        f"{1001 - MAX_COMPLAINTS} more complaints about clients",
        "the next",
    ]
    assert not any("\n" in line or "\x1b" in line for line in caplog.messages)
    assert complaints.timer is None


def test_the_number_is_told_though_nobody_complains_any_more(complaints, caplog):
    """A flood that ends is told in the end, once; calm seconds have no line and no timer."""
    reactor = complaints.reactor
    with caplog.at_level(logging.INFO, "selectserve.error"):
        for number in range(MAX_COMPLAINTS):
            complaints.log(logging.INFO, f"wrong {number}")
        assert not reactor.timers, "all was told"
        for number in range(3):
            reactor.clock.advance(0.1)
            complaints.log(logging.INFO, f"wrong {number}")
        reactor.tick()
    assert caplog.messages[MAX_COMPLAINTS:] == ["3 more complaints about clients"]
    assert (reactor.clock.now, reactor.timers) == (1001.0, [])
    complaints.tell_rest()
    assert len(caplog.messages) == MAX_COMPLAINTS + 1


def test_a_server_that_ends_tells_the_number_at_once(caplog):
    stage = Stage(hello)

    def script(visitor):
        visitor.connect()
        visitor.say(b"nonsense\r\n\r\n")
        yield 0

    def stop(visitor):
        yield 0.1
        stage.signal()

    for _ in range(MAX_COMPLAINTS + 7):
        stage.visit(script)
    stage.visit(stop)
    with caplog.at_level(logging.INFO, "selectserve.error"):
        assert stage.play() == 0
    assert "7 more complaints about clients" in caplog.messages
    live = [timer for _, _, timer in stage.world.last_timers if timer.action is not None]
    assert live == []


def test_a_level_nobody_asked_for_uses_up_no_lines(complaints, caplog):
    with caplog.at_level(logging.WARNING, "selectserve.error"):
        for _ in range(1000):
            complaints.log(logging.INFO, "not asked for")
        complaints.log(logging.WARNING, "asked for")
    assert caplog.messages == ["asked for"]


def test_a_broken_request_is_told_though_the_client_has_said_its_last(serve, tag):
    """… but not one that was only cut off: clients leave when they like."""
    server = serve("tests.apps:app", "--log-level", "info")
    for rest in (b"BAD\r\n\r\n", b"GET / HTTP/1.1\r\nHo"):
        with server.connect() as client, server.connect() as other:
            client.request("GET", f"/gated?gate={tag}{len(rest)}")
            server.wait_for_log(f"APP gate={tag}{len(rest)} begun")
            client.send(rest)
            client.half_close()
            assert other.get(f"/open_gate?gate={tag}{len(rest)}").status == 200
            assert client.read_response().status == 200
            assert client.read_response().status == 400
    log = server.complete_log()
    assert log.count("WARNING") == 1 and "400 invalid request line b'BAD'" in log, log
