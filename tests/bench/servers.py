"""A server that runs: started on its core, weighed, stopped by its process id.

python3 -m tests.bench.servers granian apps:hello     serves it until Ctrl-C
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .commands import COMMANDS, CannotServe, Order
from .environment import ROOT, TICKS, Cores, plain_environment, say, venv_python

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 20.0  # seconds to the first answer; a quarter of it is allowed for stopping


@dataclass
class Server:
    """A server that runs, and the processes it is made of."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    patience: float = PATIENCE
    seconds_to_answer: float = 0.0

    def pids(self) -> list[int]:
        """Return the process and all its descendants."""
        found = [self.process.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    found += map(int, children.read_text().split())
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, to 10 ms."""
        ticks = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def resident(self) -> int:
        """Return the resident memory of all its processes, in bytes."""
        kilobytes = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmRSS:"):
                        kilobytes += int(line.split()[1])
        return kilobytes * 1024

    def settle(self) -> None:
        """Return once it has stopped working, within about a second."""
        before = self.cpu_seconds()
        for _ in range(25):
            time.sleep(0.04)
            now = self.cpu_seconds()
            if now == before:
                return
            before = now

    def stop(self) -> None:
        """Ask it to stop; after a deadline kill what is left of its session."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(self.patience / 4)
        # The server leads its own process group: whatever is left of it was started by us.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(self.patience / 4)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def ask(
    port: int, order: Order, body: bytes | None = None, timeout: float = 5.0
) -> tuple[int, bytes]:
    """Return status and body of one request on a connection of its own."""
    if order.certificate is not None:
        context = ssl._create_unverified_context()
        client: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", port, timeout=timeout, context=context
        )
    else:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        client.request("GET" if body is None else "POST", order.path, body)
        response = client.getresponse()
        return response.status, response.read()
    finally:
        client.close()


def wait_for_answer(server: Server, order: Order, deadline: float) -> None:
    """Return once the server answers 200; else raise CannotServe, at the latest at `deadline`."""
    while server.process.poll() is None:
        try:
            status, body = ask(server.port, order)
        except (OSError, http.client.HTTPException) as exc:
            if time.perf_counter() > deadline:
                raise CannotServe(f"no answer in time ({type(exc).__name__}: {exc})") from exc
            time.sleep(0.001)
            continue
        if status != 200:
            raise CannotServe(f"answered {status}: {body[:80]!r}")
        return
    raise CannotServe(f"ended with code {server.process.returncode}")


@contextlib.contextmanager
def serving(
    name: str, order: Order, python: str, cores: Cores, patience: float = PATIENCE
) -> Iterator[Server]:
    """Start a server, give it once it answers, and stop it whatever happens."""
    port = free_port()
    command = [*order.prefix, *COMMANDS[name](python, order, port)]
    environment = {**plain_environment(), "PYTHONPATH": str(ROOT), **order.environment}
    if order.file is not None:
        environment["BENCH_FILE"] = order.file
    with tempfile.TemporaryFile() as said:
        # What it says is shown when it fails to start. Access logs go to /dev/null, for all alike.
        output = subprocess.DEVNULL if order.access_log else said
        with cores.for_server():
            begin = time.perf_counter()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        server = Server(name, port, process, patience)
        try:
            try:
                wait_for_answer(server, order, begin + patience)
            except CannotServe as exc:
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines()
                say(f"bench: this does not serve: {' '.join(command)}")
                raise CannotServe(f"{exc}; {' '.join(lines[-1:])}") from None
            server.seconds_to_answer = time.perf_counter() - begin
            yield server
        finally:
            server.stop()


def main() -> None:
    """Serve by hand, to look at one server alone."""
    if len(sys.argv) != 3 or sys.argv[1] not in COMMANDS:
        raise SystemExit(f"usage: python3 -m tests.bench.servers {'|'.join(COMMANDS)} APP")
    try:
        with serving(sys.argv[1], Order(sys.argv[2]), venv_python(), Cores()) as server:
            say(f"{server.name} answers at http://127.0.0.1:{server.port}")
            server.process.wait()
    except CannotServe as exc:
        raise SystemExit(f"{sys.argv[1]}: {exc}") from None
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
