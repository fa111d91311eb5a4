"""Run a slow and a fast client against a rung, and say what it promises and what is still wrong.

    python -m examples.probe 3          starts rung 03, measures, and stops it
    python -m examples.probe            all of them, one after the other

Each check puts one question to a running server. What is still wrong with one rung is mended by a
later one, so that most questions are asked twice, and answered once with no and once with yes.
"""

import contextlib
import importlib
import inspect
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
IDLE = 0.5  # seconds of silence after which rungs 05 and 07 send a client away, in some checks
DRIP_IDLE = 2.0  # where bytes must come in time also on a busy machine
PATIENCE = 0.5  # seconds after which nothing more is expected of what is still wrong
DEADLINE = 10.0  # seconds for what is promised
FLOOD = 32 << 20  # bytes, more than the kernel keeps for a connection
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}
GET = b"GET %s HTTP/1.1\r\nHost: probe\r\n%s\r\n"
HANDSHAKE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


class Rung:
    """A rung in a process of its own: ``with Rung(3) as rung: rung.connect()``."""

    def __init__(self, number, patience=PATIENCE, **environment):
        self.number, self.patience = number, patience
        self.environment = {**ENVIRONMENT, "IDLE": str(2 * DEADLINE), **environment}
        self.path = next(HERE.glob(f"rung{number:02}_*.py"))
        self.module = f"examples.{self.path.stem}"
        self.title = self.path.read_text(encoding="utf-8").split("\n", 1)[0].strip('"')
        self.clients = []

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", self.module, "0"],
            cwd=HERE.parent,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        try:
            self.address = ("127.0.0.1", int(self.wait_for(r"127\.0\.0\.1:([0-9]+)")[1]))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc):
        for client in self.clients:
            client.close()
        self.process.kill()
        self.process.communicate()

    def wait_for(self, pattern):
        """Return the match of the next line of output that has pattern in it."""
        output = ""
        while select.select([self.process.stdout], [], [], DEADLINE)[0]:
            line = self.process.stdout.readline().decode()
            output += line
            if match := re.search(pattern, line):
                return match
            if not line:
                break
        raise RuntimeError(f"{self.module} did not say {pattern!r}, but:\n{output}")

    def connect(self, receive_buffer=None):
        client = socket.socket()
        self.clients.append(client)
        client.settimeout(DEADLINE)
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.connect(self.address)
        return client

    def ask(self, client, path=b"/"):
        """Send what this rung answers at once."""
        client.sendall(b"hello\n" if self.number < 7 else GET % (path, b""))

    def cpu_seconds(self):
        """Return the processor time that the rung has used."""
        with contextlib.suppress(FileNotFoundError):
            stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
        command = ["ps", "-o", "time=", "-p", str(self.process.pid)]
        minutes, seconds = subprocess.check_output(command, text=True).split(":")[-2:]
        return int(minutes) * 60 + float(seconds)


def is_silent(client, seconds=PATIENCE):
    """Wait for something to come, even the end; return True when nothing came in time."""
    return not select.select([client], [], [], seconds)[0]


# -- checks: each returns whether all is well, and a sentence about what was seen ------------------


def second_client(rung):
    """Is a fast client served while a slow one is there and says nothing?"""
    slow, fast = rung.connect(), rung.connect()
    rung.ask(slow)
    slow.recv(1024)  # it is being served, and stays
    rung.ask(fast)
    start = time.monotonic()
    if not is_silent(fast, rung.patience):
        waited = (time.monotonic() - start) * 1000
        return True, f"a fast client is served in {waited:.1f} ms while a slow one says nothing"
    slow.close()
    fast.recv(1024)
    return False, (
        f"while one client is there a second one hears nothing for {rung.patience} s; as soon as "
        "the first one leaves it is served"
    )


