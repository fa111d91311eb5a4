"""process: how a supervisor's processes begin and end: forks, and our command line run once more.

A fork is a copy of us that puts off what was the supervisor's. Where that is not to be had or not
wanted, the same command line is run again; the environment tells the new process its Role and
which descriptors it has inherited. Child is the supervisor's view of either.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys

from .ending import join_threads, overhear
from .errors import ConfigError
from .importer import load_app
from .logs import error_logger
from .reactor import Deadline
from .stray import exit_status
from .worker import SLATE_SIZE, Channel, Slate, run_worker

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import MutableMapping
    from typing import Any, Callable, Literal

    from .config import Config
    from .reactor import Timer

    ChildState = Literal["starting", "serving", "leaving"]

ROLE_VARIABLE = "SELECTSERVE_ROLE"
SUPERVISOR_SIGNALS = ("SIGTTIN", "SIGTTOU", "SIGUSR2")


class Child:
    """A process of the supervisor's: a worker, or its heir.

    starting -> serving (it said ready) -> leaving (it was told to) -> gone
    """

    def __init__(
        self, process: subprocess.Popen[bytes] | int, slate: Slate, deadline: Deadline
    ) -> None:
        self.process = process
        self.pid = process if isinstance(process, int) else process.pid
        self.slate = slate
        self.deadline = deadline  # of the health check, later of the end
        self.due = 0.0  # when that comes
        self.state: ChildState = "starting"
        self.stale = ""  # why it is to be replaced
        self.channel: Channel | None = None
        self.last_beat = 0.0
        self.silent = False  # half of the patience with it is used up
        self.end = 0.0  # by then it is to be gone, once it is leaving
        self.age: Timer | None = None

    def __repr__(self) -> str:
        return f"<Child {self.pid} {self.state}>"

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, None while it runs."""
        if not isinstance(self.process, int):
            return self.process.poll()
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else has waited for it
            return 0
        return os.waitstatus_to_exitcode(status) if pid else None

    def send(self, line: str) -> None:
        """Tell it something."""
        if self.channel is not None:
            self.channel.send(line)

    def send_signal(self, number: int) -> None:
        """Send a signal; it may be gone already, though not reaped, so the pid is still its own."""
        try:
            os.kill(self.pid, number)
        except OSError:
            pass

    def kill(self) -> None:
        """End it."""
        self.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))

    def expect(self, at: float) -> None:
        """Set the deadline."""
        self.due = at
        self.deadline.set(at)

    def close(self) -> None:
        """Release what belonged to it."""
        self.deadline.close()
        self.slate.close()
        if self.age is not None:
            self.age.cancel()
        if self.channel is not None:
            self.channel.close()


