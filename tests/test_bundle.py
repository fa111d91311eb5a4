"""The single file and the archive: what they hold, what is refused, and that they serve."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys

import pytest

import selectserve
from selectserve.chapters import AT_ONCE, LICENCE, READABLE, Chapter, check_names
from selectserve.errors import ConfigError

from .support import DEADLINE, ROOT, UNDER_TEST, Server, run_server


def run(*command, **options):
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, *command],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        capture_output=True,
        timeout=6 * DEADLINE,
        text=True,
        **options,
    )


def bundle(*arguments, **options):
    """Bundle with what is under test, from its sources."""
    program = [UNDER_TEST] if UNDER_TEST else ["-m", "selectserve"]
    return run(*program, *arguments, **{"cwd": ROOT, **options})


def get(server, path="/"):
    """Return the body that a server answers with."""
    with server.connect() as client:
        return client.get(path).body


# -- what it says --------------------------------------------------------------------------------


def test_the_same_sources_give_the_same_bytes(tmp_path):
    once, again = tmp_path / "once.py", tmp_path / "again.py"
    environ = {**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"}
    assert bundle("--bundle", str(once)).returncode == 0
    assert bundle("--bundle", str(again), env=environ).returncode == 0
    assert again.read_bytes() == once.read_bytes()


def test_the_head_says_what_it_is(place):
    text = (place / "selectserve.py").read_text("utf-8")
    head = text[: text.index('"""')]
    assert text.startswith("#!/usr/bin/env python3\n")
    assert f"selectserve {selectserve.__version__}," in head
    assert "sha256 of its sources: " in head
    for line in LICENCE.splitlines():
        assert f"# {line}".rstrip() in head.splitlines()
    assert (ROOT / "LICENSE").read_text("utf-8") == LICENCE


def test_it_registers_itself_first(place):
    tree = ast.parse((place / "selectserve.py").read_bytes())
    lines = [ast.unparse(node) for node in tree.body[1:4]]
    assert lines == [
        "from __future__ import annotations",
        "import sys",
        "sys.modules['selectserve'] = sys.modules[__name__]",
    ]
    assert ast.get_docstring(tree) == ast.get_docstring(
        ast.parse((ROOT / "selectserve" / "__init__.py").read_bytes())
    )


def open_file(path):
    """Return the built file as a module that has not started."""
    spec = importlib.util.spec_from_file_location("selectserve", path)
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get("selectserve")
    try:
        sys.modules["selectserve"] = module
        spec.loader.exec_module(module)
    finally:
        sys.modules["selectserve"] = before
    return module


def has_type(node):
    """Tell whether something says of what type it is, in a line of its own or in several."""
    types = (getattr(node, "annotation", None), getattr(node, "returns", None))
    return any(types) and not (isinstance(node, ast.AnnAssign) and node.value is None)


def test_every_room_is_a_chapter(place):
    """… to be read with every comment, or in the appendix, which is named and can be shown."""
    text = (place / "selectserve.py").read_text("utf-8")
    appendix = open_file(place / "selectserve.py").appendix
    whole = text
    for path in sorted((ROOT / "selectserve").glob("[a-z]*.py")):
        room = path.stem
        if room == "chapters":
            continue
        source = path.read_text("utf-8")
        first = ast.get_docstring(ast.parse(source)).splitlines()[0]
        assert f"\n# {first}\n" in text
        chapter = text if room in READABLE else appendix.text(room)
        kept = ("def ", "class ", "async def ") + (("# -- ",) if room in READABLE else ())
        for line in source[source.index('"""', 10) :].splitlines():
            if line.startswith(kept) and not line.startswith("def __getattr__"):
                if room not in READABLE:  # without the types
                    line = line.partition("(")[0]
                assert line in chapter, f"{path.name}: {line}"
        if room not in READABLE:
            whole += chapter
            typed = [node for node in ast.walk(ast.parse(chapter)) if has_type(node)]
            assert not typed, f"{room}: {list(map(ast.unparse, typed))}"
        elif room not in AT_ONCE:
            whole += appendix.text(room)
    tree = ast.parse(whole.replace("from __future__ import annotations", "", 1))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ImportFrom) and node.level), ast.unparse(node)
        assert not (isinstance(node, ast.Name) and node.id == "TYPE_CHECKING")
    assert not [node for node in ast.walk(tree) if getattr(node, "module", "") == "__future__"]


# -- what it refuses -----------------------------------------------------------------------------

REFUSED = {
    "from .errors import ConfigError as Wrong": "no `as`",
    "from .errors import *": "no star",
    "from ..errors import ConfigError": "one level up",
    "from .server import Server": "no such room above",
    "def late():\n    from .errors import ConfigError": "at the top",
    "import ssl": "without need or guard",
    "from ctypes import CDLL": "without need or guard",
    "import concurrent.futures, asyncio": "without need or guard",
    "PLACE = __file__": "__file__",
    "from . import server": "a room is no module",
    "__version__ = '2'": "__init__ alone",
    "__all__: list[str] = []": "__init__ alone",
    "logger = logging.getLogger('other')": "of another name",
    "logger = logging.getLogger(__name__)": "of another name",
    "def broken(:": "invalid syntax",
}


