"""The extensions of ASGI, rows EX of the requirements: files by the kernel, hints, trailers, debug.

A test sends a script with its request (see apps_extensions) and looks at both ends: what came over
the wire and what each ``send()`` did. Files are sent by the kernel, over TLS, without sendfile, and
without that or the page cache, when threads wait for the disk.
"""

from __future__ import annotations

import ast
import contextlib
import os
import re
import shutil
import socket
import ssl
import subprocess
import time

import pytest

from selectserve.asgi import EXTENSIONS
from selectserve.connection import HTTPConnection
from selectserve.filesend import HAVE_NOWAIT, FileSend
from selectserve.reactor import EVENT_READ, EVENT_WRITE, Reactor
from selectserve.response import DefaultLines, ResponseWriter
from selectserve.service import Service
from selectserve.task import NativeStepper
from selectserve.transport import FILE_PIECE, FILE_READ, PROGRESS, Transport

from .support import DEADLINE, FakeClock, RawClient, RecordedClient, Server

pytestmark = pytest.mark.usefixtures("healthy")
APP = "tests.apps_extensions:app"
OPENSSL, CURL = shutil.which("openssl"), shutil.which("curl")
HTTP = {"http.response.pathsend", "http.response.zerocopysend"}
HTTP_1_1 = HTTP | {"http.response.trailers", "http.response.early_hint"}
LETTERS = bytes(range(65, 91))
LARGE = 24 << 20  # more than all buffers between two ends
WAYS = {
    "kernel": ({}, ()),
    "asyncio": ({}, ("--loop", "asyncio")),
    "tls": ({}, ()),
    "read": ({"FILES": "sendfile"}, ()),
    "disk": ({"FILES": "sendfile cache"}, ()),
    "tls disk": ({"FILES": "cache"}, ()),
    "no threads": ({"FILES": "sendfile cache threads"}, ()),
}


# -- the two ends ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of some sizes: empty, small, large, and one that is a hole."""
    home = tmp_path_factory.mktemp("files")
    (home / "empty").write_bytes(b"")
    (home / "letters").write_bytes(LETTERS)
    (home / "large").write_bytes(os.urandom(1 << 20) * 3 + b"end")
    with open(home / "hole", "wb") as hole:
        hole.truncate(LARGE)
    return home


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate and its key, None without the openssl command."""
    if not OPENSSL:
        return None
    home = tmp_path_factory.mktemp("certificate")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    out = ("-keyout", str(home / "key"), "-out", str(home / "cert"), "-subj", "/CN=localhost")
    subprocess.run(
        [OPENSSL, "req", "-x509", *curve, *out], check=True, capture_output=True, timeout=DEADLINE
    )
    return home / "cert", home / "key"


class TLSClient(RawClient):
    """The raw client through Python's ssl; a cut without close_notify is an error."""

    def __init__(self, address, **options):
        super().__init__(address, **options)
        context = ssl._create_unverified_context()
        self.socket = context.wrap_socket(self.socket, suppress_ragged_eofs=False)


class Scripted:
    """A server of apps_extensions, and how to talk to it."""

    def __init__(self, way, certificate, *arguments):
        environment, options = WAYS[way]
        arguments += options
        self.secure = way.startswith("tls")
        if self.secure:
            if certificate is None:
                pytest.skip("the openssl command is not installed")
            arguments += ("--ssl-certfile", str(certificate[0]), "--ssl-keyfile")
            arguments += (str(certificate[1]),)
        self.server = Server(APP, "--lifespan", "off", *arguments, env=environment)
        self.process, self.stderr = self.server.process, self.server.stderr
        self.log_position, self.log_text = self.server.log_position, self.server.log_text
        self.count = 0

    def connect(self, **options):
        client = TLSClient if self.secure else RawClient
        return client(self.server.address, **options)

    def ask(self, client, script, *headers, method="GET", version="1.1"):
        """Send a request with a script; return the tag under which it will be told."""
        self.count += 1
        tag = f"script-{self.count}"
        client.request(method, f"/?{tag}", f"X-Script: {script!r}", *headers, version=version)
        return tag

    def told(self, tag):
        """Return what was told at the end of the script."""
        return ast.literal_eval(self.server.wait_for_log(rf"APP {tag} (\[.*\])$")[1])

    def play(self, script, *headers, method="GET", version="1.1", then=True):
        """Play a script; return response and what was told; the connection is to be in order."""
        with self.connect() as client:
            tag = self.ask(client, script, *headers, method=method, version=version)
            response = client.read_response(method)
            told = self.told(tag)
            if then:
                assert response.complete
                assert client.get("/scope").status == 200, "the connection is not in order"
            return response, told

    def descriptors(self):
        """Count the open descriptors of the process."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def resident(self):
        """Return the resident memory of the process, in bytes."""
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) * 1024


needs_proc = pytest.mark.skipif(
    not os.path.isdir("/proc/self/fd"), reason="descriptors and memory are counted in /proc"
)


@pytest.fixture(scope="module")
def ways(certificate):
    """Start a server for a way when it is first asked for."""
    started = {}

    def get(way):
        if way not in started:
            started[way] = Scripted(way, certificate)
        return started[way]

    yield get
    for scripted in started.values():
        scripted.server.kill()


@pytest.fixture(params=WAYS)
def server(request, ways):
    """Every way to send a file."""
    return ways(request.param)


@pytest.fixture
def kernel(ways):
    return ways("kernel")


@contextlib.contextmanager
def nothing_left_open(scripted):
    """Fail when a descriptor is left open, once the server had time to close it."""
    with scripted.connect() as client:
        assert client.get("/scope").status == 200
    before = None
    for _ in settling():  # the client above has to be gone
        before, last = scripted.descriptors(), before
        if before == last:
            break
    yield
    for _ in settling():
        if scripted.descriptors() <= before:
            return
    raise AssertionError(f"{scripted.descriptors()} descriptors are open, {before} were before")


def settling():
    """Yield until the deadline, with a breath between."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        time.sleep(0.02)
        yield