def cost_of_waiting(rung):
    """Does it cost nothing to wait for a client that says nothing?"""
    client = rung.connect()
    rung.ask(client)
    client.recv(1024)
    before, start = rung.cpu_seconds(), time.monotonic()
    is_silent(client)
    used, passed = rung.cpu_seconds() - before, time.monotonic() - start
    if used < 0.025:  # two ticks of the clock that counts it; as floats they may be 0.0200001
        return True, f"to wait costs nothing: {used:.2f} s of processor time in {passed:.2f} s"
    return False, f"to wait takes all there is: {used:.2f} s of processor time in {passed:.2f} s"


def whole_echo(rung):
    """Does a client that sends much before it reads anything get all of it back?"""
    client = rung.connect(receive_buffer=65536)
    data = memoryview(os.urandom(1 << 20) * (FLOOD >> 20))
    sent, echo = 0, bytearray()
    client.setblocking(False)
    while sent < FLOOD and select.select([], [client], [], PATIENCE)[1]:
        sent += client.send(data[sent : sent + 65536])
    taken = sent  # before the client read: all of it, unless the server made it wait
    writers = [client]
    while True:
        if sent == FLOOD and writers:
            writers = []
            client.shutdown(socket.SHUT_WR)
        readable, writable, _ = select.select([client], writers, [], DEADLINE)
        if not readable and not writable:
            break  # it does not even say good-bye
        if writable:
            sent += client.send(data[sent : sent + 65536])
        if readable:
            piece = client.recv(65536)
            echo += piece
            if not piece:
                break
    if echo == data:
        return True, (
            f"a client that reads late is held back after {taken / 1e6:.1f} MB, and gets all "
            f"{FLOOD / 1e6:.1f} MB back in the end"
        )
    return False, (
        f"of {FLOOD / 1e6:.1f} MB sent by a client that reads late {len(echo) / 1e6:.1f} MB come "
        "back, the rest is lost"
    )


def silent_client(rung):
    """Is a client that says nothing sent away?"""
    client, patience = rung.connect(), max(rung.patience, 3 * IDLE)
    if not is_silent(client, patience) and not client.recv(1):
        return True, f"a client that says nothing is sent away after {IDLE} s"
    return False, f"a client that says nothing is still there after {patience} s"


def stop_in_order(rung):
    """Does SIGTERM end the server in order?"""
    client = rung.connect()
    rung.ask(client)
    client.recv(1024)
    rung.process.send_signal(signal.SIGTERM)
    code = rung.process.wait(DEADLINE)
    if code == 0:
        return True, "SIGTERM: the client is told good-bye, and the server ends with exit code 0"
    return False, f"SIGTERM kills the server in the middle of whatever it does (code {code})"


def dripping_client(rung):
    """Is a client sent away that drips one byte now and then?"""
    client = rung.connect()
    start = time.monotonic()
    while time.monotonic() - start < 2 * DRIP_IDLE:
        client.sendall(b".")
        if not client.recv(1):
            return True, "a client that drips a byte now and then is sent away"
        is_silent(client, DRIP_IDLE / 20)
    return (
        False,
        f"a client that drips a byte every {DRIP_IDLE / 20} s is there after {2 * DRIP_IDLE} s",
    )


def one_story(rung):
    """Is what happens to one client told in one place?"""
    module = importlib.import_module(rung.module)
    if hasattr(module, "echo"):
        lines = len(inspect.getsource(module.echo).splitlines())
        return True, f"what happens to one client is told in one coroutine of {lines} lines"
    methods = dict(inspect.getmembers(module.Echo, inspect.isfunction)).keys() - {"__init__"}
    return False, f"what happens to one client is cut into {len(methods)} methods of its protocol"


def crowd(rung):
    """Is a fast client served while a hundred slow ones hold a place and say nothing?"""
    seats = importlib.import_module("examples.rung06_coroutine").SEATS
    for _ in range(seats):
        rung.connect()
    fast = rung.connect()
    rung.ask(fast)
    if not is_silent(fast, rung.patience):
        return True, f"a fast client is served behind {seats} clients that say nothing"
    return False, f"{seats} clients that say nothing, and for a fast one there is no seat"