@pytest.mark.parametrize("source", REFUSED)
def test_a_source_that_breaks_a_rule_is_refused_with_its_place(source):
    with pytest.raises(ConfigError) as caught:
        Chapter("room", f'"""room: x."""\n\n{source}\n').check(["errors"])
    line = 4 if "late" in source else 3
    assert str(caught.value).startswith(f"room.py:{line}: ")
    if "broken" not in source:
        assert REFUSED[source] in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    import ssl\nexcept ImportError:\n    ssl = None",
        "def speak():\n    import asyncio",
        "from .errors import ConfigError",
        "def tell():\n    from . import __version__",
        "if TYPE_CHECKING:\n    import ssl\n    from .server import Server as S",
    ],
)
def test_what_keeps_the_rules_passes(source):
    Chapter("room", f'"""room: x."""\n\n{source}\n').check(["errors"])


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        ("def go(): ...", "def go(): ...", "b.py:2: go is something else in a.py:2"),
        ("GO = 1", "GO: int = 2", "GO is something else"),
        ("import time", "def time(): ...", "time is something else"),
        ("from os import path", "from posix import path", "path is something else"),
        ("import os", "def sorted(x): ...", "b.py:2: sorted would hide Python's own"),
        ("for go in (): pass", "class go: ...", "go is something else"),
    ],
)
def test_a_name_means_one_thing(one, two, words):
    chapters = [Chapter("a", f'"""a: x."""\n{one}\n'), Chapter("b", f'"""b: x."""\n{two}\n')]
    for chapter in chapters:
        chapter.check([])
    with pytest.raises(ConfigError, match=words):
        check_names(chapters)


def test_the_same_import_in_two_rooms_is_fine():
    source = "import os.path\nimport json\nfrom functools import partial\n"
    chapters = [Chapter("a", source), Chapter("b", source + "import os\n")]
    for chapter in chapters:
        chapter.check([])
    check_names(chapters)


def test_text_that_only_looks_like_imports_stays():
    source = '"""a: x."""\n\nX = """\n\n\n\nfrom .errors import Y\n\n\n\n"""\n'
    chapter = Chapter("a", source)
    chapter.check([])
    assert chapter.text().endswith(source.partition("\n\n")[2])


@pytest.mark.skipif(bool(UNDER_TEST), reason="the built file copies itself, without any sources")
def test_without_sources_there_is_no_bundle(tmp_path):
    import compileall
    import shutil

    shutil.copytree(ROOT / "selectserve", tmp_path / "selectserve")
    compileall.compile_dir(str(tmp_path / "selectserve"), quiet=2, legacy=True)
    for path in (tmp_path / "selectserve").glob("*.py"):
        path.unlink()
    done = run("-m", "selectserve", "--bundle", "out.py", cwd=tmp_path)
    assert done.returncode == 1 and "only their compiled form" in done.stderr
    assert not (tmp_path / "out.py").exists()


# -- that it serves --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [(), ("--workers", "2"), ("--workers", "2", "--worker-start", "spawn"), ("--reload",)],
    ids=" ".join,
)
def test_the_file_is_a_program(place, serve, arguments):
    """… and one copy of it: an app that imports selectserve gets the program itself."""
    server = serve(
        "tiny:app", *arguments, cwd=place, program=[sys.executable, str(place / "selectserve.py")]
    )
    assert get(server) == b"hello from anywhere"
    assert get(server, "/copies") == b"__main__ selectserve"
    assert server.stop() == 0


def test_every_flag_is_there(place):
    ours = run_server("--help")
    built = run(str(place / "selectserve.py"), "--help")
    assert ours.stdout == built.stdout and ours.returncode == built.returncode == 0


def test_the_file_is_a_module(place):
    program = (
        "import selectserve, sys; assert len(selectserve.__all__) > 10\n"
        "assert all(hasattr(selectserve, name) for name in selectserve.__all__)\n"
        "assert selectserve.Server.__module__ == 'selectserve'\n"
        "assert selectserve.__file__.endswith('selectserve.py')\n"
        "import selectserve.gunicorn\n"
        "try: selectserve.gunicorn.Nothing\n"
        "except AttributeError as exc: print(exc)"
    )
    done = run("-c", program, cwd=place)
    assert "no attribute 'Nothing'" in done.stdout, done.stderr