def start(status=200, **fields):
    headers = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
    return ("start", {"status": status, "headers": headers})


def pathsend(path):
    return ("pathsend", {"path": str(path)})


def zerocopysend(path, **fields):
    return ("zerocopysend", {"file": str(path), **fields})


# -- the table -------------------------------------------------------------------------------------


def offered(response):
    return ast.literal_eval(response.body.decode())


def test_what_is_offered_where(ways):
    """Each name exactly where it works; no debug, and no push, without HTTP/2."""
    seen = set()
    for way in "kernel", "tls":
        secure = {"tls"} if way == "tls" else set()
        scripted = ways(way)
        with scripted.connect() as client:
            for version, expected in ("1.1", HTTP_1_1), ("1.0", HTTP):
                names = offered(client.get("/scope", "Connection: keep-alive", version=version))
                assert set(names) == expected | secure
                seen |= set(names)
            denied = offered_to_websocket(client)
            assert set(denied) == {"websocket.http.response"} | secure
            seen |= set(denied)
    assert seen == set(EXTENSIONS) - {"http.response.debug"}


def offered_to_websocket(client):
    response = handshake(client)
    assert (response.status, response.get("x-denied")) == (451, b"yes")
    assert response.complete and response.body.startswith(b"no: ")
    return ast.literal_eval(response.body[4:].decode())


def handshake(client):
    client.upgrade()
    return client.read_response()


def test_a_websocket_can_be_denied_with_an_answer(kernel):
    """EX-11; the connection ends with it."""
    with kernel.connect() as client:
        assert offered_to_websocket(client) == {"websocket.http.response": {}}
        assert client.is_closed()


def test_each_request_has_extensions_of_its_own(server):
    with server.connect() as client:
        first, second = (offered(client.get("/scope")) for _ in range(2))
    assert first == second and "left" not in second
    assert all(content == {} for name, content in second.items() if name != "tls")


def test_tls_tells_what_was_agreed_on(ways):
    with ways("tls").connect() as client:
        agreed = offered(client.get("/scope"))["tls"]
        name, version, _ = client.socket.cipher()
        assert version == client.socket.version() == "TLSv1.3" and agreed["tls_version"] == 0x304
        suites = {"TLS_AES_128_GCM_SHA256": 0x1301, "TLS_AES_256_GCM_SHA384": 0x1302}
        assert agreed["cipher_suite"] == suites.get(name, agreed["cipher_suite"])
        assert agreed["server_cert"].startswith("-----BEGIN CERTIFICATE-----")


# -- debug -----------------------------------------------------------------------------------------


def test_debug_is_for_those_who_watch(kernel, certificate):
    """EX-01: the spec wants it in tests only. It is offered with --trace, and goes there."""
    script = [("debug", {"info": {"template": "a.html"}}), start(), ("body", {"body": b"x"})]
    response, told = kernel.play(script)
    assert (response.status, told[1:]) == (200, ["", ""])
    assert told[0].startswith("RuntimeError: ") and "--trace" in told[0]
    traced = Scripted("kernel", certificate, "--trace")
    with traced.server:
        with traced.connect() as client:
            assert set(offered(client.get("/scope"))) == HTTP_1_1 | {"http.response.debug"}
        response, told = traced.play([*script, ("debug", {"info": {}})])
        assert (response.body, told) == (b"x", ["", "", "", ""])
        traced.server.wait_for_log(r"debug +\{'template': 'a.html'\}$")
        response, told = traced.play([start(), script[0], script[2]])
        assert told[1].startswith("RuntimeError: "), "it belongs before the start"


# -- a path ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [False, True], ids=["", "length"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("name", ["empty", "letters", "large"])
def test_the_file_at_a_path_is_the_body(server, files, name, version, length):
    """EX-08: with or without Content-Length, and the connection is kept."""
    data = (files / name).read_bytes()
    fields = {"content_length": b"%d" % len(data)} if length else {}
    script = [start(x=b"y", **fields), pathsend(files / name), ("receive",), ("body", {})]
    response, told = server.play(script, "Connection: keep-alive", version=version)
    assert told == ["", "", "http.disconnect", ""], "the response was complete"
    assert (response.status, response.get("x")) == (200, b"y")
    assert (response.framing, response.get("content-length")) == ("length", b"%d" % len(data))
    assert response.body == data


