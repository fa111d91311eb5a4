"""config: every option, declared once: name, type, default, meaning.

The class body of Config is the table. The command line, the environment (SELECTSERVE_*), ``run()``
and the README's table are all made from it; nothing is spelled a second time.
"""

from __future__ import annotations

import os

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Callable, Generic, TypeVar, overload

    Value = TypeVar("Value")
else:
    # At run time typing is not needed, and its import would cost 5 ms.
    Value = object

    class Generic:
        """Stands for typing.Generic: subscribing gives a plain base class."""

        def __class_getitem__(cls, _item):
            return cls


class Option(Generic[Value]):
    """One option: a descriptor that gives the value, or itself when asked on the class.

    ``kind`` makes the value of a string ("flag" options take none on the command line),
    ``choices`` are the strings allowed, ``repeat`` lets the option be given several times.
    """

    def __init__(
        self,
        default: Value,
        meaning: str,
        *,
        kind: Callable[[str], Value] | None = None,
        choices: tuple[str, ...] = (),
        flag: bool = False,
        repeat: bool = False,
        metavar: str = "",
        group: str = "server",
    ) -> None:
        self.default = default
        self.meaning = meaning
        self.kind = kind
        self.choices = choices
        self.flag = flag
        self.repeat = repeat
        self.metavar = metavar
        self.group = group
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type) -> Option[Value]: ...
        @overload
        def __get__(self, instance: Config, owner: type) -> Value: ...

    def __get__(self, instance: Config | None, owner: type) -> Any:
        if instance is None:
            return self
        return instance.values.get(self.name, self.default)

    @property
    def flag_name(self) -> str:
        """The name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """The name in the environment."""
        return "SELECTSERVE_" + self.name.upper()

    def read(self, text: str, where: str) -> Any:
        """Make the value of ``text``; raise ConfigError that names ``where``."""
        if self.flag:
            if text.lower() in ("1", "true", "yes", "on"):
                return True
            if text.lower() in ("0", "false", "no", "off", ""):
                return False
            raise ConfigError(f"{where}: {text!r} is neither true nor false", 2)
        if self.choices and text not in self.choices:
            raise ConfigError(f"{where}: {text!r} is not one of {', '.join(self.choices)}", 2)
        try:
            return text if self.kind is None else self.kind(text)
        except ValueError as exc:
            raise ConfigError(f"{where}: {text!r} is not valid: {exc}", 2) from None


def seconds(text: str) -> float:
    """Read a duration in seconds."""
    value = float(text)
    if not 0 <= value < 1e9:
        raise ValueError("a number of seconds, 0 or more")
    return value


def count(text: str) -> int:
    """Read a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number, 0 or more")
    return int(text)


