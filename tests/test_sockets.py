"""Where the server listens: real sockets of every kind; what a service manager says and hears."""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from selectserve.errors import ConfigError
from selectserve.sockets import SocketFile, parse_bind, resolve
from selectserve.systemd import Notifier, take_inherited

from .support import DEADLINE, ROOT, FakeClock, FakeSelector, RawClient, run_server, server_command

APP = ("tests.apps:app", "--lifespan", "off", "--no-access-log")
needs_proc = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="no /proc/net here")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback here")


def get(address, target="/hello"):
    with RawClient(address) as client:
        response = client.get(target, "Connection: close")
        assert response.complete and response.status == 200
        return response


def scope_at(address) -> dict:
    return ast.literal_eval(get(address, "/scope").body.decode())


def addresses(server) -> list[str]:
    return server.wait_for_log(r"running on (\S+(?:, \S+)*) \(")[1].split(", ")


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


# -- TCP -------------------------------------------------------------------------------------------


@needs_ipv6
def test_several_binds(serve, tmp_path):
    path = str(tmp_path / "s")
    server = serve(
        *APP, "--bind", "127.0.0.1:0", "--bind", "[::1]:0", "--bind", f"unix:{path}",
        "--host", "counts.not", "--port", "1",
    )  # fmt: skip
    first, second, third = addresses(server)
    assert first.startswith("http://127.0.0.1:") and second.startswith("http://[::1]:")
    assert third == f"unix:{path}"
    scope = scope_at(("127.0.0.1", port_of(first)))
    assert scope["server"] == ("127.0.0.1", port_of(first)) and scope["client"][0] == "127.0.0.1"
    scope = scope_at(("::1", port_of(second)))
    assert scope["server"] == ("::1", port_of(second)) and len(scope["client"]) == 2
    scope = scope_at(path)
    assert scope["server"] == (path, None) and scope["client"] is None
    assert server.stop() == 0
    assert not os.path.exists(path)


@needs_ipv6
@pytest.mark.parametrize("host", ["localhost", "*", ""])
def test_both_families_with_one_port(serve, host):
    server = serve(*APP, "--host", host)
    first, second = addresses(server)
    assert port_of(first) == port_of(second) > 0
    for address in ("127.0.0.1", "::1"):
        assert get((address, port_of(first))).body == b"hello"


@needs_ipv6
def test_an_ipv6_host(serve):
    server = serve(*APP, "--host", "::1")
    (url,) = addresses(server)
    assert get(("::1", port_of(url))).body == b"hello"


def test_one_of_several_families_may_be_missing(monkeypatch):
    from selectserve import sockets

    def bind_one(family, kind, protocol, address, reuse_port):
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return socket.create_server((address[0], 0))

    monkeypatch.setattr(sockets, "bind_one", bind_one)
    (sock,) = sockets.open_tcp("localhost", 0)
    assert sock.family == socket.AF_INET
    sock.close()
    with pytest.raises(ConfigError, match="cannot listen on ::1:0: Address family not supported"):
        sockets.open_tcp("::1", 0)


def test_a_port_that_is_taken_in_the_other_family_is_not_taken_at_all(monkeypatch):
    from selectserve import sockets

    tries, real = [], sockets.bind_one

    def bind_one(family, kind, protocol, address, reuse_port):
        if family == socket.AF_INET6:
            tries.append(address[1])
            if len(tries) < 3:
                raise OSError(98, "Address already in use")
            return socket.create_server(("127.0.0.1", 0))
        return real(family, kind, protocol, address, reuse_port)

    monkeypatch.setattr(sockets, "bind_one", bind_one)
    opened = sockets.open_tcp("localhost", 0)
    assert len(tries) == 3 and opened[0].getsockname()[1] == tries[-1]
    for sock in opened:
        sock.close()


