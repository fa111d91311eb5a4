"""What one greedy client costs the others: latency of kept connections beside a pipeliner.

    python3 -m tests.bench.fairness [--connections 1000] [--seconds 5] [--app module:app]

A thousand kept connections ask in turn, one request at a time, first alone, then while one client
pipelines as fast as it is answered, and then while ten do. A pipelined request is begun only when
the one before it is answered, and at most one per connection and turn, so that what the others
wait is bounded by the number of the greedy and not by how much each of them asks.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from .client import GET, Connection

ROOT = Path(__file__).resolve().parent.parent.parent
DEPTH = 1000  # requests in one pipeline


def pipeline(port: int, answered: multiprocessing.sharedctypes.Synchronized[int]) -> None:
    """Ask without end, a pipeline always full."""
    size = one_answer(port)
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(GET * DEPTH)
        pending = 0
        while True:
            data = sock.recv(1 << 20)
            if not data:
                return
            pending += len(data)
            done, pending = divmod(pending, size)
            if done:
                answered.value += done
                sock.sendall(GET * done)


def one_answer(port: int) -> int:
    """Return the size of a whole answer."""
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(GET)
        return len(sock.recv(65536))


def latencies(connections: list[Connection], seconds: float) -> list[float]:
    """Ask over all connections in turn; return how long each answer took, sorted."""
    end = time.perf_counter() + seconds
    took = []
    number = 0
    while time.perf_counter() < end:
        begin = time.perf_counter()
        connections[number % len(connections)].exchange(GET)
        took.append(time.perf_counter() - begin)
        number += 1
    return sorted(took)


def row(name: str, took: list[float], greedy: float) -> str:
    """Format one line of the table."""
    points = [took[min(len(took) - 1, int(len(took) * part))] * 1e3 for part in (0.5, 0.99, 1)]
    cells = "".join(f"{point:10.2f}" for point in points)
    return f"{name:<24}{len(took):>9}{cells}{greedy:>14.0f}"


def measure(port: int, connections: list[Connection], greedy: int, seconds: float) -> str:
    """Measure beside so many greedy clients; return a line of the table."""
    answered = multiprocessing.Value("q", 0)
    processes = [
        multiprocessing.Process(target=pipeline, args=(port, answered), daemon=True)
        for _ in range(greedy)
    ]
    for process in processes:
        process.start()
    try:
        time.sleep(0.5 if greedy else 0)
        before = answered.value
        took = latencies(connections, seconds)
        rate = (answered.value - before) / seconds
    finally:
        for process in processes:
            process.kill()
            process.join()
    return row(f"{greedy} greedy" if greedy else "alone", took, rate)


def main() -> None:
    """Start a server and print the table."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.fairness")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--app", default="examples.hello:app")
    given = parser.parse_args()
    command = [sys.executable, "-m", "selectserve", given.app, "--port", "0", "--no-access-log"]
    command += ["--lifespan", "off", "--timeout-keep-alive", "600"]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        match = re.search(r"http://127\.0\.0\.1:(\d+)", server.stderr.readline())
        assert match, "the server did not start"
        port = int(match[1])
        connections = [Connection(port) for _ in range(given.connections)]
        for connection in connections:
            connection.exchange(GET)
        print(f"{given.connections} kept connections, {os.cpu_count()} cores, latency in ms")
        print(f"{'':<24}{'requests':>9}{'p50':>10}{'p99':>10}{'max':>10}{'greedy req/s':>14}")
        for greedy in (0, 1, 10):
            print(measure(port, connections, greedy, given.seconds), flush=True)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main()
