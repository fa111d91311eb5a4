"""narrator: tells what the app does, by wrapping it from outside; without it nothing is paid.

Transports, parsers and connections tell their own moments (see trace). Here are those of the app:
its ``receive`` and ``send`` are wrapped, its coroutine is stepped through one that tells each step
and each park, and the selector says who is ready. ``narrate`` puts that in place before the first
client comes. ``parked_at`` reads from a coroutine that waits what it waits for, and at which line.
"""

from __future__ import annotations

from .reactor import EVENT_READ, EVENT_WRITE
from .watchdog import is_of_the_app, line_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType
    from typing import Any, Callable

    from .asgi import Message, Receive, Scope, Send
    from .reactor import Reactor
    from .service import Service, StepApp
    from .trace import Tells

    Event = tuple[Any, int]  # a SelectorKey and what is ready

READY_WORDS = {
    0: "gone",
    EVENT_READ: "to read",
    EVENT_WRITE: "to write",
    EVENT_READ | EVENT_WRITE: "to read and to write",
}
MAX_AWAITS = 100  # coroutines that await each other; nobody nests deeper in good faith


def narrate(reactor: Reactor, service: Service, trace: Tells) -> None:
    """Have ``trace`` told everything; to be called before anything is served."""
    reactor.trace = trace
    told: Any = ToldSelector(reactor.selector, trace)
    reactor.selector = told
    service.app = tell_app(service.app, trace)


class InTurn:
    """What a selector returned; ``tell`` hears of each just before its handler runs."""

    def __init__(self, events: Any, tell: Callable[[Event], Event]) -> None:
        self.events = events
        self.tell = tell

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[Event]:
        return map(self.tell, self.events)


class ToldSelector:
    """A selector that tells of each descriptor before its handler is called."""

    def __init__(self, selector: Any, trace: Tells) -> None:
        self.selector = selector
        self.trace = trace

    def __getattr__(self, name: str) -> Any:
        return getattr(self.selector, name)

    def select(self, timeout: float | None = None) -> Any:
        """Wait; whoever goes through the result hears of each in its turn."""
        events = self.selector.select(timeout)
        return InTurn(events, self.tell) if self.trace else events

    def tell(self, event: Event) -> Event:
        """Tell of one, just before its handler runs."""
        key, ready = event
        subject = getattr(key.data, "__self__", None)
        who = "" if getattr(subject, "number", 0) else f": {name_handler(key.data, subject)}"
        self.trace("ready", subject, f"{READY_WORDS.get(ready, ready)}{who}")
        return event


def name_handler(handler: Any, subject: object) -> str:
    """Name who is ready when it is no connection."""
    if getattr(handler, "__name__", "") == "on_wakeup":
        return "a wakeup"
    return type(handler if subject is None else subject).__name__.lower()


# -- the app --------------------------------------------------------------------------------------


def tell_app(app: StepApp, trace: Tells) -> StepApp:
    """Return ``app`` with a coroutine, a receive and a send that tell what they do."""

    def told(scope: Scope, receive: Receive, send: Send) -> Any:
        if not trace:  # nobody listens now
            return app(scope, receive, send)
        subject = whose_call(receive)
        what = f"{scope.get('method') or scope['type']} {scope.get('path', '')}".rstrip()
        trace("task", subject, f"app({what})")
        coro = app(scope, tell_receive(receive, trace, subject), tell_send(send, trace, subject))
        return ToldCoroutine(coro, trace, subject)

    return told


def whose_call(receive: Any) -> object:
    """Return the transport that an app's ``receive`` belongs to; the lifespan has none."""
    cycle = getattr(receive, "__self__", None)
    owner = getattr(cycle, "owner", None)
    return getattr(cycle, "transport", None) or getattr(owner, "transport", None)


def tell_receive(inner: Receive, trace: Tells, subject: object) -> Receive:
    """Wrap a receive."""

    async def receive() -> Message:
        message = await inner()
        trace("receive", subject, describe_message(message))
        return message

    return receive


def tell_send(inner: Send, trace: Tells, subject: object) -> Send:
    """Wrap a send."""

    async def send(message: Message) -> None:
        trace("send", subject, describe_message(message))
        await inner(message)

    return send


