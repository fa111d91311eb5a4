"""The architecture of selectserve, executable: read this first.

ROOMS is the order of the house. A room imports only from rooms above it; OWNERS says which
facility belongs to whom; the rest keeps the package readable and fit to become one file.
"""

from __future__ import annotations

import ast
import re

import pytest

from .support import ROOT

PACKAGE = ROOT / "selectserve"

# A room stands below everything that it may import. The order is also that of the single file.
ROOMS = """
    errors threadless appendix trace kinds config sources material
    reactor eager logs systemd sockets listener filesend transport tls certificates
    grammar http1 response deflate handshake websocket forwarded
    task facade guest aio watchdog asgi lifespan session access wsgi
    memory service upgrade connection arrival narrator census observer
    importer welcome inspector signals stray ending garbage server worker process supervisor
    reload launch embed
    explain chapters bundle cli gunicorn
""".split()

IO_WING = "logs reactor systemd sockets listener filesend transport tls certificates".split()
WIRE_WING = "grammar http1 response deflate handshake websocket forwarded".split()
RARE = "wsgi inspector supervisor reload".split()  # 400 KB of memory, together

# What belongs to one owner (or few): in the source, a module imported or a name used.
OWNERS = {
    "import selectors": "reactor eager",
    "import heapq": "reactor",
    "time.monotonic": "reactor eager",
    "socket.socketpair": "reactor worker",
    "import signal": "signals ending server worker process supervisor facade gunicorn",
    "import time": "reactor eager server",
    "import ssl": "tls certificates",
    "import re": "grammar forwarded sources access",
    "import zlib": "deflate appendix chapters",
    "import hashlib": "handshake chapters",
    "import threading": "task supervisor aio facade embed watchdog",
    "import asyncio": "aio facade",
    "import anyio": "aio facade",
    "import trio": "guest",
    "import multiprocessing": "supervisor",
    "os.fork": "process",
    "os.waitpid": "process",
    ".accept()": "listener",
    ".bind(…)": "sockets",
    ".listen(…)": "listener",
    ".recv(…)": "transport tls reactor",  # the reactor's is its wakeup pair
    ".recv_into(…)": "transport tls",
    "os.sendfile": "transport",
    "socket.SHUT_WR": "transport tls",
    ".throw": "task aio narrator",
}

# What a small Python may lack, or what is heavy: imported inside functions, or guarded by `try`.
UNGUARDED_NEVER = """
    ssl asyncio zlib threading multiprocessing ctypes concurrent hashlib typing dataclasses enum
    inspect urllib argparse traceback subprocess tempfile
""".split()

MAX_FUNCTION = 60
MAX_MODULE = 600

TREES = {path.stem: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.glob("*.py"))}
PRESENT = [room for room in ROOMS if room in TREES]


def for_types_only(tree):
    """Return the nodes under ``if TYPE_CHECKING:``, which never run."""
    return {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }


TYPES = {room: for_types_only(tree) for room, tree in TREES.items()}
RUNNING = {room: [n for n in ast.walk(TREES[room]) if n not in TYPES[room]] for room in TREES}


