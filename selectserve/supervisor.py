"""supervisor: many workers and one who looks after them: it starts, replaces and ends them.

A user of the reactor like any other: it waits for signals (SIGCHLD among them, through the wakeup
pair), for what workers say on their channels, and for its deadlines; it never polls. All that it
does to workers follows from ``balance``, which compares those who serve with those who are wanted:
too few, and one is started; one that is stale gets a successor first, and retires when that
serves. So a crash, a restart (HUP), TTIN and TTOU, and recycling by requests, age and memory are
the same thing. An heir is a new version of the supervisor itself, which takes the sockets (USR2).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys

from .certificates import make_certificates
from .errors import ConfigError
from .logs import error_logger, has_terminal, printable, reopen_logs
from .process import (
    SUPERVISOR_SIGNALS,
    Child,
    can_fork,
    check_platform,
    describe_exit,
    enter_directory,
    fork_process,
    page_file,
    preload,
    resident_size,
    spawn_process,
    start_directory,
)
from .reactor import Deadline, Reactor
from .server import CLEAN_UP_TIME
from .signals import RELOAD_SIGNALS, REOPEN_SIGNALS, STOP_SIGNALS, route_signals
from .sockets import SocketFile, open_sockets
from .systemd import Notifier
from .worker import BEAT_INTERVAL, Channel, Slate, channel_pair, health_patience, run_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    import subprocess
    from typing import Callable

    from .config import Config
    from .process import Role

RESTARTED = "restart"  # why a worker is stale after HUP
MAX_FAILURES = 5  # deaths at the start, in a row, until we give up
MAX_BACK_OFF = 30.0  # seconds until the next worker is started, however often they die
CALM = 10.0  # seconds without a death after which all is forgiven
OWN_LAG = 1.0  # a deadline that comes so much too late says that we were stopped ourselves
HURRY_TIME = 1.5  # seconds for a worker to show that it turns, when it is in a hurry
REFUSED_DELAY = 1.0  # seconds until a process is asked for again
REAP_DELAY = 0.05  # seconds between the end of a channel and that of its process


class Supervisor:
    """Keep ``config.workers`` workers; ``run`` returns the exit code.

    ``role`` is ours as somebody's heir, when a supervisor has handed its sockets over.
    """

    def __init__(self, config: Config, role: Role | None = None) -> None:
        self.config = config
        self.wanted = config.workers
        self.cwd = start_directory()
        self.forks = can_fork(config)
        check_platform(config, self.forks)
        if config.ssl_context_factory is None:
            make_certificates(config)  # else each worker would complain about a bad one
        if config.preload:
            preload(config)
        self.reactor = Reactor()
        self.reactor.on_fault = self.on_fault
        if role is None:
            self.sockets, self.files = open_sockets(config)
        else:
            self.sockets, self.files = role.sockets, []
        self.inheritance = [] if role is None else role.files  # ours once we serve
        self.predecessor = (
            None if role is None else Channel(self.reactor, role.link, ignore_line, int)
        )
        if role is not None:  # the watchdog waits for us, when it hears of us, and not for him
            os.environ.pop("WATCHDOG_PID", None)
        self.notifier = Notifier(os.environ, self.reactor)
        self.had_terminal = has_terminal()
        self.children: list[Child] = []
        self.heir: Child | None = None
        self.restore_signals: Callable[[], object] = int
        self.patience = health_patience(config)
        self.stops = 0
        self.exit_code = 0
        self.announced = False
        self.rolling = False  # a restart is under way
        self.failures = 0  # deaths in a row
        self.last_failure = -CALM
        self.start_at = 0.0  # not before, after deaths
        self.urls = ""

    def run(self) -> int:
        """Supervise until stopped; return the exit code. Blocks; installs signal handlers."""
        names = (*STOP_SIGNALS, *RELOAD_SIGNALS, *REOPEN_SIGNALS, "SIGCHLD", *SUPERVISOR_SIGNALS)
        self.restore_signals = route_signals(self.reactor, names, self.on_signal)
        try:
            self.balance()
            self.reactor.run()
            return self.exit_code
        finally:
            self.restore_signals()
            self.release_sockets()
            self.reactor.close()

    # -- those who serve, and those who are wanted ---------------------------------------------

    def balance(self) -> None:
        """Start, replace and retire workers until as many serve as are wanted, none of them stale.

        One successor at a time, so that a restart needs room for one worker more only.
        """
        if self.stops:
            if not self.children:
                self.reactor.stop()
            return
        serving = [child for child in self.children if child.state == "serving"]
        starting = [child for child in self.children if child.state == "starting"]
        if self.heir in starting:
            starting.remove(self.heir)
        serving.sort(key=lambda child: not child.stale)  # the stale ones first, then by age
        while len(serving) > self.wanted:
            self.leave(serving.pop(0), "retire")
        missing = self.wanted - len(serving) - len(starting)
        stale = any(child.stale for child in serving)
        if missing > 0 or (stale and not starting):
            self.start_workers(max(1, missing))
        elif not stale and not starting:
            self.on_balance()

    def on_balance(self) -> None:
        """All is as it should be: say so, if that is news."""
        if not self.announced:
            self.announced = True
            error_logger.info(
                "selectserve running on %s (%s, process %d, Ctrl-C to stop)",
                self.urls,
                self.describe(),
                os.getpid(),
            )
            if self.predecessor is not None:
                self.predecessor.send(f"ready {self.urls}")
                self.files = list(map(SocketFile, self.inheritance))
        elif self.rolling:
            error_logger.info("restarted: all workers are new")
        else:
            return
        self.rolling = False
        self.notifier.tell_ready(f"serving on {self.urls}")

    def describe(self) -> str:
        """Say in a word what we are."""
        return count_workers(self.wanted)

    def start_workers(self, number: int) -> None:
        """Start so many, or come back when the last deaths are long enough ago."""
        now = self.reactor.clock()
        if now < self.start_at:
            self.reactor.call_at(self.start_at, self.balance)
            return
        try:
            for _ in range(number):
                self.start("worker")
        except OSError as exc:
            self.on_no_process(exc)

    def on_no_process(self, exc: OSError) -> None:
        """The system has no process for us: without any we end, else we come back later."""
        error_logger.error("no worker can be started: %s", exc.strerror or exc)
        if self.children:
            self.back_off()
            self.reactor.call_at(self.reactor.clock() + REFUSED_DELAY, self.balance)
        else:
            self.exit_code = 1
            self.reactor.call_soon(lambda: self.begin_stop("stop"))

    def on_death(self, child: Child, code: int) -> None:
        """A worker has ended without being told to."""
        request = child.slate.read()
        error_logger.log(
            logging.ERROR if code else logging.INFO,
            "worker %d %s%s: another starts",
            child.pid,
            describe_exit(code),
            f" (last request: {printable(request)})" if request else "",
        )
        self.back_off()

    def back_off(self) -> None:
        """Wait before the next start: not after the first death, then twice as long each time.

        Those who die together count once.
        """
        now = self.reactor.clock()
        if now < self.start_at:
            return
        self.failures = 1 if now - self.last_failure > CALM else self.failures + 1
        self.last_failure = now
        if self.failures > 1:
            self.start_at = now + min(MAX_BACK_OFF, 0.1 * 2 ** (self.failures - 2))

    def on_failed_start(self, child: Child, code: int) -> None:
        """A worker has ended before it served: the others go on; without others we end too."""
        self.back_off()
        how = describe_exit(code)
        if any(other.state == "serving" for other in self.children):
            error_logger.error("worker %d %s before it served", child.pid, how)
            if self.rolling:
                error_logger.error("restart given up: the old workers go on")
                self.rolling = False
                self.notifier.tell_ready(f"serving on {self.urls}")
                for other in self.children:
                    other.stale = other.stale if other.stale != RESTARTED else ""
        elif code >= 0 or self.failures >= MAX_FAILURES:
            error_logger.error("worker %d %s before it served: giving up", child.pid, how)
            self.exit_code = code if code > 0 else 1
            self.begin_stop("stop")
        else:
            error_logger.error("worker %d %s before it served; another starts", child.pid, how)

    def replace(self, child: Child, reason: str) -> None:
        """Have a worker replaced, its successor first."""
        if child.state == "serving" and not child.stale:
            error_logger.info("worker %d is to be replaced: %s", child.pid, reason)
            child.stale = reason
            self.balance()

    # -- starting ------------------------------------------------------------------------------

    def start(self, kind: str) -> Child:
        """Start a worker or an heir."""
        ours, theirs = channel_pair()
        forked = self.forks and kind == "worker"
        slate = Slate(-1 if forked else page_file())
        process: subprocess.Popen[bytes] | int
        try:
            if forked:
                process = fork_process(
                    lambda: self.forget_parent(ours),
                    lambda: run_worker(self.config, self.sockets, theirs, slate),
                )
            else:
                role = {
                    "kind": kind,
                    "watch": self.config.reload,
                    "files": [file.path for file in self.files],
                }
                process = spawn_process(role, [theirs, *self.sockets], slate, self.cwd)
        except OSError:
            ours.close()
            slate.close()
            raise
        finally:
            theirs.close()
        child = Child(process, slate, Deadline(self.reactor, lambda: self.on_deadline(child)))
        child.channel = Channel(
            self.reactor,
            ours,
            lambda line: self.on_line(child, line),
            lambda: self.on_channel_end(child),
        )
        self.children.append(child)
        return child

    def forget_parent(self, end: socket.socket) -> None:
        """Put off, in a fork, what is the supervisor's: signals, ends of channels, the selector."""
        self.restore_signals()
        enter_directory(self.cwd)
        end.close()
        for child in self.children:
            if child.channel is not None:
                child.channel.transport.sock.close()
        self.reactor.close()
        if not self.config.preload:  # what the host program wants done at its end, we must not do
            import atexit

            atexit._clear()

    # -- what workers say ----------------------------------------------------------------------

    def on_line(self, child: Child, line: str) -> None:
        """Hear a worker."""
        word, _, rest = line.partition(" ")
        child.last_beat = self.reactor.clock()
        if word == "ready":
            self.on_ready(child, rest)
        elif word == "replace":
            self.replace(child, rest)
        elif word == "files":
            self.on_files(child, json.loads(rest))
        elif child.state == "serving":
            self.on_beat(child)

    def on_ready(self, child: Child, urls: str) -> None:
        """A worker serves; an heir has workers who do."""
        if child.state != "starting":
            return
        child.state = "serving"
        if child is self.heir:
            self.hand_over(child)
            return
        self.urls = urls
        if self.config.max_worker_age:
            chance = 1.0 + os.urandom(1)[0] / 2550  # up to a tenth more: not all at once
            child.age = self.reactor.call_later(
                self.config.max_worker_age * chance, lambda: self.replace(child, "it is old")
            )
        self.on_beat(child)
        self.balance()

    def on_beat(self, child: Child) -> None:
        """A worker turns."""
        child.silent = False
        if self.patience:
            child.expect(self.reactor.clock() + self.patience / 2)
        if self.config.max_worker_memory:
            used = resident_size(child.pid)
            if used > self.config.max_worker_memory:
                self.replace(child, f"it uses {used >> 20} MB")

    def on_files(self, child: Child, files: list[str]) -> None:
        """A worker tells which files the app consists of; of interest to a Reloader only."""

    def on_channel_end(self, child: Child) -> None:
        """A worker is about to end, or has; where there is no SIGCHLD nothing else tells."""
        if not hasattr(signal, "SIGCHLD"):
            self.reactor.call_later(REAP_DELAY, self.reap)

    def on_deadline(self, child: Child) -> None:
        """A worker has been silent for half of its time, or all of it; or does not leave."""
        now = self.reactor.clock()
        if now - child.due > OWN_LAG:  # it was stopped with us, or could not be heard
            child.expect(now + max(OWN_LAG, self.patience / 2))
        elif child.state == "leaving":
            if now - child.last_beat < 2 * BEAT_INTERVAL + OWN_LAG and now < child.end:
                child.expect(now + OWN_LAG)
            else:
                error_logger.error("worker %d does not end: killed", child.pid)
                self.exit_code = self.exit_code or (1 if self.stops else 0)
                child.kill()
        else:
            self.on_silence(child)

    def on_silence(self, child: Child) -> None:
        """A worker does not turn: say so, it shows its stack itself; the second time kill it."""
        patience = self.patience
        request = printable(child.slate.read()) or "none"
        if not child.silent:
            child.silent = True
            error_logger.warning(
                "worker %d has been blocked for %.1f s (last request: %s)",
                child.pid,
                patience / 2,
                request,
            )
            child.expect(self.reactor.clock() + patience / 2)
        else:
            error_logger.error(
                "worker %d has been blocked for %.1f s: killed (last request: %s)",
                child.pid,
                patience,
                request,
            )
            child.state = "leaving"
            child.kill()
            self.back_off()

    # -- the ends of workers -------------------------------------------------------------------

    def leave(self, child: Child, how: str) -> None:
        """Tell a child to ``retire`` or to ``stop``; from now on its days are numbered."""
        if child.state == "starting" or child is self.heir:
            child.send_signal(signal.SIGTERM)  # perhaps nothing turns there yet
        child.send(how)
        config = self.config
        now = self.reactor.clock()
        if child.state != "leaving":
            child.state = "leaving"
            child.end = now + config.timeout_graceful_shutdown + config.timeout_lifespan + CALM
            child.expect(now + config.timeout_graceful_shutdown + 2 * CLEAN_UP_TIME)

    def hurry(self, child: Child) -> None:
        """Have a child skip its drain; soon it has to show that it can."""
        child.send("hurry")
        if child is self.heir:
            child.send_signal(signal.SIGTERM)
        elif child.channel is None or not child.channel.is_open:
            child.send_signal(signal.SIGINT)  # it turns no more: it may wait for threads
        child.last_beat = -CALM
        child.expect(self.reactor.clock() + HURRY_TIME)

    def reap(self) -> None:
        """See who has ended."""
        for child in list(self.children):
            code = child.poll()
            if code is not None:
                self.children.remove(child)
                self.on_exit(child, code)
                child.close()
            elif child.channel is not None and not child.channel.is_open:
                self.on_channel_end(child)
        self.balance()

    def on_exit(self, child: Child, code: int) -> None:
        """A child has ended: as it was told to, or not."""
        if child is self.heir:
            self.heir = None
            level = logging.INFO if self.stops else logging.ERROR
            end = "" if self.stops else ": we go on"
            error_logger.log(level, "the new version %s%s", describe_exit(code), end)
        elif child.state == "leaving":
            error_logger.info("worker %d %s", child.pid, describe_exit(code))
            if self.stops and code > 0:
                self.exit_code = code
        elif child.state == "starting":
            self.on_failed_start(child, code)
        else:
            self.on_death(child, code)

    # -- signals -------------------------------------------------------------------------------

    def on_signal(self, number: int) -> None:
        """Act on a signal, between two handlers."""
        name = signal.Signals(number).name
        lost_terminal = name in RELOAD_SIGNALS and self.had_terminal and not has_terminal()
        if name == "SIGCHLD":
            self.reap()
        elif name in STOP_SIGNALS or lost_terminal:
            self.stop()
        elif name in REOPEN_SIGNALS:
            self.reopen()
        elif self.stops:
            pass  # the rest is about going on
        elif name in RELOAD_SIGNALS:
            self.restart()
        elif name == "SIGUSR2":
            self.call_heir()
        else:
            self.wanted = max(1, self.wanted + (1 if name == "SIGTTIN" else -1))
            error_logger.info("wanted from now on: %s", count_workers(self.wanted))
            self.balance()

    def stop(self) -> None:
        """Stop; called again, let nobody finish; a third time, exit at once."""
        self.stops += 1
        if self.stops == 1:
            error_logger.info("shutting down: %s to end", count_workers(len(self.children)))
            self.begin_stop("stop")
        elif self.stops == 2:
            error_logger.warning("requests are not waited for any longer")
            for child in self.children:
                self.hurry(child)
        else:
            error_logger.error("exiting at once")
            for child in self.children:
                child.kill()
            sys.stderr.flush()
            os._exit(1)

    def begin_stop(self, how: str) -> None:
        """Close the sockets and have all workers ``stop`` or ``retire``."""
        self.stops = max(1, self.stops)
        if how == "stop":  # else an heir goes on
            self.notifier.tell_stopping()
        self.release_sockets()
        for child in self.children:
            self.leave(child, how)
        self.balance()

    def release_sockets(self) -> None:
        """Close our copies of the listening sockets; files that are ours are removed."""
        for sock in self.sockets:
            sock.close()
        for file in self.files:
            file.remove()

    def reopen(self) -> None:
        """Open the log files anew, everywhere."""
        reopen_logs()
        for child in self.children:
            child.send("reopen")

    def restart(self) -> None:
        """Replace all workers, one after the other."""
        error_logger.info("restarting the workers one by one")
        self.notifier.tell_reloading()
        reopen_logs()
        self.rolling = True
        for child in self.children:
            child.stale = RESTARTED
        self.balance()

    def call_heir(self) -> None:
        """Start a new version of ourselves, which may be other code by now, with our sockets."""
        if self.heir is None:
            try:
                self.heir = self.start("heir")
            except (OSError, ConfigError) as exc:  # no process, program or directory any more
                error_logger.error("no new version can be started: %s", exc)
            else:
                error_logger.info("started process %d to take over", self.heir.pid)

    def hand_over(self, heir: Child) -> None:
        """The new version serves: leave it the sockets and their files, and retire."""
        error_logger.info("process %d has taken over", heir.pid)
        self.notifier.tell(f"MAINPID={heir.pid}")
        self.files.clear()
        self.children.remove(heir)
        self.heir = None
        heir.close()
        self.begin_stop("retire")

    def on_fault(self, exc: Exception) -> None:
        """Tell a bug of ours, loudly; the workers go on."""
        error_logger.critical("selectserve has a bug, please report it", exc_info=exc)


def count_workers(number: int) -> str:
    """Say how many."""
    return "1 worker" if number == 1 else f"{number} workers"


def ignore_line(_line: str) -> None:
    """A predecessor has nothing to tell us; it sends a signal."""
