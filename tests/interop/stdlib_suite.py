"""Run CPython's own test_asyncio on selectserve's loop, and count it against the stock loop.

    python3 -m tests.interop.stdlib_suite [--quick] [MODULE ...]

Each module runs twice, each time in a process of its own: on asyncio's SelectorEventLoop and on the
facade; with --quick the former only where the latter fails. Prints a line for each; exits 1 when a
test fails on ours only and is not in KNOWN. The tests come from the running interpreter
(``test.test_asyncio``; Debian packages them separately).
"""

from __future__ import annotations

import argparse
import json
import os
import pkgutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TIMEOUT = 600  # seconds for one module
# The modules that exercise a loop most, chosen to end within a minute: for every change.
QUICK = (
    "test_base_events",
    "test_context",
    "test_events",
    "test_futures",
    "test_runners",
    "test_server",
    "test_sock_lowlevel",
    "test_tasks",
    "test_taskgroups",
    "test_timeouts",
    "test_unix_events",
    "test_waitfor",
)
# What fails on our loop only, and why that is right.
KNOWN: dict[str, str] = {}


def run_module(module: str, ours: bool) -> dict:
    """Run one module in this process; return the counts and the names of what failed."""
    import unittest

    if ours:
        from tests.interop.loops import install

        install()
    try:
        suite = unittest.defaultTestLoader.loadTestsFromName(f"test.test_asyncio.{module}")
    except unittest.SkipTest:  # for another system
        return {"run": 0, "skipped": 1, "failed": {}}
    with open(os.devnull, "w") as nowhere:
        stream = nowhere if not os.environ.get("VERBOSE") else sys.stderr
        result = unittest.TextTestRunner(stream=stream, verbosity=0).run(suite)
    failed = {test.id(): text for test, text in result.failures + result.errors}
    return {"run": result.testsRun, "skipped": len(result.skipped), "failed": failed}


def run_apart(module: str, ours: bool) -> dict:
    """Run one module in a process of its own."""
    command = [sys.executable, "-m", "tests.interop.stdlib_suite", "--here", module]
    if ours:
        command.append("--ours")
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT
        )
        return json.loads(done.stdout.decode().rpartition("\nRESULT ")[2])
    except subprocess.TimeoutExpired:
        return {"run": 0, "skipped": 0, "failed": {f"{module} hangs": f"after {TIMEOUT} s"}}
    except ValueError:
        text = (done.stdout + done.stderr).decode(errors="replace")[-2000:]
        return {"run": 0, "skipped": 0, "failed": {f"{module} crashes": text}}


def short_name(test: str) -> str:
    """Leave out what is the same for all."""
    return test.replace("test.test_asyncio.", "")


def compare(modules: list[str], quick: bool) -> int:
    """Run each module on both loops and print what differs; return the exit code."""
    run = {"stock": 0, "ours": 0}
    new = 0
    print(f"test_asyncio of Python {sys.version.split()[0]}: tests run (failed) on each loop")
    for module in modules:
        began = time.monotonic()
        ours = run_apart(module, True)
        wanted = not quick or ours["failed"]
        stock = run_apart(module, False) if wanted else {"run": 0, "failed": {}}
        print(
            f"{module:32} stock {stock['run']:5} ({len(stock['failed'])})"
            f"   ours {ours['run']:5} ({len(ours['failed'])})   {time.monotonic() - began:5.1f} s",
            flush=True,
        )
        for test, text in ours["failed"].items():
            reason = KNOWN.get(short_name(test), "fails on ours only")
            if test in stock["failed"]:
                reason = "fails on both"
            print(f"    {short_name(test)}: {reason}")
            if reason == "fails on ours only":
                new += 1
                print("        " + text.strip().replace("\n", "\n        "))
        run["stock"] += stock["run"]
        run["ours"] += ours["run"]
    print(f"run on stock: {run['stock']}, on ours: {run['ours']}, failed on ours only: {new}")
    return 1 if new else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("modules", nargs="*", help="names like test_tasks; none: all of them")
    parser.add_argument("--quick", action="store_true", help="a minute's worth")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print("\nRESULT " + json.dumps(run_module(options.modules[0], options.ours)))
        return 0
    try:
        import test.test_asyncio as package
    except ImportError:
        print("nothing run: this Python has no test.test_asyncio (Debian: libpython3-testsuite)")
        return 0 if options.quick else 2
    found = sorted(name for _, name, _ in pkgutil.iter_modules(package.__path__))
    modules = [name for name in found if name.startswith("test_")]
    if options.quick:
        modules = [name for name in modules if name in QUICK]
    return compare(options.modules or modules, options.quick)


if __name__ == "__main__":
    sys.exit(main())