def imported(node):
    """Return the top-level names of foreign modules that an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and not node.level:
        return [node.module.split(".")[0]]
    return []


def definitions(room):
    """Yield the names that a room defines at its top level (guarded ones too), but for types."""
    for node in TREES[room].body:
        for inner in [node, *getattr(node, "body", []), *getattr(node, "orelse", [])]:
            if (
                inner in TYPES[room]
                or inner is not node
                and not isinstance(node, (ast.If, ast.Try))
            ):
                continue
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                yield inner.name
            elif isinstance(inner, (ast.Assign, ast.AnnAssign)):
                targets = inner.targets if isinstance(inner, ast.Assign) else [inner.target]
                for target in targets:
                    yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


@pytest.mark.parametrize("room", WIRE_WING)
def test_what_the_bytes_mean_needs_no_io(room):
    """The wings meet in connection, upgrade and arrival only."""
    for node in RUNNING[room]:
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.module not in IO_WING, f"{room}.py:{node.lineno} {ast.unparse(node)}"
        assert not {"selectors", "select", "time", "logging"} & set(imported(node)), room


def test_every_module_has_its_place():
    """ROOMS names every room, and no room that only exists on paper is imported."""
    assert set(TREES) - {"__init__", "__main__"} <= set(ROOMS)


def test_the_single_file_has_the_same_order():
    from selectserve.chapters import ROOMS as order

    assert list(order) == PRESENT


@pytest.mark.parametrize("room", PRESENT)
def test_imports_go_up(room):
    """``from .room import Name`` at the top, from rooms above, no ``as``, no star.

    What few servers want is imported by the one who finds that it is wanted.
    """
    above = ROOMS[: ROOMS.index(room)]
    for node in ast.walk(TREES[room]):
        if isinstance(node, ast.ImportFrom) and node.level:
            where = f"{room}.py:{node.lineno} {ast.unparse(node)}"
            assert node.level == 1 and all(
                a.asname is None and a.name != "*" for a in node.names
            ), where
            if node in TYPES[room] or ast.unparse(node) == "from . import __version__":
                continue
            assert node in TREES[room].body or node.module in RARE, f"{where}: not at the top"
            assert node.module in above, f"{where}: not from above"
        for name in imported(node):
            assert name != "selectserve", (
                f"{room}.py:{node.lineno}: siblings are imported with a dot"
            )
            assert not isinstance(node, ast.ImportFrom) or node.names[0].name != "*", room


def touched(room):
    """Return what a room touches, spelled as in OWNERS, each with a line where it does."""
    found = {}
    for node in RUNNING[room]:
        for name in imported(node):
            found["import " + name] = node.lineno
        if isinstance(node, ast.Attribute):
            found["." + node.attr] = node.lineno
            if isinstance(node.value, ast.Name):
                found[f"{node.value.id}.{node.attr}"] = node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if getattr(node.func.value, "id", "") != "self":  # a method of its own is no facility
                filled = "…" if node.args or node.keywords else ""
                found[f".{node.func.attr}({filled})"] = node.lineno
    return found


TOUCHED = {room: touched(room) for room in PRESENT}


@pytest.mark.parametrize("facility", OWNERS)
def test_owners_hold(facility):
    """Each facility of the system is touched by its owner alone."""
    owners = OWNERS[facility].split()
    for room in PRESENT:
        line = TOUCHED[room].get(facility)
        assert line is None or room in owners, f"{room}.py:{line} {facility}: that is for {owners}"


def test_there_is_one_yield():
    """A coroutine is parked in one place; everything above it is ordinary ``async def``."""
    yields = [
        f"{room}.py:{node.lineno}"
        for room in PRESENT
        for node in ast.walk(TREES[room])
        if isinstance(node, (ast.Yield, ast.YieldFrom))
    ]
    assert len(yields) == 1 and yields[0].startswith("task.py:"), yields


@pytest.mark.parametrize("room", [*PRESENT, "__init__", "__main__"])
def test_a_small_python_can_import_it(room):
    """Nothing that may be missing, or that is slow to import, is imported without need."""
    for node in TREES[room].body:
        for name in imported(node):
            assert name not in UNGUARDED_NEVER, f"{room}.py:{node.lineno} imports {name}"
    # Files may lie anywhere, or nowhere: in an archive, in one built file, in `python -c`.
    names = {node.id for node in ast.walk(TREES[room]) if isinstance(node, ast.Name)}
    assert "__file__" not in names or room == "bundle", room


def test_the_main_file_can_be_loaded_by_its_path():
    """As anyio and others do in a process of their own: it has no package then."""
    froms = [node for node in ast.walk(TREES["__main__"]) if isinstance(node, ast.ImportFrom)]
    assert [node.module for node in froms if node.level] == []


def test_names_are_unique():
    """One file has one namespace: no two rooms define the same name at their top level."""
    seen = {"TYPE_CHECKING": "every room"}
    for room in PRESENT:
        for name in set(definitions(room)) - {"TYPE_CHECKING"}:
            assert name not in seen, f"{name} is defined in {seen[name]} and in {room}"
            assert name not in ("__all__", "__version__"), f"{name} belongs to __init__"
            seen[name] = room


@pytest.mark.parametrize("room", PRESENT)
def test_rooms_are_readable(room):
    """A docstring of at most 15 lines, functions of 60, a module of 600, and no ``global``."""
    source = (PACKAGE / f"{room}.py").read_text("utf-8")
    length = source.count("\n")
    assert length <= MAX_MODULE, f"{room}.py has {length} lines"
    docstring = ast.get_docstring(TREES[room]) or ""
    assert docstring.startswith(f"{room}: "), f"{room}.py says what it is, first of all"
    assert docstring.count("\n") < 15, f"{room}.py opens with {docstring.count(chr(10)) + 1} lines"
    assert "type: ignore" not in source, f"{room}.py hides something from mypy"
    for node in ast.walk(TREES[room]):
        assert not isinstance(node, ast.Global), f"{room}.py:{node.lineno} uses global"
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= MAX_FUNCTION, f"{room}.{node.name} has {lines} lines"


def test_the_life_of_a_request_names_what_exists():
    """Every `room.name` in the package's docstring is there."""
    names = re.findall(r"`+([a-z]\w*(?:\.\w+)+)`+", ast.get_docstring(TREES["__init__"]))
    assert len(names) > 10, "the docstring tells the life of a request by its names"
    for name in names:
        room, *path = name.split(".")
        assert room in PRESENT, f"`{name}`: there is no room {room}"
        body = TREES[room].body
        for part in path:
            found = [node for node in body if getattr(node, "name", None) == part]
            assert found, f"`{name}`: there is no {part} in {room}"
            body = found[0].body
