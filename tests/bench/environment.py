"""Where it is measured: the virtual environment of the peers, the two cores, and a description of
the machine."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent.parent
VENV = ROOT / ".venv-bench"
REQUIREMENTS = BENCH / "requirements.txt"
TICKS = os.sysconf("SC_CLK_TCK")  # a second, in the numbers of /proc
PEERS = "uvicorn uvloop httptools h11 granian hypercorn websockets wsproto"
REPORTED = f"{PEERS} starlette fastapi django".split()


def say(text: str) -> None:
    """Tell on stderr what happens; stdout is for tables."""
    print(text, file=sys.stderr, flush=True)


def plain_environment() -> dict[str, str]:
    """Return our environment without what changes how Python runs (no bytecode kept, say)."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def venv_python() -> str:
    """Return the Python of `.venv-bench`, made anew when Python or the requirements changed."""
    if sys.version_info < (3, 10):
        raise SystemExit("bench: the pinned peers need Python 3.10 or later")
    python, stamp = VENV / "bin" / "python", VENV / "made-of"
    wanted = f"{sys.version}\n{REQUIREMENTS.read_text()}"
    if stamp.exists() and stamp.read_text() == wanted:
        return str(python)
    say(f"bench: making {VENV.name} (uvicorn, granian, hypercorn, frameworks)")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True, timeout=120)
    command = [str(python), "-m", "pip", "install", "--quiet", "-r", str(REQUIREMENTS)]
    pip = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if pip.returncode:
        raise SystemExit(f"bench: pip could not install {REQUIREMENTS.name}:\n{pip.stderr}")
    stamp.write_text(wanted)
    return str(python)


def installed_versions() -> dict[str, str]:
    """Return the versions of the peers in `.venv-bench`."""
    found = {}
    for site in VENV.glob("lib/python*/site-packages"):
        for distribution in importlib.metadata.distributions(path=[str(site)]):
            name = distribution.metadata["Name"].lower()
            if name in REPORTED:
                found[name] = distribution.version
    return {name: found[name] for name in REPORTED if name in found}


class Cores:
    """One core for the server, another for the load. The harness itself lives on the load's."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.server, self.load = cores[0], cores[-1]
        self.apart = len(cores) > 1
        if not self.apart:
            say("bench: ONE CORE ONLY: server and load share it, the numbers mean little")
        os.sched_setaffinity(0, {self.load})

    @contextlib.contextmanager
    def for_server(self) -> Iterator[None]:
        """Let what is started inside run on the server's core."""
        os.sched_setaffinity(0, {self.server})
        try:
            yield
        finally:
            os.sched_setaffinity(0, {self.load})


@dataclass(frozen=True)
class CoreTimes:
    """What a core has done since boot, in seconds: programs (and the host: steal), interrupts.

    Interrupts matter: over loopback the kernel moves most bytes in them, and counts that time for
    the core and for no process.
    """

    programs: float
    interrupts: float

    @classmethod
    def of(cls, core: int) -> CoreTimes:
        """Read /proc/stat."""
        for line in Path("/proc/stat").read_text().splitlines():
            name, *fields = line.split()
            if name == f"cpu{core}":
                user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
                return cls((user + nice + system + steal) / TICKS, (irq + softirq) / TICKS)
        raise OSError(f"no cpu{core} in /proc/stat")


def allow_open_files(wanted: int) -> int:
    """Raise the limit of open files to at most `wanted`; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return max(soft, most)


def machine() -> str:
    """Return processor, cores, kernel and Python in one line."""
    processor = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    system = f"{platform.system()} {platform.release()}"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{processor}, {os.cpu_count()} cores, {system}, {python}"
