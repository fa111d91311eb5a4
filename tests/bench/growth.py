"""How the cost of a request grows with the number of connections and with the size of bodies.

    python3 -m tests.bench.growth [--servers selectserve,uvicorn] [--quick]

First table: 64 connections work (or one), all others have been answered once and stay idle.
Second table: bodies of 1 KB to 100 MB, down and up, one request at a time on one connection. The
cost is the CPU time of the server, with the interrupts of its core in which the kernel moves the
bytes: where it stays flat, per request or per MB, the server does not care how many wait beside.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import sys
import time

from .client import GET, Connection, post
from .commands import COMMANDS, OURS, CannotServe, Order
from .environment import Cores, CoreTimes, allow_open_files, machine, say, venv_python
from .load import LoadFailed, http_load
from .servers import Server, serving

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Rows = Callable[[Server, Cores, float], Iterator[str]]

CONNECTIONS = (1, 64, 1024, 8192)
SIZES = ("1 KB", "10 KB", "100 KB", "1 MB", "10 MB", "100 MB")
UNITS = {"KB": 10**3, "MB": 10**6}
ACTIVE = 64


class Meter:
    """What the server's core spends between two looks."""

    def __init__(self, server: Server, cores: Cores) -> None:
        self.server, self.core = server, cores.server
        self.start = self.spent()

    def spent(self) -> float:
        """Return CPU seconds of the server and of the core's interrupts."""
        return self.server.cpu_seconds() + CoreTimes.of(self.core).interrupts

    def seconds(self) -> float:
        """Return what was spent since the start."""
        return self.spent() - self.start


@contextlib.contextmanager
def idle(port: int, count: int) -> Iterator[None]:
    """Keep so many connections open that have been answered once."""
    connections: list[Connection] = []
    try:
        for _ in range(count):
            connections.append(Connection(port))
            connections[-1].exchange(GET)
        yield
    finally:
        for connection in connections:
            connection.close()


def connection_row(server: Server, cores: Cores, total: int, seconds: float) -> str:
    """Return a row of the first table."""
    active = min(total, ACTIVE)
    with idle(server.port, total - active):
        http_load(f"http://127.0.0.1:{server.port}/", active, 1)
        meter = Meter(server, cores)
        outcome = http_load(f"http://127.0.0.1:{server.port}/", active, seconds)
        cost = meter.seconds() / outcome.requests * 1e6
    return (
        f"| {server.name} | {total:,} | {outcome.rate:,.0f} | {outcome.p50 / 1e3:.2f} "
        f"| {outcome.p99 / 1e3:.2f} | {cost:.1f} |"
    )


def body_row(server: Server, cores: Cores, title: str, seconds: float) -> str:
    """Return a row of the second table."""
    number, unit = title.split()
    size = int(number) * UNITS[unit]
    download = b"GET /%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % size
    cells = [server.name, title]
    for request in (download, post(b"x" * size)):
        connection = Connection(server.port)
        connection.exchange(request)
        meter = Meter(server, cores)
        count, start, end = 0, time.perf_counter(), time.perf_counter() + seconds
        while time.perf_counter() < end:
            connection.exchange(request)
            count += 1
        wall, cpu = time.perf_counter() - start, meter.seconds()
        connection.close()
        cells += [f"{count * size / wall / 1e6:,.0f}", f"{cpu / count * 1e6:,.0f}"]
        cells += [f"{cpu / count / size * 1e12:,.0f}"]
    return "| " + " | ".join(cells) + " |"


def parse_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.growth")
    option = parser.add_argument
    option("--servers", default=OURS, help=f"with commas between: {', '.join(COMMANDS)}")
    option("--seconds", type=float, default=3.0, help="how long each line is measured")
    option("--quick", action="store_true", help="1 s a line")
    given = parser.parse_args()
    given.servers = given.servers.split(",")
    if not set(given.servers) <= set(COMMANDS):
        parser.error(f"known servers are {', '.join(COMMANDS)}")
    given.seconds = 1.0 if given.quick else given.seconds
    return given


def connection_rows(server: Server, cores: Cores, seconds: float) -> Iterator[str]:
    """Give the rows of the first table, as far as open files allow."""
    most = allow_open_files(max(CONNECTIONS) + 200) - 200
    for total in CONNECTIONS:
        if total > most:
            say(f"growth: {most} connections instead of {total}: see ulimit -n")
        yield connection_row(server, cores, min(total, most), seconds)


def body_rows(server: Server, cores: Cores, seconds: float) -> Iterator[str]:
    """Give the rows of the second table."""
    for title in SIZES:
        yield body_row(server, cores, title, seconds)


def table(heading: str, app: str, rows: Rows, given: argparse.Namespace, cores: Cores) -> None:
    """Print one of the tables, a server after the other."""
    print(heading, flush=True)
    for name in given.servers:
        try:
            with serving(name, Order(app), given.python, cores) as server:
                for line in rows(server, cores, given.seconds):
                    print(line, flush=True)
        except (CannotServe, LoadFailed, OSError, http.client.HTTPException) as exc:
            say(f"growth: LEFT OUT: {name}: {exc!r}")


def main() -> None:
    """Print both tables."""
    given = parse_arguments()
    given.python = sys.executable if given.servers == [OURS] else venv_python()
    cores = Cores()
    allow_open_files(max(CONNECTIONS) + 200)  # the server inherits it
    print(f"{machine()}.\n")
    heading = (
        "| server | connections | requests/s | p50 ms | p99 ms | CPU µs per request |\n"
        "|---|---:|---:|---:|---:|---:|"
    )
    table(heading, "apps:hello", connection_rows, given, cores)
    heading = (
        "\n| server | body | down MB/s | CPU µs per request | CPU µs per MB "
        "| up MB/s | CPU µs per request | CPU µs per MB |\n"
        "|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    table(heading, "apps:sized", body_rows, given, cores)


if __name__ == "__main__":
    main()