def test_names_that_mean_several_addresses_are_listed_once():
    for host in ("localhost", "*", ""):
        found = [(family, address) for family, _, _, address in resolve(host, 80)]
        assert len(found) == len(set(found)) >= 1
    assert [address for _, _, _, address in resolve("127.0.0.1", 80)] == [("127.0.0.1", 80)]


@pytest.mark.parametrize(
    "text, place",
    [
        ("127.0.0.1:80", ("tcp", "127.0.0.1", 80)),
        ("host.example:8000", ("tcp", "host.example", 8000)),
        ("*:0", ("tcp", "*", 0)),
        (":8000", ("tcp", "", 8000)),
        ("[::1]:65535", ("tcp", "::1", 65535)),
        ("unix:/run/a:b", ("unix", "/run/a:b", 0)),
        ("unix:a.sock", ("unix", "a.sock", 0)),
        ("unix:///run/a", ("unix", "/run/a", 0)),
        ("unix:@name", ("unix", "@name", 0)),
        ("fd://3", ("fd", "3", 0)),
        ("fd://web", ("fd", "web", 0)),
    ],
)
def test_bind_is_read(text, place):
    assert parse_bind(text) == place


@pytest.mark.parametrize(
    "text",
    ["", "host", "8000", "::1:8000", "host:", "host:x", "host:65536", "host:-1", "host:٣", "unix:"],
)
def test_bind_that_is_none(text):
    with pytest.raises(ConfigError) as caught:
        parse_bind(text)
    assert caught.value.exit_code == 2 and repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "options, reason",
    [
        (("--bind", "nonsense"), r"--bind 'nonsense' is none of host:port"),
        (("--host", "no.such.invalid"), r"cannot resolve host 'no\.such\.invalid'"),
        (("--host", "a..b"), r"cannot resolve host 'a\.\.b'"),
        (("--host", "192.0.2.1"), r"cannot listen on 192\.0\.2\.1:0: "),
        (("--bind", "fd://77"), "descriptor 77 is not a socket"),
        (("--bind", "fd://web"), "no such socket was passed; there are: none"),
        (("--uds-permissions", "999"), "--uds-permissions"),
        (("--uds", "/no/such/directory/s"), "cannot listen on unix:/no/such/directory/s"),
        (("--uds", "x" * 200), "cannot listen on unix:xxx"),
    ],
)
def test_bad_starts_are_one_line(options, reason):
    done = run_server(*APP, "--port", "0", *options)
    assert done.returncode in (1, 2, 3)
    assert re.search(reason, done.stderr), done.stderr
    assert "Traceback" not in done.stderr


@needs_proc
def test_a_port_in_use_names_its_owner(serve):
    server = serve(*APP)
    done = run_server(*APP, "--port", str(server.port))
    assert done.returncode == 3
    assert re.search(
        rf"cannot listen on 127\.0\.0\.1:{server.port}: the address is in use by "
        rf"process {server.process.pid} \(.*selectserve.* tests\.apps:app.*\)",
        done.stderr,
    ), done.stderr


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no SO_REUSEPORT here")
def test_reuse_port(serve):
    first = serve(*APP, "--reuse-port")
    second = serve(*APP, "--reuse-port", "--port", str(first.port))
    assert first.port == second.port
    assert first.stop() == 0
    assert get(second.address).body == b"hello"


# -- unix sockets ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options, mode", [((), 0o666), (("--uds-permissions", "600"), 0o600)])
def test_permissions(serve, tmp_path, options, mode):
    path = str(tmp_path / "s")
    serve(*APP, "--uds", path, *options)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode
    assert get(path).body == b"hello"


def test_a_stale_socket_is_replaced_and_a_file_is_not(serve, tmp_path):
    path = tmp_path / "s"
    serve(*APP, "--uds", str(path)).kill()
    assert path.exists()
    server = serve(*APP, "--uds", str(path))
    assert get(str(path)).body == b"hello"
    assert server.stop() == 0
    assert not path.exists()
    path.write_text("precious")
    done = run_server(*APP, "--uds", str(path))
    assert done.returncode and "is not a socket" in done.stderr
    assert path.read_text() == "precious"


