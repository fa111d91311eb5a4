"""ending: how long Python waits, at the end of a process, for what the app has at work in threads.

Python joins all threads but daemons, however long they take, and no signal it knows of ends that in
an orderly way. Here they have a deadline, and a signal is one; the exit code, the functions of
atexit and the threads that a program had before it served are as ever.
"""

from __future__ import annotations

import signal
import sys

from .logs import error_logger

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

LAST_TIME = 0.5  # seconds for idle threads to end


def overhear(_number: int, _frame: object) -> None:
    """Leave a signal to the supervisor, who gets it, too; but who waits for threads heeds it."""


def waited_threads() -> set[Any]:
    """Return the threads that Python waits for at its end, but for the main one."""
    threading: Any = sys.modules.get("threading")
    if threading is None:
        return set()
    main = threading.main_thread()
    return {one for one in threading.enumerate() if one is not main and not one.daemon}


def limit_threads(others: set[Any], left: Callable[[], float]) -> None:
    """Have Python wait at its end for ``left()`` seconds at most for who is no one of ``others``.

    Its exit code and all else that it does at its end stay: only threading._shutdown, which knows
    no deadline, is left by an exception.
    """
    ours = waited_threads() - others
    threading: Any = sys.modules.get("threading")
    if not ours or threading.current_thread() is not threading.main_thread():
        return
    begun, ended = threading.Event(), threading.Event()

    def join() -> None:
        begun.wait()
        for kind in ("process", "thread"):  # of pool, to be told that nothing more is to come
            getattr(sys.modules.get(f"concurrent.futures.{kind}"), "_python_exit", int)()
        for thread in ours:
            thread.join()
        ended.set()

    def end() -> None:
        taken: dict[signal.Signals, Any] = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler in (signal.SIG_DFL, overhear):  # now it ends the wait, and nothing else
                    taken[number] = handler
                    signal.signal(number, signal.default_int_handler)
            patience = max(0.0, left())
            begun.set()
            if any(thread.is_alive() for thread in ours):  # in a fork none is
                ended.wait(LAST_TIME)
            names = ", ".join(sorted(thread.name for thread in ours if thread.is_alive()))
            if not names:  # it is a host's pool that does not end
                return
            error_logger.warning("threads of the app are still at work: %s", names)
            if ended.wait(patience):
                return
        except KeyboardInterrupt:  # the next signal, at any moment
            pass
        finally:
            for number, handler in taken.items():
                signal.signal(number, handler)
        for thread in waited_threads() - ours:
            thread.join()
        report = sys.unraisablehook
        sys.unraisablehook = lambda _: setattr(sys, "unraisablehook", report)
        raise RuntimeError

    if hasattr(threading, "_register_atexit"):
        threading.Thread(target=join, daemon=True).start()  # Python 3.12 starts none at its end
        threading._register_atexit(end)


def join_threads() -> None:
    """Wait for threads as Python does, in a process that ends otherwise."""
    try:
        getattr(sys.modules.get("threading"), "_shutdown", int)()
    except RuntimeError:  # see limit_threads
        pass
