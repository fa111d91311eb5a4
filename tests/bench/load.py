"""HTTP load: one thread of wrk, told by load.lua what to send."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass

from .environment import BENCH


class LoadFailed(Exception):
    """The load saw errors or never ended; what it would have measured means nothing."""


@dataclass(frozen=True)
class Outcome:
    """Requests answered in `seconds`, bytes received, latencies in microseconds."""

    requests: int
    seconds: float
    received: int
    p50: float = 0.0
    p99: float = 0.0

    @property
    def rate(self) -> float:
        """Requests (or messages) per second."""
        return self.requests / self.seconds


def find_wrk() -> str:
    """Return the path of wrk, or end with a word on where to get it."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise SystemExit("bench: wrk is not on PATH; on Debian: apt-get install wrk")
    return wrk


def http_load(
    url: str, connections: int, seconds: float, kind: str = "plain", size: int = 0
) -> Outcome:
    """Ask `url` over `connections` connections for `seconds` (rounded up to whole ones by wrk).

    `kind` is plain, browser (13 headers), paths (each request another), post (a body of `size`
    bytes) or pipeline (`size` requests at once).
    """
    whole = max(1, round(seconds))
    command = [find_wrk(), "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "10s"]
    command += ["-s", str(BENCH / "load.lua"), url]
    environment = {**os.environ, "BENCH_LOAD": kind, "BENCH_SIZE": str(size)}
    try:
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=whole + 30
        )
    except subprocess.TimeoutExpired:
        raise LoadFailed(f"wrk did not end within {whole + 30} s") from None
    for line in run.stdout.splitlines():
        if line.startswith("OUTCOME "):
            requests, microseconds, received, errors, p50, p99 = map(int, line.split()[1:])
            break
    else:
        raise LoadFailed(f"wrk said: {run.stdout[-300:]}{run.stderr[-300:]}")
    if errors:
        raise LoadFailed(f"{errors} errors beside {requests} good answers")
    return Outcome(requests, microseconds / 1e6, received, p50, p99)
