"""Run every test from a fresh clone: ``python3 -m tests [--interop] [--bundled] [pytest's …]``.

Makes a virtual environment for this Python under ``.venv-tests/``, installs what
``tests/requirements/test.txt`` asks for (and ``interop.txt`` with ``--interop``), and hands over to
pytest. The environment is kept, and nothing is asked of the network while the requirements are
unchanged. ``--bundled`` builds the single file and tests that instead of the package. The exit code
is pytest's.
"""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "requirements"


def say(text: str) -> None:
    """Print one line about what happens, before the program it speaks of prints."""
    print(f"tests: {text}", flush=True)


def give_up(text: str) -> NoReturn:
    """End with one clear line."""
    sys.exit(f"tests: {text}")


def python_tag() -> str:
    """Name this Python so that two of them never share an environment: ``cpython-3.11``."""
    abi = getattr(sys, "abiflags", "")
    return f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}{abi}"


def run_pip(python: Path, files: list[Path], home: Path) -> None:
    """Install ``files`` into the environment, or say in one line why that is not possible."""
    log = home / "pip.log"
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for file in files:
        command += ["--requirement", str(file)]
    with log.open("w") as output:
        code = subprocess.call(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    if code == 0:
        return
    sys.stderr.write(log.read_text(errors="replace"))
    wanted = ", ".join(str(file.relative_to(ROOT)) for file in files)
    give_up(
        f"pip could not install {wanted}: no package index can be reached, or it lacks one of the "
        f"packages (pip's own words are above and in {log})"
    )


def environment(name: str, files: list[Path]) -> Path:
    """Return the python of the environment ``name``, made and filled where that is still to do."""
    home = ROOT / ".venv-tests" / name
    on_windows = os.name == "nt"
    python = home / ("Scripts/python.exe" if on_windows else "bin/python")
    stamp = home / "installed.txt"
    wanted = sys.version + "".join(file.read_text() for file in files)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    say(f"preparing {home.relative_to(ROOT)} (once)")
    # By command, not by `import venv`: Debian ships Pythons whose venv lacks ensurepip and says so.
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(home)]) != 0:
        give_up(f"{sys.executable} cannot make a virtual environment (python3-venv not installed?)")
    run_pip(python, files, home)
    stamp.write_text(wanted)
    return python


def build_file() -> Path:
    """Build the single file; return its path."""
    path = ROOT / ".venv-tests" / f"bundle-{python_tag()}" / "selectserve.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    if subprocess.call([sys.executable, "-m", "selectserve", "--bundle", str(path)], cwd=ROOT):
        give_up("the single file cannot be built (see above)")
    py_compile.compile(str(path), f"{path}c", doraise=True)  # see support.server_command
    return path


def main(arguments: list[str]) -> int:
    """Prepare the environment and run pytest in it with ``arguments``."""
    if sys.version_info < (3, 9):
        give_up(f"selectserve needs Python 3.9 or later, this is {sys.version.split()[0]}")
    name, files = python_tag(), [REQUIREMENTS / "test.txt"]
    if "--interop" in arguments:  # tests/conftest.py knows it too, and collects those tests then
        name += "-interop"
        files.append(REQUIREMENTS / "interop.txt")
    if "--bundled" in arguments:  # tests/support.py and tests/conftest.py look at the variable
        arguments = [argument for argument in arguments if argument != "--bundled"]
        os.environ["SELECTSERVE_UNDER_TEST"] = str(build_file())
    python = environment(name, files)
    say(f"{name}: pytest {' '.join(arguments)}".rstrip())
    return subprocess.call([str(python), "-m", "pytest", *arguments], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