@needs_proc
@pytest.mark.parametrize("status", [200, 204, 304])
@pytest.mark.parametrize("length", [False, True], ids=["", "length"])
@pytest.mark.parametrize("name", ["letters", "large"])
def test_where_there_is_no_body(kernel, ways, files, name, length, status):
    """EX-08: none for HEAD, 204 and 304, whatever the length says; and no file is read."""
    fields = {"content_length": b"7"} if length else {}
    for scripted in kernel, ways("tls"):
        for kind in pathsend(files / name), zerocopysend(files / name):
            script = [start(status, **fields), kind]
            method = "HEAD" if status == 200 else "GET"
            with nothing_left_open(scripted) if name == "large" else contextlib.nullcontext():
                response, told = scripted.play(script, method=method)
            assert told == ["", ""]
            assert (response.status, response.body) == (status, b"")
            expected = b"7" if length and status != 204 else None
            if method == "HEAD" and not length:
                expected = b"%d" % (files / name).stat().st_size
            assert response.get("content-length") == expected


@needs_proc
def test_what_cannot_be_sent(kernel, files, tmp_path):
    """EX-09: it raises out of send(), nothing is on the wire, and the app can still answer."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "socket").symlink_to("socket")
    cases = {
        files / "missing": "FileNotFoundError",
        files: "IsADirectoryError",
        tmp_path / "pipe": "OSError",
        tmp_path / "socket": "OSError",
        "/dev/zero": "OSError",
        "a\0b": "ValueError",
    }
    if os.geteuid() != 0:  # root may read everything
        (tmp_path / "secret").write_bytes(b"")
        (tmp_path / "secret").chmod(0)
        cases[tmp_path / "secret"] = "PermissionError"
    with nothing_left_open(kernel):
        for path, name in cases.items():
            response, told = kernel.play([start(), pathsend(path), ("body", {"body": b"sorry"})])
            assert told[1].partition(":")[0] == name, (path, told)
            assert (response.body, told[2]) == (b"sorry", "")
        for message in {}, {"path": None}, {"path": 3}, {"path": b"bytes"}:
            response, told = kernel.play([start(), ("pathsend", message), ("body", {})])
            assert told[1].startswith("TypeError: "), message


def test_a_missing_file_that_the_app_does_not_catch_is_a_500(kernel, files):
    """EX-09: no complete 200."""
    with kernel.connect() as client:
        client.request("GET", "/", "X-Script: " + repr([start(), pathsend(files / "missing")]))
        response = client.read_response()
    assert response.status == 500 and b"missing" not in response.body


@needs_proc
@pytest.mark.parametrize("length", [25, 27, 0])
def test_a_content_length_that_is_not_the_files(server, files, length):
    """The length is looked at before the first byte, so that no client has to count."""
    wrong = start(content_length=b"%d" % length)
    for kind in pathsend(files / "letters"), zerocopysend(files / "letters"):
        with nothing_left_open(server), server.connect() as client:
            tag = server.ask(client, [wrong, kind])
            response = client.read_response()
            assert response.status == 500 and b"ABC" not in response.body
            assert server.told(tag)[1].startswith("ValueError: 26 bytes")


def test_once_and_not_mixed(kernel, files):
    """EX-08: a path is a whole body; what comes behind is ignored, in front of it refused."""
    path = pathsend(files / "letters")
    response, told = kernel.play([start(), path, path, ("body", {"body": b"more"})])
    assert (response.body, told) == (LETTERS, ["", "", "", ""])
    for kind in (
        ("body", {"body": b"a", "more_body": True}),
        zerocopysend(files / "letters", count=1, more_body=True),
    ):
        response, told = kernel.play([start(), kind, path, ("body", {"body": b"z"})])
        assert response.body in (b"az", b"Az")
        assert told[2].startswith("RuntimeError: http.response.pathsend cannot be sent while")
    response, told = kernel.play([path, start(), path])
    assert told[0].startswith("RuntimeError: ") and response.body == LETTERS


def test_nothing_else_is_sent_meanwhile(server, files):
    """A second task that sends while a file is on its way is told, and harms nothing."""
    script = [
        start(), ("spawn", *pathsend(files / "hole")), ("body", {"body": b"between"}),
        pathsend(files / "letters"), ("gate", f"meanwhile-{id(server)}"), ("receive",),
        ("receive",),
    ]  # fmt: skip
    with server.connect(receive_buffer=4096) as client:
        tag = server.ask(client, script)
        head = client.read_head()
        with server.connect() as other:
            assert other.get(f"/gate/meanwhile-{id(server)}").status == 200
        response = head
        client.read_body(response, "GET")
        assert response.complete and response.body == bytes(LARGE)
        told = server.told(tag)
    assert told[0] == "" and told[-1] == "http.disconnect"
    refused = [text for text in told if "has not returned" in text]
    assert len(refused) == 2, told


# -- an open file ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "body"),
    [
        ({}, LETTERS),
        ({"offset": 0}, LETTERS),
        ({"offset": 20}, b"UVWXYZ"),
        ({"offset": 25}, b"Z"),
        ({"offset": 26}, b""),
        ({"offset": 99}, b""),
        ({"count": 3}, b"ABC"),
        ({"count": 0}, b""),
        ({"count": 99}, LETTERS),
        ({"offset": 3, "count": 4}, b"DEFG"),
        ({"offset": 24, "count": 4}, b"YZ"),
        ({"offset": None, "count": None}, LETTERS),
    ],
)
def test_a_part_of_an_open_file(server, files, fields, body):
    """EX-10: what sendfile would send: count from offset, not beyond the end."""
    for version, more in ("1.1", False), ("1.1", True), ("1.0", False):
        script = [start(), zerocopysend(files / "letters", more_body=more, **fields)]
        script += [("body", {})] if more else []
        response, told = server.play(script, "Connection: keep-alive", version=version)
        assert response.body == body and not any(told)
        assert response.framing == ("chunked" if more else "length")
    response, told = server.play([start(content_length=b"%d" % len(body)), script[1]])
    assert response.body == body


def test_where_the_file_stands(server, files):
    """EX-10: without an offset from the current position, which moves on; with one it does not."""
    letters = str(files / "letters")
    more = {"more_body": True}
    script = [
        start(),
        ("read", letters, 2),  # the buffer below is further on
        zerocopysend(letters, count=3, **more), ("tell", letters),
        zerocopysend(letters, offset=20, count=2, **more), ("tell", letters),
        zerocopysend(letters, count=1, **more),
        ("number", letters, "zerocopysend", {"offset": 0, "count": 1, **more}),
        zerocopysend(letters), ("tell", letters),
    ]  # fmt: skip
    response, told = server.play(script)
    assert response.body == b"CDE" + b"UV" + b"F" + b"A" + LETTERS[6:]
    assert told == ["", "", 5, "", 5, "", "", "", 26]


def test_the_descriptor_itself(server, files):
    response, told = server.play(
        [start(), ("number", str(files / "large"), "zerocopysend", {"offset": 5})]
    )
    assert response.body == (files / "large").read_bytes()[5:] and not any(told)


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("length", [False, True], ids=["", "length"])
def test_mixed_with_body(server, files, version, length):
    """EX-10: several, between pieces of body, in any framing; each is a chunk of its own."""
    large = (files / "large").read_bytes()
    expected = b"first" + large + LETTERS[:3] + b"middle" + large[7:]
    more = {"more_body": True}
    fields = {"content_length": b"%d" % len(expected)} if length else {}
    script = [
        start(**fields),
        ("body", {"body": b"first", **more}),
        zerocopysend(files / "large", **more),
        zerocopysend(files / "letters", count=3, **more),
        zerocopysend(files / "letters", count=0, **more),  # an empty chunk would be the last
        ("body", {"body": b"middle", **more}),
        zerocopysend(files / "large", offset=7),
    ]
    keep = length or version == "1.1"
    response, told = server.play(script, "Connection: keep-alive", version=version, then=keep)
    assert not any(told)
    assert response.body == expected
    assert response.framing == ("length" if length else "chunked" if keep else "close")
    if response.framing == "chunked":
        sizes = [5, len(large), 3, 6, len(large) - 7]
        assert [len(chunk) for chunk in response.chunks] == sizes


def test_a_piece_that_does_not_fit_the_content_length(kernel, files):
    """It is refused before a byte of it, and the app may send what fits."""
    more = {"more_body": True}
    script = [
        start(content_length=b"10"),
        ("body", {"body": b"four", **more}),
        zerocopysend(files / "letters", **more),  # too much
        zerocopysend(files / "letters", offset=0, count=3),  # too little
        zerocopysend(files / "letters", offset=0, count=6),
    ]
    response, told = kernel.play(script)
    assert response.body == b"fourABCDEF"
    assert [text.partition(":")[0] for text in told] == ["", "", "ValueError", "ValueError", ""]


def test_what_is_no_file(kernel, files):
    """It raises out of send(), and the app can still answer."""
    letters = str(files / "letters")
    cases = [
        (("zerocopysend", {}), "TypeError"),
        (("zerocopysend", {"file": None}), "TypeError"),
        (("zerocopysend", {"file": 999}), "OSError"),
        (("memory", "zerocopysend"), "UnsupportedOperation"),
        (zerocopysend("/dev/zero"), "OSError"),
        (zerocopysend(letters, offset=-1), "ValueError"),
        (zerocopysend(letters, count=-1), "ValueError"),
        (zerocopysend(letters, offset="1"), "ValueError"),
    ]
    for step, name in cases:
        response, told = kernel.play([start(), step, ("body", {"body": b"sorry"})])
        assert told[1].partition(":")[0] == name, (step, told)
        assert (response.body, told[2]) == (b"sorry", "")


@needs_proc
def test_the_app_may_close_its_file_at_once(server, files):
    """What is sent is the file that was meant, whatever the descriptor's number means by then."""
    hole = str(files / "hole")
    name = f"closed-{id(server)}"
    script = [start(), ("spawn", *zerocopysend(hole)), ("close", hole), ("gate", name)]
    with nothing_left_open(server), server.connect(receive_buffer=4096) as client:
        tag = server.ask(client, [*script, ("receive",), ("receive",)])
        response = client.read_head()
        with server.connect() as other:
            other.get(f"/gate/{name}")
        client.read_body(response, "GET")
        assert response.complete and response.body == bytes(LARGE)
        assert server.told(tag) == ["", "http.request", "", "http.disconnect"]


