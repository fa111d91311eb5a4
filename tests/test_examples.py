"""The example applications, each served by a real process and asked over a real socket."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import json
import os
import re
import socket
import threading

import pytest

from .support import DEADLINE, RawClient, Response, Server, parallel

# -- hello, stream ---------------------------------------------------------------------------------


def test_hello(module_serve):
    with module_serve("examples.hello:app").connect() as client:
        response = client.get()
        assert (response.status, response.body) == (200, b"Hello, world!\n")
        assert response.get("content-type") == b"text/plain"
        assert response.get("content-length") == b"14"


def test_a_stream_leaves_line_by_line(module_serve):
    with module_serve("examples.stream:app").connect() as client:
        client.request("GET", "/count?to=3&every=0.05")
        head = client.read_head()
        assert head.get("transfer-encoding") == b"chunked"
        for number in b"1", b"2", b"3":
            assert client.read_until(b"\n\r\n") == b"2\r\n" + number + b"\n\r\n"
        assert client.read_until(b"\r\n\r\n") == b"0\r\n\r\n"
        response = client.get("/count?to=3&every=0")
        assert (response.body, response.complete) == (b"1\n2\n3\n", True)


def test_streams_hold_nobody_up(module_serve):
    """One stream is in the middle of a long pause while another one begins and ends."""
    server = module_serve("examples.stream:app")
    with server.connect() as slow, server.connect() as fast:
        slow.request("GET", "/count?to=2&every=60")
        assert slow.read_until(b"1\n\r\n").endswith(b"1\n\r\n")
        assert fast.get("/count?to=5&every=0").body == b"1\n2\n3\n4\n5\n"
        assert slow.is_silent(0.05)


def test_events_tell_the_time_and_are_counted_on(module_serve):
    with module_serve("examples.stream:app").connect() as client:
        client.request("GET", "/events", "Last-Event-ID: 41")
        assert client.read_head().get("content-type") == b"text/event-stream"
        event = client.read_until(b"\n\n")
        assert re.search(rb"id: 42\ndata: \d\d:\d\d:\d\d\n\n$", event)
        event = client.read_until(b"\n\n")
        assert b"id: 43\n" in event


def test_a_listener_that_leaves_is_no_error(serve):
    server = serve("examples.stream:app")
    with server.connect() as client:
        client.request("GET", "/count?to=1000&every=0.01")
        client.read_until(b"3\n\r\n")
        client.reset()
    with server.connect() as client:
        assert client.get("/count?to=10&every=0.02").complete  # time for the other one to be missed
    assert server.stop() == 0
    assert "Traceback" not in server.log_text()


@pytest.mark.parametrize(
    ("target", "status"), [("/", 200), ("/nothing", 404), ("/count?to=x", 400)]
)
def test_the_other_pages_of_stream(module_serve, target, status):
    with module_serve("examples.stream:app").connect() as client:
        assert client.get(target).status == status


# -- upload ----------------------------------------------------------------------------------------


def chunks(data, size=50_000):
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


@pytest.mark.parametrize("framing", ["length", "chunked", "empty"])
def test_an_upload_is_hashed_as_it_comes(module_serve, framing):
    data = os.urandom(3_000_000) if framing != "empty" else b""
    with module_serve("examples.upload:app").connect() as client:
        if framing == "chunked":
            client.request("PUT", "/a.iso", "Transfer-Encoding: chunked")
            client.send(b"".join(chunks(data)))
        else:
            client.request("PUT", "/a.iso", body=data)
        response = client.read_response("PUT")
        assert response.status == 200
        result = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert json.loads(response.body) == result


def read_progress(client, until):
    """Read server-sent events until one is in the state ``until``; return all of them."""
    told = []
    while not told or told[-1]["state"] != until:
        event = client.read_until(b"\n\n")
        assert event.endswith(b"\n\n"), f"the stream ended before {until!r}: {told}"
        told.append(json.loads(event.rpartition(b"data: ")[2]))
    return told


def test_who_watches_is_told_how_far_an_upload_is(module_serve):
    server = module_serve("examples.upload:app")
    with server.connect() as watcher, server.connect() as client:
        watcher.request("GET", "/b.iso")
        watcher.read_head()
        assert read_progress(watcher, "expected") == [{"state": "expected", "value": 0, "max": 0}]
        client.request("PUT", "/b.iso", "Content-Length: 10")
        client.send(b"12345")
        assert read_progress(watcher, "running")[-1] == {"state": "running", "value": 5, "max": 10}
        client.send(b"67890")
        assert read_progress(watcher, "complete")[-1]["value"] == 10
        assert watcher.read_until(b"0\r\n\r\n").endswith(b"0\r\n\r\n")


def test_an_upload_that_breaks_off_is_told(module_serve):
    server = module_serve("examples.upload:app")
    with server.connect() as watcher, server.connect() as client:
        watcher.request("GET", "/c.iso")
        watcher.read_head()
        client.request("PUT", "/c.iso", "Content-Length: 10")
        client.send(b"12345")
        read_progress(watcher, "running")
        client.reset()
        assert read_progress(watcher, "broken")[-1]["value"] == 5


# -- chat ------------------------------------------------------------------------------------------


class Member:
    """A member of the chat: a raw client that speaks as much of RFC 6455 as it takes."""

    def __init__(self, server, path="/", **options):
        self.client = server.connect(**options)
        key = base64.b64encode(os.urandom(16)).decode()
        self.client.request(
            "GET",
            path,
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {key}",
        )
        response = self.client.read_response()
        assert response.status == 101
        digest = hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        assert response.get("sec-websocket-accept") == base64.b64encode(digest)

    def send(self, data, kind=0x81):
        size = len(data)
        head = (
            bytes([kind, 128 | size]) if size < 126 else bytes([kind, 254, size >> 8, size & 255])
        )
        self.client.send(head + bytes(4) + data)

    def say(self, **line):
        self.send(json.dumps(line).encode())

    def receive(self):
        """Return the next frame's first byte and payload."""
        kind, size = self.client.read_exactly(2)
        if size == 126:
            size = int.from_bytes(self.client.read_exactly(2), "big")
        return kind, self.client.read_exactly(size)

    def hear(self, text):
        """Return the next line that has ``text`` in it."""
        while True:
            kind, data = self.receive()
            assert kind == 0x81, data
            line = json.loads(data)
            if text in line["text"]:
                return line

    def leave(self):
        self.send((1000).to_bytes(2, "big"), kind=0x88)
        while self.receive() != (0x88, b"\x03\xe8"):
            pass
        assert self.client.is_closed()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.client.close()


