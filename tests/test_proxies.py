"""Behind proxies: header fields and the PROXY protocol, by hand and from real haproxy and nginx."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from hashlib import sha256

import pytest

from .apps_production import ask_websocket_scope
from .support import DEADLINE, Lines, RawClient, free_ports, parallel, run_server

pytestmark = pytest.mark.usefixtures("healthy")
APP = ("tests.apps:app", "--lifespan", "off")
HAPROXY, NGINX = shutil.which("haproxy"), shutil.which("nginx")
needs_haproxy = pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed")
needs_nginx = pytest.mark.skipif(not NGINX, reason="nginx is not installed")
V2 = b"\r\n\r\n\0\r\nQUIT\n"


def scope_of(response) -> dict:
    assert response.status == 200, response
    return ast.literal_eval(response.body.decode())


def scope_at(address, *headers: str, before: bytes = b"") -> dict:
    with RawClient(address) as client:
        client.send(before)
        return scope_of(client.get("/scope", *headers))


def is_local(scope: dict) -> bool:
    return scope["client"][0] == "127.0.0.1" and scope["client"][1] > 0


# -- header fields ---------------------------------------------------------------------------------


@pytest.fixture
def server(module_serve):
    """The server most tests share: it trusts 127.0.0.1 and ::1."""
    return module_serve(*APP)


def test_a_trusted_peer_is_believed(server):
    start = len(server.stdout.lines)
    scope = scope_at(
        server.address,
        "X-Forwarded-For: 203.0.113.7, 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: shop.example",
    )
    assert scope["client"] == ("203.0.113.7", 0) and scope["scheme"] == "https"
    assert (b"host", b"shop.example") in scope["headers"]
    assert server.stdout.wait_for(r'203\.0\.113\.7 - "GET /scope HTTP/1.1" 200', start=start)
    scope = scope_at(server.address, 'Forwarded: for="[2001:db8::1]:4711";proto=https')
    assert scope["client"] == ("2001:db8::1", 4711) and scope["scheme"] == "https"


def test_every_request_is_its_own(server):
    with server.connect() as client:
        first = scope_of(client.get("/scope", "X-Forwarded-For: 203.0.113.7"))
        second = scope_of(client.get("/scope"))
        third = scope_of(client.get("/scope", "X-Forwarded-For: 203.0.113.8:99"))
    assert first["client"] == ("203.0.113.7", 0)
    assert is_local(second) and third["client"] == ("203.0.113.8", 99)


@pytest.mark.parametrize(
    "options, env, believed",
    [
        ((), {}, True),
        (("--no-proxy-headers",), {}, False),
        (("--forwarded-allow-ips", ""), {}, False),
        (("--forwarded-allow-ips", "10.0.0.0/8"), {}, False),
        (("--forwarded-allow-ips", "127.0.0.0/8"), {}, True),
        (("--forwarded-allow-ips", "*"), {}, True),
        ((), {"FORWARDED_ALLOW_IPS": "10.1.1.1"}, False),
        ((), {"FORWARDED_ALLOW_IPS": "10.1.1.1", "SELECTSERVE_FORWARDED_ALLOW_IPS": "*"}, True),
        (("--forwarded-allow-ips", "127.0.0.1"), {"FORWARDED_ALLOW_IPS": "10.1.1.1"}, True),
    ],
)
def test_who_is_trusted(serve, options, env, believed):
    server = serve(*APP, *options, env=env)
    scope = scope_at(server.address, "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Proto: https")
    assert (scope["client"][0] == "203.0.113.7") == believed
    assert (scope["scheme"] == "https") == believed
    assert any(name == b"x-forwarded-for" for name, _ in scope["headers"])
    if not believed:
        assert is_local(scope)


FORGED = ("X-Forwarded-For: 203.0.113.7", "X_Forwarded_Proto: https", "Forwarded: for=1.1.1.1")


def test_what_others_say_can_be_removed(serve):
    server = serve(*APP, "--forwarded-allow-ips", "10.1.1.1", "--strip-untrusted-forwarded")
    scope = scope_at(server.address, *FORGED, "X-Real-IP: 1.1.1.1", "X-Kept: 1")
    assert [name for name, _ in scope["headers"]] == [b"host", b"x-kept"]
    server = serve(*APP, "--strip-untrusted-forwarded", "--no-proxy-headers")
    scope = scope_at(server.address, *FORGED)  # from a trusted peer: kept, though not believed
    assert len(scope["headers"]) == 4 and is_local(scope)


def test_junk_fails_no_request(server):
    for junk in (
        "",
        " ",
        ",,,",
        "unknown",
        "unix:",
        "1.2.3.4:junk",
        "[::1",
        "\xff\xfe",
        "a" * 5000,
    ):
        with server.connect() as client:
            lines = [f"X-Forwarded-For: {junk}", f"Forwarded: {junk}", f"X-Forwarded-Proto: {junk}"]
            scope = scope_of(client.get("/scope", *lines))
            assert scope["scheme"] == "http"
            host, port = scope["client"]
            assert isinstance(host, str) and isinstance(port, int)


def test_a_unix_peer(serve, tmp_path):
    for number, (options, believed) in enumerate(
        [((), False), (("--forwarded-allow-ips", "unix:"), True)]
    ):
        path = str(tmp_path / f"s{number}")
        server = serve(*APP, "--uds", path, *options)
        scope = scope_at(path, "X-Forwarded-For: 203.0.113.7", "X-Forwarded-Port: 443")
        assert scope["client"] == (("203.0.113.7", 0) if believed else None)
        assert scope["server"] == (path, None)
        client = r"203\.0\.113\.7" if believed else "unix"
        assert server.stdout.wait_for(f'{client} - "GET /scope'), server.stdout.text()


def test_a_wrong_list_of_peers():
    done = run_server(*APP, "--forwarded-allow-ips", "10.0.0.0/8,proxy.example")
    assert done.returncode == 2
    assert "--forwarded-allow-ips: 'proxy.example' is not an IP address" in done.stderr
    assert "Traceback" not in done.stderr


# -- the PROXY protocol ----------------------------------------------------------------------------


def block(command: int, family: int, body: bytes) -> bytes:
    return V2 + struct.pack("!BBH", 0x20 | command, family, len(body)) + body


IPV4 = (
    socket.inet_aton("203.0.113.7")
    + socket.inet_aton("198.51.100.1")
    + struct.pack("!HH", 4711, 443)
)
IPV6 = (
    socket.inet_pton(socket.AF_INET6, "2001:db8::7")
    + socket.inet_pton(socket.AF_INET6, "2001:db8::1")
    + struct.pack("!HH", 4711, 443)
)  # fmt: skip
LINE = b"PROXY TCP4 203.0.113.7 198.51.100.1 4711 443\r\n"
TLV = b"\x04\0\x03abc" + b"\x02\0\x09a.example"


@pytest.fixture
def proxied(module_serve):
    return module_serve(*APP, "--proxy-protocol", "--timeout-handshake", "60")


@pytest.mark.parametrize(
    "header, client, local",
    [
        (LINE, ("203.0.113.7", 4711), ("198.51.100.1", 443)),
        (b"PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n", ("2001:db8::7", 1), ("2001:db8::1", 2)),
        (block(1, 0x11, IPV4), ("203.0.113.7", 4711), ("198.51.100.1", 443)),
        (block(1, 0x21, IPV6), ("2001:db8::7", 4711), ("2001:db8::1", 443)),
        (block(1, 0x11, IPV4 + TLV), ("203.0.113.7", 4711), ("198.51.100.1", 443)),
        (b"PROXY UNKNOWN\r\n", None, None),
        (block(0, 0x00, b""), None, None),  # LOCAL: a health check
    ],
)
def test_proxy_header(proxied, header, client, local):
    scope = scope_at(proxied.address, before=header)
    if client is None:
        assert is_local(scope) and scope["server"] == proxied.address
    else:
        assert scope["client"] == client and scope["server"] == local
        assert proxied.stdout.wait_for(re.escape(f"{client[0]}:{client[1]} - ") + '"GET /scope')


@pytest.mark.parametrize("header", [LINE, block(1, 0x11, IPV4 + TLV)])
def test_proxy_header_in_any_pieces(proxied, header):
    data = header + b"GET /scope HTTP/1.1\r\nHost: a\r\n\r\n"
    for cuts in ([], range(1, len(data)), [5], [len(header)], [len(header) + 3]):
        with proxied.connect() as client:
            for start, end in zip([0, *cuts], [*cuts, len(data)]):
                client.send(data[start:end])
            assert scope_of(client.read_response())["client"] == ("203.0.113.7", 4711)
            assert scope_of(client.get("/scope"))["client"] == ("203.0.113.7", 4711)


def test_the_client_behind_is_not_trusted_itself(proxied):
    """Who is trusted with header fields is decided by the address that the PROXY header tells."""
    scope = scope_at(proxied.address, "X-Forwarded-For: 1.1.1.1", before=LINE)
    assert scope["client"] == ("203.0.113.7", 4711)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY TCP4 nonsense\r\n",
        b"PROXY " + b"x" * 200,
        block(1, 0x11, IPV4[:-1]),
        V2 + b"\x31\x11\0\0",
        b"\x16\x03\x01",
    ],
)
def test_without_a_header_nothing_is_served(proxied, data):
    start = proxied.log_position()
    with proxied.connect() as client:
        client.send(data)
        assert client.is_closed()
    proxied.wait_for_log(r"WARNING: .*127\.0\.0\.1:\d+: .*PROXY", start=start)


def test_a_silent_proxy_has_a_deadline(serve):
    server = serve(*APP, "--proxy-protocol", "--timeout-handshake", "0.2")
    with server.connect() as silent, server.connect() as half:
        half.send(LINE[:10])
        assert silent.is_closed() and half.is_closed()


def test_who_is_not_trusted_needs_no_header_and_may_send_none(serve):
    server = serve(*APP, "--proxy-protocol", "--forwarded-allow-ips", "10.1.1.1")
    assert is_local(scope_at(server.address))
    with server.connect() as client:
        client.send(LINE + b"GET /scope HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.read_response().status == 400


def test_proxy_header_before_tls(serve, tmp_path):
    import ssl

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl command is not installed")
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-days", "2", "-subj", "/CN=a",
        ],
        cwd=tmp_path, check=True, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip
    files = [
        "--ssl-certfile",
        str(tmp_path / "cert.pem"),
        "--ssl-keyfile",
        str(tmp_path / "key.pem"),
    ]
    server = serve(*APP, *files, "--proxy-protocol")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    header = block(1, 0x11, IPV4)
    with server.connect() as client:
        done = b""
        while not done.endswith(b"}"):
            try:
                if tls.version() is None or not done:
                    tls.do_handshake()
                    tls.write(b"GET /scope HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                done += tls.read(65536)
            except ssl.SSLWantReadError:
                client.send(header + outgoing.read())  # with the ClientHello in one segment
                header = b""
                incoming.write(client.socket.recv(65536))
        scope = ast.literal_eval(done.partition(b"\r\n\r\n")[2].decode())
    assert scope["client"] == ("203.0.113.7", 4711) and scope["scheme"] == "https"


def test_shutdown_does_not_wait_for_proxies(serve):
    server = serve(*APP, "--proxy-protocol", "--timeout-handshake", "600")
    with server.connect() as client:
        client.send(LINE[:10])
        scope_at(server.address, before=LINE)
        assert server.stop() == 0
        assert client.is_closed()


# -- real proxies ----------------------------------------------------------------------------------


class Proxy:
    """A proxy process in front of a server, ready when its port answers."""

    def __init__(self, command: list[str], port: int, pass_fds=()) -> None:
        self.port = port
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=pass_fds
        )
        self.log = Lines(self.process.stderr)

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(DEADLINE)
        finally:
            self.process.kill()
            self.log.close()


@pytest.fixture
def haproxy(tmp_path):
    """``haproxy(lines of the backend, mode="http")``: listens on an inherited socket."""
    proxies = []

    def start(server_line: str, mode: str = "http", more: str = "") -> Proxy:
        listening = socket.create_server(("127.0.0.1", 0))
        config = tmp_path / "haproxy.cfg"
        config.write_text(
            f"defaults\n mode {mode}\n timeout connect 5s\n timeout client 30s\n"
            f" timeout server 30s\nlisten test\n bind fd@{listening.fileno()}\n{more}\n"
            f" server app {server_line}\n"
        )
        port = listening.getsockname()[1]
        command = [HAPROXY, "-db", "-f", str(config)]
        proxies.append(Proxy(command, port, [listening.fileno()]))
        listening.close()
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@needs_haproxy
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_haproxy_with_the_proxy_protocol(proxied, haproxy, option):
    proxy = haproxy(f"127.0.0.1:{proxied.port} {option}", "tcp")
    with RawClient(proxy.address) as client:
        for _ in range(3):
            scope = scope_of(client.get("/scope"))
            assert scope["client"] == client.socket.getsockname()
            assert scope["server"] == client.socket.getpeername()


@needs_haproxy
def test_haproxy_checks_our_health_with_the_proxy_protocol(proxied, haproxy):
    """Its checks are LOCAL connections that end without a request: no complaint in the log."""
    start = proxied.log_position()
    line = f"127.0.0.1:{proxied.port} send-proxy-v2 check inter 50ms rise 1"
    proxy = haproxy(line, "http", " option httpchk GET /hello")
    assert proxied.stdout.wait_for('"GET /hello HTTP/1.0" 200'), proxied.stdout.text()
    with RawClient(proxy.address) as client:
        assert client.get("/hello").body == b"hello"
    assert "WARNING" not in "\n".join(proxied.stderr.lines[start:])


@needs_haproxy
def test_haproxy_with_forwardfor(server, haproxy):
    more = " option forwardfor\n http-request set-header X-Forwarded-Proto https"
    proxy = haproxy(f"127.0.0.1:{server.port}", "http", more)
    with RawClient(proxy.address) as client:
        for _ in range(3):
            scope = scope_of(client.get("/scope", "X-Forwarded-For: 6.6.6.6"))
            # haproxy appends what it sees, which we trust (127.0.0.1): so the next one counts
            assert scope["client"] == ("6.6.6.6", 0) and scope["scheme"] == "https"


NGINX_CONF = """
daemon off; worker_processes 1; pid {home}/pid; error_log stderr warn;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
  uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  client_max_body_size 100m;
  map $http_upgrade $hop {{ default upgrade; "" ""; }}
  upstream app {{ server {upstream}; keepalive 16; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection $hop;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto https;
      proxy_buffering {buffering};
      proxy_request_buffering {buffering};
    }}
  }}
}}
"""


@pytest.fixture
def nginx(tmp_path):
    """``nginx("127.0.0.1:8000")``: with keep-alive to the upstream."""
    proxies = []

    def start(upstream: str, buffering: str = "on") -> Proxy:
        (port,) = free_ports(1)
        home = tmp_path / f"nginx{len(proxies)}"
        home.mkdir()
        os.chmod(tmp_path, 0o755)
        config = home / "nginx.conf"
        config.write_text(
            NGINX_CONF.format(home=home, upstream=upstream, port=port, buffering=buffering)
        )
        command = [NGINX, "-p", str(home), "-c", str(config), "-e", "stderr"]
        if os.getuid() == 0:  # its workers would else run as somebody who cannot write there
            command += ["-g", "user root;"]
        proxies.append(Proxy(command, port))
        wait_for_port(proxies[-1])
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


def wait_for_port(proxy: Proxy) -> None:
    """Return once nginx accepts; its pid file is written after the sockets are open."""
    done = threading.Event()
    while proxy.process.poll() is None:
        try:
            socket.create_connection(proxy.address, DEADLINE).close()
            return
        except ConnectionRefusedError:
            done.wait(0.01)
    raise AssertionError(f"nginx ended: {proxy.log.text()}")


@needs_nginx
def test_nginx_keeps_connections_to_us(server, nginx):
    proxy = nginx(f"127.0.0.1:{server.port}")
    ports = set()
    with RawClient(proxy.address) as client:
        for number in range(20):
            scope = scope_of(client.get(f"/scope?{number}"))
            assert scope["client"] == ("127.0.0.1", 0)  # all trusted: the leftmost
            assert scope["scheme"] == "https"
            assert scope["http_version"] == "1.1"
            ports.add(scope["server"][1])
        for _ in range(20):
            client.request("POST", "/echo", body=b"x" * 100)
            assert client.read_response("POST").body == b"x" * 100
    assert ports == {server.port}

    def many(number: int) -> None:
        with RawClient(proxy.address) as client:
            for _ in range(20):
                assert client.get("/hello").body == b"hello"

    parallel(8, many)


@needs_nginx
@pytest.mark.parametrize("buffering", ["on", "off"])
def test_nginx_uploads_and_downloads(server, serve, nginx, buffering):
    uploads = serve("tests.apps_production:upload", "--lifespan", "off")
    body = os.urandom(1 << 20) * 20
    with RawClient(nginx(f"127.0.0.1:{uploads.port}", buffering).address) as client:
        for _ in range(2):
            client.request("POST", body=body)
            assert client.read_response("POST").body.decode() == sha256(body).hexdigest()
    with RawClient(nginx(f"127.0.0.1:{server.port}", buffering).address) as client:
        response = client.get("/stream?parts=50&size=100000")
        assert response.complete and len(response.body) == 5_000_000
        assert client.get("/hello").body == b"hello"


@needs_nginx
def test_nginx_without_buffering_passes_parts_on_as_they_come(server, nginx, tag):
    proxy = nginx(f"127.0.0.1:{server.port}", "off")
    with RawClient(proxy.address) as client:
        client.request("GET", f"/gated_stream?gate={tag}")
        head = client.read_head()
        assert head.status == 200
        assert client.read_until(b"\r\n") and client.read_until(b"\r\n")  # a chunk, and no end yet
        assert client.is_silent()
        with server.connect() as other:
            other.get(f"/open_gate?gate={tag}")
        assert client.read_until(b"0\r\n\r\n").endswith(b"0\r\n\r\n")


@needs_nginx
def test_nginx_upgrades_to_websocket(serve, nginx):
    server = serve("tests.apps_production:websocket_scope", "--lifespan", "off")
    with RawClient(nginx(f"127.0.0.1:{server.port}").address) as client:
        scope = ask_websocket_scope(client)
    assert scope["scheme"] == "wss" and scope["client"] == ("127.0.0.1", 0)


@needs_nginx
def test_nginx_over_a_unix_socket(serve, nginx, tmp_path):
    path = str(tmp_path / "s")
    serve(*APP, "--uds", path, "--forwarded-allow-ips", "unix:")
    proxy = nginx(f"unix:{path}")
    scope = scope_at(proxy.address)
    assert scope["client"] == ("127.0.0.1", 0) and scope["scheme"] == "https"
    assert scope["server"] == (path, None)


@needs_nginx
def test_nginx_meets_connections_that_we_have_closed(serve, nginx):
    """Requests around the keep-alive time-out: nginx tries again, and no client sees a 502."""
    server = serve(*APP, "--timeout-keep-alive", "0.25")
    proxy = nginx(f"127.0.0.1:{server.port}")
    pause = threading.Event()
    with RawClient(proxy.address) as client:
        for number in range(30):
            assert client.get("/hello").status == 200
            pause.wait(0.235 + number % 10 * 0.003)
