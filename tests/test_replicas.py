"""Beyond one process: replicas behind a real haproxy, and the files of examples/deploy."""

from __future__ import annotations

import ast
import os
import re
import shutil
import socket
import subprocess
import threading

import pytest

from .support import DEADLINE, ROOT, Askers, Lines, RawClient, Response, Server, free_ports

DEPLOY = ROOT / "examples" / "deploy"
HAPROXY, NGINX = shutil.which("haproxy"), shutil.which("nginx")
NAMES = ("one", "two", "three")
needs_haproxy = pytest.mark.skipif(not HAPROXY, reason="haproxy is not installed")


class Replica:
    """A server on a port of its own that can be restarted."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.past: list[Server] = []
        self.start()

    def start(self) -> None:
        self.server = Server(
            "tests.apps:app", "--lifespan", "off", "--port", str(self.port),
            "--timeout-keep-alive", "75",
        )  # fmt: skip

    def restart(self) -> None:
        """Stop as a deploy does, and start again."""
        assert self.server.stop() == 0
        self.past.append(self.server)
        self.start()

    def kill(self) -> None:
        for server in (*self.past, self.server):
            server.kill()


class Balancer:
    """haproxy with the example's configuration, in front of ``ports``."""

    def __init__(self, ports: list[int], folder) -> None:
        self.admin = str(folder / "admin")
        listening = socket.create_server(("127.0.0.1", 0))
        self.address = listening.getsockname()
        text = (DEPLOY / "haproxy.cfg").read_text()
        text = text.replace("/run/haproxy-admin.sock", self.admin)
        text = text.replace("bind 127.0.0.1:8080", f"bind fd@{listening.fileno()}")
        text = text.replace("GET /health", "GET /hello")
        # Who was down is soon asked again; who is up has time to answer, however busy we are.
        text = text.replace("inter 1s", "inter 1s downinter 100ms")
        text = text.replace("timeout connect 2s", "timeout connect 30s\n  timeout check 30s")
        assert "downinter" in text and "timeout check" in text
        for number, port in enumerate(ports):
            text = text.replace(f"127.0.0.1:800{number + 1}\n", f"127.0.0.1:{port}\n")
            assert f":{port}\n" in text
        config = folder / "haproxy.cfg"
        config.write_text(text)
        self.process = subprocess.Popen(
            [HAPROXY, "-db", "-f", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[listening.fileno()],
        )
        self.log = Lines(self.process.stderr)
        listening.close()

    def command(self, line: str) -> str:
        """Say something to haproxy's admin socket; return its answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(DEADLINE)
            sock.connect(self.admin)
            sock.sendall(line.encode() + b"\n")
            return b"".join(iter(lambda: sock.recv(65536), b"")).decode()

    def wait_for(self, name: str, status: str) -> None:
        """Wait until haproxy takes a replica for UP or DOWN."""
        pause = threading.Event()
        for _ in range(int(DEADLINE / 0.02)):
            rows = [row.split(",") for row in self.command("show stat").split("\n")]
            if any(row[:2] == ["app", name] and row[17].startswith(status) for row in rows):
                return
            pause.wait(0.02)
        raise AssertionError(f"{name} did not become {status}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self.log.close()


class Users(Askers):
    """Clients that ask one request after the other, on kept connections or on new ones."""

    def __init__(self, address, method: str, kept: bool) -> None:
        self.method, self.kept = method, kept
        super().__init__(address)

    def ask(self, client) -> Response:
        body = os.urandom(500) if self.method == "POST" else b""
        own = () if self.kept else ("Connection: close",)
        client.request(self.method, "/echo" if body else "/hello", *own, body=body)
        response = client.read_response(self.method)
        assert response.body == (body or b"hello"), response
        return response


@pytest.fixture
def replicas():
    made: list[Replica] = []
    for port in free_ports(3):
        made.append(Replica(port))
    yield made
    for replica in made:
        replica.kill()


@pytest.fixture
def balancer(replicas, tmp_path):
    made = Balancer([replica.port for replica in replicas], tmp_path)
    while not os.path.exists(made.admin):
        assert made.process.poll() is None, made.log.text()
    for name in NAMES:
        made.wait_for(name, "UP")
    yield made
    made.close()


@needs_haproxy
@pytest.mark.parametrize("kept", [True, False])
def test_replicas_are_restarted_one_by_one(replicas, balancer, kept):
    """Nobody tells haproxy: who is refused asks another replica, and no request is lost."""
    users = Users(balancer.address, "GET", kept)
    users.go_on()
    for name, replica in zip(NAMES, replicas):
        replica.restart()
        balancer.wait_for(name, "UP")
        users.go_on()
    users.end()
    for replica in replicas:
        for server in replica.past:
            assert '"GET /hello' in server.stdout.text()
            assert not re.search("Traceback|ERROR", server.log_text())


@needs_haproxy
def test_replicas_that_are_drained_first(replicas, balancer):
    """As the example says: even what must not be tried twice is not lost."""
    users = Users(balancer.address, "POST", True)
    users.go_on()
    for name, replica in zip(NAMES, replicas):
        assert balancer.command(f"set server app/{name} state drain").strip() == ""
        users.go_on()
        replica.restart()
        balancer.command(f"set server app/{name} state ready")
        balancer.wait_for(name, "UP")
        users.go_on()
    users.end()
    assert all('"POST /echo' in replica.server.stdout.text() for replica in replicas)


@needs_haproxy
def test_forwarded_headers_of_the_example(replicas, balancer):
    with RawClient(balancer.address) as client:
        response = client.get("/scope", "X-Forwarded-For: 203.0.113.7")
        scope = ast.literal_eval(response.body.decode())
    assert scope["client"] == ("203.0.113.7", 0) and scope["scheme"] == "http"
    check_no_client_testifies(balancer.address)


def check_no_client_testifies(address):
    """What a client says in a proxy's words does not get through as the proxy's."""
    with RawClient(address) as client:
        response = client.get(
            "/scope",
            "X-Forwarded-Host: evil.example",
            "X-Forwarded-Port: 6666",
            "X-Forwarded-Proto: https",
            "Forwarded: for=6.6.6.6;host=evil.example",
        )
    assert response.status == 200
    for word in (b"evil.example", b"6666", b"6.6.6.6", b"https"):
        assert word not in response.body, response.body


# -- the other examples ----------------------------------------------------------------------------


@pytest.mark.skipif(not NGINX, reason="nginx is not installed")
def test_the_nginx_example(replicas, tmp_path):
    """Valid; and it passes requests, and restarts, on."""
    (port,) = free_ports(1)
    text = (DEPLOY / "nginx.conf").read_text()
    text = text.replace("listen 127.0.0.1:8080", f"listen 127.0.0.1:{port}")
    text = text.replace("/run/nginx.pid", f"{tmp_path}/pid")
    for number, replica in enumerate(replicas):
        text = text.replace(f"127.0.0.1:800{number + 1} ", f"127.0.0.1:{replica.port} ")
    temporary = "".join(
        f"{kind}_temp_path {tmp_path}/{kind}; "
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = text.replace("http {", "http { access_log off; " + temporary)
    config = tmp_path / "nginx.conf"
    config.write_text(text)
    user = "user root; " if os.getuid() == 0 else ""
    process = subprocess.Popen(
        [NGINX, "-p", str(tmp_path), "-c", str(config), "-e", "stderr", "-g", f"{user}daemon off;"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    log = Lines(process.stderr)
    try:
        pause = threading.Event()
        while process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), DEADLINE).close()
                break
            except ConnectionRefusedError:
                pause.wait(0.01)
        users = Users(("127.0.0.1", port), "GET", True)
        users.go_on()
        for replica in replicas:
            replica.restart()
            replica.server.wait_for_access('"GET /hello')  # nginx takes it into account again
            users.go_on()
        users.end()
        check_no_client_testifies(("127.0.0.1", port))
    finally:
        process.terminate()
        process.wait(DEADLINE)
        log.close()
    assert "emerg" not in log.text(), log.text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_the_systemd_units_are_valid(tmp_path):
    for name in ("selectserve.service", "selectserve.socket"):
        text = (DEPLOY / name).read_text()
        (tmp_path / name).write_text(text.replace("/srv/webapp/.venv/bin/python", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.iterdir())],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    ours = [line for line in done.stderr.splitlines() if "selectserve" in line]
    assert ours == [], done.stderr


@pytest.mark.parametrize(
    "name", ["selectserve.service", "Dockerfile", "kubernetes.yaml", "haproxy.cfg", "nginx.conf"]
)
def test_the_options_in_the_examples_exist(name):
    """Whatever looks like an option of ours is one."""
    from selectserve.config import all_options

    text = (DEPLOY / name).read_text()
    known = {option.flag_name for option in all_options()} | {"--init"}
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    others = {
        "--start-period",
        "--interval",
        "--timeout",
        "--create-home",
        "--no-cache-dir",
        "--now",
    }
    assert "selectserve" in text and used - others <= known, used - others - known


def test_the_times_in_the_examples_fit_together():
    """A keep-alive that is longer than the proxy's; a drain that is shorter than the patience."""
    kubernetes = (DEPLOY / "kubernetes.yaml").read_text()
    grace = int(re.search(r"terminationGracePeriodSeconds: (\d+)", kubernetes)[1])
    before = int(re.search(r'sleep, "(\d+)"', kubernetes)[1])
    drain = int(re.search(r"- --timeout-graceful-shutdown=(\d+)", kubernetes)[1])
    assert before + drain + 4 < grace
    for name, pattern in (("nginx.conf", r"keepalive_timeout (\d+)s"),
                          ("haproxy.cfg", r"timeout http-keep-alive (\d+)s")):  # fmt: skip
        text = (DEPLOY / name).read_text()
        ours = int(re.search(r"--timeout-keep-alive (\d+)", text)[1])
        assert ours > int(re.search(pattern, text)[1])