def truth(text: str) -> bool:
    """Read true or false given as a word."""
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def header_pair(text: str) -> tuple[str, str]:
    """Read ``Name:Value``."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise ValueError("a header is written Name:Value")
    return name.strip(), value.strip()


def mode(text: str) -> int:
    """Read file permissions in octal."""
    return int(text, 8)


class Config:
    """The values of one server; what is not given has its default.

    ``app`` is an import string (``package.module:attribute``) or the app itself. Keyword names
    are those of the options; an unknown one raises ConfigError.
    """

    # -- where to listen
    host = Option("127.0.0.1", "address to listen on", group="sockets")
    port = Option(8000, "port to listen on; 0 takes a free one", kind=count, group="sockets")
    uds = Option("", "listen on this unix socket instead", metavar="PATH", group="sockets")
    fd = Option(-1, "listen on this inherited descriptor instead", kind=count, group="sockets")
    backlog = Option(2048, "connections that may wait to be accepted", kind=count, group="sockets")

    # -- the app
    factory = Option(False, "call APP to get the application", flag=True, group="app")
    app_dir = Option(".", "look for APP in this directory", metavar="DIR", group="app")
    interface = Option(
        "auto", "what APP is", choices=("auto", "asgi3", "asgi2", "wsgi"), group="app"
    )
    lifespan = Option("auto", "run APP's lifespan", choices=("auto", "on", "off"), group="app")
    loop = Option(
        "auto",
        "who steps coroutines: our own bridge, or asyncio or trio for apps that need them",
        choices=("auto", "native", "asyncio", "trio"),
        group="app",
    )
    root_path = Option("", "mount APP below this path", metavar="PATH", group="app")

    # -- what is logged
    log_level = Option(
        "info",
        "how much is logged",
        choices=("critical", "error", "warning", "info", "debug", "trace"),
        group="logs",
    )
    access_log = Option(True, "log each request", flag=True, group="logs")
    use_colors: Option[bool | None] = Option(
        None, "colour the log (default: on a terminal)", flag=True, group="logs"
    )
    trace = Option(False, "narrate the life of every connection", flag=True, group="logs")
    trace_format = Option(
        "text", "how the narration is written", choices=("text", "json"), group="logs"
    )

    # -- answers
    server_header = Option(True, "send a Server header", flag=True, group="http")
    date_header = Option(True, "send a Date header", flag=True, group="http")
    header: Option[list[tuple[str, str]]] = Option(
        [],
        "send this header with every response",
        kind=lambda text: [header_pair(text)],
        repeat=True,
        metavar="NAME:VALUE",
        group="http",
    )
    http = Option("auto", "accepted for uvicorn's sake; there is one parser", group="http")
    ws = Option("auto", "accepted for uvicorn's sake; there is one implementation", group="http")

    # -- limits
    limit_concurrency = Option(
        0,
        "answer 503 above so many connections or requests; 0: no limit",
        kind=count,
        group="limits",
    )
    limit_max_requests = Option(
        0, "end after so many requests; 0: never", kind=count, group="limits"
    )
    limit_request_line = Option(
        8192, "bytes of a request line, else 414", kind=count, group="limits"
    )
    limit_header_fields = Option(
        100, "fields of a header section, else 431", kind=count, group="limits"
    )
    limit_header_size = Option(
        65536, "bytes of a header section, else 431", kind=count, group="limits"
    )
    limit_body_size = Option(
        0, "bytes of a request body, else 413; 0: no limit", kind=count, group="limits"
    )

    # -- deadlines
    timeout_keep_alive = Option(
        5.0, "seconds for the first byte of a request", kind=seconds, group="deadlines"
    )
    timeout_header = Option(
        15.0, "seconds for the rest of the head", kind=seconds, group="deadlines"
    )
    timeout_body = Option(
        30.0, "seconds a body may come without progress", kind=seconds, group="deadlines"
    )
    timeout_write = Option(
        60.0, "seconds a client may read nothing", kind=seconds, group="deadlines"
    )
    timeout_graceful_shutdown = Option(
        10.0, "seconds for requests to end at shutdown", kind=seconds, group="deadlines"
    )
    timeout_lifespan = Option(
        60.0,
        "seconds for the lifespan's startup, and for its shutdown",
        kind=seconds,
        group="deadlines",
    )

    # -- websockets
    ws_max_size = Option(
        16777216, "bytes of a WebSocket message, else 1009", kind=count, group="websocket"
    )
    ws_max_queue = Option(
        32, "messages kept for an app that does not receive", kind=count, group="websocket"
    )
    ws_ping_interval = Option(
        20.0, "seconds of silence before a ping; 0: never", kind=seconds, group="websocket"
    )
    ws_ping_timeout = Option(
        20.0,
        "seconds to wait for any byte after a ping; 0: for ever",
        kind=seconds,
        group="websocket",
    )
    ws_per_message_deflate = Option(
        True, "offer permessage-deflate", kind=truth, metavar="true|false", group="websocket"
    )

    def __init__(self, app: Any = None, **values: Any) -> None:
        self.app = app
        known = {option.name: option for option in all_options()}
        for name, value in values.items():
            if name not in known:
                raise ConfigError(f"unknown option {name!r}: see python -m selectserve --help", 2)
            choices = known[name].choices
            if choices and value not in choices:
                raise ConfigError(f"{name}: {value!r} is not one of {', '.join(choices)}", 2)
        self.values = values
        self.check()

    def check(self) -> None:
        """Refuse values that name what this server does not have."""
        for option, value in (("http", self.http), ("ws", self.ws)):
            if value != "auto":
                raise ConfigError(
                    f"--{option} {value}: selectserve has one implementation of its own; "
                    f"leave --{option} out",
                    2,
                )
        if self.root_path and not self.root_path.startswith("/"):
            raise ConfigError(f"--root-path {self.root_path!r} must begin with /", 2)
        if self.port > 65535:
            raise ConfigError(f"--port {self.port}: ports end at 65535", 2)


def all_options() -> Iterator[Option[Any]]:
    """Yield the options in the order of the table."""
    for value in vars(Config).values():
        if isinstance(value, Option):
            yield value


def environment_values(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read the options that SELECTSERVE_* variables give; raise ConfigError naming the variable."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for option in all_options():
        text = environ.get(option.variable)
        if text is not None:
            if option.repeat:
                parts = filter(None, map(str.strip, text.split(",")))
                values[option.name] = [
                    item for part in parts for item in option.read(part, option.variable)
                ]
            else:
                values[option.name] = option.read(text, option.variable)
    return values