def test_the_chat_page(module_serve):
    with module_serve("examples.chat:app").connect() as client:
        response = client.get()
        assert response.status == 200
        assert response.get("content-type") == b"text/html; charset=utf-8"
        assert b"new WebSocket" in response.body
        assert b"http://" not in response.body
        assert b"https://" not in response.body


def test_members_hear_each_other_and_the_rooms_are_apart(module_serve):
    server = module_serve("examples.chat:app")
    with Member(server, "/a") as ann, Member(server, "/a") as bob, Member(server, "/b") as eve:
        ann.say(name="Ann")
        bob.hear("Ann is here")
        bob.say(name="Bob")
        assert ann.hear("Bob is here")["members"] == 2
        bob.say(name="Bob", text="hello <b>")
        for member in ann, bob:
            assert member.hear("hello") == {"name": "Bob", "text": "hello <b>", "members": 2}
        eve.say(name="Eve")
        assert eve.hear("")["members"] == 1
        with Member(server, "/a") as late:
            assert late.hear("hello") == {"name": "Bob", "text": "hello <b>"}
        bob.leave()
        assert ann.hear("Bob left")["members"] == 1


def test_what_is_not_a_line_is_ignored(module_serve):
    server = module_serve("examples.chat:app")
    with Member(server, "/c") as member:
        member.send(b"not json")
        member.send(b"[1]")
        member.send(b"bytes", kind=0x82)
        member.say(name="n" * 100, text="t" * 5000)
        line = member.hear("ttt")
        assert (len(line["name"]), len(line["text"])) == (24, 2000)


def test_a_member_that_does_not_read_silences_nobody(module_serve):
    """Rung 09's flaw, mended: 8 MB are said while one member reads nothing at all."""
    server = module_serve("examples.chat:app")
    with Member(server, "/d", receive_buffer=4096) as deaf, Member(server, "/d") as talker:
        for number in range(4000):
            talker.say(name="Bob", text=f"({number})" + "x" * 1990)
            if number % 50 == 49:
                talker.hear(f"({number})")
        numbers = []
        while not numbers or numbers[-1] < 3999:
            numbers.append(int(re.search(r"\((\d+)\)", deaf.hear(")x")["text"])[1]))
        assert numbers[0] == 0
        assert numbers[-100:] == list(range(3900, 4000)), "its mailbox has kept the newest lines"
        assert len(numbers) < 4000, "and has forgotten some of those before them"


