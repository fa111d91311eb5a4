"""chapters: from rooms to the chapters of the single file, for bundle.

In the order of ROOMS they come into one namespace: so names are unique across rooms, siblings are
imported at the top, from above and under their own names, and nothing asks where it lies. What
breaks these rules is refused, with its place. READABLE ones stand there as they are, but for what
one namespace needs not and what is for type checkers only; the others are thinned and packed (see
appendix), so that a start need not compile them. The same sources give the same bytes. This room
is not among the chapters: the file can copy itself without it.
"""

from __future__ import annotations

import sys

from .appendix import defined_names
from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator, Sequence

ROOMS = tuple(
    """
    errors threadless appendix trace kinds config sources material
    reactor eager logs systemd sockets listener filesend transport tls certificates
    grammar http1 response deflate handshake websocket forwarded
    task facade guest aio watchdog asgi lifespan session access wsgi
    memory service upgrade connection arrival narrator census observer
    importer welcome inspector signals stray ending garbage server worker process supervisor
    reload launch embed
    explain chapters bundle cli gunicorn
    """.split()
)
# What stands in the file to be read and is there at once; and what is to be read, but compiled when
# it is asked for. All others are packed.
AT_ONCE = frozenset("errors threadless appendix reactor transport".split())
READABLE = AT_ONCE | frozenset("http1 connection".split())
# How the packed ones lie in the file: beside those who use the same words, which saves two percent.
NEIGHBOURS = tuple(
    """
    kinds config importer cli sources explain logs bundle material forwarded sockets systemd
    certificates grammar access handshake response deflate websocket session filesend asgi lifespan
    wsgi upgrade trace arrival narrator tls welcome census observer inspector aio facade guest task
    signals stray ending eager listener server process service supervisor memory embed launch worker
    garbage reload gunicorn watchdog
    """.split()
)
# What a server does without until somebody wants it: others ask for it by `late.` and its name.
RARE = frozenset(
    """
    trace sources systemd filesend tls certificates deflate handshake websocket forwarded facade
    guest watchdog session wsgi memory upgrade narrator census observer welcome inspector worker
    process supervisor reload launch embed explain bundle gunicorn
    """.split()
)
# Of those, what each frame of a WebSocket goes through is opened together.
TOGETHER = frozenset("handshake deflate websocket session upgrade".split())
# Of these packed rooms --explain shows docstrings.
EXPLAINED = frozenset("listener server response task asgi session websocket".split())
# What a small Python may lack: a chapter that imports it without need would take all others along.
GUARDED = frozenset("ssl asyncio zlib threading multiprocessing ctypes hashlib mmap".split())
WIDTH = 100
PACKED_WIDTH = 2000  # of what nobody reads: the end of each line is a byte
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
# What a request lives in is here to be read. The other chapters, which the end of the file names,
# are packed in its appendix, so that Python need not compile all of them at each start. One is
# shown by: python3 -c 'import selectserve; print(selectserve.appendix.text("server"))'
#
{licence}
"""{docstring}"""

from __future__ import annotations

import sys

# An app that says `import selectserve` gets this very module, and no second copy of it.
sys.modules["selectserve"] = sys.modules[__name__]
STARTED_AS, __name__ = __name__, "selectserve"
# What stands behind `late.` gets into this namespace when it is asked for.
late = sys.modules["selectserve"]

'''
FOOT = '''

# {rule}
# The appendix: these chapters, thinned (the package has their comments and types) and packed.
#
{contents}
# {rule}

appendix.data = """
{packed}
"""
__getattr__ = appendix.find

if STARTED_AS == "__main__":
    sys.exit(appendix.find("main")())