def test_trailers_behind_a_file(server, files):
    """EX-02 holds for a body that the kernel sends."""
    begin = ("start", {"status": 200, "trailers": True})
    end = ("trailers", {"headers": [(b"x-sum", b"1")]})
    for kind in pathsend(files / "large"), zerocopysend(files / "large"):
        response, told = server.play([begin, kind, end], "TE: trailers")
        assert response.body == (files / "large").read_bytes() and not any(told)
        assert response.trailers == [(b"x-sum", b"1")]


# -- what goes wrong on the way --------------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_file_that_shrinks(server, tmp_path, framing):
    """The connection is cut, so that the client sees it, and the log says why, once."""
    path = tmp_path / "shrinks"
    path.write_bytes(b"")
    os.truncate(path, LARGE)
    script = [start(), pathsend(path)]
    if framing == "chunked":
        script = [start(), zerocopysend(path, more_body=True), ("body", {"body": b"never"})]
    position = server.log_position()
    with nothing_left_open(server), server.connect(receive_buffer=4096) as client:
        tag = server.ask(client, script)
        response = client.read_head()
        os.truncate(path, 4096)
        client.read_body(response, "GET")
        assert not response.complete and len(response.body) < LARGE
        assert response.framing == framing
        told = server.told(tag)
        assert all(text.startswith("ClientDisconnected: ") for text in told[1:])
        reason = rf"{path} was not sent to its end: it became shorter: GET /$"
        server.server.wait_for_log(reason, start=position)
    with server.connect() as client:
        assert client.get("/scope").status == 200
    log = "\n".join(server.stderr.lines[position:])
    assert "the app failed" not in log and log.count("became shorter") == 1