# -- static ----------------------------------------------------------------------------------------

EXTENSIONS = ("http.response.pathsend", "http.response.zerocopysend")
LETTERS = bytes(range(65, 91))


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A root with files in it, and a secret beside it."""
    top = tmp_path_factory.mktemp("static")
    (top / "secret.txt").write_bytes(b"secret")
    (top / "rootbeer").mkdir()
    (top / "rootbeer" / "secret.txt").write_bytes(b"secret")
    root = top / "root"
    (root / "docs" / "empty").mkdir(parents=True)
    (root / "index.html").write_text("<h1>index</h1>")
    (root / "letters.txt").write_bytes(LETTERS)
    (root / "docs" / "a page & more.html").write_text("<h1>page</h1>")
    (root / "docs" / "grüße.css").write_text("a{}")
    (root / "docs" / "x.tar.gz").write_bytes(b"\x1f\x8b")
    (root / "nothing.bin").write_bytes(b"")
    (root / "large.bin").write_bytes(os.urandom(1 << 20) * 5 + b"end")
    (root / ".env").write_text("secret")
    (root / "inside").symlink_to("letters.txt")
    (root / "outside").symlink_to("../secret.txt")
    (root / "outside_dir").symlink_to("..")
    (root / "loop").symlink_to("loop")
    (root / "odd").mkdir()
    (root / "odd" / "index.html").symlink_to("../../secret.txt")
    os.mkfifo(root / "fifo")
    return root


class Static:
    """The static app over a real server, or by its own code with a choice of extensions."""

    def __init__(self, server, root):
        self.server, self.root = server, root

    def get(self, target, *headers, method="GET"):
        with self.server.connect() as client:
            client.request(method, target, *headers)
            return client.read_response(method)


@pytest.fixture(scope="module")
def static(tree):
    with Server("examples.static:app", env={"STATIC_ROOT": str(tree)}) as server:
        yield Static(server, tree)


@pytest.mark.parametrize(
    ("target", "content_type", "body"),
    [
        ("/letters.txt", b"text/plain; charset=utf-8", LETTERS),
        ("/", b"text/html; charset=utf-8", b"<h1>index</h1>"),
        ("/index.html?x=1", b"text/html; charset=utf-8", b"<h1>index</h1>"),
        ("/docs/a%20page%20%26%20more.html", b"text/html; charset=utf-8", b"<h1>page</h1>"),
        ("/docs/gr%C3%BC%C3%9Fe.css", b"text/css; charset=utf-8", b"a{}"),
        ("/docs/x.tar.gz", b"application/gzip", b"\x1f\x8b"),
        ("/nothing.bin", b"application/octet-stream", b""),
        ("/inside", b"text/plain; charset=utf-8", LETTERS),  # a link within the root
    ],
)
def test_files_and_their_types(static, target, content_type, body):
    response = static.get(target)
    assert response.status == 200
    assert response.body == body
    assert response.get("content-type") == content_type
    assert response.get("content-length") == b"%d" % len(body)
    assert response.get("x-content-type-options") == b"nosniff"
    head = static.get(target, method="HEAD")
    assert (head.status, head.body) == (200, b"")
    for name in "content-type", "content-length", "etag", "last-modified", "accept-ranges":
        assert head.get(name) == response.get(name)


def test_a_large_file(static):
    assert static.get("/large.bin").body == (static.root / "large.bin").read_bytes()


@pytest.mark.parametrize(
    "target",
    [
        "/missing",
        "/../secret.txt",
        "/docs/../../secret.txt",
        "/%2e%2e/secret.txt",
        "/..%2fsecret.txt",
        "/..%5csecret.txt",
        "/docs/..%2f..%2fsecret.txt",
        "/../rootbeer/secret.txt",
        "//secret.txt",
        "/outside",
        "/outside_dir/secret.txt",
        "/outside_dir/",
        "/odd/index.html",
        "/loop",
        "/.env",
        "/letters.txt/",
        "/letters.txt/x",
        "/fifo",
        "/letters.txt%00",
        "/%ff",
        "/" + "x" * 300,
    ],
)
def test_what_is_not_below_the_root_is_not_there(static, target):
    for method in "GET", "HEAD":
        response = static.get(target, method=method)
        assert response.status == 404
        assert b"secret" not in response.body


def test_a_directory_without_its_slash_is_redirected_and_stays_on_this_host(static):
    response = static.get("/docs?x=1")
    assert (response.status, response.get("location")) == (308, b"./docs/?x=1")
    assert static.get("//docs").get("location") == b"./docs/"


def test_a_directory_without_an_index_is_a_list(static):
    response = static.get("/docs/")
    assert response.status == 200
    links = re.findall(rb'<a href="([^"]*)">([^<]*)</a>', response.body)
    assert links == [
        (b"./a%20page%20%26%20more.html", b"a page &amp; more.html"),
        (b"./empty/", b"empty/"),
        (b"./gr%C3%BC%C3%9Fe.css", "grüße.css".encode()),
        (b"./x.tar.gz", b"x.tar.gz"),
    ]
    assert b"secret" not in static.get("/odd/").body, "its index is a link out of the root"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_but_get_and_head(static, method):
    response = static.get("/letters.txt", method=method)
    assert (response.status, response.get("allow")) == (405, b"GET, HEAD")


OLD, NEW = "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 2044 08:49:37 GMT"


@pytest.mark.parametrize(
    ("conditions", "status"),
    [
        (["If-None-Match: ETAG"], 304),
        (["If-None-Match: W/ETAG"], 304),
        (['If-None-Match: "x", ETAG'], 304),
        (["If-None-Match: *"], 304),
        (['If-None-Match: "x"'], 200),
        (["If-Modified-Since: MODIFIED"], 304),
        ([f"If-Modified-Since: {NEW}"], 304),
        ([f"If-Modified-Since: {OLD}"], 200),
        (["If-Modified-Since: yesterday"], 200),
        (['If-None-Match: "x"', "If-Modified-Since: MODIFIED"], 200),  # the tag decides
        (["If-Match: ETAG"], 200),
        (["If-Match: *"], 200),
        (["If-Match: W/ETAG"], 412),  # a weak tag is not strong enough
        (['If-Match: "x"'], 412),
        ([f"If-Unmodified-Since: {OLD}"], 412),
        (["If-Unmodified-Since: MODIFIED"], 200),
        (["If-Unmodified-Since: tomorrow"], 200),
        (["If-Match: ETAG", f"If-Unmodified-Since: {OLD}"], 200),  # the tag decides
        (["If-Match: ETAG", "If-None-Match: ETAG"], 304),
    ],
)
def test_conditions(static, conditions, status):
    response = static.get("/letters.txt")
    for known, name in ("ETAG", "etag"), ("MODIFIED", "last-modified"):
        conditions = [c.replace(known, response.get(name).decode()) for c in conditions]
    for method in "GET", "HEAD":
        answer = static.get("/letters.txt", *conditions, method=method)
        assert answer.status == status
        if status == 304:
            assert answer.body == b""
            assert answer.get("etag") == response.get("etag")
            assert answer.get("last-modified") == response.get("last-modified")


def test_the_tag_changes_with_the_file(static):
    path = static.root / "changing.txt"
    path.write_bytes(b"one")
    os.utime(path, (1_000_000_000, 1_000_000_000))
    first = static.get("/changing.txt")
    assert first.get("last-modified") == b"Sun, 09 Sep 2001 01:46:40 GMT"
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert static.get("/changing.txt").get("etag") != first.get("etag")


@pytest.mark.parametrize(
    ("asked", "status", "content_range", "body"),
    [
        ("bytes=0-0", 206, b"bytes 0-0/26", b"A"),
        ("bytes=2-4", 206, b"bytes 2-4/26", b"CDE"),
        ("bytes=24-", 206, b"bytes 24-25/26", b"YZ"),
        ("bytes=-3", 206, b"bytes 23-25/26", b"XYZ"),
        ("bytes=-99", 206, b"bytes 0-25/26", LETTERS),
        ("bytes=20-999", 206, b"bytes 20-25/26", b"UVWXYZ"),
        ("bytes=26-", 416, b"bytes */26", None),
        ("bytes=26-30", 416, b"bytes */26", None),
        ("bytes=-0", 416, b"bytes */26", None),
        ("bytes=0-1,3-4", 200, None, LETTERS),  # several: the whole
        ("bytes=4-2", 200, None, LETTERS),  # what is no range is ignored
        ("bytes=-", 200, None, LETTERS),
        ("bytes=a-b", 200, None, LETTERS),
        ("bytes=+1-2", 200, None, LETTERS),
        ("lines=1-2", 200, None, LETTERS),
    ],
)
def test_ranges(static, asked, status, content_range, body):
    response = static.get("/letters.txt", f"Range: {asked}")
    assert response.status == status
    assert response.get("content-range") == content_range
    if body is not None:
        assert response.body == body
        assert response.get("content-length") == b"%d" % len(body)
    assert static.get("/letters.txt", f"Range: {asked}", method="HEAD").status == 200


def test_a_range_only_of_the_file_that_is_meant(static):
    whole = static.get("/letters.txt")
    etag, modified = whole.get("etag").decode(), whole.get("last-modified").decode()
    for valid, status in (etag, 206), (modified, 206), ('"x"', 200), (f"W/{etag}", 200), (OLD, 200):
        response = static.get("/letters.txt", "Range: bytes=0-1", f"If-Range: {valid}")
        assert response.status == status
    assert static.get("/letters.txt", "Range: bytes=0-1", f"If-None-Match: {etag}").status == 304


def test_a_range_of_a_large_file(static):
    data = (static.root / "large.bin").read_bytes()
    response = static.get("/large.bin", "Range: bytes=1000000-4000000")
    assert response.body == data[1_000_000:4_000_001]
    assert static.get("/large.bin", "Range: bytes=-3").body == b"end"


@pytest.mark.parametrize(
    ("asked", "offered", "expected"),
    [
        ("", EXTENSIONS, {"type": "http.response.pathsend"}),
        ("bytes=2-4", EXTENSIONS, {"type": "http.response.zerocopysend", "offset": 2, "count": 3}),
        ("", EXTENSIONS[1:], {"type": "http.response.zerocopysend", "offset": 0, "count": 26}),
    ],
)
def test_the_kernel_is_asked_where_it_is_offered(tree, monkeypatch, asked, offered, expected):
    """Stepped by hand: with the extensions offered the app waits for nothing."""
    module = importlib.import_module("examples.static")
    monkeypatch.setattr(module, "ROOT", tree)
    sent = []

    async def send(message):
        if "file" in message:
            assert not message["file"].closed, "it is closed when it has been sent"
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/letters.txt",
        "query_string": b"",
        "headers": [(b"range", asked.encode())] if asked else [],
        "extensions": {name: {} for name in offered},
    }
    with pytest.raises(StopIteration):
        module.app(scope, None, send).send(None)
    assert [message["type"] for message in sent] == ["http.response.start", expected["type"]]
    assert {key: sent[1][key] for key in expected} == expected
    if "file" in sent[1]:
        assert sent[1]["file"].name == str(tree / "letters.txt")
        assert sent[1]["file"].closed
    else:
        assert sent[1]["path"] == str(tree / "letters.txt")


# -- proxy -----------------------------------------------------------------------------------------


class Upstream:
    """A server that plays a script: each connection is given to ``script(client)`` in a thread."""

    def __init__(self, script):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.settimeout(DEADLINE)
        self.name = "127.0.0.1:{}".format(*self.listener.getsockname()[1:])
        self.failure = None
        self.thread = threading.Thread(target=self.run, args=(script,), daemon=True)
        self.thread.start()

    def run(self, script):
        try:
            sock, _ = self.listener.accept()
            with sock:
                sock.settimeout(DEADLINE)
                script(UpstreamClient(sock))
        except BaseException as failure:
            self.failure = failure

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.thread.join(DEADLINE)
        self.listener.close()
        assert not self.thread.is_alive()
        if self.failure and exc == (None, None, None):
            raise self.failure


class UpstreamClient(RawClient):
    """The upstream's end of the connection that the proxy has made."""

    def __init__(self, sock):
        self.socket, self.deadline, self.buffer, self.ended = sock, DEADLINE, bytearray(), False

    def read_request(self):
        line, *fields = self.read_until(b"\r\n\r\n")[:-4].split(b"\r\n")
        return line, [self.read_field(field) for field in fields]