def test_a_live_socket_is_left_alone(serve, tmp_path):
    path = str(tmp_path / "s")
    server = serve(*APP, "--uds", path)
    done = run_server(*APP, "--uds", path)
    assert done.returncode == 3
    assert f"cannot listen on unix:{path}: it is in use by " in done.stderr
    if Path("/proc/net/unix").exists():
        assert f"process {server.process.pid} (" in done.stderr
    assert get(path).body == b"hello"


def test_a_file_is_found_from_anywhere(tmp_path, monkeypatch):
    """The path is a relative one, and the app has gone elsewhere."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").touch()
    file = SocketFile("s")
    monkeypatch.chdir("/")
    file.remove()
    assert not (tmp_path / "s").exists()


def test_only_our_own_file_is_removed(serve, tmp_path):
    path = tmp_path / "s"
    server = serve(*APP, "--uds", str(path))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(path))
        assert server.stop() == 0
        assert path.exists()


@linux_only
def test_abstract_names(serve):
    name = f"selectserve-test-{os.getpid()}"
    server = serve(*APP, "--uds", f"@{name}")
    assert addresses(server) == [f"unix:@{name}"]
    scope = scope_at(f"\0{name}")
    assert scope["server"] == (f"@{name}", None) and scope["client"] is None
    assert not os.path.exists(ROOT / f"@{name}")
    assert server.stop() == 0


# -- inherited sockets -----------------------------------------------------------------------------


class Activated:
    """A server that was handed sockets; ``start`` runs it with descriptors 3, 4, … and LISTEN_*."""

    EXEC = (
        "import os, sys\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "for at, fd in enumerate(map(int, sys.argv[1].split(','))): os.dup2(fd, 50 + at)\n"
        "for at in range(len(sys.argv[1].split(','))): os.dup2(50 + at, 3 + at)\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )

    def __init__(self, sockets, names, *arguments) -> None:
        from .support import Lines

        fds = [sock.fileno() for sock in sockets]
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", self.EXEC, ",".join(map(str, fds)),
                *server_command(*APP, *arguments),
            ],
            cwd=ROOT, pass_fds=fds, stderr=subprocess.PIPE,
            env={**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": ":".join(names)},
        )  # fmt: skip
        self.log = Lines(self.process.stderr)

    def __enter__(self):
        assert self.log.wait_for("running on"), self.log.text()
        return self

    def __exit__(self, *exc) -> None:
        self.process.kill()
        self.process.wait(DEADLINE)
        self.log.close()


def test_systemd_sockets(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        path = str(tmp_path / "s")
        unix.bind(path)
        unix.listen()
        port = tcp.getsockname()[1]
        with Activated([tcp, unix], ["web", "local"]) as server:
            assert f"http://127.0.0.1:{port}, unix:{path}" in server.log.text()
            assert get(("127.0.0.1", port)).body == b"hello"
            assert scope_at(path)["server"] == (path, None)
            server.process.terminate()
            assert server.process.wait(DEADLINE) == 0
        assert os.path.exists(path)  # systemd's, not ours
        with Activated([tcp, unix], ["web", "local"], "--bind", "fd://local") as server:
            assert f"running on unix:{path} (" in server.log.text()
            assert get(path).body == b"hello"


def test_systemd_socket_activate(tmp_path):
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed")
    path = str(tmp_path / "s")
    process = subprocess.Popen(
        [activate, "-l", path, *server_command(*APP)], cwd=ROOT,
        stderr=subprocess.PIPE, env=dict(os.environ),
    )  # fmt: skip
    from .support import Lines

    log = Lines(process.stderr)
    try:
        assert log.wait_for("Listening on"), log.text()
        assert get(path).body == b"hello"  # this connection starts the server
        assert log.wait_for(f"running on unix:{re.escape(path)}"), log.text()
    finally:
        process.kill()
        process.wait(DEADLINE)
        log.close()


def test_taken_once_and_only_by_the_one_they_are_for():
    with socket.socket() as sock:
        for pid in (str(os.getpid() + 1), "", "junk"):
            environ = {"LISTEN_PID": pid, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web", "A": "b"}
            assert take_inherited(environ) == []
            assert environ == {"A": "b"}
        environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"}
        assert take_inherited(environ) == [] == take_inherited({})
        assert sock.fileno() >= 0


@pytest.mark.parametrize("option", ["--fd", "--bind"])
@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_inherited_descriptor(tmp_path, option, family):
    from .support import Lines

    address = ("127.0.0.1", 0) if family == "tcp" else str(tmp_path / "s")
    with socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX) as sock:
        sock.bind(address)
        sock.listen()
        number = sock.fileno()
        value = str(number) if option == "--fd" else f"fd://{number}"
        process = subprocess.Popen(
            server_command(*APP, option, value), cwd=ROOT, pass_fds=[number], stderr=subprocess.PIPE
        )
        log = Lines(process.stderr)
        try:
            assert log.wait_for("running on"), log.text()
            scope = scope_at(sock.getsockname())
            assert scope["server"] == (sock.getsockname() if family == "tcp" else (address, None))
            process.terminate()
            assert process.wait(DEADLINE) == 0
            assert family == "tcp" or os.path.exists(address)
        finally:
            process.kill()
            process.wait(DEADLINE)
            log.close()


def test_descriptors_that_will_not_do(tmp_path):
    with socket.socket() as silent, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        silent.bind(("127.0.0.1", 0))
        for number, reason in (
            (silent.fileno(), "does not listen"),
            (datagrams.fileno(), "not of a stream"),
        ):
            done = run_server(*APP, "--fd", str(number), pass_fds=[number])
            assert done.returncode and reason in done.stderr and "Traceback" not in done.stderr


# -- the service manager is told -------------------------------------------------------------------


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(address)
        self.sock.settimeout(DEADLINE)

    def hear(self, word: str) -> list[str]:
        """Return the lines of the next datagram that begins with ``word``."""
        for _ in range(1000):
            lines = self.sock.recv(4096).decode().split("\n")
            if lines[0] == word:
                return lines
        raise AssertionError(f"{word} does not come, but {lines} again and again")

    def __enter__(self):
        return self

    def __exit__(self, *exc) -> None:
        self.sock.close()


@pytest.mark.parametrize("kind", ["path", pytest.param("abstract", marks=linux_only)])
def test_notify(serve, tmp_path, kind):
    name = str(tmp_path / "n") if kind == "path" else f"@selectserve-notify-{os.getpid()}"
    with Manager(name.replace("@", "\0", 1) if kind == "abstract" else name) as manager:
        server = serve(*APP, env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"})
        ready = manager.hear("READY=1")
        assert f"MAINPID={server.process.pid}" in ready
        assert any(str(server.port) in line for line in ready if line.startswith("STATUS="))
        assert manager.hear("WATCHDOG=1") and manager.hear("WATCHDOG=1")
        server.send_signal(signal.SIGHUP)
        reloading = manager.hear("RELOADING=1")
        assert re.fullmatch(r"MONOTONIC_USEC=\d+", reloading[1])
        manager.hear("READY=1")
        server.send_signal()
        manager.hear("STOPPING=1")
        assert server.wait() == 0


def test_nobody_to_notify(serve, tmp_path):
    for name in (str(tmp_path / "missing"), "nonsense", "vsock:2:1234", ""):
        server = serve(*APP, env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "junk"})
        assert server.stop() == 0


def test_the_watchdog_is_for_one_process():
    from selectserve.reactor import Reactor

    clock = FakeClock()
    reactor = Reactor(FakeSelector(clock), clock)
    mine = {"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    assert Notifier(mine, reactor).interval == 1.5
    assert Notifier({**mine, "WATCHDOG_PID": "1"}, reactor).interval == 0.0
    reactor.close()
