"""config: every option, declared once: name, type, default, meaning.

The class body of Config is the table. The command line, the environment (SELECTSERVE_*), ``run()``
and the README's table are all made from it; nothing is spelled a second time.
"""

from __future__ import annotations

import os

from .errors import ConfigError
from .kinds import (
    byte_size,
    count,
    header_pair,
    one_text,
    permissions,
    positive,
    seconds,
    text_of,
    truth,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Callable, Generic, TypeVar, overload

    Value = TypeVar("Value")
else:
    # At run time typing is not needed, and its import would cost 5 ms.
    Value = object

    class Generic:
        """Stands for typing.Generic: subscribing gives a plain base class."""

        def __class_getitem__(cls, _item):
            return cls


# What uvicorn.run() calls some of our options; what it has besides is in Config.__init__.
UVICORN_NAMES = {
    "headers": "header",
    "reload_dirs": "reload_dir",
    "reload_includes": "reload_include",
    "reload_excludes": "reload_exclude",
    "h11_max_incomplete_event_size": "limit_header_size",
}
LEVEL_NUMBERS = {50: "critical", 40: "error", 30: "warning", 20: "info", 10: "debug", 5: "trace"}
COLLECTIONS = (list, tuple, set, frozenset)


class Option(Generic[Value]):
    """One option: a descriptor that gives the value, or itself when asked on the class.

    ``kind`` makes the value of a string ("flag" options take none on the command line),
    ``choices`` are the strings allowed, ``repeat`` lets the option be given several times.
    ``also`` is another variable that gives it, ``shown`` how the default reads in the help;
    what is ``code_only`` no string can say: it is for run(); ``any_type`` may also be a table, what
    has ``commas`` a list.
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
        also: str = "",
        shown: str = "",
        code_only: bool = False,
        any_type: bool = False,
        commas: bool = False,
    ) -> None:
        self.default = default
        self.meaning = meaning
        self.kind = kind
        self.choices = choices
        self.flag = flag
        self.repeat = repeat
        self.metavar = metavar
        self.group = group
        self.also = also
        self.shown = shown or ("" if default in (None, "", [], -1) else str(default))
        self.code_only = code_only
        self.any_type = any_type
        self.commas = commas
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

    def accept(self, value: Any, where: str = "") -> Any:
        """Return the value of what a program or a file gave, which is checked as text is."""
        where = where or self.name
        if self.repeat:
            items = value if isinstance(value, COLLECTIONS) else [value]
            return [
                one for item in items for one in self.read(self.text_of_one(item, where), where)
            ]
        if self.commas and isinstance(value, COLLECTIONS):
            value = ",".join([text_of(item, where) for item in value])
        if self.code_only:
            if not callable(value):
                raise ConfigError(f"{where}: a function, not {type(value).__name__}", 2)
            return value
        if self.any_type and any(hasattr(value, name) for name in ("keys", "readline")):
            return value  # a table, a ConfigParser or an open file: logging.config takes each
        if self.name == "log_level" and type(value) is int:
            value = LEVEL_NUMBERS.get(value, value)
        if self.name == "fd" and value == self.default:
            return value
        named = f"{where} ({self.metavar})" if self.metavar else where
        text = text_of(value, named, bool(self.kind or self.flag))
        if self.kind is permissions and isinstance(value, int) and not isinstance(value, bool):
            text = f"{value:o}"
            if value > 0o777:  # nobody can tell 440 from 0o670
                raise ConfigError(f'{where}: {value} is {text} in octal: give "{value}"', 2)
        return self.read(text, where)

    def text_of_one(self, item: Any, where: str) -> str:
        """Return the text of one of several; a header may be a pair."""
        if self.name == "header" and isinstance(item, (list, tuple)) and len(item) == 2:
            return ": ".join([text_of(part, where) for part in item])
        return text_of(item, where)

    def read(self, text: str, where: str) -> Any:
        """Make the value of ``text``; raise ConfigError that names ``where``."""
        if self.flag:
            if text.lower() in ("1", "true", "yes", "on"):
                return True
            if text.lower() in ("0", "false", "no", "off", ""):
                return False
            raise ConfigError(f"{where}: {text!r} is neither true nor false", 2)
        if self.choices and text.lower() in self.choices:
            return text.lower()
        if self.choices:
            raise ConfigError(f"{where}: {text!r} is not one of {', '.join(self.choices)}", 2)
        try:
            return text if self.kind is None else self.kind(text)
        except ValueError as exc:
            raise ConfigError(f"{where}: {text!r} is not valid: {exc}", 2) from None


class Config:
    """The values of one server; what is not given has its default.

    ``app`` is an import string (``package.module:attribute``) or the app itself. Keyword names
    are those of the options; an unknown one raises ConfigError.
    """

    # -- where to listen
    bind: Option[list[str]] = Option(
        [],
        "listen here: host:port, [IPv6]:port, unix:path, unix:@name, fd://N or fd://NAME; "
        "may be repeated, and counts alone then",
        kind=one_text,
        repeat=True,
        metavar="ADDRESS",
        group="sockets",
    )
    host = Option(
        "127.0.0.1",
        "address or name to listen on; * and localhost open both families",
        group="sockets",
    )
    port = Option(8000, "port to listen on; 0 takes a free one", kind=count, group="sockets")
    uds = Option(
        "", "listen on this unix socket instead; @name: abstract", metavar="PATH", group="sockets"
    )
    uds_permissions = Option(
        0o666,
        "who may connect to our unix sockets, in octal",
        kind=permissions,
        metavar="MODE",
        group="sockets",
        shown="666, like uvicorn",
    )
    fd = Option(-1, "listen on this inherited descriptor instead", kind=count, group="sockets")
    reuse_port = Option(
        False,
        "share the port with other servers that say so too; the kernel spreads the clients",
        flag=True,
        group="sockets",
    )
    backlog = Option(2048, "connections that may wait to be accepted", kind=count, group="sockets")

    # -- the app
    factory = Option(False, "call APP to get the application", flag=True, group="app")
    env_file = Option(
        "", "set variables from this file first, unless they are set", metavar="FILE", group="app"
    )
    app_dir = Option(".", "look for APP in this directory", metavar="DIR", group="app")
    interface = Option(
        "auto", "what APP is", choices=("auto", "asgi3", "asgi2", "wsgi"), group="app"
    )
    wsgi_workers = Option(10, "threads for a WSGI app", kind=positive, group="app")
    lifespan = Option("auto", "run APP's lifespan", choices=("auto", "on", "off"), group="app")
    loop = Option(
        "auto",
        "who steps coroutines: our own bridge, or asyncio or trio for apps that need them",
        choices=("auto", "native", "asyncio", "trio"),
        group="app",
    )
    root_path = Option("", "mount APP below this path", metavar="PATH", group="app")
    gc_freeze = Option(
        True,
        "never look for garbage in what start-up made, not even in gc.collect()",
        flag=True,
        group="app",
    )
    gc_threshold = Option(
        5000,
        "while none is found, look for garbage after so many new objects; 0: as Python does",
        kind=count,
        group="app",
    )

    busy_poll = Option(
        50,
        "microseconds to look for more before sleeping, while requests come so soon; 0: sleep",
        kind=count,
        group="app",
    )

    # -- TLS
    ssl_certfile: Option[list[str]] = Option(
        [],
        "certificate and its chain, PEM; several are told apart by the name the client asks for",
        kind=one_text,
        repeat=True,
        metavar="FILE",
        group="tls",
    )
    ssl_keyfile: Option[list[str]] = Option(
        [],
        "its key, PEM, unless it is in the same file; one for each certificate",
        kind=one_text,
        repeat=True,
        metavar="FILE",
        group="tls",
    )
    ssl_keyfile_password = Option("", "password of the key", metavar="TEXT", group="tls")
    ssl_version = Option(
        "",
        "oldest TLS version; =TLSv1.2 means no other, and uvicorn's numbers are understood",
        metavar="TLSv1.2|TLSv1.3",
        group="tls",
        shown="TLSv1.2",
    )
    ssl_cert_reqs = Option(
        "none",
        "ask clients for a certificate: none (0), optional (1), required (2)",
        metavar="none|optional|required",
        group="tls",
    )
    ssl_ca_certs = Option(
        "",
        "who may have signed the clients' certificates, PEM; else the system's",
        metavar="FILE",
        group="tls",
    )
    ssl_ciphers = Option(
        "", "cipher suites up to TLS 1.2, as OpenSSL lists them", metavar="LIST", group="tls"
    )
    ssl_context_factory: Option[Callable[..., Any] | None] = Option(
        None,
        "f(config, default_factory) -> ssl.SSLContext; called again to renew",
        code_only=True,
        group="tls",
    )

    # -- behind proxies
    proxy_headers = Option(
        True,
        "believe the X-Forwarded-* and Forwarded headers of trusted peers",
        flag=True,
        group="proxies",
    )
    forwarded_allow_ips = Option(
        "127.0.0.1,::1",
        "trusted peers: addresses, networks, unix:, or * for all",
        also="FORWARDED_ALLOW_IPS",
        commas=True,
        metavar="LIST",
        group="proxies",
    )
    strip_untrusted_forwarded = Option(
        False, "remove those headers when others send them", flag=True, group="proxies"
    )
    proxy_protocol = Option(
        False,
        "trusted peers begin with a PROXY protocol header (version 1 or 2), also before TLS",
        flag=True,
        group="proxies",
    )

    # -- what is logged
    log_level = Option(
        "info",
        "how much is logged",
        choices=("critical", "error", "warning", "info", "debug", "trace"),
        group="logs",
    )
    log_config: Option[str | dict[str, Any]] = Option(
        "",
        "set logging up from this file: .json, .yaml (with PyYAML) or .ini; run() takes a dict too",
        metavar="FILE",
        group="logs",
        any_type=True,
    )
    access_log = Option(True, "log each request", flag=True, group="logs")
    access_log_format = Option(
        "",
        "common, combined, json, or apache's tokens as gunicorn writes them: %%(h)s %%(s)s",
        metavar="FORMAT",
        group="logs",
    )
    request_id = Option(
        False,
        "pass X-Request-ID on to the app, the log and the answer, or make one",
        flag=True,
        group="logs",
    )
    slow_step = Option(
        0.1,
        "log a step of the app that holds up the others for so many seconds; 0: never",
        kind=seconds,
        group="logs",
    )
    inspect = Option(
        "",
        "serve a page that shows the server at work; on loopback, unless HOST is another",
        metavar="[HOST:]PORT",
        group="logs",
    )
    inspect_token = Option(
        "",
        "the token that opens it, for scrapers of its /metrics",
        metavar="TEXT",
        group="logs",
        shown="a new one each time, in the link that is logged",
    )
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
    limit_memory = Option(
        0,
        "bytes in all buffers: above it nothing is read, nobody accepted, then 503; 0: no limit",
        kind=count,
        group="limits",
    )
    limit_max_requests = Option(
        0,
        "end after so many requests, a worker once its successor is up; 0: never",
        kind=count,
        group="limits",
    )
    limit_max_requests_jitter = Option(
        0,
        "add up to so many, by chance, so that workers do not end together",
        kind=count,
        group="limits",
    )
    limit_connections = Option(
        0,
        "connections that one address may hold (to a worker); 0: no limit",
        kind=count,
        group="limits",
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

    # -- workers
    workers = Option(
        1,
        "processes that serve side by side, under a supervisor",
        kind=positive,
        group="workers",
        also="WEB_CONCURRENCY",
    )
    preload = Option(
        False, "import APP once, before the workers are forked", flag=True, group="workers"
    )
    worker_start = Option(
        "auto",
        "how workers begin: a fork of the supervisor, or a new process",
        choices=("auto", "fork", "spawn"),
        group="workers",
    )
    timeout_worker_healthcheck = Option(
        30.0,
        "kill a worker that is blocked for so many seconds, having shown where; 0: never",
        kind=seconds,
        group="workers",
    )
    max_worker_age = Option(
        0.0, "replace a worker after so many seconds; 0: never", kind=seconds, group="workers"
    )
    max_worker_memory = Option(
        0,
        "replace a worker that uses more bytes, as in 500M; 0: never",
        kind=byte_size,
        metavar="SIZE",
        group="workers",
    )
    reload = Option(
        False, "for developers: start anew when a file has changed", flag=True, group="reload"
    )
    reload_dir: Option[list[str]] = Option(
        [],
        "watch the files below (default: the app's directory) and the modules that APP imports",
        kind=one_text,
        repeat=True,
        metavar="DIR",
        group="reload",
    )
    reload_include: Option[list[str]] = Option(
        [],
        "watch files of this name too, besides *.py",
        kind=one_text,
        repeat=True,
        metavar="GLOB",
        group="reload",
    )
    reload_exclude: Option[list[str]] = Option(
        [], "but not these", kind=one_text, repeat=True, metavar="GLOB", group="reload"
    )
    reload_delay = Option(0.25, "seconds between two looks", kind=seconds, group="reload")

    # -- deadlines
    timeout_handshake = Option(
        15.0, "seconds for PROXY header and TLS handshake", kind=seconds, group="deadlines"
    )
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
        10.0,
        "seconds for requests to end at shutdown; streams have half",
        kind=seconds,
        group="deadlines",
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
        self.values: dict[str, Any] = {}
        known = {option.name: option for option in all_options()}
        for given, value in values.items():
            name = UVICORN_NAMES.get(given, given)
            if name == "http2" and value:
                raise ConfigError("http2: selectserve speaks HTTP/1.1; a proxy can speak HTTP/2", 2)
            if name in ("http2", "reset_contextvars"):
                continue  # each request has a context of its own
            if name not in known:
                raise ConfigError(f"unknown option {name!r}: see python -m selectserve --help", 2)
            if value is None and name in ("ws_ping_interval", "ws_ping_timeout"):
                value = 0.0  # uvicorn's word for never
            if value is not None:  # for uvicorn's callers: None is "not given"
                self.values[name] = known[name].accept(value, given)
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
        if self.inspect and self.workers > 1:
            raise ConfigError("--inspect shows one process: it goes with --workers 1", 2)


def all_options() -> list[Option[Any]]:
    """Return the options in the order of the table."""
    return [value for value in vars(Config).values() if isinstance(value, Option)]


def environment_values(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Read the options that SELECTSERVE_* variables give; raise ConfigError naming the variable."""
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    for option in all_options():
        variable = option.variable
        if variable not in environ and option.also:
            variable = option.also
        text = environ.get(variable)
        if text is not None and not option.code_only:
            if option.repeat:
                parts = filter(None, map(str.strip, text.split(",")))
                values[option.name] = [
                    item for part in parts for item in option.read(part, variable)
                ]
            else:
                values[option.name] = option.read(text, variable)
    return values