def test_a_file_that_shrinks_under_a_body_without_a_length(kernel, tmp_path):
    """An end by closing would look like a whole body: so it is a reset."""
    path = tmp_path / "shrinks"
    path.write_bytes(b"")
    os.truncate(path, LARGE)
    position = kernel.log_position()
    with kernel.connect(receive_buffer=4096) as client:
        kernel.ask(client, [start(), zerocopysend(path, more_body=True)], version="1.0")
        client.read_head()
        os.truncate(path, 4096)
        with pytest.raises(ConnectionResetError):
            client.read_until_close()
    kernel.server.wait_for_log("became shorter", start=position)


@needs_proc
@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("kind", [pathsend, zerocopysend])
def test_a_client_that_leaves(server, files, kind, how):
    """send() raises ClientDisconnected, the file is closed, and it is no error."""
    position = server.log_position()
    with nothing_left_open(server):
        client = server.connect(receive_buffer=4096)
        tag = server.ask(client, [start(), kind(files / "hole"), ("receive",)])
        client.read_head()
        getattr(client, how)()
        told = server.told(tag)
        assert told[1].startswith("ClientDisconnected: ") and told[2] == "http.disconnect"
    log = "\n".join(server.stderr.lines[position:])
    assert "ERROR" not in log and "Traceback" not in log


@needs_proc
@pytest.mark.parametrize("how", ["cancel", "raise"])
def test_an_app_that_ends_while_a_file_is_sent(server, files, how):
    """What was promised is not sent to its end: the connection is cut, the file closed."""
    script = [start(), ("spawn", *pathsend(files / "hole")), (how,)]
    with nothing_left_open(server), server.connect(receive_buffer=4096) as client:
        tag = server.ask(client, script)
        response = client.read_response()
        assert not response.complete and len(response.body) < LARGE
        server.told(tag)


@needs_proc
def test_a_server_that_ends_while_a_file_is_sent(certificate, files):
    """The download has the time of the drain; then it is cut."""
    scripted = Scripted("kernel", certificate, "--timeout-graceful-shutdown", "1")
    with scripted.server, scripted.connect(receive_buffer=4096) as client:
        tag = scripted.ask(client, [start(), pathsend(files / "hole")])
        client.read_head()
        scripted.server.send_signal()
        assert scripted.told(tag)[1].startswith("ClientDisconnected: ")
        assert scripted.server.wait() == 0


