"""service: what all connections of a worker share: the app, its settings, and the books.

The server fills one in from the options; connections read it and count in it. Next to no
behaviour lives here, so that a test can make one in three lines, and no connection needs to know
the server.
"""

from __future__ import annotations

from contextvars import Context, copy_context

from .forwarded import ForwardedRules
from .grammar import FieldLines, Limits
from .logs import AccessLog, Complaints
from .memory import MemoryLimit
from .response import DefaultLines, ResponseLines

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine
    from typing import Any, Callable, Literal, Protocol

    from .access import RequestIds
    from .asgi import Receive, Scope, Send
    from .task import Stepper
    from .transport import Transport

    Draining = Literal["", "gently", "now"]
    # an app whose call makes a coroutine; the server sees to it that it does
    StepApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, object]]

    class Connected(Protocol):
        """A connection as the server sees it."""

        transport: Transport

        def held_bytes(self) -> int: ...
        def close_if_idle(self, gently: bool) -> None: ...
        def tell_end(self, everybody: bool) -> None: ...


class Service:
    """What all connections of a worker share: the app, its settings, and the books."""

    def __init__(self, app: StepApp, stepper: Stepper) -> None:
        self.app = app
        self.stepper = stepper
        self.reactor = stepper.reactor
        self.context: Context = copy_context()  # each request runs in a copy of its own
        self.root_path = ""
        self.state: dict[str, Any] | None = None  # of the lifespan
        self.limits = Limits()
        self.fields = FieldLines()
        self.proxies: ForwardedRules | None = None
        self.request_ids: RequestIds | None = None
        self.lines = ResponseLines()
        self.defaults = DefaultLines()
        self.tell_date: Callable[[], float] | None = None  # renews the Date, returns its seconds
        self.date_until = 0.0
        self.timeout_keep_alive = 5.0
        self.timeout_header = 15.0
        self.timeout_body = 30.0
        self.limit_concurrency = 0
        self.limit_max_requests = 0
        self.memory: MemoryLimit | None = None
        self.ws_max_size = 16777216
        self.ws_max_queue = 32
        self.ws_ping_interval = 20.0
        self.ws_ping_timeout = 20.0
        self.ws_deflate = True
        self.access_log: AccessLog | None = None
        self.complaints = Complaints(self.reactor)
        self.connections: set[Connected] = set()
        self.parting = 0  # of them, those that have had their last answer
        self.cycles = 0  # requests in flight, background work included
        self.requests = 0  # requests begun in all
        self.draining: Draining = ""  # gently: a kept connection may ask once more
        self.on_change: Callable[..., object] | None = None  # a connection or a request has ended
        self.on_limit: Callable[[], object] | None = None  # limit_max_requests is reached
        self.on_stop: Callable[[BaseException], object] | None = None  # the app wants out

    def heed(self, exc: BaseException) -> None:
        """Stop if the app wants out: KeyboardInterrupt is not for its request alone."""
        if isinstance(exc, KeyboardInterrupt) and self.on_stop is not None:
            self.on_stop(exc)

    def renew_date(self) -> None:
        """Keep the Date of the default lines right; asked before each answer, it changes seldom."""
        now = self.reactor.now
        if now >= self.date_until and self.tell_date is not None:
            self.date_until = now + self.tell_date()