def describe_message(message: Any) -> str:
    """Return the type of an ASGI message and its sizes; never what is in it."""
    try:
        words = [str(message.get("type"))]
        if "status" in message:
            headers = message.get("headers", ())
            number = len(headers) if hasattr(headers, "__len__") else "some"  # may be read once
            words.append(f"{message['status']}, {number} headers")
        elif "body" in message or message.get("type") in ("http.response.body", "http.request"):
            words.append(f"{len(message.get('body', b''))} bytes")
        elif message.get("text") is not None:
            words.append(f"{len(message['text'])} characters")
        elif message.get("bytes") is not None:
            words.append(f"{len(message['bytes'])} bytes")
        elif "code" in message:
            words.append(str(message["code"]))
        text = " ".join(words)
        return f"{text}, more to come" if message.get("more_body") else text
    except (AttributeError, TypeError):  # it is no message; who takes it will say so
        return f"{type(message).__name__}, which is no message"


class ToldCoroutine:
    """A coroutine that tells each of its steps; whoever steps it, or awaits it, sees no other."""

    def __init__(self, coro: Any, trace: Tells, subject: object) -> None:
        self.coro = coro
        self.trace = trace
        self.subject = subject
        self.parked = False
        self.__qualname__ = getattr(coro, "__qualname__", type(coro).__name__)

    def __await__(self) -> ToldCoroutine:
        return self

    def __iter__(self) -> ToldCoroutine:
        return self

    def __next__(self) -> Any:
        return self.step("", self.coro.send, None)

    def send(self, value: Any) -> Any:
        """Step the coroutine."""
        return self.step("", self.coro.send, value)

    def throw(self, *error: Any) -> Any:
        """Step the coroutine by throwing into it."""
        name = getattr(error[0], "__name__", None) or type(error[0]).__name__
        return self.step(f", {name} is thrown in", self.coro.throw, *error)

    def close(self) -> None:
        """Throw the coroutine away."""
        self.coro.close()

    def step(self, thrown: str, resume: Any, *args: Any) -> Any:
        """Let it run until it parks or ends, and tell how it went."""
        if self.parked:
            self.trace("step", self.subject, f"goes on {place_of(parked_at(self.coro)[1])}{thrown}")
        self.parked = True
        try:
            trap = resume(*args)
        except StopIteration:
            self.trace("done", self.subject, "the app has returned")
            raise
        except BaseException as exc:
            self.trace("done", self.subject, f"the app raised {exc!r}")
            raise
        waits, frame = parked_at(self.coro)
        self.trace("park", self.subject, f"waits for {waits} {place_of(frame)}")
        return trap


# -- where a coroutine is -------------------------------------------------------------------------


def parked_at(coro: Any) -> tuple[str, FrameType | None]:
    """Return what a parked coroutine waits for, and the frame of the app's line that does.

    What it waits for is the first of our primitives in the chain of awaits (receive, send,
    sleep…), else the innermost object. The frame is the innermost of the app's own, if there is
    one; a library's otherwise.
    """
    coro = getattr(coro, "coro", coro)  # of a task
    ours = theirs = ""
    own: FrameType | None = None
    foreign: FrameType | None = None
    for _ in range(MAX_AWAITS):
        coro = getattr(coro, "coro", coro)  # of one that tells
        frame = first_of(coro, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            break
        name = getattr(coro, "__qualname__", "").rpartition("<locals>.")[2]
        module = frame.f_globals.get("__name__", "").partition(".")[0]
        if module == "selectserve":
            if not ours or foreign is own is None:
                ours = name
        elif is_of_the_app(frame):
            own, ours, theirs = frame, "", ""
        else:
            foreign, ours = frame, ""
            theirs = theirs or f"{module}.{name}"
        coro = first_of(coro, "cr_await", "gi_yieldfrom", "ag_await")
    innermost = "its next turn" if coro is None else type(coro).__name__
    return ours or theirs or innermost, own or foreign


def first_of(thing: Any, *names: str) -> Any:
    """Return the first of these attributes that is there."""
    for name in names:
        value = getattr(thing, name, None)
        if value is not None:
            return value
    return None


def place_of(frame: FrameType | None) -> str:
    """Name the line that a frame is at."""
    if frame is None:
        return "inside the server"
    code = frame.f_code
    file = code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"at {file}:{line_of(frame)} in {code.co_name}"
