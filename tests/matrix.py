"""Run the tests on every Python that can be found: ``python3 -m tests.matrix [pytest arguments]``.

Looked for are pyenv's versions, python3.X and pypy3 on the PATH, and what ``--python PATH`` names.
``--only 3.9,3.13,pypy`` chooses among them, ``--quick`` runs a bounded set of files, ``--bundled``
runs against the built single file. A table is printed at the end, and what was not there is said
aloud. Newer Pythons than this system has can be had from Debian's next release: ``--sid FOLDER``
fetches it into that folder, once, by debootstrap (as root; half a GB), and makes its Pythons run
outside of it by patchelf. The exit code is 1 when a suite failed, 2 when none could be run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / ".venv-tests"
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
OPTIONAL = ("3.14", "3.15")  # nobody misses them
QUICK = (
    "anywhere asgi_e2e bundle config embedding http_e2e lifespan reactor response task transport "
    "websocket"
).split()
SID = ("3.14", "3.15")
TAG = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"


def candidates(given: list[str]) -> list[str]:
    """Return the paths of interpreters, the ones that were named first."""
    found = list(given)
    home = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found += [str(path) for path in sorted(home.glob("versions/*/bin/python3"))]
    for name in (*(f"python{version}" for version in VERSIONS + OPTIONAL), "pypy3", "python3"):
        path = shutil.which(name)
        if path:
            found.append(path)
    return found


def pythons_of_sid(folder: Path) -> list[str]:
    """Fetch Debian sid unless it is there; return its Pythons, which run with its libraries."""
    if not folder.exists():
        wanted = [f"python{v},python{v}-venv,libpython{v}-testsuite" for v in SID]
        options = ["--variant=minbase", f"--include={','.join(wanted)}"]
        subprocess.run(["debootstrap", *options, "sid", str(folder)], check=True)
    root = folder.resolve()
    found = [root / f"usr/bin/python{version}" for version in SID]
    (loader,) = root.glob("usr/lib*/ld-linux-*.so.*")
    libraries = ":".join({str(path.parent) for path in root.glob("usr/lib/*/libc.so.*")})
    for python in found:
        options = ["--set-interpreter", str(loader), "--force-rpath", "--set-rpath", libraries]
        subprocess.run(["patchelf", *options, str(python)], check=True)
        for facts in root.glob(f"usr/lib/{python.name}/_sysconfigdata_*.py"):  # ensurepip asks it
            text = facts.read_text()
            facts.write_text(text.replace("'/usr/share/python-wh", f"'{root}/usr/share/python-wh"))
    return [str(python) for python in found]


def find_pythons(given: list[str]) -> dict[str, str]:
    """Return one interpreter for each ``3.9``, ``pypy-3.9`` and so on."""
    pythons: dict[str, str] = {}
    for path in candidates(given):
        try:
            done = subprocess.run([path, "-c", TAG], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            continue
        words = done.stdout.split()
        if done.returncode or len(words) != 2:  # a shim of pyenv for a version that is not chosen
            continue
        implementation, version = words
        if tuple(map(int, version.split("."))) >= (3, 9):
            tag = version if implementation == "cpython" else f"{implementation}-{version}"
            pythons.setdefault(tag, path)
    return dict(sorted(pythons.items(), key=lambda item: [len(item[0]), item[0]]))


def say_missing(pythons: dict[str, str]) -> list[str]:
    """Return a line for each Python that ought to be here."""
    lines = [f"CPython {version} was NOT found" for version in VERSIONS if version not in pythons]
    if not any(tag.startswith("pypy") for tag in pythons):
        lines.append("PyPy was NOT found (Debian: apt-get install pypy3 pypy3-venv)")
    return lines


def run_suite(tag: str, python: str, arguments: list[str]) -> tuple[bool, str]:
    """Run the suite; return whether it passed, and pytest's own last line."""
    LOGS.mkdir(exist_ok=True)
    log = LOGS / f"matrix-{tag}.log"
    with log.open("w") as output:
        code = subprocess.call(
            [python, "-m", "tests", "-q", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    lines = log.read_text(errors="replace").splitlines() or ["nothing was said"]
    if code:
        bad = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        failures = [i for i, line in enumerate(lines) if re.match("=+ (FAILURES|ERRORS) =+", line)]
        print("\n".join([*lines[min(failures, default=-100) :][:400], *bad]))
        print(f"(all of it: {log.relative_to(ROOT)})", flush=True)
    return code == 0, re.sub(r"^=+ | =+$", "", lines[-1])


def main() -> int:
    """Find, run, print the table."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.matrix", allow_abbrev=False)
    parser.add_argument("--python", action="append", default=[], metavar="PATH")
    parser.add_argument("--sid", type=Path, metavar="FOLDER", help="Python 3.14 and 3.15, too")
    parser.add_argument("--only", default="", metavar="LIST", help="such as 3.9,3.13,pypy")
    parser.add_argument("--quick", action="store_true", help="a bounded set of files")
    parser.add_argument("--bundled", action="store_true", help="against the built single file")
    given, arguments = parser.parse_known_args()
    pythons = find_pythons(given.python + (pythons_of_sid(given.sid) if given.sid else []))
    missing = say_missing(pythons)
    only = given.only.split(",") if given.only else []
    if only:
        pythons = {
            tag: path for tag, path in pythons.items() if tag in only or tag.split("-")[0] in only
        }
    if given.quick:
        files = [ROOT / "tests" / f"test_{name}.py" for name in QUICK]
        arguments = [str(file.relative_to(ROOT)) for file in files if file.exists()] + arguments
    if given.bundled:
        arguments.append("--bundled")
    rows = []
    for tag, path in pythons.items():
        print(f"== {tag}: {path}", flush=True)
        began = time.monotonic()
        passed, words = run_suite(tag, path, arguments)
        rows.append((tag, passed, time.monotonic() - began, words))
    print(f"\n{'Python':10} {'':6} {'':>7}")
    for tag, passed, seconds, words in rows:
        print(f"{tag:10} {'passed' if passed else 'FAILED':6} {seconds:6.0f} s  {words}")
    for line in missing:
        print(f"!! {line}")
    if not rows:
        print("!! no Python was there to run anything")
        return 2
    return int(not all(passed for _, passed, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
