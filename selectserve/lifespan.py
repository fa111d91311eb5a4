"""lifespan: the app's start and its end, told to it by one long call (ASGI lifespan).

The server puts in ``lifespan.startup`` before the first request and ``lifespan.shutdown`` behind
the last, and waits for the state to change; like everybody it does so without holding anybody up.
What the app may answer is the table LIFESPAN_LIFECYCLE.
"""

from __future__ import annotations

from contextvars import copy_context

from .aio import GOES_PAST_TASKS
from .asgi import ASGI_VERSION
from .logs import log_app_error
from .task import Parking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextvars import Context
    from typing import Any, Callable, Literal

    from .asgi import Message, Scope
    from .task import Stepper

    LifespanState = Literal[
        "waiting", "starting", "running", "stopping", "stopped", "failed", "off"
    ]

LIFESPAN_SPEC_VERSION = "2.0"


class Lifespan(Parking):
    """The app's start and end (ASGI lifespan): ``startup`` before the first request.

    ``mode`` is "auto", "on" or "off". In auto an app that raises is taken to know no lifespan,
    but for SystemExit and KeyboardInterrupt, which mean what they say; ``asked`` tells whether it
    had asked for the first message by then.
    """

    def __init__(self, stepper: Stepper, mode: str = "auto") -> None:
        super().__init__()
        self.stepper = stepper
        self.mode = mode
        self.status: LifespanState = "off" if mode == "off" else "waiting"
        self.state: dict[str, Any] = {}
        self.inbox: list[Message] = []
        self.on_change: Callable[[], object] | None = None
        self.context: Context | None = None
        self.asked = False  # the app called receive() at least once
        self.failure: BaseException | str | None = None

    def __repr__(self) -> str:
        return f"<Lifespan {self.status}>"

    def scope(self, version: str = ASGI_VERSION) -> Scope:
        """Build the lifespan scope."""
        return {
            "type": "lifespan",
            "asgi": {"version": version, "spec_version": LIFESPAN_SPEC_VERSION},
            "state": self.state,
        }

    def put(self, message: Message) -> None:
        """Give the app a message."""
        self.inbox.append(message)
        self.change("starting" if self.status == "waiting" else "stopping")

    def change(self, status: LifespanState) -> None:
        """Enter a state and step on whoever waits for one."""
        self.status = status
        self.release_waiters()
        if self.on_change is not None:
            self.on_change()

    @property
    def has_failed(self) -> bool:
        """True when the app said so, or raised where it must not."""
        return self.status == "failed"

    def explain_unsupported(self) -> str:
        """Say, in auto mode, why the app is served without a lifespan."""
        return f"served without lifespan: the app raised {self.failure!r}"

    async def receive(self) -> Message:
        """Return lifespan.startup, and lifespan.shutdown when the time has come."""
        self.asked = True
        while not self.inbox:
            await self.park(self.stepper)
        return self.inbox.pop(0)

    async def send(self, message: Message) -> None:
        """Take the app's answer to the one or the other."""
        kind = message.get("type")
        following = LIFESPAN_LIFECYCLE.get(self.status, {}).get(kind)
        if following is None:
            raise RuntimeError(f"{kind!r} cannot be sent while the lifespan is {self.status}")
        if following == "running":
            self.context = copy_context()  # what startup has set is seen by every request
        if following == "failed" or self.status == "running":
            self.failure = str(message.get("message", ""))
        self.change(following)

    def on_done(self, exc: BaseException | None) -> None:
        """The lifespan call has ended, by itself or not."""
        if self.status == "running" and (exc is not None or self.failure is not None):
            what = "its lifespan, after startup: there will be no shutdown"
            log_app_error(exc or RuntimeError(self.failure), what, "")
        elif exc is not None and (self.failure is None or self.status == "stopping"):
            self.failure = exc
        if self.status == "starting" and exc is not None:
            unknown = self.mode == "auto" and not isinstance(exc, GOES_PAST_TASKS)
            self.change("off" if unknown else "failed")
        elif self.status in ("starting", "running"):
            self.change("off")
        elif self.status == "stopping":
            self.change("stopped" if exc is None else "failed")


LIFESPAN_LIFECYCLE: dict[LifespanState, dict[object, LifespanState]] = {
    "starting": {"lifespan.startup.complete": "running", "lifespan.startup.failed": "failed"},
    "running": {"lifespan.shutdown.failed": "running"},  # Starlette says so of any crash
    "stopping": {"lifespan.shutdown.complete": "stopped", "lifespan.shutdown.failed": "failed"},
}