'''
# A room that answers for its attributes (PEP 562) becomes a module again.
ANSWERING = """\
{room} = sys.modules["selectserve.{room}"] = type(sys)("selectserve.{room}")
{room}.__getattr__ = lambda name: late.find_in_{room}(name)
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
        self.siblings: dict[str, str] = {}  # names imported from other rooms, and which
        self.types_only: set[ast.AST] = set()

    def refuse(self, node: ast.AST, reason: str) -> ConfigError:
        """Return the error that names the place."""
        return ConfigError(f"{self.room}.py:{getattr(node, 'lineno', 0)}: {reason}")

    def drop(self, node: ast.stmt) -> None:
        """Leave a statement out."""
        self.dropped.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))

    def check(self, above: Iterable[str]) -> None:
        """Refuse what one file cannot hold; decide what goes."""
        import ast

        types_only = self.types_only
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
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "getLogger":
                self.check_logger(node)
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "read_material":
                if isinstance(node.args[0], ast.Constant):
                    self.material.append(str(node.args[0].value))
        for statement in self.statements():
            if statement not in types_only:
                self.check_statement(statement)
        if self.docstring:
            self.drop(self.tree.body[0])

    def check_sibling(self, node: ast.ImportFrom, above: Iterable[str]) -> None:
        """Allow ``from .room import Name`` at the top, from above; ``from . import x`` anywhere.

        What is RARE may be imported where it is wanted, too: a server without it weighs less.
        """
        text = f"from {'.' * node.level}{node.module or ''} import …"
        if node.level != 1 or any(name.asname or name.name == "*" for name in node.names):
            raise self.refuse(node, f"{text}: one level up, no `as` and no star")
        if node.module is None and any(name.name in ROOMS for name in node.names):
            raise self.refuse(node, f"{text}: in one file a room is no module")
        if node.module is not None and node not in self.tree.body and node.module not in RARE:
            raise self.refuse(node, f"{text}: siblings are imported at the top of a room")
        if node.module is not None and node.module not in above:
            raise self.refuse(node, f"{text}: there is no such room above this one")
        self.siblings.update({name.name: node.module for name in node.names if node.module})

    def check_logger(self, node: ast.Call) -> None:
        """Allow the loggers that users know, and the root."""
        for name in node.args:
            text = getattr(name, "value", None)
            if not isinstance(text, str) or text.partition(".")[0] != "selectserve":
                raise self.refuse(node, "a logger of another name than selectserve")

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
            if text in ("__all__", "__version__") and self.room != "__init__":
                raise self.refuse(node, f"{text} is told by __init__ alone")
            self.names[text] = node.lineno

    def ask_late(self) -> None:
        """Put ``late.`` in front of what can wait until it is wanted; refuse what cannot."""
        import ast

        here = self.room in AT_ONCE
        names = {name for name, room in self.siblings.items() if room not in AT_ONCE}
        if not here:
            at_hand = TOGETHER if self.room in TOGETHER else frozenset()
            names = {name for name in names if self.siblings[name] in RARE - at_hand}
        never, waits, texts = self.kinds_of_nodes()
        places: dict[str, list[tuple[int, int]]] = {name: [] for name in names}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.arg) and node.arg in names:
                bad, name = True, node.arg
            elif isinstance(node, ast.Name) and node.id in names and node not in never:
                bad, name = node not in waits or not isinstance(node.ctx, ast.Load), node.id
                if name in places:
                    places[name].append((node.lineno - 1, node.col_offset))
                bad = bad or node in texts  # Python 3.11 does not know where in them
            else:
                continue
            if bad and here:
                raise self.refuse(node, f"{name} is needed at once, but its room is packed")
            if bad:
                places.pop(name, None)
        for name, found in places.items():
            del self.siblings[name]
            if found and self.defines_late:
                raise ConfigError(f"{self.room}.py: a name `late` would hide the one of the file")
        for number, column in sorted(sum(places.values(), []), reverse=True):
            line = self.lines[number].encode()
            self.lines[number] = (line[:column] + b"late." + line[column:]).decode()

    @property
    def defines_late(self) -> bool:
        """Tell whether something in here is called ``late``."""
        import ast

        named = {getattr(node, "id", getattr(node, "arg", "")) for node in ast.walk(self.tree)}
        return "late" in named

    def kinds_of_nodes(self) -> tuple[set[ast.AST], set[ast.AST], set[ast.AST]]:
        """Return what never runs, what runs when something is called, what stands in f-strings."""
        import ast

        never = set(self.types_only)
        waits: set[ast.AST] = set()
        texts: set[ast.AST] = set()
        for node in ast.walk(self.tree):
            for part in (getattr(node, "annotation", None), getattr(node, "returns", None)):
                if part is not None:
                    never.update(ast.walk(part))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                waits.update(inner for line in node.body for inner in ast.walk(line))
            elif isinstance(node, ast.Lambda):
                waits.update(ast.walk(node.body))
            elif isinstance(node, ast.JoinedStr):
                texts.update(ast.walk(node))
        return never, waits, texts

    def thin(self) -> None:
        """Leave out comments, types and docstrings, but for the first lines --explain shows."""
        import ast
        import io
        import tokenize

        for node in ast.walk(self.tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                if node in self.types_only or not ast.get_docstring(node):
                    continue
                text = node.body[0]
                first = self.lines[text.lineno - 1]
                self.drop(text)
                if self.room in EXPLAINED:
                    self.dropped.discard(text.lineno)
                    self.lines[text.lineno - 1] = first + '"""' * (text.lineno != text.end_lineno)
                elif len(node.body) == 1:
                    self.dropped.discard(text.lineno)
                    self.lines[text.lineno - 1] = " " * text.col_offset + "pass"
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type == tokenize.COMMENT:
                number, column = token.start
                self.lines[number - 1] = self.lines[number - 1][:column].rstrip()
                if not self.lines[number - 1]:
                    self.dropped.add(number)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.arg) and node.annotation is not None:
                self.blank(node.col_offset + len(node.arg), node.annotation)
            elif isinstance(node, ast.AnnAssign) and node.value is not None:
                self.blank(node.target.end_col_offset or 0, node.annotation)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns:
                line = self.lines[node.returns.lineno - 1].encode()
                self.blank(line.rfind(b" ->", 0, node.returns.col_offset), node.returns)

    def blank(self, start: int, node: ast.expr) -> None:
        """Fill what a type takes up in its line, from ``start`` on; ``text`` leaves it out."""
        if node.lineno == node.end_lineno and node.end_col_offset:
            line = self.lines[node.lineno - 1].encode()
            filled = line[:start] + b"\0" * (node.end_col_offset - start)
            self.lines[node.lineno - 1] = (filled + line[node.end_col_offset :]).decode()

    def entry(self) -> str:
        """Return what the appendix wants to know of a chapter."""
        needs = sorted(set(self.siblings.values()) - AT_ONCE)
        names = self.names.keys() - defined_names(self.text())
        return f"{self.room}:{' '.join(needs)}:{' '.join(sorted(names))}"

    def packed(self) -> str:
        """Return the chapter for the appendix."""
        self.docstring = self.docstring.partition("\n")[0]
        text = self.text().replace("# " + "=" * (WIDTH - 2) + "\n", "")
        for opening in ("def", "class"):
            text = text.replace(f"\n\n\n{opening} ", f"\n\n{opening} ")
        return text.replace("\ndef __getattr__(", f"\ndef find_in_{self.room}(")

    def carried(self) -> str:
        """Return the chapter as a text that can be read, but is not compiled yet."""
        text = self.text()
        if "'''" in text:
            raise ConfigError(f"{self.room}.py: ''' would end the text that it is in one file")
        return f"appendix.carry(\n    {self.entry()!r},\n    LINE, r'''\n{text}''')\n"

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
                line = line.replace("\0", "")
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


