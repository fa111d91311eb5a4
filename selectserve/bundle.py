"""bundle: the package as one file, which runs as a program and can be imported like the package.

The rooms become chapters, in the order of ROOMS, in one namespace: so names are unique across
rooms, siblings are imported at the top, from above and under their own names, and nothing asks
where it lies. What breaks these rules is refused, with its place. Nothing is reformatted: what
falls away is what one namespace needs not, and what is for type checkers only. The same sources
give the same bytes. With an app, and for a name that ends in .pyz, an archive is made that Python
runs. A file so made can make others: it copies itself.
"""

from __future__ import annotations

import os
import sys

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator, Sequence

ROOMS = tuple(
    """
    errors trace config sources material
    reactor threadless logs systemd sockets listener filesend transport tls certificates
    grammar http1 response deflate handshake websocket forwarded
    task facade guest aio watchdog asgi lifespan session access wsgi
    memory service upgrade connection arrival narrator census observer
    importer welcome inspector server worker process supervisor
    reload launch embed
    explain bundle cli gunicorn
    """.split()
)
# What a small Python may lack: a chapter that imports it without need would take all others along.
GUARDED = frozenset("ssl asyncio zlib threading multiprocessing ctypes hashlib mmap".split())
WIDTH = 100
LICENCE = """\
MIT License

Copyright (c) 2026 The selectserve authors

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""
HEAD = '''\
#!/usr/bin/env python3
#
# selectserve {version}, the whole server as one file.
#
#     python3 selectserve.py main:app        serve an app; --help shows the options
#     import selectserve                     the same in a program
#
# Made by `python3 -m selectserve --bundle selectserve.py`: change the package, not this file.
# sha256 of its sources: {digest}
#
{licence}
"""{docstring}"""

from __future__ import annotations

import sys

# An app that says `import selectserve` gets this very module, and no second copy of it.
sys.modules["selectserve"] = sys.modules[__name__]
STARTED_AS, __name__ = __name__, "selectserve"

'''
FOOT = """

if STARTED_AS == "__main__":
    sys.exit(main())
"""
ARCHIVE_MAIN = """\
import sys

import selectserve

if __name__ == "__main__":
    sys.exit(selectserve.main([*{arguments!r}, *sys.argv[1:]]))
