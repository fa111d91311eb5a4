"""threadless: logging for a Python that has no threads.

logging imports threading, of which it wants nothing but locks. Where there is none it is lent some
that need not lock, since nobody else runs; afterwards threading is missing as before. And so is
_thread, of which warnings wants a lock since Python 3.14.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class NoLock:
    """A lock for one thread: always free."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Succeed."""
        return True

    def release(self) -> None:
        """Do nothing, like all the rest."""

    def __enter__(self) -> NoLock:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def _at_fork_reinit(self) -> None:
        pass


def lend_locks() -> None:
    """Import logging with our locks."""
    stand_in: Any = type(sys)("threading")
    stand_in.Lock = stand_in.RLock = NoLock
    lent = ["threading"]
    try:
        import _thread  # noqa: F401
    except ImportError:
        lent.append("_thread")
    sys.modules.update(dict.fromkeys(lent, stand_in))
    try:
        import logging

        logging.logThreads = False
    finally:
        for name in lent:
            del sys.modules[name]
