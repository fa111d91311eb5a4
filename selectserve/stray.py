"""stray: a process that the app has forked in the middle of its work, and that is no server.

It has a copy of everything and shares what the kernel keeps: sockets, the selector, the wakeup
pair. While it does what it was forked for, that is nobody's business; but it must not come back
to the server, which is the parent's. So in the child, and there alone, whatever leads back ends
the process instead, and its copies of the sockets are closed. The hot path knows nothing of it.

    fork -> leave_server -> (the app: os._exit, exec) | end_stray
"""

from __future__ import annotations

import os
import sys

from .logs import error_logger, own_info

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, NoReturn

    from .server import Server


class StraySelector:
    """Stands in for the selector, which is one object for both: nothing is registered in it.

    Who would wait has come back. What the parent waits for is kept, not finalised in the child.
    """

    def __init__(self, *kept: object) -> None:
        self.kept = kept

    def register(self, *_: object) -> None:
        """Nobody will hear of it."""

    modify = unregister = register

    def get_key(self, fileobj: object) -> Any:
        """Nothing is registered."""
        raise KeyError(fileobj)

    def get_map(self) -> dict[Any, Any]:
        """Nothing is registered."""
        return {}

    def select(self, _timeout: float | None = None) -> Any:
        """The end."""
        end_stray()


class StrayTasks(set["Any"]):
    """Stands in for a stepper's tasks: to wait is to come back."""

    def add(self, _task: object) -> None:
        """The end."""
        end_stray()


def watch_forks(leave: Callable[[], object]) -> Callable[[], None]:
    """Have ``leave`` called in each process that is forked from now on; return what ends that.

    subprocess forks without Python's hooks, and needs none: what it runs inherits no socket.
    """
    watching = [leave]

    def on_fork() -> None:
        for call in watching:
            call()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=on_fork)
    return watching.clear


def leave_server(server: Server) -> None:
    """Make the server's copy in a forked process harmless, and each way back to it the end."""
    reactor, service = server.reactor, server.service
    server.collector.unwatch()
    steppers: list[Any] = [server.stepper, service.stepper]
    kept = [stepper.tasks for stepper in steppers]
    for stepper in steppers:
        stepper.tasks = StrayTasks()
        if hasattr(stepper, "loop"):
            stepper.loop.call_soon_threadsafe = hear_thread
    selector: Any = StraySelector(reactor.selector, reactor.timers, kept)
    reactor.selector, reactor.timers = selector, []
    reactor.unflushed.clear()
    reactor.ready.appendleft(end_stray)
    reactor.woken = True  # no byte wakes the parent
    reactor.on_return = reactor.on_fault = service.on_change = end_stray
    service.access_log = None
    transports = [connection.transport for connection in service.connections]
    transports += [arrival.transport for arrival in server.entrance.pending]
    for transport in transports:
        transport.state = "closed"
        transport.sock.close()
    for listener in server.listeners:
        listener.sock.close()


def hear_thread(callback: Any, *args: Any, context: Any = None) -> None:
    """End where a thread of asyncio's or anyio's has done its work: it would wait for more."""
    if getattr(callback, "__name__", "") in ("_set_state", "_report_result"):
        exc = args[-1]
        end_stray(exc.exception() if hasattr(exc, "exception") else exc)


def end_stray(exc: BaseException | None = None) -> NoReturn:
    """End a process that the app has forked, where it comes back: with the code of its SystemExit.

    Without one it was not meant to come, and that is told.
    """
    code = 1
    try:
        if isinstance(exc, SystemExit):
            code = exit_status(exc)
        else:
            error_logger.error(
                "process %d, forked by the app, came back to the server and is ended: "
                "its way out is os._exit()",
                os.getpid(),
                exc_info=None if exc is None else own_info(exc),
            )
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    finally:
        os._exit(code)


def exit_status(exc: SystemExit) -> int:
    """Return the exit code that Python would end with."""
    if exc.code is None or isinstance(exc.code, int):
        return exc.code or 0
    print(exc.code, file=sys.stderr)
    return 1