"""


class Chapter:
    """A room on its way into the single file: its source, and which lines of it go."""

    def __init__(self, room: str, source: str) -> None:
        import ast

        self.room = room
        self.source = source
        self.lines = source.splitlines()
        try:
            self.tree = ast.parse(source)
        except SyntaxError as exc:
            raise ConfigError(f"{room}.py:{exc.lineno}: {exc.msg}") from None
        self.docstring = ast.get_docstring(self.tree) or ""
        self.dropped: set[int] = set()  # numbers of lines
        self.dedented: set[int] = set()
        self.material: list[str] = []
        self.names: dict[str, int] = {}  # defined at the top level, and where
        self.imports: dict[str, tuple[str, int]] = {}

    def refuse(self, node: ast.AST, reason: str) -> ConfigError:
        """Return the error that names the place."""
        return ConfigError(f"{self.room}.py:{getattr(node, 'lineno', 0)}: {reason}")

    def drop(self, node: ast.stmt) -> None:
        """Leave a statement out."""
        self.dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))

    def check(self, above: Iterable[str]) -> None:
        """Refuse what one file cannot hold; decide what goes."""
        import ast

        types_only: set[ast.AST] = set()
        for node in ast.walk(self.tree):
            if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
                self.drop(node)
                for inner in node.body:
                    types_only.update(ast.walk(inner))
                if node.orelse:
                    end = node.end_lineno or node.lineno
                    self.dedented.update(range(node.orelse[0].lineno, end + 1))
        self.dropped -= self.dedented
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                self.drop(node)
                if node not in types_only:
                    self.check_sibling(node, above)
            elif isinstance(node, ast.Name) and node.id == "__file__":
                raise self.refuse(node, "asks for __file__: one file may lie anywhere")
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "read_material":
                if isinstance(node.args[0], ast.Constant):
                    self.material.append(str(node.args[0].value))
        for statement in self.statements():
            if statement not in types_only:
                self.check_statement(statement)
        if self.docstring:
            self.drop(self.tree.body[0])

    def check_sibling(self, node: ast.ImportFrom, above: Iterable[str]) -> None:
        """Allow ``from .room import Name`` at the top, from above; ``from . import x`` anywhere."""
        text = f"from {'.' * node.level}{node.module or ''} import …"
        if node.level != 1 or any(name.asname or name.name == "*" for name in node.names):
            raise self.refuse(node, f"{text}: one level up, no `as` and no star")
        if node.module is not None and node not in self.tree.body:
            raise self.refuse(node, f"{text}: siblings are imported at the top of a room")
        if node.module is not None and node.module not in above:
            raise self.refuse(node, f"{text}: there is no such room above this one")

    def statements(self) -> Iterator[ast.stmt]:
        """Return what stands at the top level, guarded or not."""
        import ast

        found: list[ast.stmt] = []
        for node in self.tree.body:
            found.append(node)
            if isinstance(node, (ast.If, ast.Try)):
                found += [*node.body, *node.orelse]
        return iter(found)

    def check_statement(self, node: ast.stmt) -> None:
        """Take down what a statement defines or imports at the top level."""
        import ast

        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            self.drop(node)
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            origin = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in node.names:
                full = origin + name.name
                if full.split(".")[0] in GUARDED and node in self.tree.body:
                    raise self.refuse(node, f"imports {full} without need or guard")
                bound = name.asname or (full if not origin else name.name).split(".")[0]
                self.imports[bound] = (full if origin or name.asname else bound, node.lineno)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.For)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            inner = [n for target in targets for n in ast.walk(target)]
            names = [
                n.id for n in inner if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            ]
            if names == ["TYPE_CHECKING"]:
                self.drop(node)
                return
        for text in names:
            self.names[text] = node.lineno

    def text(self) -> str:
        """Return the chapter: a banner, and the lines that stay."""
        banner = ["#", *(f"# {line}".rstrip() for line in self.docstring.splitlines()), "#"]
        out = ["# " + "=" * (WIDTH - 2), *banner[1:-1], "# " + "=" * (WIDTH - 2)]
        gap = blanks = 0  # blank lines in front of what has gone, and seen behind it
        for number, line in enumerate(self.lines, 1):
            if number in self.dropped:
                gap, blanks = max(gap, trailing_blanks(out)), 0
            elif line:
                gap = 0
                if len(out) == len(banner):
                    out += [""] * (2 if line.startswith(("class ", "def ", "async ", "@")) else 1)
                out.append(line[4:] if number in self.dedented else line)
            elif len(out) > len(banner):
                blanks += 1
                if blanks > gap:
                    out.append(line)
        return "\n".join(out).rstrip() + "\n"


def trailing_blanks(lines: Sequence[str]) -> int:
    """Count the blank lines at the end."""
    return next((n for n, line in enumerate(reversed(lines)) if line), len(lines))


def check_names(chapters: Sequence[Chapter]) -> None:
    """Refuse a name that means two things in one namespace, or that hides a builtin."""
    import builtins

    seen: dict[str, tuple[str, str]] = {}
    for chapter in chapters:
        found = {name: ("", line) for name, line in chapter.names.items()}
        for name, (meaning, line) in {**chapter.imports, **found}.items():
            place = f"{chapter.room}.py:{line}"
            first, first_place = seen.setdefault(name, (meaning, place))
            same_room = first_place.partition(".")[0] == chapter.room
            if not same_room and (first != meaning or not meaning):
                raise ConfigError(f"{place}: {name} is something else in {first_place}")
            if hasattr(builtins, name) and not meaning and not name.startswith("__"):
                raise ConfigError(f"{place}: {name} would hide Python's own in all rooms")


def package_text(name: str) -> str:
    """Return a file of the package, "" when there is none."""
    from pkgutil import get_data

    try:
        return (get_data("selectserve", name) or b"").decode()
    except OSError:
        return ""


def module_object(room: str) -> str:
    """Return what makes a room that answers for its attributes (PEP 562) a module again."""
    return (
        f'\n\n{room} = sys.modules["selectserve.{room}"] = type(sys)("selectserve.{room}")\n'
        f"{room}.__getattr__ = __getattr__\n"
        f"del __getattr__\n"
    )


def build_file() -> str:
    """Return the whole server as the text of one file; raise ConfigError with file and line."""
    itself = sys.modules["selectserve"]
    if not hasattr(itself, "__path__"):
        return own_text()
    from hashlib import sha256

    sources = {room: package_text(f"{room}.py") for room in ("__init__", *ROOMS)}
    if not sources["bundle"]:
        raise ConfigError("--bundle: the sources are not there, only their compiled form")
    digest = sha256()
    chapters = []
    for room, source in sources.items():
        if source:
            digest.update(f"{room}.py\n{source}".encode())
            chapters.append(Chapter(room, source))
    above: list[str] = []
    parts = []
    first = chapters.pop(0)
    first.check(ROOMS)
    for chapter in chapters:
        chapter.check(above)
        above.append(chapter.room)
        parts.append(chapter.text())
        if "__getattr__" in chapter.names:
            del chapter.names["__getattr__"]
            parts[-1] += module_object(chapter.room)
        for name in chapter.material:
            if name not in sources:
                sources[name] = package_text(name)
                digest.update(f"{name}\n{sources[name]}".encode())
                parts[-1] += f"\n\nMATERIAL[{name!r}] = {long_text(sources[name])}\n"
    check_names(chapters)
    version: str = vars(itself)["__version__"]
    head = HEAD.format(
        version=version,
        digest=digest.hexdigest(),
        licence="".join(f"# {line}".rstrip() + "\n" for line in LICENCE.splitlines()),
        docstring=first.docstring,
    )
    first.docstring = ""
    exports = first.text().partition("\n\n")[2].strip("\n")
    text = f"{head}{exports}\n\n\n" + "\n\n".join(parts) + FOOT
    compile(text, "selectserve.py", "exec", dont_inherit=True)
    return text


def long_text(text: str) -> str:
    """Return the Python literal of a text, one line of it a line."""
    return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(True)) + ")"


def own_text() -> str:
    """Return the text of the file that we are."""
    loader = getattr(sys.modules["selectserve"], "__loader__", None)
    try:
        text = loader.get_source(getattr(loader, "name", "selectserve")) if loader else None
    except (AttributeError, ImportError, OSError):
        text = None
    if not text:
        raise ConfigError("--bundle: this server was not started from a file that it could copy")
    return str(text)


def app_files(target: str, app_dir: str) -> dict[str, bytes]:
    """Return the files of the module or package that holds an app: names in the archive, bytes."""
    top = target.partition(":")[0].partition(".")[0]
    module, folder = os.path.join(app_dir, top + ".py"), os.path.join(app_dir, top)
    paths = [module] if os.path.isfile(module) else []
    if not paths and top:
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            paths += [os.path.join(place, n) for n in sorted(names) if not n.endswith(".pyc")]
    if not paths:
        raise ConfigError(f"--with {target}: no module {top!r} in {os.path.abspath(app_dir)}")
    files = {}
    for path in paths:
        with open(path, "rb") as stream:
            files[os.path.relpath(path, app_dir).replace(os.sep, "/")] = stream.read()
    return files


def build_archive(apps: Sequence[str], app_dir: str) -> bytes:
    """Return an archive of the server and the module of each of ``apps``; the first is served.

    Nothing in it is compressed, so that a Python without zlib can run it.
    """
    from io import BytesIO
    from zipfile import ZipFile, ZipInfo

    files = {"selectserve.py": build_file().encode()}
    for target in apps:
        files.update(app_files(target, app_dir))
    arguments = [apps[0]] if apps else []
    main = ARCHIVE_MAIN.format(arguments=arguments)
    if apps:  # its own modules first, whatever lies in the current directory
        main = main.replace("[*", '["--app-dir", sys.path[0], *', 1)
    files["__main__.py"] = main.encode()
    stream = BytesIO()
    stream.write(b"#!/usr/bin/env python3\n")
    with ZipFile(stream, "w") as archive:
        for name in sorted(files):
            info = ZipInfo(name)  # of 1980: the same sources give the same bytes
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return stream.getvalue()


def write_bundle(path: str, apps: Sequence[str], app_dir: str = ".") -> int:
    """Write the single file, or for a name that ends in .pyz an archive; return the exit code."""
    if path.endswith(".pyz"):
        data = build_archive(apps, app_dir)
    elif apps:
        raise ConfigError("--with: an app goes into an archive, whose name ends in .pyz", 2)
    else:
        data = build_file().encode()
    try:
        with open(path, "wb") as stream:
            stream.write(data)
        os.chmod(path, 0o755)
    except OSError as exc:
        raise ConfigError(f"--bundle {path}: {exc.strerror}") from None
    print(f"{path}: {len(data)} bytes")
    return 0
