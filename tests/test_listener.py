"""The listener: a bounded accept, no spin when descriptors are out, and binding that explains."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile

import pytest

from selectserve.errors import ConfigError
from selectserve.listener import BACK_OFF, EXHAUSTED, MAX_ACCEPTS, Listener, listen_on
from selectserve.reactor import EVENT_READ, Reactor
from selectserve.sockets import describe_address, open_fd, open_tcp, open_unix

from .support import FakeClock, FakeSelector, ScriptedSocket

needs_unix = pytest.mark.skipif(
    not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets"
)


class ListeningSocket(ScriptedSocket):
    """A listening socket: ``waiting`` are the clients, or exceptions, that accept() finds."""

    def __init__(self, waiting=()):
        super().__init__()
        self.waiting = list(waiting)

    def listen(self, backlog):
        self.check_open()
        self.calls.append(("listen", backlog))

    def accept(self):
        self.check_open()
        step = self.waiting.pop(0) if self.waiting else BlockingIOError(errno.EAGAIN, "")
        self.calls.append(("accept",))
        if isinstance(step, BaseException):
            raise step
        return ScriptedSocket(), ("127.0.0.1", step)


class World:
    """A listener on a scripted socket; ``accepted`` are the ports of the clients handed over."""

    def __init__(self, waiting=()):
        self.clock = FakeClock()
        self.selector = FakeSelector(self.clock)
        self.reactor = Reactor(
            self.selector, self.clock, wakeup_pair=(ScriptedSocket(), ScriptedSocket())
        )
        self.sock = ListeningSocket(waiting)
        self.accepted = []
        self.listener = Listener(self.reactor, self.sock, self.accept, backlog=77)

    def accept(self, listener, sock, address):
        assert listener is self.listener
        self.accepted.append(address[1])

    def turn(self):
        """Make one turn with the listening socket readable, as long as somebody waits."""
        if self.sock.waiting:
            self.selector.set_ready(self.sock, EVENT_READ)
        self.reactor.tick(0)


# -- accepting -------------------------------------------------------------------------------------


def test_nothing_is_heard_before_start():
    world = World([1])
    world.turn()
    assert world.accepted == []
    assert world.sock.names() == ["setblocking"]
    world.listener.start()
    world.listener.start()
    assert world.sock.calls == [("setblocking", False), ("listen", 77)]
    world.turn()
    assert world.accepted == [1]


def test_all_who_wait_are_accepted_but_only_so_many_a_turn():
    world = World(range(MAX_ACCEPTS * 2 + 5))
    world.listener.start()
    counts = []
    while world.sock.waiting:
        world.turn()
        counts.append(len(world.accepted))
    assert counts == [MAX_ACCEPTS, MAX_ACCEPTS * 2, MAX_ACCEPTS * 2 + 5]
    assert world.accepted == list(range(MAX_ACCEPTS * 2 + 5))


def test_the_rest_is_accepted_and_no_look_is_in_vain():
    """With --backlog 9999999999 the last look at the queue took minutes."""
    world = World(range(MAX_ACCEPTS * 2 + 5))
    world.listener.backlog = 10**11
    world.listener.start()
    world.listener.accept_rest()
    assert len(world.accepted) == MAX_ACCEPTS * 2 + 5
    assert world.sock.names().count("accept") == MAX_ACCEPTS * 2 + 6


def test_a_client_that_left_before_it_was_accepted_is_passed_over():
    gone = OSError(errno.ECONNABORTED, "aborted")
    world = World([gone, 1, gone, 2])
    world.listener.start()
    world.turn()
    assert world.accepted == [1, 2]


def test_errors_without_end_do_not_hold_the_reactor():
    world = World([OSError(errno.EPERM, "firewall")] * 1000 + [1])
    world.listener.start()
    world.turn()
    assert world.sock.names().count("accept") == MAX_ACCEPTS
    for _ in range(1000 // MAX_ACCEPTS):
        world.turn()
    assert world.accepted == [1]


@pytest.mark.parametrize("number", sorted(EXHAUSTED))
def test_without_descriptors_it_backs_off_instead_of_spinning(number):
    world = World([1, OSError(number, "out of something"), 2])
    world.listener.start()
    world.turn()
    assert (world.accepted, world.listener.refused) == ([1], 1)
    assert world.sock not in world.selector.keys
    selects = len(world.selector.waits)
    world.selector.set_ready(world.sock, EVENT_READ)
    while world.clock.now < 1000 + BACK_OFF:
        world.reactor.tick()
    assert len(world.selector.waits) - selects <= 2, "it spins"
    world.turn()
    assert world.accepted == [1, 2]
    assert world.listener.retry is None


def test_it_recovers_however_often_it_backs_off():
    world = World([OSError(errno.EMFILE, "")] * 50 + [1])
    world.listener.start()
    for _ in range(51):
        world.turn()
        world.reactor.tick(BACK_OFF)
    world.turn()
    assert (world.accepted, world.listener.refused) == ([1], 50)


def test_a_pause_lasts_until_start_also_after_a_back_off():
    world = World([OSError(errno.EMFILE, ""), 1])
    world.listener.start()
    world.turn()
    world.listener.pause()
    world.listener.pause()
    world.reactor.tick(BACK_OFF * 2)
    world.turn()
    assert world.accepted == []
    world.listener.start()
    world.turn()
    assert world.accepted == [1]


@pytest.mark.parametrize("end", ["pause", "close"])
def test_who_is_told_of_a_client_may_end_the_listening(end):
    world = World([1, 2, 3])
    world.accept = None
    world.listener.accepted = lambda listener, sock, address: (
        world.accepted.append(address[1]),
        getattr(listener, end)(),
    )
    world.listener.start()
    world.turn()
    assert world.accepted == [1]
    assert world.sock not in world.selector.keys


@pytest.mark.parametrize("when", ["before start", "listening", "backed off", "closed"])
def test_close_at_any_time_leaves_nothing(when):
    world = World([OSError(errno.EMFILE, "")])
    if when != "before start":
        world.listener.start()
    if when == "backed off":
        world.turn()
    if when == "closed":
        world.listener.close()
    world.listener.close()
    assert world.sock.closed
    assert world.sock not in world.selector.keys
    assert [timer for _, _, timer in world.reactor.timers if timer.action is not None] == []


def test_a_port_that_somebody_else_began_to_listen_on():
    world = World()

    def listen(_backlog):
        raise OSError(errno.EADDRINUSE, "in use")

    world.sock.listen = listen
    with pytest.raises(ConfigError, match="127.0.0.1:8000: the address is in use") as caught:
        world.listener.start()
    assert caught.value.exit_code == 3
    assert world.sock not in world.selector.keys


def bind(host, port, **options):
    """Bind one address."""
    (sock,) = open_tcp(host, port, **options)
    return sock


# -- TCP -------------------------------------------------------------------------------------------


def test_tcp_binds_and_does_not_listen_yet():
    with bind("127.0.0.1", 0) as sock:
        host, port = sock.getsockname()
        assert (host, describe_address(sock)) == ("127.0.0.1", f"127.0.0.1:{port}")
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect((host, port))


def test_a_backlog_beyond_what_a_kernel_can_count():
    with bind("127.0.0.1", 0) as sock:
        listen_on(sock, 10**11)
        with socket.create_connection(sock.getsockname()):
            pass


def test_a_whole_listener_over_real_sockets():
    reactor = Reactor()
    accepted = []
    listener = Listener(
        reactor, bind("127.0.0.1", 0), lambda *arguments: accepted.append(arguments)
    )
    listener.start()
    clients = [socket.create_connection(listener.sock.getsockname()) for _ in range(10)]
    while len(accepted) < 10:
        reactor.tick()
    assert [address for _, _, address in accepted] == [c.getsockname() for c in clients]
    assert f"<Listener 127.0.0.1:{listener.sock.getsockname()[1]}>" == repr(listener)
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(clients[0].getpeername())
    assert repr(listener) == "<Listener closed>"
    for sock in (*clients, *(sock for _, sock, _ in accepted)):
        sock.close()
    reactor.close()


def test_a_port_in_use_is_one_clear_sentence():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"^cannot listen on 127.0.0.1:{port}: the address is in use by [^\n]*$"
        with pytest.raises(ConfigError, match=message) as caught:
            open_tcp("127.0.0.1", port)
        assert caught.value.exit_code == 3


@pytest.mark.skipif(os.name != "posix", reason="SO_REUSEADDR means something else here")
def test_a_restart_finds_its_port_again():
    """A connection in TIME_WAIT must not keep the port from its next owner."""
    listener = bind("127.0.0.1", 0)
    listener.listen()
    address = listener.getsockname()
    client = socket.create_connection(address)
    server, _ = listener.accept()
    server.close()  # the side that closes first has to wait
    client.close()
    listener.close()
    bind(*address).close()


def test_a_host_that_does_not_exist():
    with pytest.raises(ConfigError, match=r"cannot resolve host 'no\.such\.invalid'"):
        open_tcp("no.such.invalid", 0)


def test_an_address_of_another_machine():
    with pytest.raises(ConfigError, match="^cannot listen on 192.0.2.1:0: ") as caught:
        open_tcp("192.0.2.1", 0)
    assert caught.value.exit_code == 3


def test_a_port_for_root(monkeypatch):
    class Refused(socket.socket):
        def bind(self, address):
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Refused)
    with pytest.raises(ConfigError, match="^cannot listen on 127.0.0.1:80: permission denied"):
        open_tcp("127.0.0.1", 80)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="this system has no SO_REUSEPORT")
def test_two_may_share_a_port_when_both_say_so():
    with bind("127.0.0.1", 0, reuse_port=True) as one:
        one.listen()
        with bind(*one.getsockname(), reuse_port=True) as two:
            two.listen()


def test_no_descriptor_is_left_by_a_failure(monkeypatch):
    made = []
    real = socket.socket

    def make(*arguments, **options):
        made.append(real(*arguments, **options))
        return made[-1]

    with socket.create_server(("127.0.0.1", 0)) as other:
        monkeypatch.setattr(socket, "socket", make)
        with pytest.raises(ConfigError):
            open_tcp(*other.getsockname())
    assert [sock.fileno() for sock in made] == [-1]


def test_ipv6():
    try:
        sock = bind("::1", 0)
    except ConfigError as exc:
        pytest.skip(f"no IPv6 here: {exc}")
    with sock:
        port = sock.getsockname()[1]
        assert describe_address(sock) == f"[::1]:{port}"
        assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        bind("127.0.0.1", port).close()  # the other family's port of that number is free


# -- unix sockets ----------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s.sock")


@needs_unix
def test_a_unix_socket_with_permissions(path):
    with open_unix(path, 0o620) as sock:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o620
        assert describe_address(sock) == f"unix:{path}"


@needs_unix
def test_a_stale_file_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    inode = os.stat(path).st_ino
    with open_unix(path) as sock:
        sock.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
    assert os.path.exists(path) and inode


@needs_unix
def test_a_living_server_is_left_alone(path):
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        with pytest.raises(
            ConfigError, match=f"^cannot listen on unix:{path}: it is in use by"
        ) as e:
            open_unix(path)
        assert e.value.exit_code == 3
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)


@needs_unix
@pytest.mark.skipif(not os.path.exists("/proc/net/unix"), reason="this system does not tell")
@pytest.mark.parametrize("name", ["s.sock", "my app  1.sock", "1 "])
def test_a_server_that_does_not_listen_yet_is_left_alone(tmp_path, name):
    """Its app is starting: who took the path from it would be the only one to be reached."""
    path = str(tmp_path / name)
    with open_unix(path) as other:
        inode = os.stat(path).st_ino
        with pytest.raises(ConfigError, match="in use by process") as caught:
            open_unix(path)
        assert caught.value.exit_code == 3 and os.stat(path).st_ino == inode
        other.listen()


@needs_unix
def test_who_starts_on_a_longer_path_does_not_hold_this_one():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as dead:
        os.makedirs(folder + folder)
        dead.bind(f"{folder}/s")
        dead.close()
        with open_unix(f"{folder}{folder}/s"):
            open_unix(f"{folder}/s").close()


@needs_unix
def test_who_serves_old_clients_only_does_not_hold_the_path(path):
    """What it has accepted bears the name in /proc, too."""
    with open_unix(path) as old, socket.socket(socket.AF_UNIX) as client:
        old.listen()
        client.connect(path)
        accepted, _ = old.accept()
        old.close()
        with accepted, open_unix(path) as new:
            new.listen()


@needs_unix
def test_a_file_that_is_no_socket_is_left_alone(path):
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        open_unix(path)
    with open(path) as file:
        assert file.read() == "precious"


@needs_unix
@pytest.mark.parametrize(
    "path", ["/no/such/directory/s.sock", "/" + "x" * 200], ids=["nowhere", "long"]
)
def test_a_path_that_cannot_be(path):
    with pytest.raises(ConfigError, match="^cannot listen on unix:/") as caught:
        open_unix(path)
    assert caught.value.exit_code == 3


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="abstract sockets are Linux's")
def test_an_abstract_socket():
    name = f"@selectserve-test-{os.getpid()}"
    with open_unix(name) as sock:
        assert describe_address(sock) == f"unix:{name}"
        with pytest.raises(ConfigError, match="in use"):
            open_unix(name)


# -- inherited descriptors -------------------------------------------------------------------------


def test_an_inherited_descriptor():
    with socket.create_server(("127.0.0.1", 0)) as parent:
        with open_fd(os.dup(parent.fileno())) as sock:
            assert sock.getsockname() == parent.getsockname()
            assert sock.family == socket.AF_INET


def test_a_descriptor_that_is_no_socket(tmp_path):
    with open(tmp_path / "file", "w") as file:
        with pytest.raises(ConfigError, match="is not a socket"):
            open_fd(file.fileno())
        file.write("still open")


def test_a_descriptor_that_is_not_open():
    with pytest.raises(ConfigError, match="^descriptor 99999 is not a socket"):
        open_fd(99999)


@pytest.mark.skipif(not hasattr(socket, "SO_ACCEPTCONN"), reason="this system cannot tell")
def test_a_socket_that_does_not_listen_stays_its_owner_s():
    with socket.socket() as sock:
        with pytest.raises(ConfigError, match="does not listen"):
            open_fd(sock.fileno())
        assert sock.fileno() >= 0
        os.fstat(sock.fileno())