def test_the_access_log_counts_files(server, files):
    """A line as soon as the last byte has left; else with what was sent until the end."""
    with server.connect() as client:
        tag = server.ask(client, [start(), pathsend(files / "large")])
        size = len(client.read_response().body)
        line = server.server.wait_for_access(rf'"GET /\?{tag} HTTP/1.1" 200 (\d+) .*')
        assert int(line[1]) == size and "client left" not in line[0]
    with server.connect(receive_buffer=4096) as client:
        tag = server.ask(client, [start(), pathsend(files / "hole")])
        client.read_head()
        client.read_exactly(65536)
        client.reset()
        line = server.server.wait_for_access(rf'"GET /\?{tag} HTTP/1.1" 200 (\d+) .*')
        assert 65536 <= int(line[1]) < LARGE and line[0].endswith("(client left)")
    with server.connect(receive_buffer=4096) as client:
        hole, name = pathsend(files / "hole"), f"counted-{id(server)}"
        tag = server.ask(client, [start(), ("spawn", *hole), ("gate", name), ("raise",)])
        head = client.read_head()
        client.read_exactly(65536)
        with server.connect() as other:
            other.get(f"/gate/{name}")
        client.read_body(head, "GET")
        line = server.server.wait_for_access(rf'"GET /\?{tag} HTTP/1.1" 200 (\d+) .*')
        assert 65536 <= int(line[1]) < LARGE


# -- how much, and whose turn it is ----------------------------------------------------------------


@needs_proc
@pytest.mark.parametrize("way", ["kernel", "tls", "disk"])
def test_memory_is_flat(certificate, tmp_path, way):
    """200 MB in pieces: next to nothing of it is in memory, once a thread has what it needs."""
    size = 200 << 20
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(size)
    scripted = Scripted(way, certificate)
    with scripted.server:
        scripted.play([start(), pathsend(tmp_path / "sparse")], method="HEAD")
        with scripted.connect(receive_buffer=65536) as client:
            scripted.ask(client, [start(), pathsend(tmp_path / "sparse")])
            client.read_head()
            before = most = 0
            left = size - len(client.buffer)
            buffer = bytearray(1 << 20)
            while left:
                taken = client.socket.recv_into(buffer, min(left, len(buffer)))
                assert taken, f"{left} bytes are missing"
                if left // (20 << 20) != (left - taken) // (20 << 20):
                    most = max(most, scripted.resident())
                    before = before or most
                left -= taken
        # malloc keeps what pieces were read into, some of it for each thread: a bound, no trend
        bound = (2 if way == "kernel" else 48) << 20
        assert before and most - before < bound, f"grew by {most - before} bytes"


class House:
    """A reactor with connections on socket pairs, turned by hand."""

    def __init__(self, app, clock=time.monotonic):
        self.reactor = Reactor(clock=clock)
        self.service = Service(app, NativeStepper(self.reactor))
        self.service.timeout_keep_alive = 3600.0
        self.clients = []

    def connect(self, tcp=False):
        """Return the client's end."""
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                theirs = socket.create_connection(listener.getsockname())
                ours, _ = listener.accept()
        else:
            ours, theirs = socket.socketpair()
        for end in ours, theirs:
            end.setblocking(False)
        transport = Transport(self.reactor, ours, write_timeout=60.0)
        transport.start(HTTPConnection(self.service, transport))
        self.clients.append(theirs)
        return theirs

    def turn(self):
        self.reactor.tick(0)

    def close(self):
        for connection in list(self.service.connections):
            connection.transport.abort()
        for client in self.clients:
            client.close()
        self.reactor.close()


@pytest.fixture
def house():
    """Return ``house(app)``; closed behind the test."""
    made = []

    def make(*arguments):
        made.append(House(*arguments))
        return made[-1]

    yield make
    for one in made:
        one.close()


