"""`python3 -m tests.bench.weight`: what ``import selectserve`` costs, in time and in memory.

Beside a bare interpreter and uvicorn (installed where ``--uvicorn PYTHON`` says), in the same run,
in turns; the least counts, of CPU time: whoever else is busy can only add. Compiled files are
warm, in a folder of our own. Then every module that takes more than 2 ms
of its own is named: it had better be imported when it is needed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
TIME_AIM, MEMORY_AIM = 40.0, 12.0  # ms, MiB; above the bare interpreter
SLOW = 2.0  # ms
CACHE = tempfile.TemporaryDirectory()
MEASURE = """
import time
began = time.process_time()
{statement}
spent = time.process_time() - began
with open("/proc/self/statm") as file:
    print(spent * 1e3, int(file.read().split()[1]) * {page} / 2**20)
"""


def environment() -> dict[str, str]:
    """Return an environment in which compiled files are kept."""
    found = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return {**found, "PYTHONPYCACHEPREFIX": CACHE.name}


def run(python: str, statement: str, folder: Path) -> tuple[float, float]:
    """Return milliseconds and MiB of a fresh interpreter that ran ``statement``."""
    code = MEASURE.format(statement=statement, page=os.sysconf("SC_PAGE_SIZE"))
    done = subprocess.run(
        [python, "-c", code],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    spent, size = done.stdout.split()
    return float(spent), float(size)


def slow_modules(python: str, folder: Path) -> list[tuple[float, str]]:
    """Return the modules that take long by themselves, in a run with nothing else."""
    done = subprocess.run(
        [python, "-X", "importtime", "-c", "import os, sys; import selectserve"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    rows = re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)", done.stderr)
    return sorted((int(own) / 1e3, name) for own, name in rows if int(own) > SLOW * 1e3)


def main() -> int:
    """Measure, print the table; 1 when an aim is missed."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.weight")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--uvicorn", metavar="PYTHON", help="a Python that has uvicorn installed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "selectserve.py"
        command = [sys.executable, "-m", "selectserve", "--bundle", str(built)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        rows = {
            "bare": (sys.executable, "pass", ROOT),
            "selectserve": (sys.executable, "import selectserve", ROOT),
            "selectserve.py": (sys.executable, "import selectserve", Path(folder)),
        }
        if given.uvicorn:
            rows["uvicorn"] = (given.uvicorn, "import uvicorn", ROOT)
            rows["uvicorn, serving"] = (
                given.uvicorn,
                "import uvicorn; uvicorn.Config('x', loop='asyncio', http='h11').load"
                "; import uvicorn.protocols.http.h11_impl, uvicorn.lifespan.on",
                ROOT,
            )
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
        for number in range(given.rounds + 1):
            for name, row in rows.items():
                result = run(*row)
                if number:  # the first warms up
                    found[name].append(result)
        size = built.stat().st_size
    times = {name: min(t for t, _ in rows) for name, rows in found.items()}
    sizes = {name: min(s for _, s in rows) for name, rows in found.items()}
    print(f"{sys.implementation.name} {sys.version.split()[0]}, above a bare interpreter:")
    for name in rows:
        print(f"{name:18} {times[name]:8.1f} ms {sizes[name] - sizes['bare']:8.1f} MiB")
    for spent, name in slow_modules(sys.executable, ROOT):
        print(f"   {spent:6.1f} ms  {name}")
    print(f"the file has {size / 1000:.0f} KB")
    late = times["selectserve"] > TIME_AIM
    fat = sizes["selectserve"] - sizes["bare"] > MEMORY_AIM
    print(f"aims: {TIME_AIM:.0f} ms {'missed' if late else 'kept'}, ", end="")
    print(f"{MEMORY_AIM:.0f} MiB {'missed' if fat else 'kept'}")
    return int(late or fat)


if __name__ == "__main__":
    sys.exit(main())
