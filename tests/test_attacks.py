"""Attacks on a real process: what a few hundred bytes from a client may cost the server.

Resident memory is that of the server's process, read by the test from outside. What is left of
connections is told by the app itself, which counts the objects in its process. Every test says
what it measured, and of how many (``pytest -rA`` or ``-s`` shows it). ``SELECTSERVE_ATTACKS=full``
attacks with ten thousand connections instead of the bounded numbers of every day.
"""

from __future__ import annotations

import ast
import os
import random
import re
import resource
import signal
import socket
import struct
import sys
import time

import pytest

from .support import DEADLINE, RawClient, Server, run_server

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/statm"), reason="resident memory is read from Linux's /proc"
)
of_cpython = pytest.mark.skipif(
    sys.implementation.name != "cpython", reason="only CPython's memory is told by its objects"
)
MIB = 1 << 20
APP = "tests.attack_apps:app"
# The app counts with gc.get_objects(), which does not tell of what is frozen.
QUIET = ("--no-access-log", "--lifespan", "off", "--slow-step", "0", "--no-gc-freeze")
FULL = os.environ.get("SELECTSERVE_ATTACKS") == "full"
CONNECTIONS = 10_000 if FULL else 1000  # slow ones, at the same time
RESETS = 10_000 if FULL else 2000
PATIENCE = 6 * DEADLINE  # seconds; like DEADLINE, it only passes when something is broken
TURNS = 50  # answers in a row without a change: nothing is on its way any more


def resident(server: Server) -> int:
    """Return the resident memory of the server, in bytes."""
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def ask(server: Server, target: str) -> bytes:
    """Return the answer to a request on a connection of its own."""
    with server.connect() as client:
        return client.get(target, "Connection: close").body


def left(server: Server) -> dict[str, int]:
    """Return how much there is of whatever connections are made of, this request included."""
    return ast.literal_eval(ask(server, "/left").decode())


def warm(server: Server) -> int:
    """Let everything be imported and cached that a request needs; return the resident memory."""
    for _ in range(200):
        ask(server, "/hello")
    left(server)
    return resident(server)


