"""The measuring itself: the rows in turn; within a row all servers are up and take turns of a
second or two.

The speed of a rented core drifts by a third within minutes. So turns are short, every round has
each server once, and what counts is the ratio within a round.
"""

from __future__ import annotations

import contextlib
import datetime
import http.client
import json
import subprocess
import time
from pathlib import Path

from .commands import OURS, CannotServe, Order
from .environment import BENCH, Cores, CoreTimes, installed_versions, machine, say, venv_python
from .footprint import Footprint, weigh
from .load import LoadFailed, Outcome, http_load
from .report import Report, Row
from .servers import Server, ask, serving
from .websocket_load import websocket_load
from .workloads import Workload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Iterator

LATEST = BENCH / "latest.json"
DISTURBED = 0.1  # the share of the server's core that others may take before a turn is repeated
FAILURES = (CannotServe, LoadFailed, OSError, http.client.HTTPException)


class Bench:
    """One run and its report."""

    def __init__(self, given: Namespace, home: Path) -> None:
        self.servers = [OURS, *given.peers]
        self.rounds, self.seconds, self.per_cpu = given.rounds, given.seconds, given.per_cpu
        self.python = venv_python()
        self.cores = Cores()
        self.home = home  # a directory for the file, the certificate and nginx
        how = (
            "Server and load on a core each" if self.cores.apart else "SERVER AND LOAD ON ONE CORE"
        )
        how += f"; medians of {self.rounds} rounds of turns of {self.seconds:g} s"
        how += "; PER SECOND OF THE SERVER'S CPU TIME" if self.per_cpu else ""
        self.report = Report(
            datetime.date.today().isoformat(), machine(), installed_versions(), f"{how}."
        )

    def turns(self, servers: list[str]) -> Iterator[str]:
        """Give each server once a round; the first one changes, so that none is always last."""
        for turn in range(self.rounds):
            first = turn % len(servers)
            yield from servers[first:] + servers[:first]

    def throughput(self, workload: Workload) -> None:
        """Measure a workload."""
        unit = "msg/s" if workload.in_flight else "req/s"
        row = Row(workload.name, workload.title, unit, workload.aim)
        running: dict[str, Server] = {}
        with contextlib.ExitStack() as stack:
            for name in self.chosen(workload.servers):
                try:
                    order = self.order(workload, name)
                    server = stack.enter_context(serving(name, order, self.python, self.cores))
                    self.check_answer(workload, server, order)
                    self.load(workload, server, 4.0 if name == "pypy" else 1.0)
                except FAILURES as exc:
                    self.leave_out(row, name, exc)
                else:
                    running[name] = server
            row.rounds = {name: [] for name in running}
            for name in self.turns(list(running)):
                try:
                    row.rounds[name].append(self.take_turn(workload, running[name], row))
                except FAILURES as exc:
                    row.rounds[name].append(None)
                    self.leave_out(row, name, exc)
        self.keep(row)

    def weight(self, footprint: Footprint) -> None:
        """Measure a footprint, in a process of its own each time."""
        row = Row(footprint.name, footprint.title, footprint.unit, footprint.aim)
        chosen = self.chosen(footprint.servers)
        row.rounds = {name: [] for name in chosen}
        for name in self.turns(chosen):
            value = None
            if name not in row.reasons:
                try:
                    value = weigh(footprint, name, self.python, self.cores)
                except FAILURES as exc:
                    self.leave_out(row, name, exc)
            row.rounds[name].append(value)
        self.keep(row)

    def chosen(self, servers: tuple[str, ...]) -> list[str]:
        """Return those of the servers that this run is about."""
        return [name for name in servers if name in self.servers]

    def leave_out(self, row: Row, name: str, exc: Exception) -> None:
        """Say loudly that a server has no number here."""
        row.reasons[name] = f"{exc}" or repr(exc)
        say(f"bench: LEFT OUT of {row.name}: {name}: {row.reasons[name]}")

    def keep(self, row: Row) -> None:
        """Add a finished row to the report; an interrupted run has left all rows before."""
        self.report.rows.append(row)
        LATEST.write_text(json.dumps(self.report.as_json(), indent=1) + "\n")
        cells = [f"{name} {row.cell(name)}" for name in row.rounds if row.median(name) is not None]
        noisy = [share for share in row.disturbed if share >= DISTURBED]
        if noisy:
            say(
                f"bench: DISTURBED: others took {min(noisy):.0%} to {max(noisy):.0%} of the "
                f"server's core in {len(noisy)} of {len(row.disturbed)} turns"
            )
        say(f"{row.title} [{row.unit}]: {', '.join(cells)}{row.spread()}")

    def order(self, workload: Workload, name: str) -> Order:
        """Return what this server is asked to serve."""
        return Order(
            workload.app_of.get(name, workload.app),
            path=workload.path,
            access_log=workload.access_log,
            certificate=self.certificate() if workload.tls else None,
            file=self.file() if workload.file else None,
        )

    def check_answer(self, workload: Workload, server: Server, order: Order) -> None:
        """Raise CannotServe unless one request has the right answer."""
        body = b"x" * workload.size if workload.kind == "post" else None
        status, answer = ask(server.port, order, body)
        if (status, len(answer)) != (200, workload.answer):
            raise CannotServe(f"wrong answer: {status}, {len(answer)} bytes: {answer[:60]!r}")

    def load(self, workload: Workload, server: Server, seconds: float) -> Outcome:
        """Load a server for some seconds."""
        if workload.in_flight:
            return websocket_load(
                server.port, workload.connections, workload.in_flight, workload.size, seconds
            )
        scheme = "https" if workload.tls else "http"
        url = f"{scheme}://127.0.0.1:{server.port}{workload.path}"
        return http_load(url, workload.connections, seconds, workload.kind, workload.size)

    def take_turn(self, workload: Workload, server: Server, row: Row) -> float:
        """Load a server, again (at most twice) when others disturb it; return requests/s."""
        for _ in range(3):
            outcome, cpu, foreign = self.watch(workload, server)
            row.disturbed.append(foreign)
            if foreign < DISTURBED or self.per_cpu:
                break
        row.busy.setdefault(server.name, []).append(cpu / outcome.seconds + foreign)
        return outcome.requests / (cpu if self.per_cpu else outcome.seconds)

    def watch(self, workload: Workload, server: Server) -> tuple[Outcome, float, float]:
        """Return what the load saw, the CPU seconds it cost, and what share others had."""
        server.settle()
        core = self.cores.server
        before, cpu, start = CoreTimes.of(core), server.cpu_seconds(), time.perf_counter()
        outcome = self.load(workload, server, self.seconds)
        wall, cpu = time.perf_counter() - start, server.cpu_seconds() - cpu
        after = CoreTimes.of(core)
        foreign = (after.programs - before.programs - cpu) / wall
        server.settle()
        return outcome, cpu + after.interrupts - before.interrupts, foreign

    def file(self) -> str:
        """Return the path of a 10 MB file."""
        path = self.home / "file"
        if not path.exists():
            path.write_bytes(bytes(range(256)) * 40960)
        return str(path)

    def certificate(self) -> str:
        """Return the path of a self-signed certificate with its key."""
        path = self.home / "certificate.pem"
        if not path.exists():
            key = self.home / "key.pem"
            command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
            command += ["-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(path)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            path.write_text(key.read_text() + path.read_text())
        return str(path)