def test_the_file_has_gunicorns_worker_under_the_same_name(place, tmp_path):
    """… which is another Worker than the supervisor's, in the same namespace."""
    (tmp_path / "gunicorn" / "workers").mkdir(parents=True)
    (tmp_path / "gunicorn" / "workers" / "base.py").write_text("class Worker: ...\n")
    program = (
        "import importlib, sys; sys.path.append(sys.argv[1])\n"
        "room = importlib.import_module('selectserve.gunicorn')\n"
        "import selectserve, gunicorn.workers.base as base\n"
        "assert issubclass(room.Worker, base.Worker) and room.Worker is room.Worker\n"
        "assert issubclass(selectserve.Worker, selectserve.Server)\n"
    )
    done = run("-c", program, str(tmp_path), cwd=place)
    assert done.returncode == 0, done.stderr


def test_the_file_may_come_through_a_pipe(place):
    with (place / "selectserve.py").open() as source:
        done = run("-", "--version", stdin=source, cwd=place)
    assert done.stdout == f"selectserve {selectserve.__version__}\n", done.stderr


def test_the_file_copies_itself(place, tmp_path):
    done = run(str(place / "selectserve.py"), "--bundle", "copy.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy.py").read_bytes() == (place / "selectserve.py").read_bytes()
    assert os.access(tmp_path / "copy.py", os.X_OK)


# -- the archive -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("maker", "arguments"),
    [("package", ()), ("file", ()), ("package", ("--workers", "2", "--worker-start", "spawn"))],
)
def test_an_archive_of_server_and_app(place, tmp_path, serve, maker, arguments):
    """… made by the package or by the built file, starts anywhere, without the sources."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "tiny.py").write_text("raise RuntimeError('not this one')")
    made = ["--bundle", str(folder / "app.pyz"), "--with", "tiny:app", "--app-dir", str(place)]
    done = bundle(*made) if maker == "package" else run(str(place / "selectserve.py"), *made)
    assert done.returncode == 0, done.stderr
    server = serve(
        "--log-level", "info", *arguments, cwd=folder, program=[sys.executable, "app.pyz"]
    )
    assert get(server) == b"hello from anywhere"
    assert get(server, "/copies") == b"selectserve"
    assert server.stop() == 0


def test_an_archive_holds_whole_packages_and_nothing_else(tmp_path):
    import zipfile

    package = tmp_path / "site" / "shop"
    (package / "pages").mkdir(parents=True)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "x.pyc").write_bytes(b"")
    (package / "__init__.py").write_text("")
    (package / "pages" / "a.html").write_text("<p>")
    (tmp_path / "site" / "helper.py").write_text("")
    made = ("--with", "shop.main:app", "--with", "helper", "--app-dir", str(tmp_path / "site"))
    for name in ("one.pyz", "two.pyz"):
        done = bundle("--bundle", str(tmp_path / name), *made)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "one.pyz").read_bytes() == (tmp_path / "two.pyz").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.pyz") as archive:
        names = "__main__.py helper.py selectserve.py shop/__init__.py shop/pages/a.html"
        assert archive.namelist() == names.split()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--bundle", "x.pyz", "--with", "nosuch:app"), 1, "no module 'nosuch'"),
        (("--bundle", "x.py", "--with", "tests.apps:app"), 2, "ends in .pyz"),
        (("--bundle", "/nosuch/x.py"), 1, "No such file"),
        (("--bundle", ""), 2, "need a file to write"),
        (("--with", "tests.apps:app"), 2, "need a file to write"),
        (("--bundle", "tests"), 2, "tests: a directory; name the file"),
        (("--bundle", "nosuch/"), 2, "nosuch/: a directory; name the file"),
    ],
)
def test_what_cannot_be_made(arguments, code, words):
    done = bundle(*arguments)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert ("usage: " in done.stderr) is (code == 2)


FOREIGN = {
    "app.py": b"#!/usr/bin/env python3\n#\n# My app, served by selectserve 1\n",
    "notes.txt": b"x",
    "app.pyz": b"#!/usr/bin/env python3\nPK\x03\x04" + b"\0" * 300 + b"import selectserve\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_was_not_made_here_is_not_written_over(tmp_path, name):
    """`--bundle app.py` for `app.py --bundle …` cost the app."""
    path = tmp_path / name
    path.write_bytes(FOREIGN[name])
    done = bundle("--bundle", str(path))
    assert done.returncode == 2 and f"{path} exists, and is no bundle: delete it" in done.stderr
    assert path.read_bytes() == FOREIGN[name]


@pytest.mark.parametrize("arguments", [("x.py",), ("x.pyz",), ("x.pyz", "--with", "Shop:app")])
def test_a_bundle_is_written_over(tmp_path, arguments):
    """… and an empty file, as mktemp makes it; the archive's own program is its first file."""
    (tmp_path / "Shop.py").write_text("app = print")
    path = tmp_path / arguments[0]
    made = ("--bundle", str(path), *arguments[1:], "--app-dir", str(tmp_path))
    path.touch()
    for _ in "twice":
        done = bundle(*made)
        assert done.returncode == 0, done.stderr


def test_without_an_app_there_is_the_welcome_page(place):
    """The same as of the package."""
    built = str(place / "selectserve.py")
    with Server("--log-level", "info", program=[sys.executable, built]) as server:
        assert b"selectserve works" in get(server)
