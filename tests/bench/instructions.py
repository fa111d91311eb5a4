"""Instructions and system calls per request: numbers that no other program on the machine changes.

    python3 -m tests.bench.instructions               print them, and the change since the baseline
    python3 -m tests.bench.instructions --update      keep them in baseline.json
    python3 -m tests.bench.instructions --only hello,starlette --servers selectserve,uvicorn,floor

Only requests are counted, no start-up and no shutdown: one at a time on one connection, after as
many that warm the server up. callgrind is told when to begin and to end; perf and strace cannot be
told, so under them a server is run twice, for N and for 2 N requests, and the difference is what N
cost. Instructions (of the program, not of the kernel) are counted by callgrind, or by perf where
there is no valgrind; system calls by strace. The numbers belong to a Python version and a counter:
baseline.json keeps one set for each. This is a regression guard to read, not a test: it never
fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .client import BROWSER, GET, Connection, post
from .commands import COMMANDS, OURS, CannotServe, Order
from .environment import BENCH, ROOT, Cores, say, venv_python
from .servers import Server, serving

BASELINE = BENCH / "baseline.json"
REQUESTS = {
    "hello": ("apps:hello", GET),
    "browser": ("apps:hello", BROWSER),
    "echo": ("apps:echo", post(b"x" * 1024)),
}
FRAMEWORKS = {  # of .venv-bench, so not without being asked for
    "starlette": ("apps_starlette:hello", GET),
    "fastapi": ("apps_fastapi:app", GET),
    "fastapi-sync": ("apps_fastapi:app", GET.replace(b" / ", b" /sync ")),
    "django": ("apps_django:app", GET),
    "django-sync": ("apps_django:app", GET.replace(b" / ", b" /sync ")),
}
KINDS = {**REQUESTS, **FRAMEWORKS}
PATIENCE = 120.0  # seconds until the first answer: callgrind is some fifty times slower
CALLGRIND, PERF, STRACE = "callgrind", "perf", "strace"


def counter_of_instructions() -> str | None:
    """Return which program counts instructions here."""
    if shutil.which("valgrind"):
        return CALLGRIND
    if shutil.which("perf"):
        probe = ["perf", "stat", "-x,", "-e", "instructions:u", "true"]
        run = subprocess.run(probe, capture_output=True, text=True, timeout=30)
        if run.stderr[:1].isdigit():
            return PERF
    say("instructions: no valgrind and no perf that counts; on Debian: apt-get install valgrind")
    return None


def prefix(counter: str, output: Path) -> tuple[str, ...]:
    """Return the command that runs a server under a counter."""
    if counter == CALLGRIND:
        files = f"--callgrind-out-file={output}.%p"  # one for each process
        return ("valgrind", "--quiet", "--tool=callgrind", "--trace-children=yes", files)
    if counter == PERF:
        return ("perf", "stat", "-x,", "-e", "instructions:u", "-o", str(output), "--")
    # -DD: strace steps aside, so that the server is our child and is stopped like any other.
    return ("strace", "-DD", "-f", "-c", "-o", str(output))


def read_counts(counter: str, text: str) -> dict[str, int]:
    """Return what a counter has written: one number, or one for each system call."""
    lines = [line.split() for line in text.splitlines()]
    if counter == CALLGRIND:
        totals = [int(words[1]) for words in lines if words[:1] == ["totals:"]]
        return {"instructions": sum(totals)} if totals else {}
    if counter == PERF:
        fields = [line.split(",") for line in text.splitlines() if "instructions" in line]
        return {"instructions": int(fields[0][0])} if fields else {}
    if not lines or lines[-1][-1:] != ["total"]:
        return {}
    table = [words for words in lines[:-1] if len(words) >= 5 and words[3].isdigit()]
    return {words[-1]: int(words[3]) for words in table}


def ask(server: Server, request: bytes, requests: int) -> None:
    """Ask so many times, on a connection of its own."""
    connection = Connection(server.port)
    for _ in range(requests):
        connection.exchange(request)
    connection.close()


def tell_callgrind(option: str, server: Server) -> None:
    """Have what was counted in each process of a server forgotten, or written."""
    for pid in server.pids():
        command = ["callgrind_control", option, str(pid)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)


def running(
    counter: str, name: str, kind: str, output: Path, python: str, cores: Cores
) -> contextlib.AbstractContextManager[Server]:
    """Run a server under a counter."""
    # fifty times slower, each step is a slow one: what the watchdog writes would be counted
    # and how often it looks before it sleeps is chance
    environment = {
        "PYTHONHASHSEED": "0",
        "SELECTSERVE_SLOW_STEP": "60",
        "SELECTSERVE_BUSY_POLL": "0",
    }
    order = Order(KINDS[kind][0], prefix=prefix(counter, output), environment=environment)
    return serving(name, order, python, cores, PATIENCE)


def count_between(name: str, kind: str, requests: int, python: str, cores: Cores) -> dict[str, int]:
    """Return callgrind's count of so many requests to a warm server."""
    with tempfile.TemporaryDirectory(prefix="selectserve-bench-") as home:
        output = Path(home) / "counts"
        with running(CALLGRIND, name, kind, output, python, cores) as server:
            ask(server, KINDS[kind][1], requests)
            tell_callgrind("--zero", server)
            ask(server, KINDS[kind][1], requests)
            tell_callgrind("--dump", server)
            written = [path.read_text() for path in output.parent.glob("*.1")]
    return read_counts(CALLGRIND, "".join(written))