def until(condition, what: str) -> None:
    """Ask the server again and again until it is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"never came: {what}"


def until_it_stands_still(server: Server, value) -> int:
    """Return ``value()`` once the server has answered ``TURNS`` times and it is the same still.

    The server has had as many turns in which to go on, however slow the machine is.
    """
    end = time.monotonic() + PATIENCE
    last, same = value(), 0
    while same < TURNS:
        assert time.monotonic() < end, f"never stands still: {last}"
        ask(server, "/hello")
        now = value()
        last, same = now, same + 1 if now == last else 0
    return last


def push(server: Server, client: RawClient, data: bytes, most: int) -> int:
    """Send ``data`` over and over, until the server takes no more or ``most`` bytes have gone.

    It takes no more when it has answered ``TURNS`` times others and our socket is full still.
    """
    client.socket.setblocking(False)
    sent = full = 0
    while sent < most and full < TURNS:
        try:
            sent += client.socket.send(data[sent % len(data) :])
            full = 0
        except BlockingIOError:
            full += 1
            ask(server, "/hello")
    return sent


# -- memory ----------------------------------------------------------------------------------------


@of_cpython
def test_a_large_response_that_nobody_reads(serve):
    server = serve(APP, *QUIET)
    before = warm(server)
    with server.connect(receive_buffer=4096) as client:
        client.request("GET", "/download?one")
        parts = until_it_stands_still(server, lambda: int(ask(server, "/progress?one")))
        assert 0 < parts < 200, "the app must wait for its client"
        grown = resident(server) - before
        print(f"{parts} of 800 parts sent, {grown / MIB:.2f} MiB more")
        assert grown < 2 * MIB
        while int(ask(server, "/progress?one")) == parts:
            assert len(client.read_exactly(65_536)) == 65_536, "it goes on when we read"


@of_cpython
@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_large_upload_that_nobody_takes(serve, coding):
    server = serve(APP, *QUIET)
    before = warm(server)
    size = 50_000_000
    with server.connect() as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        if coding == "length":
            client.send(b"POST /upload?a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
            data = b"x" * 50_000
        else:
            client.send(b"POST /upload?a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            data = b"4\r\nabcd\r\n" * 10_000  # pieces this small cost more than they carry
        sent = push(server, client, data, size)
        assert sent < size, "the app takes nothing, so there must be an end"
        grown = resident(server) - before
        print(f"{sent / MIB:.1f} MiB taken by the kernel, {grown / MIB:.2f} MiB more")
        assert grown < 2 * MIB
        assert ask(server, "/open_gate?a") == b"open"
        if coding == "chunked":
            client.send(data[sent % len(data) :] + b"0\r\n\r\n")
            size = (sent // len(data) + 1) * 40_000
        else:
            client.send(data * ((size - sent) // len(data)) + data[sent % len(data) :])
        assert client.read_response().body == b"%d" % size
    assert resident(server) - before < 2 * MIB


@of_cpython
def test_a_flood_of_pipelined_requests_to_an_app_that_is_stuck(serve):
    server = serve(APP, *QUIET)
    before = warm(server)
    request = b"GET /stuck?b HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.connect() as client:
        sent = push(server, client, request * 1000, 64 * MIB)
        assert sent < 64 * MIB
        grown = resident(server) - before
        print(f"{sent / MIB:.1f} MiB taken by the kernel, {grown / MIB:.2f} MiB more")
        assert grown < 2 * MIB


@of_cpython
def test_a_flood_of_pipelined_requests_whose_answers_nobody_reads(serve):
    """Answers are larger than requests: they must not pile up either."""
    server = serve(APP, *QUIET)
    before = warm(server)
    request = b"GET /lump?c HTTP/1.1\r\nHost: a\r\n\r\n"
    with server.connect(receive_buffer=4096) as client:
        sent = push(server, client, request * 1000, 64 * MIB)
        assert sent < 64 * MIB
        until_it_stands_still(server, lambda: int(ask(server, "/progress?c")))
        assert left(server)["HTTPCycle"] == 1, "none is begun whose answer would have to wait"
        grown = resident(server) - before
        print(f"{sent / MIB:.1f} MiB taken by the kernel, {grown / MIB:.2f} MiB more")
        assert grown < 2 * MIB


@of_cpython
@pytest.mark.parametrize(
    "said",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nx-long: " + b"x" * 500],
    ids=["silent", "half a line", "half a head"],
)
def test_many_slow_connections(serve, said):
    patience = ("--timeout-keep-alive", "600", "--timeout-header", "600", "--backlog", "4096")
    server = serve(APP, *QUIET, *patience)
    allow_descriptors(server, CONNECTIONS + 100)
    before = warm(server)
    clients = []
    try:
        for _ in range(CONNECTIONS):
            clients.append(server.connect())
            if said:
                clients[-1].send(said)
        until(lambda: left(server)["HTTPConnection"] > CONNECTIONS, "all are accepted")
        until_it_stands_still(server, lambda: resident(server))
        grown = (resident(server) - before) / CONNECTIONS / 1024 - len(said) / 1024
        print(f"{grown:.2f} KiB for each of {CONNECTIONS} connections")
        assert grown < 4
        assert ask(server, "/hello") == b"hello"
    finally:
        for client in clients:
            client.reset()
    until(lambda: left(server)["HTTPConnection"] == 1, "all are gone")


def allow_descriptors(server: Server, count: int) -> None:
    """Let this process and the server open so many descriptors."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, count)
    if wanted < count:
        pytest.skip(f"this system allows {hard} descriptors only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (wanted, hard))


@of_cpython
def test_the_memory_limit(serve):
    """Two hundred uploads that nobody takes hold 16 MiB and not 50."""
    limit = 16 * MIB
    server = serve(APP, *QUIET, "--limit-memory", str(limit))
    before = warm(server)
    clients = [server.connect() for _ in range(200)]
    try:
        for client in clients:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            client.send(b"POST /upload?d HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        for client in clients:
            client.socket.setblocking(False)
        sent = [0] * len(clients)

        def all_send_and_it_is_told() -> bool:
            for number, client in enumerate(clients):
                try:
                    sent[number] += client.socket.send(b"x" * min(65536, 1_000_000 - sent[number]))
                except BlockingIOError:
                    pass
            return bool(re.search("buffers hold .* read no more", server.log_text()))

        until(all_send_and_it_is_told, "reading stops")
        for _ in range(TURNS):  # who would ask the server now is not read either
            all_send_and_it_is_told()
        grown = resident(server) - before
        print(f"{sum(sent) / MIB:.0f} MiB were sent, {grown / MIB:.1f} MiB more")
        assert grown < limit * 1.6
    finally:
        for client in clients:
            client.reset()


# -- nothing is left -------------------------------------------------------------------------------


STARTS = [
    b"",
    b"G",
    b"GET /hello HTTP/1.1\r\nHost: a\r\n",
    b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n" * 5,
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
    b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n",
    b"GET /download HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /wait?0.05 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"GET /nowhere HTTP/1.0\r\n\r\n",
]


@pytest.mark.parametrize("loop", ["native", "asyncio"])
def test_connections_that_are_reset_leave_nothing(serve, loop):
    """Thousands of connects, each reset at a random point."""
    server = serve(APP, *QUIET, "--loop", loop, "--log-level", "info")
    for _ in range(20):
        ask(server, "/hello")
    left(server)
    before = left(server)
    chance = random.Random(5)
    waiting: list[RawClient] = []
    for number in range(RESETS):
        client = server.connect()
        waiting.append(client)
        start = chance.choice(STARTS)
        client.send(start[: chance.randint(0, len(start))] if number % 2 else start)
        if chance.random() < 0.3:
            client.socket.setblocking(False)
            try:
                client.socket.recv(1000)
            except OSError:
                pass
        while len(waiting) > 50 or (waiting and chance.random() < 0.4):
            gone = waiting.pop(chance.randrange(len(waiting)))
            gone.reset() if chance.random() < 0.8 else gone.close()
    for client in waiting:
        client.reset()
    compared = (
        "HTTPConnection",
        "HTTPCycle",
        "Transport",
        "Task",
        "descriptors",
        "tasks",
        "timers",
    )

    def same() -> bool:
        now = left(server)
        return all(now[key] == before[key] for key in compared)

    try:
        until(same, "the same as before")
    finally:
        print(f"before {RESETS} connects: {before}")
        print("after ", left(server))


def test_a_reset_is_noticed_behind_what_is_not_read(serve):
    """So much is pipelined that reading has stopped; the app hears of the reset all the same."""
    server = serve(APP, *QUIET)
    for loss in ("half_close", "reset"):
        with server.connect() as client:
            client.request("GET", f"/watch?{loss}")
            server.wait_for_log(f"APP {loss} watches")
            push(server, client, b"GET /stuck?never HTTP/1.1\r\nHost: a\r\n\r\n", 64 * MIB)
            getattr(client, loss)()
            if loss == "reset":
                server.wait_for_log(f"APP {loss} disconnected")
            else:
                until_it_stands_still(server, lambda: left(server)["HTTPConnection"])
                assert "disconnected" not in server.log_text(), "a half-close is no end"


@pytest.mark.parametrize("kind", ["HTTPConnection", "WebSocketConnection"])
def test_a_reset_of_whom_the_app_does_not_receive(serve, kind):
    """Nothing is kept for a client that is gone, though its app asks for nothing yet."""
    server = serve("tests.attack_apps:app_of_all", *QUIET)
    before = left(server)
    with server.connect() as client:
        if kind == "HTTPConnection":
            client.request("POST", "/upload?never", "Content-Length: 50000000")
            push(server, client, b"x" * 65536, 64 * MIB)
        else:
            client.upgrade(target="/deaf?never")
            push(server, client, b"\x81\x82\0\0\0\0hi" * 8000, 64 * MIB)
        now = left(server)
        for key in (kind, "descriptors"):
            assert now[key] == before[key] + 1
        client.reset()
        until(lambda: left(server)["descriptors"] == before["descriptors"], "it is noticed")


def test_connects_that_are_gone_before_they_are_accepted(serve):
    server = serve(APP, *QUIET)
    before = left(server)
    for _ in range(500):
        sock = socket.create_connection(server.address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    until(lambda: left(server)["descriptors"] == before["descriptors"], "no descriptor is left")
    assert server.log_text().count("Traceback") == 0


# -- descriptors -----------------------------------------------------------------------------------


def test_without_descriptors_nobody_is_lost_and_nothing_spins(serve):
    server = serve(APP, *QUIET, "--timeout-keep-alive", "600")
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    clients = [server.connect() for _ in range(200)]
    inside = []
    for number, client in enumerate(clients):
        client.request("GET", "/hello", "Connection: keep-alive")
        if number < 20:
            assert client.read_response().status == 200
            inside.append(client)
    # while the process is full: how often does it try?
    first = inside[0]
    begun = time.monotonic()
    before = int(first.get("/refused").body)
    until(lambda: int(first.get("/refused").body) >= before + 3, "three more attempts")
    attempts = int(first.get("/refused").body) - before
    passed = time.monotonic() - begun
    print(f"{attempts} attempts in {passed:.2f} s without descriptors")
    # a machine that is slow makes this only truer: what is counted has a timer before each
    assert attempts <= passed / 0.1 + 1, "it spins"
    # they leave one after the other, and all others are served
    for number, client in enumerate(clients):
        if number >= 20:
            assert client.read_response().body == b"hello", number
        client.close()
    assert ask(server, "/hello") == b"hello"
    assert "Traceback" not in server.log_text()


# -- logs ------------------------------------------------------------------------------------------


def test_a_flood_of_bad_requests_is_a_few_lines(serve):
    """How many a second, and the number of the rest: see test_logging, with a clock of its own."""
    server = serve(APP, *QUIET)
    for number in range(1000):
        with server.connect() as client:
            client.send(b"GET /\x1b[31m%d HTTP/1.1\r\n\r\n" % number)
            assert client.read_response().status == 400
    assert ask(server, "/hello") == b"hello"
    assert server.stop() == 0
    log = server.log_text()
    lines = [line for line in log.splitlines() if "400" in line]
    print(f"{len(lines)} lines about 1000 bad requests")
    assert 5 <= len(lines) < 500
    assert "\x1b[31m" not in log and "Traceback" not in log


# -- the order of a shutdown -----------------------------------------------------------------------

LIFE = ("tests.attack_apps:with_lifespan", "--no-access-log")


def test_idle_connections_and_half_heads_do_not_hold_up_a_shutdown(serve):
    server = serve(*LIFE)
    with server.connect() as idle, server.connect() as silent, server.connect() as half:
        assert idle.get("/hello").status == 200
        half.send(b"GET /hello HT")
        assert ask(server, "/hello") == b"hello"
        assert server.stop() == 0
        for client in (idle, silent, half):
            client.read_until_close()
    server.wait_for_log("APP lifespan shutdown")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_endless_event_stream_is_told_in_the_middle_of_the_drain(serve, number):
    server = serve(*LIFE, "--timeout-graceful-shutdown", "4.0")
    with server.connect() as client:
        client.request("GET", "/events?tag")
        assert b"data: x" in client.read_until(b"data: x\n\n")
        server.send_signal(number)
        server.wait_for_log("shutting down")
        assert not client.read_until_close().endswith(b"0\r\n\r\n")
    assert server.wait() == 0
    log = server.log_text()
    assert log.index("telling") < log.index("events ended") < log.index("APP lifespan shutdown")
    assert "cancelling" not in log


def test_a_websocket_is_told_to_come_again(serve):
    """In the middle of the drain, like any stream; until then it goes on."""
    server = serve(*LIFE, "--timeout-graceful-shutdown", "4.0")
    with server.connect() as client:
        client.upgrade(target="/ws?tag")
        assert client.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        server.send_signal()
        server.wait_for_log("shutting down")
        client.send(b"\x81\x82\0\0\0\0hi")
        assert client.read_exactly(4) == b"\x81\x02hi"
        assert "telling" not in server.log_text()
        assert client.read_exactly(4) == b"\x88\x02" + struct.pack("!H", 1012)
        client.send(b"\x88\x82\0\0\0\0" + struct.pack("!H", 1012))
        client.read_until_close()
    assert server.wait() == 0
    log = server.log_text()
    told, left = log.index("telling"), log.index("APP tag disconnect 1012")
    assert told < left < log.index("APP lifespan shutdown")
    assert "cancelling" not in log


def test_a_second_signal_skips_the_drain_but_not_the_lifespan(serve):
    server = serve(*LIFE, "--timeout-graceful-shutdown", "600")
    with server.connect() as client:
        client.request("GET", "/stuck?never")
        assert ask(server, "/hello") == b"hello"
        server.send_signal(signal.SIGINT)
        server.wait_for_log("shutting down")
        server.send_signal(signal.SIGINT)
        assert client.read_response().status == 503
        assert server.wait() == 0
    server.wait_for_log(r"cancelling 1 request \(the oldest GET /stuck, \d+\.\d s\)")
    server.wait_for_log("APP lifespan shutdown")


def test_a_third_signal_exits_at_once(serve):
    server = serve(*LIFE, "--timeout-graceful-shutdown", "600")
    with server.connect() as client:
        client.request("GET", "/stubborn?s")
        server.wait_for_log("APP s begun")
        for word in ("shutting down", "cancelling", "exiting at once"):
            server.send_signal(signal.SIGINT)
            server.wait_for_log(word)
        assert server.wait() == 1
        with pytest.raises(ConnectionError):
            client.read_until_close()
            raise ConnectionResetError  # a FIN of the kernel's is as good as a reset
    assert "APP lifespan shutdown" not in server.log_text()


def test_a_stubborn_app_cannot_keep_the_server(serve):
    """Who swallows the cancel is left behind; the lifespan is not."""
    server = serve(*LIFE, "--timeout-graceful-shutdown", "0.2")
    with server.connect() as client:
        client.request("GET", "/stubborn?s")
        server.wait_for_log("APP s begun")
        assert server.stop() == 0
    server.wait_for_log("APP lifespan shutdown")


def test_a_start_can_be_interrupted():
    server = Starting("tests.attack_apps:hangs_at_startup", "--lifespan", "on", "--port", "0")
    try:
        server.wait_for_log("APP starting")
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.log_text() and "running on" not in server.log_text()
    finally:
        server.kill()


class Starting(Server):
    """A server that is not waited for."""

    def wait_for_log(self, pattern, *arguments, **options):
        if "https?://" in pattern:  # the constructor's: where it serves; here it never will
            return re.match(r"()()", "")
        return super().wait_for_log(pattern, *arguments, **options)


def test_the_port_is_free_from_the_first_moment_of_a_shutdown(serve):
    server = serve(*LIFE, "--timeout-graceful-shutdown", "600")
    with server.connect() as client:
        client.request("GET", "/stuck?e")
        assert ask(server, "/hello") == b"hello"
        server.send_signal()
        server.wait_for_log("shutting down")
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        successor = Server(*LIFE, "--port", str(server.port))
        try:
            assert ask(successor, "/hello") == b"hello"
        finally:
            successor.kill()
        server.send_signal()
        assert server.wait() == 0


def test_who_waits_in_the_backlog_when_the_signal_comes_is_served(serve):
    """More than are accepted in one turn; closing the socket would have reset them all."""
    server = serve(*LIFE)
    with server.connect() as holder:
        holder.request("GET", "/block?holder")
        gate = server.wait_for_log(r"APP holder (/\S+)")[1]
        clients = [server.connect() for _ in range(100)]
        for client in clients:
            client.request("GET", "/hello")
        server.send_signal()
        with open(gate, "w"):
            pass
        assert holder.read_response().body == b"held"
    for client in clients:
        response = client.read_response()
        assert (response.body, response.get("connection")) == (b"hello", b"close")
        assert client.is_closed()
        client.close()
    assert server.wait() == 0
    server.wait_for_log("APP lifespan shutdown")


def test_a_port_in_use_is_one_line(serve):
    server = serve(*LIFE)
    done = run_server(*LIFE, "--port", str(server.port))
    assert done.returncode == 3
    assert "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1
