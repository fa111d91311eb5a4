"""TLS against real clients: curl, openssl s_client, Python's ssl, and one that cuts the bytes.

Keys and certificates are made by the openssl command when the module begins.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from .apps_production import ask_websocket_scope
from .support import DEADLINE, ROOT, RawClient, run_server

CURL, OPENSSL, WRK = map(shutil.which, ("curl", "openssl", "wrk"))
CURL, OPENSSL = shutil.which("curl"), shutil.which("openssl")
needs_curl = pytest.mark.skipif(not CURL, reason="curl is not installed")
if not OPENSSL:
    pytest.skip("the openssl command is not installed", allow_module_level=True)
SERVED = ("tests.apps:app", "--lifespan", "off", "--no-access-log")


# -- keys and certificates -------------------------------------------------------------------------


def openssl(*arguments: object, cwd: Path, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [OPENSSL, *map(str, arguments)],
        cwd=cwd,
        check=options.pop("check", True),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        **options,
    )


class Authority:
    """A certificate authority in a directory: ``issue("a", "/CN=a", "DNS:a.test")``."""

    def __init__(self, home: Path, name: str = "Test CA") -> None:
        self.home = home
        home.mkdir()
        self.cert = home / "ca.pem"
        self.self_signed("ca", f"/CN={name}")

    def self_signed(self, name: str, subject: str) -> Path:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            "req", "-x509", *curve, "-keyout", f"{name}.key", "-out", f"{name}.pem",
            "-days", 2, "-subj", subject, "-addext", "keyUsage=digitalSignature,keyCertSign",
            cwd=self.home,
        )  # fmt: skip
        return self.home / f"{name}.pem"

    def issue(self, name: str, subject: str, names: str = "") -> tuple[Path, Path]:
        """Return certificate and key."""
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-utf8",
            "-subj", subject, cwd=self.home,
        )  # fmt: skip
        extensions = self.home / f"{name}.ext"
        lines = "authorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        extensions.write_text(lines + (f"subjectAltName={names}\n" if names else ""))
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", 2, "-out", f"{name}.pem", "-extfile", extensions,
            cwd=self.home,
        )  # fmt: skip
        return self.home / f"{name}.pem", self.home / f"{name}.key"

    def options(self, *names: str) -> list[str]:
        return [
            part
            for name in names
            for part in (
                "--ssl-certfile", str(self.home / f"{name}.pem"),
                "--ssl-keyfile", str(self.home / f"{name}.key"),
            )
        ]  # fmt: skip


@pytest.fixture(scope="module")
def pki(tmp_path_factory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("tls") / "ca")
    authority.issue("local", "/CN=localhost", "DNS:localhost,IP:127.0.0.1")
    authority.issue("a", "/CN=ignored", "DNS:a.test,DNS:www.a.test")
    authority.issue("wild", "/CN=ignored", "DNS:*.b.test")
    authority.issue("client", r"/C=DE/O=Acme, Inc./CN=Zoë \+ #1/serialNumber=42")
    return authority


@pytest.fixture(scope="module")
def stranger(tmp_path_factory) -> Authority:
    authority = Authority(tmp_path_factory.mktemp("stranger") / "ca", "Strange CA")
    authority.issue("client", "/CN=stranger")
    return authority


@pytest.fixture
def server(module_serve, pki):
    """The server most tests share."""
    return module_serve(*SERVED, *pki.options("local"))


def client_context(pki: Authority, **options: object) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(pki.cert))
    for name, value in options.items():
        setattr(context, name, value)
    return context


class TLSClient(RawClient):
    """The raw client, through Python's ssl; a cut without close_notify is an error."""

    def __init__(self, address, context, name="localhost", **options) -> None:
        super().__init__(address, **options)
        try:
            self.socket = context.wrap_socket(
                self.socket, server_hostname=name, suppress_ragged_eofs=False
            )
        except BaseException:
            self.close()
            raise