def count_life(
    counter: str, name: str, kind: str, requests: int, python: str, cores: Cores
) -> dict[str, int]:
    """Return the counts of a server's whole life with so many requests in it."""
    with tempfile.TemporaryDirectory(prefix="selectserve-bench-") as home:
        output = Path(home) / "counts"
        with running(counter, name, kind, output, python, cores) as server:
            ask(server, KINDS[kind][1], requests)
            if counter == PERF:  # which would not pass the signal on
                os.kill(server.pids()[1], signal.SIGTERM)
                server.process.wait(10)
        for _ in range(200):  # strace writes when the server has gone
            written = [path.read_text() for path in sorted(output.parent.iterdir())]
            counts = read_counts(counter, "".join(written))
            if counts:
                return counts
            time.sleep(0.05)
    raise CannotServe(f"{counter} has written nothing")


def newest_source() -> float:
    """Return when selectserve was last edited."""
    return max(path.stat().st_mtime for path in (ROOT / "selectserve").glob("*.py"))


def per_request(
    counter: str, name: str, kind: str, requests: int, python: str, cores: Cores
) -> dict[str, float]:
    """Return the counts of one request."""
    with serving(name, Order(KINDS[kind][0]), python, cores):
        pass  # so that all modules are compiled, and none in one of the runs that are counted
    before = newest_source()
    once: dict[str, int] = {}
    if counter == CALLGRIND:
        twice = count_between(name, kind, requests, python, cores)
    else:
        once = count_life(counter, name, kind, requests, python, cores)
        twice = count_life(counter, name, kind, 2 * requests, python, cores)
    if newest_source() != before:
        raise CannotServe("selectserve was edited while it was counted")
    costs = {what: (twice[what] - once.get(what, 0)) / requests for what in twice}
    return {what: cost for what, cost in sorted(costs.items()) if cost >= 0.005}


def change(now: float, before: float | None) -> str:
    """Return the change in percent."""
    return "new" if not before else f"{(now / before - 1) * 100:+.1f} %"


def parse_arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.instructions")
    option = parser.add_argument
    option("--requests", type=int, default=300, help="N: how many are counted (300)")
    option("--only", default=",".join(REQUESTS), help="kinds of request, with commas between")
    option("--servers", default=OURS, help=f"with commas between: {', '.join(COMMANDS)}")
    option("--update", action="store_true", help="keep the numbers in baseline.json")
    given = parser.parse_args()
    given.only, given.servers = given.only.split(","), given.servers.split(",")
    for name, known in ((given.only, KINDS), (given.servers, COMMANDS)):
        if not set(name) <= set(known):
            parser.error(f"{', '.join(name)}: known are {', '.join(known)}")
    return given


def main() -> None:
    """Print a table, and keep our own numbers when told to."""
    given = parse_arguments()
    plain = given.servers == [OURS] and set(given.only) <= set(REQUESTS)
    python = sys.executable if plain else venv_python()
    cores = Cores()
    counter = counter_of_instructions()
    version = ".".join(map(str, sys.version_info[:2]))
    setting = f"{platform.python_implementation()} {version} {platform.machine()} {counter}"
    kept = json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    baseline = kept.setdefault(setting, {})
    print(f"{setting}, {given.requests} requests on one connection, per request:\n")
    print("| request | server | instructions | change | system calls | change | which |")
    print("|---|---|---:|---:|---:|---:|---|", flush=True)
    for kind in given.only:
        for name in given.servers:
            before = baseline.get(kind, {}) if name == OURS else {}
            now: dict[str, float] = {}
            calls: dict[str, float] = {}
            with contextlib.ExitStack() as stack:
                stack.callback(print_row, kind, name, now, before, calls)
                try:
                    if counter is not None:
                        now.update(per_request(counter, name, kind, given.requests, python, cores))
                    if shutil.which("strace"):
                        calls.update(per_request(STRACE, name, kind, given.requests, python, cores))
                        now["system calls"] = round(sum(calls.values()), 2)
                    else:
                        say("instructions: no strace; on Debian: apt-get install strace")
                except (CannotServe, OSError) as exc:
                    say(f"instructions: LEFT OUT: {name}, {kind}: {exc}")
            if name == OURS and now:
                baseline[kind] = {what: round(value, 2) for what, value in now.items()}
    if given.update:
        BASELINE.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")


def print_row(
    kind: str, name: str, now: dict[str, float], before: dict[str, float], calls: dict[str, float]
) -> None:
    """Print one row of the table."""
    cells = [kind, name]
    for what, digits in (("instructions", 0), ("system calls", 2)):
        value = now.get(what)
        if value is None:
            cells += ["", ""]
        else:
            cells += [f"{value:,.{digits}f}", change(value, before.get(what))]
    cells.append(", ".join(f"{what} {number:.2f}" for what, number in calls.items()))
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
