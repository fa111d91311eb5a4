"""errors: the three things that can go wrong by somebody else's hand.

The client breaks the protocol, the user misconfigures the server, or the client leaves. Each
has one exception, raised where it is noticed and answered in exactly one place: the connection
answers a ProtocolError, the command line prints a ConfigError, and the app may catch a
ClientDisconnected. Anything else that is raised is a bug, ours or the app's, and is never
swallowed.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Sequence


class ProtocolError(Exception):
    """The peer broke a rule of its protocol; the error knows its answer.

    ``status`` is the HTTP status to answer with, ``code`` the WebSocket close code, ``headers``
    are response fields that belong to the answer (pairs of bytes).
    """

    def __init__(
        self,
        reason: str,
        status: int = 400,
        code: int = 1002,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.code = code
        self.headers = headers


class ConfigError(Exception):
    """What the user asked for cannot be done; the message says what, where and what to do.

    ``exit_code`` follows uvicorn: 1 the app cannot be imported, 2 wrong usage, 3 start-up failed.
    """

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ClientDisconnected(OSError):
    """The client is gone: raised by ``send()`` after the disconnect (ASGI HTTP spec 2.4)."""


class Cancelled(BaseException):
    """Thrown into a task that was cancelled; like asyncio's CancelledError it is no Exception."""


def group_parts(exc: BaseException) -> tuple[BaseException, ...]:
    """Return what an exception group holds, by whatever class it is one (3.11, a backport, anyio).

    () of anything else.
    """
    parts = getattr(exc, "exceptions", ())
    return parts if isinstance(parts, tuple) else ()