def fork_process(forget: Callable[[], object], work: Callable[[], int]) -> int:
    """Fork a process that does ``work`` after it did ``forget``, and ends; return its pid.

    Until the child has put off what it inherited, a signal to it would reach the supervisor
    through the wakeup pair that both have: so none is let in.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        raise
    if not pid:
        code = 1
        try:
            forget()
            leave_signals()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            code = work()
        except SystemExit as exc:
            code = exit_status(exc)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            end_process(code)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def leave_signals() -> None:
    """Leave to the supervisor what is meant for it, in a process of its own making."""
    signal.signal(signal.SIGINT, overhear)  # see Worker.on_signal
    ignore_signals(*SUPERVISOR_SIGNALS)


def ignore_signals(*names: str, say: str = "") -> None:
    """Let the supervisor's signals end nobody else: the whole group may get them.

    ``say`` is logged then. Whoever handles one already, the app or the host program, goes on to.
    """

    def on_signal(*_: object) -> None:
        if say:
            error_logger.warning(say)

    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        if signal.getsignal(number) == signal.SIG_DFL:
            try:
                signal.signal(number, on_signal)
            except ValueError:  # not the main thread
                return


def spawn_process(
    role: dict[str, Any], handed: list[socket.socket], slate: Slate, cwd: str
) -> subprocess.Popen[bytes]:
    """Run our own command line again, with ``role`` and the sockets ``handed``, a link first."""
    if os.name != "posix":
        return spawn_with_shares(role, handed)
    import subprocess

    descriptors = [sock.fileno() for sock in handed]
    role = {**role, "sockets": descriptors, "slate": slate.fd}
    environ = {**os.environ, ROLE_VARIABLE: json.dumps(role)}
    # Ctrl-C is for the supervisor alone, also before the child can say so itself.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        return subprocess.Popen(
            command_again(), env=environ, cwd=cwd, pass_fds=[*descriptors, slate.fd]
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class Role:
    """Who we are, as one whom a supervisor has started anew: ``worker`` or ``heir``."""

    def __init__(self, told: dict[str, Any], sockets: list[socket.socket]) -> None:
        self.kind = str(told["kind"])
        self.watch = bool(told["watch"])
        self.files: list[str] = told["files"]
        self.slate = int(told.get("slate", -1))
        self.link, *self.sockets = sockets


def take_role(environ: MutableMapping[str, str]) -> Role | None:
    """Return what the environment says of us, once; None when nobody has started us so."""
    text = environ.pop(ROLE_VARIABLE, "")
    if not text:
        return None
    told = json.loads(text)
    if "sockets" not in told:
        return Role(told, receive_shares())
    for number in (*told["sockets"], told["slate"]):
        os.set_inheritable(number, False)
    # Others accept on these already. A new socket object has the default timeout: PyPy applies it
    # to the descriptor, and theirs, by no way back, would be a blocking one.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.0)
    try:
        return Role(told, [socket.socket(fileno=number) for number in told["sockets"]])
    finally:
        socket.setdefaulttimeout(before)


def run_spawned(config: Config, role: Role) -> int:
    """Be a worker that was started anew; return the exit code."""
    leave_signals()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))
    return run_worker(config, role.sockets, role.link, Slate(role.slate), role.watch)


def spawn_with_shares(
    role: dict[str, Any], sockets: list[socket.socket]
) -> subprocess.Popen[bytes]:
    """Start a process on Windows, where sockets are handed over by a text made for its pid."""
    import base64
    import subprocess

    environ = {**os.environ, ROLE_VARIABLE: json.dumps(role)}
    process = subprocess.Popen(command_again(), env=environ, stdin=subprocess.PIPE)
    shares: list[Any] = [getattr(sock, "share")(process.pid) for sock in sockets]  # noqa: B009
    if process.stdin is not None:
        process.stdin.write(json.dumps([base64.b64encode(s).decode() for s in shares]).encode())
        process.stdin.close()
    return process


def receive_shares() -> list[socket.socket]:
    """Take over, on Windows, the sockets that a supervisor has written to our standard input."""
    import base64

    from_share: Any = getattr(socket, "fromshare")  # noqa: B009
    return [from_share(base64.b64decode(text)) for text in json.loads(sys.stdin.read())]


def command_again() -> list[str]:
    """Return the command line that started this process, to be run once more."""
    original: list[str] = getattr(sys, "orig_argv", [])  # since Python 3.10
    program = sys.modules["__main__"]
    if original[1:] and (sys.argv[0] != "" or "-c" in original):
        return [sys.executable, *original[1:]]
    import subprocess

    again = [sys.executable, *getattr(subprocess, "_args_from_interpreter_flags", list)()]
    spec = getattr(program, "__spec__", None)
    if spec is not None and spec.name != "__main__":  # else it is an archive, or a folder
        return [*again, "-m", spec.name.replace(".__main__", ""), *sys.argv[1:]]
    if not getattr(program, "__file__", None):
        raise ConfigError("there is no program that could be started again: use a file, or -m", 2)
    return [*again, *sys.argv]


def start_directory() -> str:
    """Return where we are by the name that the shell has for it.

    That may be a link to the newest release: who starts later is to follow it again.
    """
    here = os.getcwd()
    name = os.environ.get("PWD", "")
    try:
        return name if name and os.path.samefile(name, here) else here
    except OSError:
        return here


def enter_directory(path: str) -> None:
    """Go there, if it still is."""
    try:
        os.chdir(path)
    except OSError as exc:
        error_logger.warning("cannot change to %s: %s", path, exc.strerror)


def can_fork(config: Config) -> bool:
    """Tell whether workers are forks: where there are no other threads, which a fork would lose."""
    if config.worker_start == "spawn" or config.reload or not hasattr(os, "fork"):
        return False
    threading: Any = sys.modules.get("threading")
    alone = threading is None or threading.active_count() == 1
    return config.worker_start == "fork" or alone or not isinstance(config.app, str)


def check_platform(config: Config, forks: bool) -> None:
    """Refuse what this system, or this way of starting workers, does not have."""
    if not forks:
        if config.preload or config.worker_start == "fork":
            raise ConfigError("--preload and --worker-start fork need a system with os.fork", 2)
        if config.app is not None and not isinstance(config.app, str):
            raise ConfigError("processes need the app as module:attribute, not as an object", 2)
        try:
            command_again()
            import subprocess  # noqa: F401
        except ImportError as exc:
            raise ConfigError(f"this Python cannot start other processes: {exc}") from None
    threading: Any = sys.modules.get("threading")
    if threading is not None and threading.current_thread() is not threading.main_thread():
        raise ConfigError("--workers and --reload need the main thread, for its signals", 2)
    if config.max_worker_memory and not resident_size(os.getpid()):
        raise ConfigError("--max-worker-memory: this system has no /proc to ask", 2)


def preload(config: Config) -> None:
    """Import the app before the first fork; the workers share its memory until they write."""
    if isinstance(config.app, str):
        load_app(config.app, config.app_dir)
    threading: Any = sys.modules.get("threading")
    if threading is not None and threading.active_count() > 1:
        error_logger.warning("APP has started threads at its import: no worker will have them")
    import gc

    gc.collect()
    if hasattr(gc, "freeze"):  # else each collection would touch, and copy, all of it
        gc.freeze()


def page_file() -> int:
    """Return the descriptor of a nameless file for a Slate; -1 where no child can inherit it."""
    if os.name != "posix":
        return -1
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("selectserve")
    else:
        import tempfile

        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, SLATE_SIZE)
    return fd


def resident_size(pid: int) -> int:
    """Return how many bytes of memory a process uses, 0 where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def describe_exit(code: int) -> str:
    """Say how a process has ended."""
    if code >= 0:
        return f"ended with exit code {code}" if code else "ended"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}"


def end_process(code: int) -> None:
    """End a fork here: what comes after ``run`` in the host program is not for it."""
    import atexit
    import logging

    try:
        join_threads()
        atexit._run_exitfuncs()
        logging.shutdown()
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except BaseException as exc:
        print(f"at the end of a worker: {exc!r}", file=sys.stderr)
    finally:
        os._exit(code)
