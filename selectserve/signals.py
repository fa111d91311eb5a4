"""signals: what the system says to a process, brought in through the reactor's wakeup pair.

A signal interrupts whatever runs; what is to be done about it is done between two handlers. Server
and supervisor say which ones they want. A process that the app forks gives them back.
"""

from __future__ import annotations

import os
import signal
from contextvars import ContextVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Callable

    from .reactor import Reactor

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGBREAK")
RELOAD_SIGNALS = ("SIGHUP",)
REOPEN_SIGNALS = ("SIGUSR1",)


def route_signals(
    reactor: Reactor, names: Sequence[str], on_signal: Callable[[int], object]
) -> Callable[[], None]:
    """Route signals through the wakeup pair; return what undoes it.

    Outside of the main thread Python allows no handlers, and none are wanted: the host program
    owns the process.
    """
    try:
        wakeup = signal.set_wakeup_fd(reactor.wakeup_sender.fileno(), warn_on_full_buffer=False)
    except ValueError:
        return lambda: None
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    for number in list(numbers):  # under nohup a hang-up is to mean nothing at all
        if number.name in RELOAD_SIGNALS and signal.getsignal(number) == signal.SIG_IGN:
            numbers.remove(number)
    home = os.getpid()
    taken: list[signal.Signals] = []  # by our handlers, and not acted on yet

    def act(_number: int = 0) -> None:
        while taken:
            on_signal(taken.pop(0))

    def take(number: int, _frame: object) -> None:
        if os.getpid() != home and number != signal.SIGINT:
            leave()
            return os.kill(os.getpid(), number)
        # A byte alone may be of a process that the app has forked: that has the pair, too.
        taken.append(signal.Signals(number))
        if len([one for one in taken if one.name in STOP_SIGNALS]) > 2:
            os.write(2, b"exiting at once, in the middle of a step\n")
            os._exit(1)
        reactor.call_from_thread(act)  # PyPy may come here when the byte was read already

    def give_back(spared: int = 0) -> None:
        for number, handler in previous:
            if number != spared:
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def leave() -> None:
        # A fork of the app's obeys its signals, but for Ctrl-C, which goes to all: we may need it.
        if previous:
            try:
                give_back(signal.SIGINT)
                signal.set_wakeup_fd(-1)
            except ValueError:
                pass  # PyPy allows it in no thread's fork before the hooks have run: see take

    def restore() -> None:
        give_back()
        previous.clear()
        signal.set_wakeup_fd(wakeup)

    previous = [(number, signal.signal(number, take)) for number in numbers]
    reactor.on_signal = act
    if hasattr(os, "register_at_fork"):
        hold, go_on = hold_back(numbers)
        os.register_at_fork(before=hold, after_in_parent=go_on, after_in_child=leave)
        os.register_at_fork(after_in_child=go_on)
    return restore


def hold_back(numbers: Sequence[int]) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return what holds signals back around a fork, and what lets them come.

    One that comes to the child while our handlers are still there would be lost: SIGTERM by
    multiprocessing's Pool, which then waits for ever.
    """
    mask: ContextVar[Any] = ContextVar("mask")  # each thread that is just forking has its own

    def hold() -> None:
        mask.set(signal.pthread_sigmask(signal.SIG_BLOCK, numbers))

    def go_on() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask.get())

    return hold, go_on