def read_chapters() -> tuple[Chapter, list[Chapter], dict[str, str], str]:
    """Return the package's own chapter, the others, the material, and the sha256 of it all."""
    from hashlib import sha256

    sources = {room: package_text(f"{room}.py") for room in ("__init__", *ROOMS)}
    if not sources["chapters"]:
        raise ConfigError("--bundle: the sources are not there, only their compiled form")
    digest = sha256()
    chapters = []
    above: list[str] = []
    material: dict[str, str] = {}
    for room, source in sources.items():
        if source and room != "chapters":
            digest.update(f"{room}.py\n{source}".encode())
            chapters.append(Chapter(room, source))
            chapters[-1].check(above if above or room != "__init__" else ROOMS)
            above += [] if room == "__init__" else [room]
            for name in chapters[-1].material:
                material[name] = package_text(name)
    for name, text in sorted(material.items()):
        digest.update(f"{name}\n{text}".encode())
    check_names(chapters[1:])
    return chapters[0], chapters[1:], material, digest.hexdigest()


def bind_chapters() -> str:
    """Return the whole server as the text of one file; raise ConfigError with file and line."""
    first, chapters, material, digest = read_chapters()
    version: str = vars(sys.modules["selectserve"])["__version__"]
    head = HEAD.format(
        version=version,
        digest=digest,
        licence="".join(f"# {line}".rstrip() + "\n" for line in LICENCE.splitlines()),
        docstring=first.docstring,
    )
    first.docstring = ""
    exports = first.text().partition("\n\n")[2].strip("\n")
    parts, contents, answering = [], [], []
    folded = dict.fromkeys(NEIGHBOURS, "")
    for chapter in chapters:
        if chapter.room not in READABLE:
            chapter.thin()
        chapter.ask_late()
        if "__getattr__" in chapter.names:
            answering.append(ANSWERING.format(room=chapter.room))
        if chapter.room in AT_ONCE:
            parts.append(chapter.text())
            if chapter.room == "appendix":
                parts.append("appendix = Appendix(late)\n")
        elif chapter.room in READABLE:
            parts.append(chapter.carried())
        else:
            contents.append(f"# {chapter.docstring.splitlines()[0]}")
            text = chapter.packed()
            for name in chapter.material:
                text += f"MATERIAL[{name!r}] = {long_text(material.pop(name))}\n"
            folded[chapter.room] = f"{chapter.entry()}\n{text}"
    foot = FOOT.format(
        rule="=" * (WIDTH - 2),
        contents="\n".join(contents),
        packed=fold("\f".join(folded.values())),
    )
    body = "\n\n".join(parts + answering)
    lines = f"{head}{exports}\n\n\n{body}{foot}".split("\n")
    for number, line in enumerate(lines):
        if line == "    LINE, r'''":
            lines[number] = f"    {number + 1}, r'''"
    return "\n".join(lines)


def fold(text: str) -> str:
    """Return a text packed, in lines of base64."""
    from base64 import b64encode
    from zlib import DEFLATED, MAX_WBITS, compressobj

    if "\t" in text:
        raise ConfigError("a tab in the sources: in the single file it would become four spaces")
    step = PACKED_WIDTH
    packer = compressobj(9, DEFLATED, MAX_WBITS, 9)
    packed = packer.compress(text.replace("    ", "\t").encode()) + packer.flush()
    data = b64encode(packed).decode()
    return "\n".join(data[at : at + step] for at in range(0, len(data), step))


def long_text(text: str) -> str:
    """Return the Python literal of a text, one line of it a line."""
    return "(\n" + "".join(f"    {line!r}\n" for line in text.splitlines(True)) + ")"
