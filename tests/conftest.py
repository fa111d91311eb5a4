"""Fixtures, and the switch between the package and the built single file.

``SELECTSERVE_UNDER_TEST=/path/selectserve.py python3 -m tests`` runs the same tests against that
file: server processes are started from it, and ``from selectserve.http1 import …`` reads its names,
since every room's name is an alias of the one module.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from .support import ROOT, UNDER_TEST, Server, run_server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Iterator

numbers = itertools.count()

# What nohup or a shell's & has us ignore, servers would ignore, too; it is they who are tested.
for name, usual in (("SIGHUP", signal.SIG_DFL), ("SIGINT", signal.default_int_handler)):
    if getattr(signal, name, None) and signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
        signal.signal(getattr(signal, name), usual)

if UNDER_TEST:
    spec = importlib.util.spec_from_file_location("selectserve", UNDER_TEST)
    module = importlib.util.module_from_spec(spec)
    sys.modules["selectserve"] = module
    spec.loader.exec_module(module)
    for room in (ROOT / "selectserve").glob("[a-z]*.py"):
        sys.modules[f"selectserve.{room.stem}"] = module
        if not hasattr(module, room.stem):  # it may be in the appendix still
            vars(module)[room.stem] = module
    # The room that makes the file is not in it.
    spec = importlib.util.spec_from_file_location(
        "selectserve.chapters", ROOT / "selectserve" / "chapters.py"
    )
    sys.modules["selectserve.chapters"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["selectserve.chapters"])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--interop", action="store_true", help="also run tests/interop")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the benchmarks out, and the interoperability tests unless they are asked for."""
    if collection_path.name == "bench" or collection_path.name == "cases":
        return True
    if collection_path.name == "interop" and not config.getoption("--interop"):
        return True
    return None


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that are killed when the test is over: ``serve("tests.apps:echo", …)``."""
    servers: list[Server] = []

    def start(app: str, *arguments: str, **options: object) -> Server:
        servers.append(Server(app, *arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def module_serve() -> Iterator[Callable[..., Server]]:
    """The same for the whole of a test module, started once for equal arguments."""
    servers: dict[tuple[str, ...], Server] = {}

    def start(app: str, *arguments: str) -> Server:
        key = (app, *arguments)
        if key in servers and servers[key].process.poll() is not None:
            servers.pop(key).kill()
        if key not in servers:
            servers[key] = Server(app, *arguments)
        return servers[key]

    yield start
    for server in servers.values():
        server.kill()


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that everybody may read, with the built selectserve.py and tests/tiny.py in it."""
    folder = Path(tempfile.mkdtemp(prefix="selectserve-"))
    folder.chmod(0o755)
    built = folder / "selectserve.py"
    if UNDER_TEST:
        shutil.copy(UNDER_TEST, built)
    else:
        done = run_server("--bundle", str(built), deadline=60.0)
        assert done.returncode == 0, done.stderr
    shutil.copy(ROOT / "tests" / "tiny.py", folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def tag(request: pytest.FixtureRequest) -> str:
    """A word of this test alone, for what an app notes (see tests/apps.py) and for gates."""
    return re.sub(r"\W+", "-", request.node.name)[:60] + f"-{next(numbers)}"


@pytest.fixture
def healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test in which a shared server died or found a bug in itself."""
    server = request.getfixturevalue("server") if "server" in request.fixturenames else None
    start = server.log_position() if server else 0
    yield
    if server:
        assert server.process.poll() is None, f"the server died:\n{server.log_text()}"
        new = "\n".join(server.stderr.lines[start:])
        assert "has a bug" not in new, new
