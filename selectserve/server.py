"""server: one worker: it opens, serves, drains and ends; the life of a process, top to bottom.

``Server.main`` is a coroutine like any app's, so it reads in order: bind, lifespan startup,
listen, wait for a reason to stop, drain, lifespan shutdown. Signals come in through the reactor's
wakeup pair: the first one drains, the second skips the drain but never the lifespan, the third
exits at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import time
from contextvars import copy_context
from functools import partial

from .access import AccessFormat, RequestIds
from .aio import load_and_choose
from .arrival import Entrance
from .census import connection_table, unfinished_work
from .certificates import make_certificates
from .config import Config
from .eager import make_reactor
from .ending import limit_threads, waited_threads
from .errors import Cancelled, ConfigError
from .forwarded import ForwardedRules, TrustedPeers
from .garbage import Collector
from .grammar import Limits
from .importer import load_app, make_step_app
from .lifespan import Lifespan
from .listener import Listener
from .logs import (
    AccessLog,
    Outlet,
    error_logger,
    has_terminal,
    load_log_config,
    own_info,
    reopen_logs,
    set_up_logging,
    wants_colour,
)
from .memory import MemoryLimit
from .narrator import narrate
from .reactor import Reactor
from .service import Service
from .signals import RELOAD_SIGNALS, REOPEN_SIGNALS, STOP_SIGNALS, route_signals
from .sockets import SocketFile, describe_address, open_sockets, unix_name
from .sources import load_env_file
from .stray import leave_server, watch_forks
from .systemd import Notifier
from .task import TIDY_TIME, current_stepper, release
from .trace import Tracer
from .watchdog import Watchdog
from .welcome import welcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable

    from .task import Cancels, Result, Stepper, Waits
    from .trace import Tells

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
SOFT_PART = 0.5  # of the drain: then long streams are told to end
TELL_TIME = 0.05  # seconds for a disconnect to be received before the task is cancelled
CLEAN_UP_TIME = 2.0  # seconds for the finally blocks of cancelled tasks


def http_date(timestamp: float) -> bytes:
    """Return ``timestamp`` as an IMF-fixdate (RFC 9110 §5.6.7), whatever the locale."""
    year, month, day, hour, minute, second, weekday, _, _ = time.gmtime(timestamp)
    return (
        f"{DAYS[weekday]}, {day:02d} {MONTHS[month - 1]} {year} "
        f"{hour:02d}:{minute:02d}:{second:02d} GMT"
    ).encode()


class Server:
    """Serve ``config.app`` until told to stop; ``run`` returns the exit code.

    ``reactor``, ``sockets`` (bound, to be listened on instead of what the options say) and
    ``wall_clock`` are parts, so that a parent or a test can bring its own.
    """

    def __init__(
        self,
        config: Config,
        reactor: Reactor | None = None,
        wall_clock: Callable[[], float] = time.time,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        self.config = config
        self.sockets = sockets
        self.wall_clock = wall_clock
        self.host_threads = waited_threads()
        self.reactor = make_reactor(config.busy_poll) if reactor is None else reactor
        self.reactor.on_fault = self.on_fault
        self.inspector = None  # it has to know the reactor's parts before anybody else does
        if config.inspect:
            from .inspector import Inspector

            self.inspector = Inspector(self.reactor, config.inspect, config.inspect_token)
        app = welcome if config.app is None else config.app
        self.stepper: Stepper
        self.app, self.stepper = load_and_choose(
            lambda: load_app(app, config.app_dir, config.factory),
            self.reactor,
            config.loop,
            self.stop,
            self.on_asyncio,
        )
        self.service = self.make_service()
        self.entrance = self.make_entrance()
        self.tracer = self.make_tracer() if config.trace and sys.stderr else None
        self.tell_moments()
        form = config.access_log_format
        self.access_format = AccessFormat(form, wall_clock) if form else None
        self.service.request_ids = RequestIds() if config.request_id else None
        self.notifier = Notifier(os.environ, self.reactor)
        self.lifespan = Lifespan(self.stepper, config.lifespan)
        self.lifespan_task: Cancels | None = None
        self.listeners: list[Listener] = []
        self.socket_files: list[SocketFile] = []
        self.stops = 0  # how many times the server was told to stop
        self.stopped_at = 0.0  # the first time
        self.stop_reason: object = None  # the last one
        self.retiring = False  # another process goes on accepting: there is no hurry
        self.waiter: Waits | None = None  # of main, while it waits for a change
        self.urls: list[str] = []
        self.had_terminal = has_terminal()
        self.watchdog = Watchdog(self.reactor, config.slow_step)
        self.collector = Collector(self.reactor, config.gc_freeze, config.gc_threshold)

    def make_service(self) -> Service:
        """Make what the connections share out of the options."""
        config = self.config
        app = make_step_app(self.app, config.interface, config.wsgi_workers)
        service = Service(app, self.stepper)
        service.root_path = config.root_path.rstrip("/")
        service.limits = Limits(
            config.limit_request_line,
            config.limit_header_size,
            config.limit_header_fields,
            config.limit_body_size,
        )
        service.timeout_keep_alive = config.timeout_keep_alive
        service.timeout_header = config.timeout_header
        service.timeout_body = config.timeout_body
        service.ws_max_size = config.ws_max_size
        service.ws_max_queue = max(1, config.ws_max_queue)
        service.ws_ping_interval = config.ws_ping_interval
        service.ws_ping_timeout = config.ws_ping_timeout
        service.ws_deflate = config.ws_per_message_deflate
        service.limit_concurrency = config.limit_concurrency
        service.limit_max_requests = config.limit_max_requests
        if config.limit_memory:
            limit = config.limit_memory
            service.memory = MemoryLimit(self.reactor, limit, service, self.on_memory_level)
        if config.limit_max_requests_jitter and config.limit_max_requests:
            chance = int.from_bytes(os.urandom(4), "big")
            service.limit_max_requests += chance % (config.limit_max_requests_jitter + 1)
        own = {name.lower() for name, _ in config.header}
        lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in config.header]
        if config.server_header and "server" not in own:
            lines.append(b"server: selectserve\r\n")
        service.defaults.set(b"", b"".join(lines))
        if config.date_header and "date" not in own:
            service.tell_date = self.tell_date
        service.on_limit = service.on_stop = self.stop
        return service

    def make_tracer(self) -> Tracer:
        """Have everything told on stderr, which nobody waits for."""
        form, coloured = self.config.trace_format, wants_colour(sys.stderr, self.config.use_colors)
        return Tracer(self.reactor.clock, Outlet(sys.stderr), form, coloured)

    def tell_moments(self) -> None:
        """Let everybody who wants to watch know what happens; nobody does, as a rule."""
        teller: Tells | None = self.tracer
        if self.inspector is not None:
            teller = self.inspector.watch(self.service, self.entrance, self.tracer)
        if teller is not None:
            narrate(self.reactor, self.service, teller)
        if self.inspector is not None:
            self.inspector.observer.observe_app(self.service)

    def make_entrance(self) -> Entrance:
        """Make what leads the clients in: certificates are loaded here, or complained about."""
        config = self.config
        trusted = TrustedPeers(config.forwarded_allow_ips)
        if config.proxy_headers or config.strip_untrusted_forwarded:
            self.service.proxies = ForwardedRules(
                trusted, config.proxy_headers, config.strip_untrusted_forwarded
            )
            self.service.proxies.on_ignored = lambda peer: error_logger.warning(
                "what %s says of a client behind it is ignored, as from all whom "
                "--forwarded-allow-ips does not name (told once)",
                peer,
            )
        entrance = Entrance(
            self.service,
            make_certificates(config),
            trusted if config.proxy_protocol else None,
            config.timeout_handshake,
            config.timeout_write,
        )
        if config.limit_connections:
            entrance.limit_peers(config.limit_connections)
        return entrance

    def run(self) -> int:
        """Serve until stopped; return the exit code. Blocks; installs signal handlers."""
        restore = self.install_signals()
        forget_forks = watch_forks(partial(leave_server, self))
        try:
            return self.stepper.run(self.main())
        finally:
            forget_forks()
            restore()
            self.close()
            limit_threads(self.host_threads, self.left_for_threads)

    # -- the life of a worker ------------------------------------------------------------------

    async def main(self) -> int:
        """Bind, start, serve, drain, end; return the exit code."""
        current_stepper.set(self.stepper)
        try:
            self.bind()
            started = await self.start_lifespan()
            if started and not self.stops:
                self.listen()
        except ConfigError as exc:
            self.report_config(exc)
            await self.stop_lifespan()
            return exc.exit_code
        if started:
            while not self.stops:
                await self.change()
            await self.drain()
        ended = await self.stop_lifespan()
        self.service.complaints.tell_rest()
        interrupted = self.stops > 0 and isinstance(self.lifespan.failure, Cancelled)
        return 0 if ended and (started or interrupted) else 3

    def bind(self) -> None:
        """Open the listening sockets, so that nobody else can; they do not listen yet."""
        sockets = self.sockets
        if not sockets:
            sockets, self.socket_files = open_sockets(self.config)
        backlog = self.config.backlog
        self.listeners += [Listener(self.reactor, sock, self.accept, backlog) for sock in sockets]

    def listen(self) -> None:
        """Listen, and say where."""
        self.collector.calm()
        if self.watchdog.limit:
            self.watchdog.start()
        if self.config.access_log:
            self.service.access_log = AccessLog(self.reactor, self.access_format)
        scheme = "http" if self.entrance.certificates is None else "https"
        for listener in self.listeners:
            listener.start()
            address = describe_address(listener.sock)
            self.urls.append(address if address.startswith("unix:") else f"{scheme}://{address}")
        if self.tracer is not None:
            self.tracer.begin()
        self.announce()
        if self.inspector is not None:
            self.inspector.open(", ".join(self.urls))

    def announce(self) -> None:
        """Say where we serve."""
        urls = ", ".join(self.urls)
        text = "selectserve running on %s (%s, process %d, Ctrl-C to stop)"
        error_logger.info(text, urls, self.stepper.name, os.getpid())
        self.notifier.tell_ready(f"serving on {urls}")

    def accept(self, listener: Listener, sock: socket.socket, address: Any) -> None:
        """Begin a connection."""
        sock.setblocking(False)
        peer = local = None
        try:
            name = sock.getsockname()
            if isinstance(address, tuple) and address:
                peer, local = (address[0], address[1]), (name[0], name[1])
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            else:
                local = (unix_name(name), None)
        except OSError:  # the client has left already
            sock.close()
            return
        self.entrance.admit(sock, peer, local)

    def on_memory_level(self) -> None:
        """Too much is held in buffers, or no longer: stop accepting, or go on."""
        memory = self.service.memory
        for listener in self.listeners:
            if memory is not None and memory.level > 1:
                listener.pause()
            elif not self.stops:
                listener.start()

    async def drain(self) -> None:
        """Stop accepting, let requests end, tell the long ones, cancel the rest."""
        self.notifier.tell_stopping()
        service = self.service
        began = self.reactor.clock()
        timeout = self.config.timeout_graceful_shutdown
        self.close_listeners(self.retiring)
        for file in self.socket_files:
            file.remove()
        service.on_change = self.wake
        service.draining = "gently"
        self.close_idle(gently=self.retiring)
        error_logger.info("shutting down: listeners closed, to be finished: %s", self.unfinished())
        soft = 0.0 if self.config.reload else SOFT_PART * timeout  # a developer waits for new code
        if await self.idle_until(began + soft, 1):
            return
        if self.stops < 2:
            self.close_idle(gently=False)
            error_logger.info("telling the long ones to end, of %s", self.unfinished())
            for connection in list(service.connections):
                connection.tell_end(False)
            if await self.idle_until(began + timeout, 1):
                return
        word = "cancelling" if service.cycles else "closing"
        error_logger.warning("%s %s", word, self.unfinished())
        for connection in list(service.connections):
            connection.tell_end(True)  # a disconnect is delivered before a cancel
        await self.idle_until(self.reactor.clock() + TELL_TIME, 2)
        self.stepper.cancel_all(self.lifespan_task)
        await self.idle_until(self.reactor.clock() + CLEAN_UP_TIME, 2)
        for connection in list(service.connections):
            connection.transport.abort()

    def close_listeners(self, others_go_on: bool) -> None:
        """Accept nobody any more; first those who wait already, unless they wait for others."""
        for listener in self.listeners:
            if not others_go_on:
                listener.accept_rest()
            listener.close()

    def close_idle(self, gently: bool) -> None:
        """Close the connections that ask for nothing now, or leave them a last request."""
        if not gently:
            self.entrance.close()
            self.service.draining = "now"
        for connection in list(self.service.connections):
            connection.close_if_idle(gently)

    async def idle_until(self, at: float, stops: int) -> bool:
        """Wait until all work is done; False when the time is over or a stop came meanwhile."""
        service = self.service
        while service.cycles or self.entrance.pending or self.needs_connections(stops):
            if self.stops > stops or self.reactor.clock() >= at:
                return False
            await self.change(at)
        return True

    def unfinished(self) -> str:
        """Say what there is still."""
        return unfinished_work(self.service, len(self.entrance.pending))

    def needs_connections(self, stops: int) -> bool:
        """Tell whether connections are still needed; in a hurry those that only linger are not."""
        return any(
            stops < 2 or connection.transport.state != "lingering"
            for connection in self.service.connections
        )

    async def start_lifespan(self) -> bool:
        """Run the app's startup; False when it failed or did not come to an end."""
        lifespan = self.lifespan
        if lifespan.status == "off":
            self.service.context = copy_context()
            return True
        context = copy_context()
        coro = self.service.app(lifespan.scope(), lifespan.receive, lifespan.send)
        lifespan.on_change = self.wake
        lifespan.put({"type": "lifespan.startup"})
        self.lifespan_task = self.stepper.spawn(coro, lifespan.on_done, context)
        in_time = await self.lifespan_leaves("starting", 0)
        seen = context if lifespan.context is None else lifespan.context
        self.service.context = seen.copy()
        if self.stops and not in_time:
            error_logger.info("stopped while starting")
            return False
        if lifespan.has_failed or not in_time:
            self.report_lifespan("startup", in_time)
            return False
        if lifespan.context is not None:  # complete, whether or not the call goes on
            self.service.state = lifespan.state
        elif lifespan.failure is not None:
            # An app that raises at once knows no lifespan; one that asked first has failed.
            level = logging.WARNING if lifespan.asked else logging.DEBUG
            error_logger.log(level, "%s", lifespan.explain_unsupported())
        return True

    async def stop_lifespan(self) -> bool:
        """Run the app's shutdown, if its startup ran; False when it failed."""
        lifespan = self.lifespan
        if lifespan.status != "running":
            return True
        lifespan.put({"type": "lifespan.shutdown"})
        in_time = await self.lifespan_leaves("stopping", 2)
        if lifespan.has_failed or not in_time:
            self.report_lifespan("shutdown", in_time)
            return False
        return True

    async def lifespan_leaves(self, status: str, stops: int) -> bool:
        """Wait until the lifespan is in another state; False when it takes too long."""
        until = self.reactor.clock() + self.config.timeout_lifespan
        while self.lifespan.status == status:
            if self.stops > stops or self.reactor.clock() >= until:
                await self.cancel_lifespan(status)
                return False
            await self.change(until)
        return True

    async def cancel_lifespan(self, status: str) -> None:
        """Cancel the lifespan, and give its finally blocks a moment."""
        if self.lifespan_task is not None:
            self.lifespan_task.cancel()
        until = self.reactor.clock() + CLEAN_UP_TIME
        while self.lifespan.status == status and self.reactor.clock() < until:
            await self.change(until)

    def report_config(self, exc: ConfigError) -> None:
        """Say why we do not serve."""
        error_logger.error("%s", exc)

    def report_lifespan(self, phase: str, in_time: bool) -> None:
        """Say why startup or shutdown did not succeed."""
        failure = self.lifespan.failure
        if not in_time:
            error_logger.error("lifespan %s was given up", phase)
        elif isinstance(failure, BaseException):
            error_logger.error("lifespan %s failed", phase, exc_info=own_info(failure))
        else:
            error_logger.error("lifespan %s failed: %s", phase, failure or "the app gave no reason")

    async def change(self, until: float | None = None) -> None:
        """Wait until something has happened that main may want to know, or until ``until``."""
        waiter = self.stepper.waiter()
        self.waiter = waiter
        timer = None if until is None else self.reactor.call_at(until, self.wake)
        try:
            await waiter
        finally:
            self.waiter = None
            if timer is not None:
                timer.cancel()

    def wake(self, _exc: object = None) -> None:
        """Let main look again."""
        if self.waiter is not None:
            release(self.waiter)

    # -- told to stop --------------------------------------------------------------------------

    def stop(self, reason: object = None) -> None:
        """Stop serving; called again, skip the drain.

        What an app raises comes out of a task, and then out of the request that waited for it.
        """
        if reason is not None and reason is self.stop_reason:
            return
        self.stop_reason = reason
        self.stops += 1
        self.stopped_at = self.stopped_at or self.reactor.clock()
        if self.stops > 2:
            error_logger.error("exiting at once")
            sys.stderr.flush()
            os._exit(1)
        self.wake()

    def left_for_threads(self) -> float:
        """Tell how many seconds the app's threads still have to end, when all else has."""
        if self.stops > 1:
            return 0.0
        now = self.reactor.clock()
        began = self.stopped_at or now
        return began + self.config.timeout_graceful_shutdown + TIDY_TIME - now

    def install_signals(self) -> Callable[[], None]:
        """Take the signals; return what gives them back."""
        names = (*STOP_SIGNALS, *RELOAD_SIGNALS, *REOPEN_SIGNALS)
        return route_signals(self.reactor, names, self.on_signal)

    def on_signal(self, number: int) -> None:
        """Act on a signal, between two handlers."""
        name = signal.Signals(number).name
        lost_terminal = name in RELOAD_SIGNALS and self.had_terminal and not has_terminal()
        if name in STOP_SIGNALS or lost_terminal:
            self.stop()
        elif name in RELOAD_SIGNALS:
            self.reload()
        elif name in REOPEN_SIGNALS:
            reopen_logs()
            error_logger.info("%s", connection_table(self.service))

    def reload(self) -> None:
        """Look at the certificates again, and open the log files anew."""
        self.notifier.tell_reloading()
        reopen_logs()
        if self.entrance.certificates is not None:
            self.entrance.certificates.renew(force=True)
        error_logger.info("reloaded: log files and certificates")
        self.notifier.tell_ready(f"serving on {', '.join(self.urls)}")

    # -- odds and ends -------------------------------------------------------------------------

    def tell_date(self) -> float:
        """Renew the Date line; return for how many seconds it holds."""
        now = self.wall_clock()
        defaults = self.service.defaults
        defaults.set(b"date: " + http_date(now) + b"\r\n", defaults.server)
        return 1.0 - now % 1.0

    def on_asyncio(self, stepper: Stepper) -> None:
        """The app has imported asyncio after all: new requests are stepped by it."""
        self.service.stepper = stepper
        self.service.context.run(current_stepper.set, stepper)

    def on_fault(self, exc: Exception) -> None:
        """Tell a bug of ours, loudly; if it was a connection's, that is closed already."""
        error_logger.critical("selectserve has a bug, please report it", exc_info=exc)

    def close(self) -> None:
        """Release everything that is left."""
        self.collector.restore()
        self.watchdog.stop()
        if self.inspector is not None:
            self.inspector.close()
        if self.service.memory is not None:
            self.service.memory.stop()
        for listener in self.listeners:
            listener.close()
        for file in self.socket_files:
            file.remove()
        self.entrance.close()
        for connection in list(self.service.connections):
            connection.transport.abort()
        if self.service.access_log is not None and self.stops < 2:
            self.service.access_log.close()
        self.reactor.close()


def prepare(config: Config, make: Callable[[], Result]) -> Result | int:
    """Set logging up and ``make`` what is to run, app and all; or return the exit code."""
    threads = waited_threads()
    chosen = config.log_level if "log_level" in config.values or not config.log_config else None
    try:
        if config.env_file:
            load_env_file(config.env_file, os.environ)
        if config.log_config:
            load_log_config(config.log_config)
        set_up_logging(chosen, config.use_colors, config.access_log_format)
        return make()
    except ConfigError as exc:
        set_up_logging(config.log_level, config.use_colors)  # if it was that which failed
        error_logger.error("%s", exc)
        code = exc.exit_code
    except KeyboardInterrupt:  # the app's import takes its time; the signals are not ours yet
        error_logger.info("stopped while loading the app")
        code = 0
    except Exception as exc:
        error_logger.error("the app %r could not be loaded", config.app, exc_info=own_info(exc))
        code = 1
    limit_threads(threads, lambda: 0.0)  # of what there was of the app
    return code