class BytesClient:
    """A TLS client whose bytes the test moves: ``feed`` them, ``take`` them, cut as you like."""

    def __init__(self, server, context) -> None:
        self.raw = server.connect()
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def send(self, step: int | None = None) -> None:
        """Send what TLS has to say, ``step`` bytes in a segment."""
        data = self.outgoing.read()
        for at in range(0, len(data), step or len(data) or 1):
            self.raw.send(data[at : at + (step or len(data))])

    def receive(self) -> None:
        data = self.raw.socket.recv(65536)
        if data:
            self.incoming.write(data)
        else:
            self.incoming.write_eof()

    def shake_hands(self, step: int | None = None) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                self.send(step)
                self.receive()
            else:
                self.send(step)
                return

    def read_all(self) -> bytes:
        """Return everything up to close_notify."""
        data = b""
        while True:
            try:
                piece = self.tls.read(65536)
            except ssl.SSLWantReadError:
                self.receive()
                continue
            except ssl.SSLZeroReturnError:
                return data
            if not piece:
                return data
            data += piece

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        self.raw.close()


def scope_of(response) -> dict:
    return ast.literal_eval(response.body.decode())


# -- what is agreed on -----------------------------------------------------------------------------


@needs_curl
def test_curl(server, pki):
    assert re_url(server).startswith("https://127.0.0.1:")
    done = subprocess.run(
        [CURL, "-sSi", "--cacert", pki.cert, f"https://localhost:{server.port}/scope"],
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("HTTP/1.1 200")
    assert "'scheme': 'https'" in done.stdout


def re_url(server) -> str:
    return server.wait_for_log(r"running on (\S+)")[1]


@needs_curl
def test_curl_with_the_wrong_authority(server, stranger):
    start = server.log_position()
    done = subprocess.run(
        [CURL, "-sS", "--cacert", stranger.cert, f"https://localhost:{server.port}/hello"],
        capture_output=True, text=True, timeout=DEADLINE,
    )  # fmt: skip
    assert done.returncode == 60
    server.wait_for_log(
        r"WARNING: .*127\.0\.0\.1:\d+: TLS handshake failed: .*unknown ca", start=start
    )


@pytest.mark.parametrize(
    "version, number, suite",
    [
        ("TLSv1_2", 0x0303, ("ECDHE-ECDSA-AES128-GCM-SHA256", 0xC02B)),
        ("TLSv1_2", 0x0303, ("ECDHE-ECDSA-CHACHA20-POLY1305", 0xCCA9)),
        ("TLSv1_3", 0x0304, ("TLS_AES_256_GCM_SHA384", 0x1302)),
    ],
)
def test_the_tls_extension(server, pki, version, number, suite):
    context = client_context(
        pki,
        minimum_version=getattr(ssl.TLSVersion, version),
        maximum_version=getattr(ssl.TLSVersion, version),
    )
    if version == "TLSv1_2":
        context.set_ciphers(suite[0])
    with TLSClient(server.address, context) as client:
        assert client.socket.cipher()[0] == suite[0]
        for _ in range(5):  # the first request's app changes its scope: the second must not see it
            scope = scope_of(client.get("/scope"))
            assert scope["scheme"] == "https"
            assert scope["extensions"]["tls"] == {
                "server_cert": (pki.home / "local.pem").read_text(),
                "client_cert_chain": (),
                "client_cert_name": None,
                "client_cert_error": None,
                "tls_version": number,
                "cipher_suite": suite[1],
            }


def test_a_websocket(serve, pki):
    options = pki.options("local")
    server = serve("tests.apps_production:websocket_scope", "--lifespan", "off", *options)
    with TLSClient(server.address, client_context(pki)) as client:
        scope = ask_websocket_scope(client)
    assert scope["scheme"] == "wss"
    assert scope["extensions"]["tls"]["tls_version"] == 0x0304


def test_the_end_is_seen_whoever_has_the_socket(serve, pki):
    """As without TLS: what follows the close_notify is the end of TCP's stream, too."""
    pytest.importorskip("ctypes")
    server = serve("tests.apps_forks:app", *pki.options("local"))
    with TLSClient(server.address, client_context(pki)) as client:
        child = int(client.get("/unseen", "Connection: close").body[:-1])
        try:
            client.socket = client.socket.unwrap()
            assert client.socket.recv(1) == b""
        finally:
            os.kill(child, signal.SIGKILL)


def test_there_is_no_tls_extension_without_tls(serve):
    with serve(*SERVED).connect() as client:
        scope = scope_of(client.get("/scope"))
    assert scope["scheme"] == "http"
    assert "tls" not in scope["extensions"]


def test_only_http_1_1_is_negotiated(server, pki):
    for offered, chosen in ((["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)):
        context = client_context(pki)
        if offered:
            context.set_alpn_protocols(offered)
        with TLSClient(server.address, context) as client:
            assert client.socket.selected_alpn_protocol() == chosen
            assert client.get("/hello").body == b"hello"


def s_client(server, *arguments: str, pki: Authority, **options: object):
    return openssl(
        "s_client", "-connect", f"127.0.0.1:{server.port}", "-CAfile", pki.cert,
        "-verify_return_error", *arguments, cwd=pki.home, check=False,
        input="GET /hello HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        **options,
    )  # fmt: skip


def test_s_client(server, serve, pki):
    for option, version in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
        done = s_client(server, option, "-ign_eof", pki=pki)
        assert f"{version}, Cipher is" in done.stdout, done.stdout + done.stderr
        assert "HTTP/1.1 200 OK" in done.stdout and done.stdout.count("hello") == 1
    done = s_client(server, "-tls1_1", "-cipher", "ALL@SECLEVEL=0", "-ign_eof", pki=pki)
    assert done.returncode and "HTTP/1.1" not in done.stdout
    strict = serve(*SERVED, *pki.options("local"), "--ssl-version", "TLSv1.3")
    assert "HTTP/1.1 200 OK" in s_client(strict, "-tls1_3", "-ign_eof", pki=pki).stdout
    done = s_client(strict, "-tls1_2", "-ign_eof", pki=pki)
    assert done.returncode and "alert protocol version" in done.stderr
    strict = serve(*SERVED, *pki.options("local"), "--ssl-version", "5")  # as for uvicorn
    assert s_client(strict, "-tls1_3", "-ign_eof", pki=pki).returncode
    assert "HTTP/1.1 200 OK" in s_client(strict, "-tls1_2", "-ign_eof", pki=pki).stdout


def test_ciphers(serve, pki):
    only = "ECDHE-ECDSA-AES256-GCM-SHA384"
    server = serve(*SERVED, *pki.options("local"), "--ssl-ciphers", only)
    assert f"Cipher is {only}" in s_client(server, "-tls1_2", "-ign_eof", pki=pki).stdout


def test_renegotiation_is_refused(server, pki):
    """s_client takes a line that is "R" for the wish to renegotiate."""
    process = subprocess.Popen(
        [OPENSSL, "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=pki.home,
    )  # fmt: skip
    output, _ = process.communicate(b"R\n", timeout=DEADLINE)
    assert b"RENEGOTIATING" in output and b"no renegotiation" in output, output.decode()


# -- client certificates ---------------------------------------------------------------------------


@pytest.fixture
def mutual(module_serve, pki):
    return module_serve(
        *SERVED, *pki.options("local"), "--ssl-ca-certs", str(pki.cert), "--ssl-cert-reqs", "2"
    )


def test_client_certificate(mutual, pki):
    context = client_context(pki)
    context.load_cert_chain(str(pki.home / "client.pem"), str(pki.home / "client.key"))
    with TLSClient(mutual.address, context) as client:
        tls = scope_of(client.get("/scope"))["extensions"]["tls"]
    assert tls["client_cert_name"] == r"2.5.4.5=#13023432,CN=Zoë \+ #1,O=Acme\, Inc.,C=DE"
    assert tls["client_cert_chain"][0] == (pki.home / "client.pem").read_text()
    assert tls["client_cert_error"] is None


def test_client_without_certificate_is_refused(mutual, pki, stranger):
    bare, wrong = client_context(pki), client_context(pki)
    wrong.load_cert_chain(str(stranger.home / "client.pem"), str(stranger.home / "client.key"))
    for context, reason in ((bare, "peer did not return"), (wrong, "unable to get local issuer")):
        start = mutual.log_position()
        # with TLS 1.3 the client is done before the server has seen its certificate
        with pytest.raises((ssl.SSLError, ConnectionError)):
            with TLSClient(mutual.address, context) as client:
                client.get("/hello")
        mutual.wait_for_log(f"TLS handshake failed: .*{reason}", start=start)


def test_optional_client_certificate(serve, pki):
    server = serve(
        *SERVED, *pki.options("local"), "--ssl-ca-certs", str(pki.cert), "--ssl-cert-reqs",
        "optional",
    )  # fmt: skip
    with TLSClient(server.address, client_context(pki)) as client:
        tls = scope_of(client.get("/scope"))["extensions"]["tls"]
        assert tls["client_cert_chain"] == () and tls["client_cert_name"] is None
    context = client_context(pki)
    context.load_cert_chain(str(pki.home / "client.pem"), str(pki.home / "client.key"))
    with TLSClient(server.address, context) as client:
        assert scope_of(client.get("/scope"))["extensions"]["tls"]["client_cert_name"]


# -- several certificates, and new ones ------------------------------------------------------------


def subject_alternatives(server, pki, name) -> set[str]:
    context = client_context(pki, check_hostname=False)
    with TLSClient(server.address, context, name=name) as client:
        found = {value for _, value in client.socket.getpeercert().get("subjectAltName", ())}
        shown = scope_of(client.get("/scope"))["extensions"]["tls"]["server_cert"]
    assert ssl.PEM_cert_to_DER_cert(shown) in {
        ssl.PEM_cert_to_DER_cert((pki.home / f"{file}.pem").read_text())
        for file in ("local", "a", "wild")
    }
    return found


def test_the_certificate_fits_the_name(serve, pki):
    server = serve(*SERVED, *pki.options("local", "a", "wild"))
    assert subject_alternatives(server, pki, "localhost") == {"localhost", "127.0.0.1"}
    assert subject_alternatives(server, pki, "www.A.test") == {"a.test", "www.a.test"}
    assert subject_alternatives(server, pki, "x.b.test") == {"*.b.test"}
    for other in ("b.test", "y.x.b.test", "c.test", None):
        assert subject_alternatives(server, pki, other) == {"localhost", "127.0.0.1"}


def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def shown_certificate(server) -> bytes:
    with TLSClient(server.address, trusting()) as client:
        assert client.get("/hello").body == b"hello"
        return client.socket.getpeercert(True)


def test_a_renewed_certificate_is_picked_up(serve, pki, tmp_path):
    own = Authority(tmp_path / "own")
    own.self_signed("it", "/CN=first")
    server = serve(*SERVED, *own.options("it"))
    first = shown_certificate(server)
    with TLSClient(server.address, trusting()) as kept:
        kept.get("/hello")
        own.self_signed("it", "/CN=second")
        start = server.log_position()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("certificates loaded again", start=start)
        second = shown_certificate(server)
        assert second != first
        # bad files: told, and what there is serves on
        good = (own.home / "it.key").read_bytes()
        (own.home / "it.key").write_bytes((own.home / "ca.key").read_bytes())
        start = server.log_position()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log(
            "ERROR.*old certificate stays.*the key does not belong to the certificate", start=start
        )
        assert shown_certificate(server) == second
        assert kept.get("/hello").body == b"hello"
        # and without a signal, within the second after which the files are looked at again
        (own.home / "it.key").write_bytes(good)
        own.self_signed("it", "/CN=third")
        start = server.log_position()
        while server.stderr.wait_for("certificates loaded again", 0.1, start) is None:
            shown_certificate(server)
        assert shown_certificate(server) not in (first, second)


def test_a_bad_certificate_changes_nothing_for_workers(serve, pki, tmp_path):
    """Neither a restart, which its first new worker does not survive, nor a look at the files."""
    own = Authority(tmp_path / "own")
    own.self_signed("it", "/CN=first")
    server = serve(*SERVED, *own.options("it"), "--workers", "2")
    first = shown_certificate(server)
    own.self_signed("next", "/CN=second")
    (own.home / "it.pem").write_text("no certificate\n")
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("restart given up: the old workers go on")
    start = 0
    while (
        server.stderr.wait_for("the old certificate stays in use.*not in PEM", 0.1, start) is None
    ):
        assert shown_certificate(server) == first
    os.replace(own.home / "next.key", own.home / "it.key")
    os.replace(own.home / "next.pem", own.home / "it.pem")
    start = server.log_position()
    server.send_signal(signal.SIGHUP)
    server.wait_for_log("restarted: all workers are new", start=start)
    for _ in range(10):  # who is shown the first is served by a worker that was just leaving
        last = shown_certificate(server)
    assert last == ssl.PEM_cert_to_DER_cert((own.home / "it.pem").read_text()) != first
    assert server.stop() == 0


# -- what is no TLS, and what is slow --------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 1000])
def test_plain_http_gets_an_answer(server, step):
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.connect() as client:
        try:
            for at in range(0, len(request), step):
                client.send(request[at : at + step])
        except ConnectionError:
            pass  # it is answered from its first byte on
        response = client.read_response()
        assert response.status == 400 and response.complete
        assert response.get("content-type").startswith(b"text/plain")
        assert b"https://" in response.body


def client_hello(pki) -> bytes:
    outgoing = ssl.MemoryBIO()
    tls = client_context(pki).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_junk_and_aborted_handshakes_disturb_nobody(server, pki):
    hello = client_hello(pki)
    with TLSClient(server.address, client_context(pki)) as other:
        for number in range(60):
            client = server.connect()
            if number % 6 == 0:
                client.send(b"\x16\x03\x01\x02\x00junk" * 100)
                client.read_until_close()
            elif number % 6 == 1:
                client.send(b"\0" * 1000)
                try:
                    client.read_until_close()
                except ConnectionError:
                    pass
            elif number % 6 == 2:
                client.send(hello[: len(hello) // 2])
            elif number % 6 == 3:
                client.send(hello)
                client.reset()
            elif number % 6 == 4:
                client.send(hello)
                client.half_close()
                client.read_until_close()
            client.close()
            assert other.get("/hello").body == b"hello"
    assert "Traceback" not in server.log_text()


def test_silence_has_a_deadline(serve, pki):
    server = serve(*SERVED, *pki.options("local"), "--timeout-handshake", "2")
    hello = client_hello(pki)
    with server.connect() as silent, server.connect() as half, server.connect() as slow:
        half.send(hello[:100])
        slow.send(hello)
        with TLSClient(server.address, client_context(pki)) as other:
            assert other.get("/hello").body == b"hello"
            assert silent.is_closed() and half.is_closed()
            slow.read_until_close()
            assert other.get("/hello").body == b"hello"  # its own handshake is long done


def test_shutdown_does_not_wait_for_a_handshake(serve, pki):
    server = serve(*SERVED, *pki.options("local"), "--timeout-handshake", "600")
    with server.connect() as client:
        client.send(client_hello(pki)[:50])
        with TLSClient(server.address, client_context(pki)) as other:
            other.get("/hello")
        assert server.stop() == 0


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("step", [1, 7, None])
def test_any_cut_of_the_bytes(server, pki, version, step):
    context = client_context(pki, maximum_version=getattr(ssl.TLSVersion, version))
    with BytesClient(server, context) as client:
        client.shake_hands(step)
        client.tls.write(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe")
        client.tls.write(b"llo" + b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        client.send(step)
        answers = client.read_all()
    assert answers.count(b"HTTP/1.1 200 OK") == 2
    assert answers.count(b"hello") == 2


def test_a_request_that_comes_with_the_end_of_the_handshake(server, pki):
    with BytesClient(server, client_context(pki)) as client:
        while True:
            try:
                client.tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                client.send()
                client.receive()
        client.tls.write(b"GET /hello HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        client.send()  # Finished and the request in one segment
        assert client.read_all().endswith(b"hello")


# -- the ends, and much data -----------------------------------------------------------------------


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_a_client_that_has_said_its_all_is_answered(server, pki, version):
    """close_notify ends one direction (RFC 8446 §6.1)."""
    context = client_context(pki, maximum_version=getattr(ssl.TLSVersion, version))
    with BytesClient(server, context) as client:
        client.shake_hands()
        client.tls.write(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ssl.SSLError):  # we do not wait for theirs
            client.tls.unwrap()
        client.send()
        answer = b""
        while not answer.endswith(b"hello"):
            data = client.raw.socket.recv(65536)
            assert data, "closed without an answer"
            # a client that has sent close_notify reads on in OpenSSL only with SSL_read
            client.incoming.write(data)
            try:
                answer += client.tls.read(65536)
            except ssl.SSLWantReadError:
                continue
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_the_end_is_told_from_a_cut(server, pki):
    """A body without a length ends with close_notify, or it is cut."""
    with TLSClient(server.address, client_context(pki)) as client:
        client.request("GET", "/stream?parts=3&size=5", version="1.0")
        response = client.read_response()
        assert response.framing == "close" and response.body == b"aaaaabbbbbccccc"
    with TLSClient(server.address, client_context(pki)) as client:
        client.request("GET", "/raise_mid_body", version="1.0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            client.read_response()


def test_an_idle_connection_is_closed_properly(serve, pki):
    server = serve(*SERVED, *pki.options("local"), "--timeout-keep-alive", "1")
    with TLSClient(server.address, client_context(pki)) as client:
        assert client.get("/hello").body == b"hello"
        assert client.is_closed()


def test_much_in_both_directions(server, pki):
    body = os.urandom(1 << 20) * 8
    with TLSClient(server.address, client_context(pki)) as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
        client.send(body)
        assert client.read_response().body == body
        assert client.get("/big?size=10000000").body == b"x" * 10_000_000
        response = client.get("/stream?parts=40&size=300000")
        assert len(response.body) == 12_000_000


def test_a_slow_reader_is_waited_for(server, pki):
    with TLSClient(server.address, client_context(pki), receive_buffer=4096) as client:
        client.request("GET", "/stream?parts=100&size=100000&length=1")
        with TLSClient(server.address, client_context(pki)) as other:
            assert other.get("/hello").body == b"hello"
        response = client.read_response()
        assert response.complete and len(response.body) == 10_000_000


def test_many_pipelined_requests(server, pki):
    with TLSClient(server.address, client_context(pki)) as client:
        client.send(b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" * 500)
        for _ in range(500):
            assert client.read_response().body == b"hello"


@pytest.mark.skipif(not WRK, reason="wrk is not installed")
def test_wrk_while_certificates_are_renewed(serve, pki):
    """As fast as it goes, and the contexts change in the middle: nothing is lost."""
    server = serve(*SERVED, *pki.options("local"))
    wrk = subprocess.Popen(
        [WRK, "-t1", "-c16", "-d2", f"https://127.0.0.1:{server.port}/hello"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    renewals = 0
    while wrk.poll() is None:
        start = server.log_position()
        server.send_signal(signal.SIGHUP)
        server.wait_for_log("certificates loaded again", start=start)
        assert shown_certificate(server)
        renewals += 1
    output = wrk.communicate()[0]
    assert "Socket errors" not in output and "Non-2xx" not in output, output
    assert renewals > 1 and int(re.search(r"(\d+) requests in", output)[1]) > 100


# -- bad starts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "certificate, key, more, reason",
    [
        ("missing.pem", "local.key", (), r"--ssl-certfile .*missing\.pem: No such file"),
        ("local.pem", "missing.key", (), r"--ssl-keyfile .*missing\.key: No such file"),
        ("junk.pem", "local.key", (), "not in PEM format"),
        ("local.pem", "junk.pem", (), "not in PEM format|PEM"),
        ("local.pem", "a.key", (), "the key does not belong to the certificate"),
        ("local.pem", "secret.key", (), "--ssl-keyfile-password is not given"),
        ("local.pem", "secret.key", ("--ssl-keyfile-password", "no"), "-password is wrong"),
        ("local.pem", "local.key", ("--ssl-ciphers", "NONE-SUCH"), "no such cipher"),
        ("local.pem", "local.key", ("--ssl-ca-certs", "junk.pem"), "--ssl-ca-certs"),
        ("local.pem", "local.key", ("--ssl-version", "SSLv3"), "--ssl-version"),
        ("local.pem", "local.key", ("--ssl-cert-reqs", "maybe"), "--ssl-cert-reqs"),
        ("local.pem", None, (), r"--ssl-certfile local\.pem: there is no key in it"),
        (None, None, ("--ssl-cert-reqs", "required"), "give --ssl-certfile"),
    ],
)  # fmt: skip
def test_a_bad_start_is_one_line(pki, certificate, key, more, reason):
    (pki.home / "junk.pem").write_text("no certificate\n")
    if not (pki.home / "secret.key").exists():
        openssl(
            "ec", "-in", "local.key", "-aes256", "-passout", "pass:sesame", "-out", "secret.key",
            cwd=pki.home,
        )  # fmt: skip
    done = run_server(
        "tests.apps:app", "--port", "0", "--app-dir", str(ROOT),
        *(("--ssl-certfile", certificate) if certificate else ()),
        *(("--ssl-keyfile", key) if key else ()),
        *more, cwd=pki.home, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == (2 if "--ssl-cert-reqs" in more or "--ssl-version" in more else 1)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert re.search(reason, done.stderr), done.stderr


def test_a_bad_start_of_workers_is_one_line(pki):
    cert, key = str(pki.home / "local.pem"), str(pki.home / "a.key")
    done = run_server(
        *SERVED, "--port", "0", "--workers", "2", "--ssl-certfile", cert, "--ssl-keyfile", key
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "the key does not belong to the certificate" in done.stderr


def test_an_encrypted_key(serve, pki):
    if not (pki.home / "secret.key").exists():
        openssl(
            "ec", "-in", "local.key", "-aes256", "-passout", "pass:sesame", "-out", "secret.key",
            cwd=pki.home,
        )  # fmt: skip
    server = serve(
        *SERVED, "--ssl-certfile", str(pki.home / "local.pem"), "--ssl-keyfile",
        str(pki.home / "secret.key"), "--ssl-keyfile-password", "sesame",
    )  # fmt: skip
    with TLSClient(server.address, client_context(pki)) as client:
        assert client.get("/hello").body == b"hello"


def test_key_and_certificate_in_one_file(serve, pki, tmp_path):
    both = tmp_path / "both.pem"
    both.write_text((pki.home / "local.key").read_text() + (pki.home / "local.pem").read_text())
    server = serve(*SERVED, "--ssl-certfile", str(both))
    with TLSClient(server.address, client_context(pki)) as client:
        tls = scope_of(client.get("/scope"))["extensions"]["tls"]
    assert tls["server_cert"] == (pki.home / "local.pem").read_text()


def test_a_python_without_ssl(pki):
    code = (
        "import sys; sys.modules['ssl'] = None; from selectserve.cli import main; "
        f"sys.exit(main(['tests.apps:app', '--port', '0', *{pki.options('local')!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "built without ssl" in done.stderr


def test_ssl_is_imported_only_when_asked(serve):
    code = "import sys, selectserve; assert 'ssl' not in sys.modules, 'ssl was imported'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=DEADLINE)


FACTORY = """
import ssl, sys, selectserve
from tests.apps import app

def factory(config, default):
    context = default() if {default} else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not {default}:
        context.load_cert_chain({cert!r}, {key!r})
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context

selectserve.run(app, port=0, lifespan="off", ssl_context_factory=factory, {options})
"""


@pytest.mark.parametrize("default", [True, False])
def test_a_context_factory(pki, default):
    from .support import Lines

    cert, key = str(pki.home / "local.pem"), str(pki.home / "local.key")
    options = f"ssl_certfile={cert!r}, ssl_keyfile={key!r}" if default else ""
    code = FACTORY.format(default=default, cert=cert, key=key, options=options)
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    log = Lines(process.stderr)
    try:
        match = log.wait_for(r"https://127\.0\.0\.1:(\d+)")
        assert match, log.text()
        with TLSClient(("127.0.0.1", int(match[1])), client_context(pki)) as client:
            assert client.socket.version() == "TLSv1.2"
            assert scope_of(client.get("/scope"))["extensions"]["tls"]["tls_version"] == 0x0303
    finally:
        process.kill()
        process.wait(DEADLINE)
        log.close()


# -- what stands in a certificate ------------------------------------------------------------------


def test_names_are_written_as_openssl_writes_them(pki):
    from selectserve.certificates import certificate_names, distinguished_name, pem_to_der

    subject = '/C=DE/ST=Land/L=Ort/street=Weg 1/O=A+B/OU=X"Y/DC=test/UID=u 1/CN= lead;<>/CN=end '
    pki.issue("named", subject)
    der = pem_to_der((pki.home / "named.pem").read_text())
    shown = openssl(
        "x509", "-in", "named.pem", "-noout", "-subject", "-nameopt", "RFC2253", cwd=pki.home
    ).stdout
    assert f"subject={distinguished_name(der)}\n" == shown.replace("street=", "STREET=")
    assert certificate_names(der) == {" lead;<>", "end "}
    der = pem_to_der((pki.home / "a.pem").read_text())
    assert certificate_names(der) == {"a.test", "www.a.test"}


def test_abandoned_connections_leave_nothing(server, pki):
    """No descriptor stays open, whatever the state a connection was lost in."""
    fds = Path(f"/proc/{server.process.pid}/fd")
    if not fds.is_dir():
        pytest.skip("no /proc on this system")
    hello = client_hello(pki)
    with TLSClient(server.address, client_context(pki)) as other:
        other.get("/hello")
        before = len(list(fds.iterdir()))
        for number in range(50):
            client = server.connect()
            if number % 2:
                client.send(hello)
            client.reset()
        for _ in range(20):
            TLSClient(server.address, client_context(pki)).close()
        with socket.create_connection(server.address) as sock:
            sock.sendall(b"GET")
            while sock.recv(1000):
                pass
        other.get("/hello")
        assert len(list(fds.iterdir())) <= before