@pytest.fixture
def proxy(serve):
    """Start an upstream with a script, and the proxy before it."""
    with contextlib.ExitStack() as stack:

        def start(script, **env):
            upstream = stack.enter_context(Upstream(script))
            return serve("examples.proxy:app", env={"UPSTREAM": upstream.name, **env})

        yield start


def plays(*pieces):
    """Make a script that reads a head and sends the pieces."""

    def script(client):
        client.read_request()
        for piece in pieces:
            client.send(piece)

    return script


def test_what_upstream_sees(proxy):
    seen = []

    def script(client):
        seen.append(client.read_request())
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    server = proxy(script)
    with server.connect() as client:
        response = client.get(
            "/a%20b//c?d=%20&e",
            "X-Twice: 1",
            "X-Twice: 2",
            "Connection: keep-alive, X-Private",
            "X-Private: mine",
            "TE: trailers",
            "Upgrade: h2c",
        )
        assert response.body == b"ok"
    line, headers = seen[0]
    assert line == b"GET /a%20b//c?d=%20&e HTTP/1.1"
    assert headers == [
        (b"host", b"test"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
        (b"x-forwarded-for", b"127.0.0.1"),
        (b"x-forwarded-proto", b"http"),
        (b"connection", b"close"),
    ]


@pytest.mark.parametrize(
    ("answer", "body", "framing"),
    [
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"], b"hello", "length"),
        ([b"HTTP/1.0 200 OK\r\n\r\nhel", b"lo"], b"hello", "chunked"),
        (
            [
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=b\r\nhel\r",
                b"\n2 \r\nlo\r\n0\r\nT: 1\r\n\r\n",
            ],
            b"hello",
            "chunked",
        ),
        (
            [b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"],
            b"",
            "length",
        ),
        ([b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n"], b"", "none"),
        ([b"HTTP/1.1 204 No\r\n\r\n"], b"", "none"),
    ],
)
def test_what_the_client_sees(proxy, answer, body, framing):
    with proxy(plays(*answer)).connect() as client:
        response = client.get()
        assert (response.body, response.framing, response.complete) == (body, framing, True)
        assert response.get("connection") is None
        assert response.interim == []


def test_headers_of_the_answer_are_passed_on_as_they_are(proxy):
    answer = (
        b"HTTP/1.1 404 Gone\r\nSet-Cookie: a=1; Path=/\r\nSet-Cookie: b=\xff\r\nServer: other\r\n"
        b"Connection: X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 0\r\n\r\n"
    )
    with proxy(plays(answer)).connect() as client:
        response = client.get()
    assert response.status == 404
    assert response.all("set-cookie") == [b"a=1; Path=/", b"b=\xff"]
    assert response.get("server") == b"other"
    assert response.get("x-hop") is response.get("keep-alive") is None


def test_head_has_no_body(proxy):
    with proxy(plays(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")).connect() as client:
        client.request("HEAD")
        response = client.read_response("HEAD")
        assert response.get("content-length") == b"5"
        assert client.is_silent(0.05)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_upload_goes_through(proxy, framing):
    data = os.urandom(3_000_000)
    seen = []

    def script(client):
        _, headers = client.read_request()
        if framing == "length":
            seen.append(client.read_exactly(int(dict(headers)[b"content-length"])))
        else:
            assert (b"transfer-encoding", b"chunked") in headers
            request = Response("1.1", 200, "")
            client.read_chunks(request)
            seen.append(request.body)
        client.send(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")

    with proxy(script).connect() as client:
        if framing == "length":
            client.request("PUT", "/", body=data)
        else:
            client.request("PUT", "/", "Transfer-Encoding: chunked")
            client.send(b"".join(chunks(data)))
        assert client.read_response().status == 201
    assert seen == [data]


def test_an_answer_that_does_not_wait_for_the_upload(proxy):
    def script(client):
        client.read_request()
        client.send(b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno")
        with contextlib.suppress(ConnectionError):
            client.read_until_close()

    with proxy(script).connect() as client:
        client.request("PUT", "/", "Content-Length: 100000000")
        client.send(bytes(100_000))
        response = client.read_response()
        assert (response.status, response.body) == (413, b"no")


def test_it_streams_and_stops_when_the_client_leaves(proxy):
    """Upstream's next event comes only after the client has seen the last one."""
    seen = threading.Event()

    def script(client):
        client.read_request()
        client.send(b"HTTP/1.1 200 OK\r\n\r\none")
        assert seen.wait(DEADLINE)
        client.send(b"two")
        assert client.is_closed(), "the client has left, and so does the proxy"

    with proxy(script).connect() as client:
        client.request("GET")
        assert client.read_until(b"one").endswith(b"one")
        seen.set()
        assert client.read_until(b"two").endswith(b"two")
        client.close()


def test_a_client_that_reads_slowly_holds_upstream_back(proxy):
    sent = []

    def script(client):
        client.read_request()
        client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 64000000\r\n\r\n")
        client.socket.settimeout(0.5)
        with contextlib.suppress(socket.timeout):
            while sum(sent) < 64_000_000:
                sent.append(client.socket.send(bytes(64000)))
        held.set()
        client.send(bytes(64_000_000 - sum(sent)))

    held = threading.Event()
    with proxy(script).connect(receive_buffer=4096) as client:
        client.request("GET")
        assert held.wait(DEADLINE)
        assert sum(sent) < 32_000_000
        client.deadline = 30
        assert client.read_response().body == bytes(64_000_000)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("reason", "answer"),
    [
        ("closed", b""),
        ("no status line", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
        ("no header field", OK + b"no field\r\n\r\n"),
        ("how long", OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        ("how long", OK + b"Content-Length: +1\r\n\r\n"),
        ("how long", OK + b"Transfer-Encoding: gzip\r\n\r\n"),
        ("protocol", b"HTTP/1.1 101 Switching\r\n\r\n"),
        pytest.param("to the point", OK + b"a: b\r\n" * 40_000, id="endless"),
    ],
)
def test_an_upstream_that_does_not_speak_http(proxy, reason, answer):
    with proxy(plays(answer)).connect() as client:
        response = client.get()
        assert response.status == 502
        assert reason.encode() in response.body


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
    ],
)
def test_an_answer_that_breaks_off_is_not_made_to_look_whole(proxy, answer):
    with proxy(plays(answer)).connect() as client:
        response = client.get()
        assert response.status == 500 or not response.complete


def test_no_upstream(serve):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        name = "127.0.0.1:{}".format(*nobody.getsockname()[1:])
    with serve("examples.proxy:app", env={"UPSTREAM": name}).connect() as client:
        response = client.get()
        assert response.status == 502
        assert b"refused" in response.body
        assert client.get().status == 502, "and the connection to the client is kept"


def test_an_upstream_that_says_nothing(proxy):
    def script(client):
        client.read_request()
        assert client.is_closed()

    server = proxy(script, UPSTREAM_TIMEOUT="0.2")
    with server.connect() as client:
        response = client.get()
        assert response.status == 504
        assert b"said nothing for 0.2 s" in response.body


def test_many_at_once(serve, module_serve):
    upstream = module_serve("examples.stream:app")
    name = "{}:{}".format(*upstream.address)
    server = serve("examples.proxy:app", env={"UPSTREAM": name})

    def ask(number):
        with server.connect() as client:
            return [client.get(f"/count?to={number + n}&every=0.01").body for n in range(3)]

    for number, bodies in enumerate(parallel(20, ask)):
        for n, body in enumerate(bodies):
            assert body == b"".join(b"%d\n" % i for i in range(1, number + n + 1))


def test_the_proxy_has_no_websocket(serve):
    server = serve("examples.proxy:app")
    with server.connect() as client:
        client.request(
            "GET",
            "/",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert client.read_response().status == 403


# -- fastapi ---------------------------------------------------------------------------------------


def test_fastapi(serve):
    pytest.importorskip("fastapi", reason="FastAPI is not installed: pip install fastapi")
    server = serve("examples.fastapi_app:app")
    with server.connect() as client:
        note = b'{"text":"a handler never waits","stars":5}'
        client.request("PUT", "/notes/idea", "Content-Type: application/json", body=note)
        assert json.loads(client.read_response().body) == json.loads(note)
        assert json.loads(client.get("/").body) == ["idea"]
        assert json.loads(client.get("/notes/idea").body)["stars"] == 5
        assert client.get("/notes/none").status == 404
        assert json.loads(client.get("/sleep?seconds=0.01").body)["slept"] >= 0.01
        assert client.get("/count?to=3").body == b"1\n2\n3\n"
        assert client.get("/docs").status == 200
    with Member(server, "/echo") as member:
        member.send(b"hello")
        assert member.receive() == (0x81, b"hello")
    assert server.stop() == 0
