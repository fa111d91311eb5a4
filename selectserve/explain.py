"""explain: the tour of the server in a terminal, made from the code that runs here.

``python -m selectserve --explain`` prints the life of a request, then every function that it
names with the first line of its docstring and the place to read on, and the lifecycles and the
parser's states as they stand in the tables. Nothing of it is written a second time anywhere.
"""

from __future__ import annotations

import sys

from .asgi import HTTP_LIFECYCLE
from .http1 import RequestParser
from .lifespan import LIFESPAN_LIFECYCLE
from .session import SESSION_LIFECYCLE
from .trace import MOMENTS
from .websocket import WEBSOCKET_LIFECYCLE, WebSocket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

BOLD, PLAIN = "\x1b[1m", "\x1b[0m"


def explain(colour: bool = False) -> str:
    """Return the whole tour as text."""
    story = str(sys.modules["selectserve"].__doc__).strip()
    places = [stop_line(name) for name in names_in(story)]
    parts = [
        story.replace("`", ""),
        heading("Those who live it, and where to read on"),
        "\n".join(places),
        heading("A response: what the app may send, by its state (asgi.HTTP_LIFECYCLE)"),
        handler_table(HTTP_LIFECYCLE),
        heading("A WebSocket as the app sees it (session.SESSION_LIFECYCLE)"),
        handler_table(SESSION_LIFECYCLE),
        heading("A WebSocket on the wire (websocket.WEBSOCKET_LIFECYCLE)"),
        state_table(WEBSOCKET_LIFECYCLE),
        heading("The app's start and end (lifespan.LIFESPAN_LIFECYCLE)"),
        state_table(LIFESPAN_LIFECYCLE),
        heading("The parser of requests: its state is the method that reads next"),
        parser_table(RequestParser),
        heading("The parser of frames"),
        parser_table(WebSocket),
        heading("The words of --trace"),
        "\n".join(f"  {word:<9} {meaning}" for word, meaning in MOMENTS.items()),
    ]
    text = "\n\n".join(parts) + "\n"
    return text if colour else text.replace(BOLD, "").replace(PLAIN, "")


def heading(text: str) -> str:
    """Return a heading."""
    return f"{BOLD}{text}{PLAIN}"


def names_in(story: str) -> list[str]:
    """Return the names of functions that a text quotes, each once, in order."""
    quoted = [part.strip("`") for part in story.split("`")[1::2]]
    return list(dict.fromkeys(name for name in quoted if "." in name))


def find_object(name: str) -> Any:
    """Return what ``room.Class.method`` names, in the package or in the single file."""
    room, *path = name.split(".")
    found: Any = sys.modules.get(f"selectserve.{room}", sys.modules["selectserve"])
    for part in path:
        found = getattr(found, part)
    return found


def stop_line(name: str) -> str:
    """Return a name, its place and the first line of its docstring, on two lines."""
    found = find_object(name)
    return f"  {BOLD}{name}{PLAIN}  {place_in_source(found)}\n      {first_line(found)}"


def place_in_source(found: Any) -> str:
    """Return file and line of a function or a class."""
    import inspect

    file, line = "", 0
    found = inspect.unwrap(found)
    code = getattr(found, "__code__", None)
    if code is not None:
        file, line = code.co_filename, code.co_firstlineno
    else:
        try:
            file, line = inspect.getsourcefile(found) or "", inspect.getsourcelines(found)[1]
        except (OSError, TypeError):  # the sources are not there
            return ""
    folder, _, base = file.replace("\\", "/").rpartition("/")
    folder = folder.rpartition("/")[2]
    return f"{folder}/{base}:{line}" if folder == "selectserve" else f"{base}:{line}"


def first_line(found: Any) -> str:
    """Return the first line of a docstring."""
    return (found.__doc__ or "").strip().split("\n")[0]


def handler_table(table: Mapping[Any, Mapping[Any, Any]]) -> str:
    """Print a lifecycle whose cells are methods: state, message, what is done then."""
    lines = []
    for state, row in table.items():
        if not row:
            lines.append(f"  {state:<10}  nothing")
        for message, handler in row.items():
            lines.append(f"  {state:<10}  {message:<29}  {first_line(handler)}")
            state = ""
    return "\n".join(lines)


def state_table(table: Mapping[Any, Mapping[Any, Any]]) -> str:
    """Print a lifecycle whose cells are states: state, what happens, the state after it."""
    lines = []
    for state, row in table.items():
        if not row:
            lines.append(f"  {state:<10}  the end")
        for cause, following in row.items():
            lines.append(f"  {state:<10}  {cause:<27}  -> {following}")
            state = ""
    return "\n".join(lines)


def parser_table(parser: type) -> str:
    """Print the states of a parser: each ``read_`` method, and those that it can hand over to."""
    lines = []
    methods = vars(parser)
    for name in methods:
        if is_state(name, methods[name]):
            following = [other for other in followers(methods, name) if other != name]
            lines.append(f"  {name:<20}  {first_line(methods[name])}")
            if following:
                lines.append(f"  {'':<20}  -> {', '.join(following)}")
    return "\n".join(lines)


def followers(methods: Mapping[str, Any], name: str) -> list[str]:
    """Return the states that a state's code names, itself or by way of the helpers it calls."""
    found: dict[str, None] = {}
    seen = {name}
    left = [name]
    while left:
        for other in names_used(methods[left.pop()]):
            method = methods.get(other)
            if other in seen or not hasattr(method, "__code__"):
                continue
            seen.add(other)
            if is_state(other, method):
                found[other] = None
            else:
                left.append(other)
    return list(found)


def names_used(method: Any) -> Iterator[str]:
    """Return the names that a function's code mentions."""
    return iter(method.__code__.co_names)


def is_state(name: str, method: Any) -> bool:
    """Tell a state from a helper: nothing but the parser itself is given to it."""
    code = getattr(method, "__code__", None)
    return name.startswith("read_") and code is not None and code.co_argcount == 1