def slow_answer(rung):
    """Is a fast question answered while a slow one is being thought about?"""
    slow, fast = rung.connect(), rung.connect()
    rung.ask(slow, b"/slow")
    rung.ask(fast)
    if is_silent(fast, rung.patience):
        return False, f"while one answer takes a second nobody else gets any for {rung.patience} s"
    if not is_silent(slow, 0):
        raise RuntimeError("the slow answer was not slow, or the fast one had to wait for it")
    return True, "while one answer takes a second another is given at once"


def websocket(rung):
    """Is a WebSocket to be had?"""
    client = rung.connect()
    client.sendall(GET % (b"/", HANDSHAKE))
    line = client.recv(4096).split(b"\r\n")[0].decode()
    if " 101 " in line:
        return True, f"who asks for a WebSocket gets one ({line.strip()})"
    return False, f"who asks for a WebSocket gets a page ({line.strip()})"


def silent_member(rung):
    """Does a chat go on when one of its members does not read?"""
    deaf, talker = rung.connect(receive_buffer=4096), rung.connect()
    for client in deaf, talker:
        client.sendall(GET % (b"/", HANDSHAKE))
        client.recv(4096)
    text = b"x" * 60000
    frame = b"\x81\xfe" + len(text).to_bytes(2, "big") + bytes(4) + text  # masked with zeros
    for said in range(FLOOD // len(frame)):
        talker.sendall(frame)
        left = len(text) + 4
        while left and not is_silent(talker, rung.patience):
            left -= len(talker.recv(left))
        if left:
            return False, (
                f"a member that does not read silences the chat: after {said * len(text) / 1e6:.1f}"
                " MB nobody hears anything"
            )
    return True, "a chat goes on when one of its members does not read"


def told(rung):
    """Is the life of a request told?"""
    client = rung.connect()
    rung.ask(client)
    client.recv(4096)
    moments = [rung.wait_for(rf" ({word})\b")[1] for word in ("accept", "read", "event", "flush")]
    return True, f"a request is told as it happens, from {moments[0]} to {moments[-1]}"


CHECKS = {  # of each rung: what it promises, and what is still wrong with it
    1: ([whole_echo], [second_client]),
    2: ([second_client], [cost_of_waiting, whole_echo]),
    3: ([second_client, cost_of_waiting], [whole_echo]),
    4: ([cost_of_waiting, whole_echo], [silent_client, stop_in_order]),
    5: ([whole_echo, silent_client, stop_in_order], [dripping_client, one_story]),
    6: ([second_client, whole_echo, one_story], [silent_client, crowd]),
    7: ([silent_client, crowd], [slow_answer]),
    8: ([slow_answer, stop_in_order], [websocket]),
    9: ([websocket, second_client], [silent_member]),
    10: ([second_client, cost_of_waiting, told], []),
}
ABOUT_IDLE = {silent_client: IDLE, dripping_client: DRIP_IDLE, crowd: IDLE}


def probe(number):
    """Yield of each check its kind, whether it turned out as the rung says, and what was seen."""
    for kind, checks in zip(("promised", "still wrong"), CHECKS[number]):
        for check in checks:
            patience = DEADLINE if kind == "promised" else PATIENCE
            environment = {"IDLE": str(ABOUT_IDLE[check])} if check in ABOUT_IDLE else {}
            with Rung(number, patience, **environment) as rung:
                well, sentence = check(rung)
            yield kind, well == (kind == "promised"), sentence


def main():
    for number in map(int, sys.argv[1:] or CHECKS):
        print(Rung(number).title)
        for kind, as_told, sentence in probe(number):
            verdict = "" if as_told else "   <-- NOT AS THE RUNG SAYS"
            print(f"    {kind:<12} {sentence}{verdict}", flush=True)


if __name__ == "__main__":
    main()
