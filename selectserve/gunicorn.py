"""gunicorn: a worker class for those who keep gunicorn as their supervisor.

    gunicorn -k selectserve.gunicorn.Worker -w 4 main:app

gunicorn opens the sockets, forks, loads the app and looks after the workers; in each of them a
Server runs, with gunicorn's settings translated. What gunicorn has no setting for can be given as
SELECTSERVE_* variables, or as CONFIG_KWARGS of a class derived from Worker. gunicorn is imported
when the class is asked for.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import cache
from importlib import import_module

from .config import Config, environment_values
from .logs import access_logger, error_logger
from .server import Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOTIFY_INTERVAL = 1.0  # seconds between two signs of life, at most


class GunicornServer(Server):
    """The server inside of a gunicorn worker; its signals are those of gunicorn."""

    def __init__(self, config: Config, worker: Any) -> None:
        super().__init__(config, sockets=[sock.sock for sock in worker.sockets])
        self.worker = worker
        self.interval = min(NOTIFY_INTERVAL, worker.timeout or NOTIFY_INTERVAL)

    def announce(self) -> None:
        """Say that we serve, and from now on that we turn."""
        super().announce()
        self.look_around()

    def look_around(self) -> None:
        """Tell gunicorn that the reactor turns; see whether it is still there and wants us."""
        worker = self.worker
        worker.notify()
        orphaned = worker.ppid != os.getppid()
        if (orphaned or not worker.alive) and not self.stops:
            if orphaned:
                error_logger.warning("gunicorn is gone")
            self.stop()
        self.reactor.call_later(self.interval, self.look_around)

    def on_signal(self, number: int) -> None:
        """TERM is gunicorn's graceful end, INT its quick one; USR1 reopens its log files."""
        name = signal.Signals(number).name
        if name == "SIGUSR1":
            self.worker.log.reopen_files()
        elif name == "SIGINT":
            self.stop()
            if self.stops < 2:
                self.stop()
        elif name == "SIGTERM" and not self.stops:
            self.stop()


class GunicornWorker:
    """What Worker adds to ``gunicorn.workers.base.Worker``."""

    CONFIG_KWARGS: dict[str, Any] = {}  # options, for derived classes

    if TYPE_CHECKING:
        cfg: Any
        log: Any
        wsgi: Any
        max_requests: int
        server: GunicornServer | None

    def run(self) -> None:
        """Serve until told to stop; called by gunicorn when the app is loaded."""
        self.redirect_logs()
        values = {**self.translate_settings(), **environment_values(), **self.CONFIG_KWARGS}
        self.server = GunicornServer(Config(self.wsgi, **values), self)
        code = self.server.run()
        if code:
            sys.exit(code)

    def handle_quit(self, number: int, _frame: Any) -> None:
        """End quickly, but not in the middle of a turn."""
        server = getattr(self, "server", None)
        if server is None:
            sys.exit(0)
        server.reactor.call_from_thread(lambda: server.on_signal(signal.SIGINT))

    def redirect_logs(self) -> None:
        """Write where gunicorn writes."""
        for ours, theirs in (
            (error_logger, self.log.error_log),
            (access_logger, self.log.access_log),
        ):
            ours.handlers = list(theirs.handlers)
            ours.setLevel(theirs.level)
            ours.propagate = False

    def translate_settings(self) -> dict[str, Any]:
        """Return our options for gunicorn's settings."""
        cfg = self.cfg
        values = {
            "access_log": bool(cfg.accesslog),
            "access_log_format": cfg.access_log_format,
            "backlog": cfg.backlog,
            "forwarded_allow_ips": cfg.forwarded_allow_ips,
            "limit_header_fields": cfg.limit_request_fields,
            "limit_request_line": cfg.limit_request_line or sys.maxsize,
            "limit_max_requests": self.max_requests if cfg.max_requests else 0,
            "proxy_protocol": cfg.proxy_protocol not in (False, "off"),
            "timeout_graceful_shutdown": float(cfg.graceful_timeout),
            "timeout_keep_alive": float(cfg.keepalive),
        }
        if cfg.is_ssl:
            values["ssl_certfile"] = cfg.certfile
            values["ssl_keyfile"] = cfg.keyfile
            values["ssl_ca_certs"] = cfg.ca_certs
            values["ssl_cert_reqs"] = int(cfg.cert_reqs)
            values["ssl_ciphers"] = cfg.ciphers
        return values


def __getattr__(name: str) -> Any:
    """Make ``Worker`` when it is asked for, out of gunicorn's own (PEP 562)."""
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return worker_class()


@cache
def worker_class() -> type:
    """Make the class; gunicorn need not be installed before somebody asks for it."""
    base = import_module("gunicorn.workers.base").Worker
    return type("Worker", (GunicornWorker, base), {"__module__": __name__})
