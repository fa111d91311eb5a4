"""Run another project's own tests, on its own terms and on ours, and count both.

    python3 -m tests.interop.suites anyio | starlette | uvicorn

Each suite runs twice: with asyncio's own loop, and with selectserve's wherever asyncio would make
its own. anyio's then tests its asyncio backend on ours; Starlette's runs every app and its
TestClient on it; uvicorn's runs uvicorn, protocols and all, as a guest of our reactor (its tests
are about its own classes and cannot be pointed at another server). A suite comes from its
project's sdist on the
package index, in an environment of its own below ``.venv-tests/``. Exits 1 when a test fails on our
loop only.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree
from pathlib import Path

from tests.__main__ import ROOT, environment, give_up, python_tag, say

HOME = ROOT / ".venv-tests" / "suites"
# project: (what its tests need, pytest arguments)
SUITES = {
    "anyio": (
        [
            "anyio[trio]",
            "blockbuster>=1.5.29",
            "hypothesis",
            "psutil",
            "pytest>=9",
            "pytest-mock",
            "pytest-timeout",
            "trustme",
            "truststore; python_version >= '3.10'",
        ],
        ["-k", "not trio and not uvloop", "--timeout=120", "tests"],
    ),
    "starlette": (
        [
            "starlette[full]",
            "httpx2[zstd]",
            "blockbuster>=1.5.23",
            "opentelemetry-sdk",
            "importlib-metadata",
            "pytest-codspeed",
            "pytest>=9",
            "trio",
        ],
        ["-k", "not trio", "tests"],
    ),
    "uvicorn": (
        [
            # not [standard]: uvloop would be taken instead of either loop
            "uvicorn",
            "httptools",
            "websockets",
            "python-dotenv",
            "PyYAML",
            "watchfiles",
            "pytest>=9",
            "pytest-mock",
            "pytest-codspeed",
            "pytest-xdist[psutil]",
            "anyio[trio]",
            "httpx2",
            "a2wsgi",
            "wsproto",
            "trustme",
            "cryptography",
        ],
        [
            "-n0",
            "-k",
            "not trio",
            "tests",
            "--ignore=tests/benchmarks",
            "--ignore=tests/supervisors",
        ],
    ),
}
# What fails on our loop only, and why that is right.
KNOWN = {
    "tests.test_auto_detection::test_loop_auto": "asks for asyncio's own class, by its module",
}


def unpack(project: str, python: Path) -> Path:
    """Return the directory of the project's sources, of the version that is installed."""
    code = f"import importlib.metadata as m; print(m.version({project!r}))"
    version = subprocess.check_output([python, "-c", code], text=True).strip()
    name = f"{project}-{version}"
    if not (HOME / name).is_dir():
        command = [python, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", str(HOME), f"{project}=={version}"]
        subprocess.run(command, stdin=subprocess.DEVNULL)
        archive = HOME / f"{name}.tar.gz"
        if not archive.exists():
            give_up(f"no sdist of {project} {version} can be had from the package index")
        with tarfile.open(archive) as tar:
            tar.extractall(HOME, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return HOME / name


def run_suite(python: Path, where: Path, arguments: list[str], ours: bool) -> dict[str, str]:
    """Run the tests; return the outcome of each by name. What failed can be run again by --lf."""
    report = HOME / f"{where.name}-{'ours' if ours else 'stock'}.xml"
    report.unlink(missing_ok=True)
    cache = f"cache_dir={report.with_suffix('.cache')}"
    command = [str(python), "-m", "pytest", "-q", "-o", cache, f"--junitxml={report}"]
    path = [str(where)]
    if ours:
        command += ["-p", "loops"]
        path += [str(ROOT / "tests" / "interop"), str(ROOT)]
    with open(report.with_suffix(".log"), "w") as log:
        subprocess.call(
            [*command, *arguments],
            cwd=where,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    if not report.exists():
        sys.stdout.write(report.with_suffix(".log").read_text()[-3000:])
        give_up(f"pytest gave no report for {where.name}")
    outcomes = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes[name] = kinds[0] if kinds else "passed"
    return outcomes


def count(outcomes: dict[str, str]) -> str:
    """Count the outcomes."""
    kinds = sorted(set(outcomes.values()))
    return ", ".join(f"{list(outcomes.values()).count(kind)} {kind}" for kind in kinds)


def compare(project: str) -> int:
    """Run one project's suite on both loops; return the exit code."""
    needs, arguments = SUITES[project]
    HOME.mkdir(parents=True, exist_ok=True)
    requirements = HOME / f"{project}.txt"
    requirements.write_text("\n".join(needs) + "\n")
    python = environment(f"{python_tag()}-{project}", [requirements])
    where = unpack(project, python)
    say(f"{where.name} on Python {sys.version.split()[0]}")
    stock = run_suite(python, where, arguments, False)
    say(f"asyncio's loop:    {count(stock)}")
    ours = run_suite(python, where, arguments, True)
    say(f"selectserve's loop: {count(ours)}")
    bad = ("failure", "error")
    new = [name for name, kind in ours.items() if kind in bad and stock.get(name) not in bad]
    if new:  # some tests count threads, or time: what fails in company may pass alone
        again = run_suite(python, where, [*arguments, "--lf"], True)
        for name in [name for name in new if again.get(name) not in bad]:
            say(f"fails on ours only, but not when run again: {name}")
            new.remove(name)
    for name in new:
        say(f"fails on ours only: {name}{': ' + KNOWN[name] if name in KNOWN else ''}")
    new = [name for name in new if name not in KNOWN]
    say(f"fails on ours only, without a reason: {len(new)}")
    say(f"the reports are {HOME.relative_to(ROOT)}/*.log")
    return 1 if new else 0


def main() -> int:
    """Read the command line."""
    wanted = sys.argv[1:] or list(SUITES)
    if not set(wanted) <= set(SUITES):
        print(__doc__)
        return 2
    return max(compare(project) for project in wanted)


if __name__ == "__main__":
    sys.exit(main())