def take_all(client):
    """Read what is there; b"" when it is nothing, or the end."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            piece = client.recv(1 << 22)
            if not piece:
                return data
            data += piece
    return data


def files_app(path):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        if scope["path"] == "/hello":
            await send({"type": "http.response.body", "body": b"hello"})
        else:
            await send({"type": "http.response.pathsend", "path": path})

    return app


@pytest.mark.parametrize("way", ["kernel", "read"])
def test_a_long_download_starves_nobody(house, files, monkeypatch, way):
    """In turns, not in time: ten downloads as fast as they are read, and hello waits for none.

    A turn takes one bounded piece of each file; a request that comes in a turn is answered in it.
    """
    if way == "read" and not HAVE_NOWAIT:
        pytest.skip("this Python reads files in threads only: those have turns of their own")
    turn = []  # (which file, how much) of what was asked for in this turn
    sendfile, read_now = os.sendfile, FileSend.read_now

    def note_sendfile(out, file, offset, count):
        turn.append((file, count, FILE_PIECE))
        return sendfile(out, file, offset, count)

    def note_read(file, limit):
        turn.append((file.fd, limit, FILE_READ))
        return read_now(file, limit)

    monkeypatch.setattr(os, "sendfile", note_sendfile)
    monkeypatch.setattr(FileSend, "read_now", note_read)
    monkeypatch.setattr(Transport, "sends_files", way == "kernel")
    here = house(files_app(str(files / "hole")))
    downloads = [here.connect() for _ in range(10)]
    hello = here.connect()
    for client in downloads:
        client.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    received = [0] * len(downloads)
    for _ in range(30):
        hello.send(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        turn.clear()
        here.turn()
        assert take_all(hello).endswith(b"\r\n\r\nhello"), "it had to wait for more than its turn"
        assert len({file for file, _, _ in turn}) == len(turn) <= len(downloads)
        assert all(count <= limit for _, count, limit in turn)
        for number, client in enumerate(downloads):
            received[number] += len(take_all(client))
    assert min(received) > 10 * 65536, received
    assert max(received) < 2 * min(received), "nobody gets more than the others"


def test_a_client_that_does_not_read(house, files):
    """The write deadline holds for files; as long as bytes are taken it moves on."""
    clock = FakeClock()
    ended = []
    inner = files_app(str(files / "hole"))

    async def app(scope, receive, send):
        try:
            await inner(scope, receive, send)
        except OSError as exc:
            ended.append(type(exc).__name__)

    here = house(app, clock)
    client = here.connect()
    client.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
    for _ in range(5):
        here.turn()
    for _ in range(5):  # three minutes and more, but there is progress
        clock.advance(50)
        assert len(take_all(client)) > PROGRESS
        here.turn()
        here.turn()
    assert not ended
    clock.advance(59)
    here.turn()
    assert not ended
    clock.advance(2)
    for _ in range(3):
        here.turn()
    assert ended == ["ClientDisconnected"]
    assert not here.service.connections


def test_nothing_is_waited_for_behind_a_file(house, files):
    """What a file needed of the selector and the clock is given back."""
    clock = FakeClock()
    here = house(files_app(str(files / "large")), clock)
    client = here.connect()
    (connection,) = here.service.connections
    transport = connection.transport
    for _ in range(2):
        client.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        received, blocked = b"", False
        while not received.endswith(b"end"):
            here.turn()
            blocked |= transport.interest == EVENT_READ | EVENT_WRITE
            received += take_all(client)
        assert blocked
        here.turn()
        assert transport.interest == EVENT_READ and not transport.writing_paused
        clock.advance(100)  # the write deadline is 60 s
        here.turn()
        assert transport.state == "open"


@pytest.mark.parametrize("end", ["deadline", "cut"])
def test_an_unfinished_body_without_a_length_ends_in_a_reset(house, files, end):
    """By the deadline, or because the app gave up: a FIN would look like its end."""
    clock = FakeClock()
    path = str(files / "hole")

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        with open(path, "rb") as file:
            piece = {"type": "http.response.zerocopysend", "file": file, "more_body": True}
            await send(piece)

    here = house(app, clock)
    client = here.connect(tcp=True)
    client.send(b"GET / HTTP/1.0\r\n\r\n")
    for _ in range(20):
        here.turn()
    (connection,) = here.service.connections
    if end == "deadline":
        clock.advance(61)
    else:
        connection.cycle.task.cancel()
    for _ in range(3):
        here.turn()
    assert not here.service.connections
    with pytest.raises(ConnectionResetError):
        while client.recv(1 << 20):
            pass


def test_a_small_file_leaves_in_its_first_turn(house, files):
    """No EVENT_WRITE, and no turn to wait for: what the socket takes at once is gone at once."""
    here = house(files_app(str(files / "letters")))
    client = here.connect()
    for _ in range(3):
        client.send(b"GET /file HTTP/1.1\r\nHost: x\r\n\r\n")
        here.turn()
        assert take_all(client).endswith(b"\r\n\r\n" + LETTERS)


# -- framing, without a server ---------------------------------------------------------------------


def begun(method="GET", version="1.1"):
    writer = ResponseWriter(DefaultLines())
    writer.begin(method, version, True)
    return writer


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("declared", [None, 9])
@pytest.mark.parametrize("trailers", [False, True])
@pytest.mark.parametrize("sizes", [(9,), (4, 5), (0, 4, 0, 5), (9, 0)])
def test_a_file_is_framed_like_the_same_bytes(method, version, declared, trailers, sizes):
    """Whatever the framing, what is on the wire is what body messages would have made."""
    wires = []
    for from_file in False, True:
        writer = begun(method, version)
        headers = [] if declared is None else [(b"content-length", b"%d" % declared)]
        writer.start(200, headers, trailers)
        wire = b""
        data = b"123456789"
        for number, size in enumerate(sizes):
            piece, data = data[:size], data[size:]
            more = number + 1 < len(sizes)
            if from_file:
                wire += b"".join(writer.begin_file(size, more))
                if writer.framing != "bodiless":
                    wire += piece
                wire += b"".join(writer.end_file(size, more))
            else:
                wire += b"".join(writer.send(piece, more))
        if trailers and version == "1.1":
            wire += b"".join(writer.send_trailers([(b"x-sum", b"1")], False))
        assert writer.framing == "complete"
        wires.append((wire, writer.keep_alive))
    assert wires[0] == wires[1]
    response = RecordedClient(wires[1][0]).read_response(method)
    assert response.complete and response.body == (b"123456789" if method == "GET" else b"")


@pytest.mark.parametrize(("size", "more"), [(8, False), (10, False), (10, True)])
def test_a_file_that_does_not_fit_changes_nothing(size, more):
    writer = begun()
    writer.start(200, [(b"content-length", b"9")])
    with pytest.raises(ValueError, match=f"{size} bytes of a file .* content-length of 9"):
        writer.begin_file(size, more)
    assert writer.framing == "held"
    assert b"".join(writer.begin_file(9, False)).endswith(b"\r\n\r\n")


def test_a_trailer_that_is_refused_leaves_no_half_behind():
    writer = begun()
    writer.start(200, [], True)
    writer.send(b"x", False)
    with pytest.raises(ValueError, match="host"):
        writer.send_trailers([(b"x-sum", b"1"), (b"host", b"x")], False)
    assert writer.send_trailers([(b"x-sum", b"1")], False) == [b"0\r\nx-sum: 1\r\n\r\n"]


# -- hints and trailers ----------------------------------------------------------------------------


def test_hints_are_checked(server):
    """EX-07: what is no link field raises, and nothing of it is sent."""
    cases = {
        b"</a>\r\nx: y": "ValueError",
        b"</a>\0": "ValueError",
        b"": "ValueError",
        b"junk": "ValueError",
        b"</a": "ValueError",
        "</a>": "TypeError",
        7: "TypeError",
    }
    for link, name in cases.items():
        hint = ("early_hint", {"links": [b"</first>", link]})
        good = ("early_hint", {"links": [b"</good>", b"</better>"]})
        none = ("early_hint", {"links": []})
        response, told = server.play([start(), hint, good, none, ("body", {"body": b"x"})])
        assert told[1].startswith(f"{name}: ") and told[2:] == ["", "", ""]
        assert [one.all("link") for one in response.interim] == [[b"</good>", b"</better>"]]
        assert (response.status, response.body) == (200, b"x")


def test_hints_come_before_the_answer_is_known(kernel):
    """EX-07: a 103 leaves at once; that is the whole use of it."""
    name = f"hint-{id(kernel)}"
    links = {"links": [b"</style.css>; rel=preload; as=style"]}
    with kernel.connect() as client:
        tag = kernel.ask(
            client, [start(), ("early_hint", links), ("gate", name), ("body", {"body": b"x"})]
        )
        hint = client.read_head()
        assert (hint.status, hint.headers) == (103, [(b"link", links["links"][0])])
        with kernel.connect() as other:
            other.get(f"/gate/{name}")
        response = client.read_response()
        assert (response.status, response.body, response.all("link")) == (200, b"x", [])
        assert not any(kernel.told(tag))


def test_no_hints_to_http_1_0(kernel):
    """EX-07: ignored there, and not offered."""
    script = [start(), ("early_hint", {"links": [b"</a>"]}), ("body", {"body": b"x"})]
    response, told = kernel.play(script, "Connection: keep-alive", version="1.0")
    assert (response.interim, response.body, told) == ([], b"x", ["", "", ""])


@pytest.mark.skipif(not CURL, reason="curl is not installed")
def test_curl_sees_hints_trailers_and_files(ways, files, tmp_path):
    """The client that everybody has: EX-02, EX-07, EX-08, over both kinds of connection."""
    links = {"links": [b"</style.css>; rel=preload; as=style", b"</app.js>; rel=preload"]}
    begin = ("start", {"status": 200, "headers": [(b"trailer", b"x-sum")], "trailers": True})
    script = [
        begin, ("early_hint", links), zerocopysend(files / "large", more_body=True),
        ("body", {"body": b"end"}), ("trailers", {"headers": [(b"x-sum", b"7")]}),
    ]  # fmt: skip
    for way in "kernel", "tls":
        host, port = ways(way).server.address
        command = [
            CURL, "-sSvk", "--http1.1", "--max-time", str(DEADLINE), "-o", str(tmp_path / "got"),
            "-D", str(tmp_path / "heads"), "-H", "TE: trailers", "-H", f"X-Script: {script!r}",
            f"{'https' if way == 'tls' else 'http'}://{host}:{port}/?curl",
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=2 * DEADLINE)
        assert run.returncode == 0, run.stderr
        assert "< HTTP/1.1 103 Early Hints" in run.stderr
        assert "< link: </app.js>; rel=preload" in run.stderr
        assert (tmp_path / "got").read_bytes() == (files / "large").read_bytes() + b"end"
        heads = (tmp_path / "heads").read_text()
        assert re.search(r"103 Early Hints\n.*\n\nHTTP/1.1 200 OK\n", heads, re.DOTALL)
        assert heads.rstrip().endswith("x-sum: 7"), "the trailer is behind the head"
