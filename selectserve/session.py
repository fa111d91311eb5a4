"""session: the app's side of a WebSocket: its ``receive`` and ``send`` (ASGI WebSocket).

What the client says is put in (``put``, ``disconnect``) and taken out by the app; what the app
sends is a message that the table SESSION_LIFECYCLE allows or refuses, in one sentence that
teaches. What it means on the wire is the owner's business, in the room upgrade.
"""

from __future__ import annotations

from collections import deque

from .errors import ClientDisconnected
from .task import Parking

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Literal, Protocol

    from .asgi import Message, Scope
    from .http1 import Request
    from .task import Stepper

    SessionState = Literal["connecting", "denying", "open", "closed"]

    class SessionOwner(Protocol):
        """What a session asks of its connection."""

        def must_wait(self) -> bool: ...
        def messages_wanted(self) -> None: ...
        def accept(self, message: Message) -> None: ...
        def forbid(self) -> None: ...
        def deny(self, message: Message) -> None: ...
        def deny_body(self, message: Message) -> bool: ...
        def send_message(self, text: str | None, data: bytes | None) -> None: ...
        def send_close(self, code: int, reason: str) -> None: ...
        def session_done(self, session: WebSocketSession, exc: BaseException | None) -> None: ...


class WebSocketSession(Parking):
    """One call of the app for one WebSocket, from ``websocket.connect`` to its disconnect."""

    __slots__ = (
        "disconnected",
        "gone",
        "inbox",
        "owner",
        "request",
        "scope",
        "state",
        "stepper",
        "task",
    )

    def __init__(
        self, owner: SessionOwner, stepper: Stepper, request: Request, scope: Scope
    ) -> None:
        self.owner = owner
        self.stepper = stepper
        self.request = request
        self.scope = scope
        self.state: SessionState = "connecting"
        self.inbox: deque[Message] = deque([{"type": "websocket.connect"}])
        self.disconnected: tuple[int, str] | None = None  # code and reason, once it is over
        self.gone = False  # the client went; else it was the app that closed
        self.waiters = None
        self.task: Any = None

    def __repr__(self) -> str:
        return f"<WebSocketSession {self.request!r} {self.state}>"

    def put(self, text: str | None, data: bytes | None) -> None:
        """Give the app a message; exactly one of the two is not None."""
        if self.state != "closed":
            self.inbox.append({"type": "websocket.receive", "text": text, "bytes": data})
            if self.waiters:
                self.release_waiters()

    def disconnect(self, code: int, reason: str, gone: bool = True) -> None:
        """It is over: told to the app behind the messages that are here, for ever after."""
        if self.disconnected is None:
            self.disconnected = (code, reason)
            self.gone = gone
        self.state = "closed"
        self.release_waiters()

    def held_bytes(self) -> int:
        """Count what the app has not received yet; a character of text as one byte."""
        return sum(len(m.get("bytes") or m.get("text") or "") for m in self.inbox)

    def on_done(self, exc: BaseException | None) -> None:
        """The app has returned, or raised ``exc``."""
        self.task = None
        self.owner.session_done(self, exc)
        if self.state == "closed":
            del self.owner  # a cycle of references would keep zlib's windows for the collector

    # -- the app's two callables ---------------------------------------------------------------

    async def receive(self) -> Message:
        """Return the next message: connect, receive…, and disconnect for ever."""
        while not self.inbox:
            if self.disconnected is not None:
                code, reason = self.disconnected
                return {"type": "websocket.disconnect", "code": code, "reason": reason}
            self.owner.messages_wanted()
            if not self.inbox and self.disconnected is None:
                await self.park(self.stepper)
        return self.inbox.popleft()

    async def send(self, message: Message) -> None:
        """Take the app's next message; wait while the client does not read.

        Raises ClientDisconnected, an OSError, when the client is gone; RuntimeError, TypeError or
        ValueError, with nothing sent, when the message is not right.
        """
        kind = message.get("type")
        handler = SESSION_LIFECYCLE[self.state].get(kind)
        if handler is None:
            self.refuse(kind)
            return
        handler(self, message)
        while self.disconnected is None and self.owner.must_wait():
            await self.park(self.stepper)

    def refuse(self, kind: object) -> None:
        """Raise the sentence that teaches."""
        if kind not in SESSION_MESSAGES:
            raise RuntimeError(f"unknown ASGI message type {kind!r} for a WebSocket")
        if self.state == "closed":
            if self.gone:
                raise ClientDisconnected("the client is gone")
            raise RuntimeError(f"{kind} cannot be sent: the app has closed this WebSocket")
        allowed = " or ".join(map(str, SESSION_LIFECYCLE[self.state]))
        raise RuntimeError(f"{kind} cannot be sent while {self.state}: {allowed}")

    def on_accept(self, message: Message) -> None:
        """Answer the handshake with a 101."""
        self.owner.accept(message)
        self.state = "open"

    def on_forbid(self, _message: Message) -> None:
        """Close before accept: the handshake is answered with a 403."""
        self.disconnect(1006, "", gone=False)
        self.owner.forbid()

    def on_deny(self, message: Message) -> None:
        """Begin an HTTP answer instead of a 101 (extension websocket.http.response)."""
        self.owner.deny(message)
        self.state = "denying"

    def on_deny_body(self, message: Message) -> None:
        """Go on with that answer."""
        if self.owner.deny_body(message):
            self.disconnect(1006, "", gone=False)

    def on_send(self, message: Message) -> None:
        """Send a message: exactly one of text and bytes."""
        text, data = message.get("text"), message.get("bytes")
        if (text is None) == (data is None):
            raise TypeError("websocket.send needs exactly one of 'text' and 'bytes'")
        if text is not None and not isinstance(text, str):
            raise TypeError(f"websocket.send: 'text' must be str, not {type(text).__name__}")
        if data is not None and not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"websocket.send: 'bytes' must be bytes, not {type(data).__name__}")
        self.owner.send_message(text, None if data is None else bytes(data))

    def on_close(self, message: Message) -> None:
        """Begin the closing handshake."""
        code = message.get("code", 1000)
        reason = message.get("reason") or ""
        self.owner.send_close(1000 if code is None else code, reason)
        self.inbox.clear()  # what the app closes it does not want to hear of any more
        self.disconnect(1000 if code is None else code, reason, gone=False)


# What the app may send, by the state of the session; anything else is refused.
SESSION_LIFECYCLE: dict[SessionState, dict[object, Callable[[WebSocketSession, Message], None]]] = {
    "connecting": {
        "websocket.accept": WebSocketSession.on_accept,
        "websocket.close": WebSocketSession.on_forbid,
        "websocket.http.response.start": WebSocketSession.on_deny,
    },
    "denying": {"websocket.http.response.body": WebSocketSession.on_deny_body},
    "open": {
        "websocket.send": WebSocketSession.on_send,
        "websocket.close": WebSocketSession.on_close,
    },
    "closed": {},
}
SESSION_MESSAGES = frozenset(kind for row in SESSION_LIFECYCLE.values() for kind in row)
