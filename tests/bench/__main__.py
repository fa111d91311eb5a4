"""`python3 -m tests.bench`: measure the workloads and print the tables."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from pathlib import Path

from .commands import COMMANDS, OURS
from .environment import BENCH, allow_open_files
from .footprint import FOOTPRINTS
from .load import find_wrk
from .measure import Bench
from .workloads import WORKLOADS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = BENCH / "results.md"


def names(known: list[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: known names with commas between."""

    def parse(text: str) -> list[str]:
        given = [name.strip() for name in text.split(",") if name.strip()]
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return given

    return parse


def parse_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    rows = [item.name for item in (*WORKLOADS, *FOOTPRINTS)]
    servers = list(COMMANDS)
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.bench", description="Measure selectserve beside its peers."
    )
    option = parser.add_argument
    option("--quick", action="store_true", help="3 rounds of 1 s")
    option("--rounds", type=int, help="how often each server takes its turn (7)")
    option("--seconds", type=float, help="how long each turn is, at least 1 (2)")
    option("--only", type=names(rows), default=rows, help="workloads, with commas between")
    option("--peers", type=names(servers), default=servers, help=f"servers beside {OURS}")
    option("--per-cpu", action="store_true", help="divide by CPU time: for a machine not at rest")
    option("--list", action="store_true", help="name the workloads and their servers")
    given = parser.parse_args()
    given.whole = (
        given.only == rows and given.peers == servers and not (given.quick or given.per_cpu)
    )
    given.rounds = given.rounds or (3 if given.quick else 7)
    given.seconds = given.seconds or (1.0 if given.quick else 2.0)
    return given


def main() -> None:
    """Measure, keep the numbers (latest.json, of a whole run also results.md), print the tables."""
    given = parse_arguments()
    if given.list:
        for item in (*WORKLOADS, *FOOTPRINTS):
            print(f"{item.name:14} {item.title}: {', '.join(item.servers)}")
        return
    find_wrk()
    allow_open_files(4096)
    with tempfile.TemporaryDirectory(prefix="selectserve-bench-") as home:
        bench = Bench(given, Path(home))
        with contextlib.suppress(KeyboardInterrupt):  # what has been measured is still printed
            for workload in WORKLOADS:
                if workload.name in given.only:
                    bench.throughput(workload)
            for footprint in FOOTPRINTS:
                if footprint.name in given.only:
                    bench.weight(footprint)
            if given.whole:
                RESULTS.write_text(bench.report.markdown())
        print(bench.report.markdown())


if __name__ == "__main__":
    main()
