"""inspector: a page that shows the server at work: ``--inspect [HOST:]PORT``.

Its pictures come from an Observer, which see. The page is an ASGI app on native primitives, served
by the rooms that serve every app, on the observer's small reactor: it is no part of what it shows,
and goes on while the server stands still. Nobody gets in without the token, which is in the link
in the log. Also ``/metrics`` in Prometheus' text format, and ``/connections`` as JSON.
"""

from __future__ import annotations

import json
import logging
import os
import sys

from .arrival import Entrance
from .census import STAGES, describe_connection, stage_of
from .errors import ConfigError
from .listener import Listener
from .logs import error_logger
from .material import read_material
from .observer import LATENCIES, PHASES, Observer, Recorder
from .service import Service
from .sockets import describe_address, open_tcp, parse_bind
from .task import NativeStepper, current_stepper, sleep, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from .asgi import Message, Receive, Scope, Send
    from .reactor import Reactor
    from .trace import Tells

PERIOD = 0.1  # seconds between two pictures
MAX_LANES = 40  # connections in full; the others are a letter each
MAX_MOVED = 20  # of them those to which something happened last
MAX_MARKS = 2000
MAX_TIMERS = 8
MAX_LOG = 30  # warnings and errors that are kept
HEADERS = [
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'",
    ),
]
FORBIDDEN = "The inspector opens with the link that the server has logged: it holds the token.\n"
# Who is shown in full when there are many: where something goes on, first.
RANK = {
    stage: rank for rank, stage in enumerate("app body answer head socket close arrive".split())
}


def inspector_page() -> str:
    """Return the page: one HTML file, without anything from elsewhere."""
    return read_material("inspector.html")


def parse_place(text: str) -> tuple[str, int]:
    """Read ``[HOST:]PORT``; without a HOST it is loopback."""
    try:
        kind, host, port = parse_bind(text if ":" in text else f"127.0.0.1:{text}")
    except ConfigError:
        kind, host, port = "", "", 0
    if kind != "tcp":
        raise ConfigError(f"--inspect {text!r} is not [HOST:]PORT", 2)
    return host, port


class LogKeeper(logging.Handler):
    """Keep what the server complains about, slow steps with their stack among it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[int, str, str]] = []
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.count += 1
        try:
            text = record.getMessage()
        except Exception:  # of a format that does not fit its arguments
            return
        self.lines.append((self.count, record.levelname.lower(), text[:400]))
        del self.lines[:-MAX_LOG]


class Inspector:
    """Observe ``reactor`` and serve the page; ``place`` is the option's ``[HOST:]PORT``.

    To be made before anything else uses the reactor. ``watch`` tells what is to be shown,
    ``listen`` opens the door, ``close`` ends it all.
    """

    def __init__(self, reactor: Reactor, place: str, token: str) -> None:
        self.host, self.port = parse_place(place)
        self.token = token or os.urandom(12).hex()
        self.observer = Observer(reactor)
        self.reactor = reactor
        self.recorder = Recorder(reactor.clock, None)
        self.keeper = LogKeeper()
        self.service: Any = None  # of the server
        self.entrance: Any = None
        self.title = ""
        self.listeners: list[Listener] = []
        stepper = NativeStepper(self.observer.own)
        self.own = Service(self.app, stepper)
        self.own.context.run(current_stepper.set, stepper)
        self.own_entrance = Entrance(self.own, None, None, 15.0, 60.0)

    def watch(self, service: Service, entrance: Entrance, tracer: Tells | None) -> Tells:
        """Show ``service``; return who is to be told each moment."""
        self.service = service
        self.entrance = entrance
        self.recorder.tracer = tracer
        error_logger.addHandler(self.keeper)
        return self.recorder

    def open(self, title: str) -> None:
        """Open the door, and log the link; raise ConfigError when that is not possible."""
        self.title = title
        self.recorder.start = self.recorder.clock()
        for sock in open_tcp(self.host, self.port):
            self.listeners.append(Listener(self.observer.own, sock, self.accept, 64))
            self.listeners[-1].start()
        address = describe_address(self.listeners[0].sock)
        error_logger.info("the inspector is at http://%s/?token=%s", address, self.token)
        if not address.startswith(("127.", "[::1]")):
            error_logger.warning(
                "the inspector can be reached from elsewhere: whoever has the link can stop this "
                "server and sees what its clients ask for, and it is not encrypted"
            )

    def accept(self, listener: Listener, sock: socket.socket, address: Any) -> None:
        """Begin a connection of somebody who wants to look."""
        sock.setblocking(False)
        self.own_entrance.admit(sock, (address[0], address[1]), (self.host, self.port))

    def close(self) -> None:
        """End it all; the reactor goes on as it is, with nobody looking."""
        error_logger.removeHandler(self.keeper)
        for listener in self.listeners:
            listener.close()
        for connection in list(self.own.connections):
            connection.transport.abort()
        self.observer.close()

    # -- the app -------------------------------------------------------------------------------

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer whoever has the token."""
        path = scope["path"]
        if scope["type"] == "websocket":
            await receive()
            if path == "/live" and self.may_enter(scope):
                await self.live(receive, send)
            else:
                await send({"type": "websocket.close"})
        elif not self.may_enter(scope):
            await respond(send, 403, "text/plain", FORBIDDEN)
        elif path == "/":
            await respond(send, 200, "text/html", inspector_page())
        elif path == "/metrics":
            await respond(send, 200, "text/plain; version=0.0.4", self.metrics())
        elif path == "/connections":
            await respond(send, 200, "application/json", json.dumps(self.everybody()))
        else:
            await respond(send, 404, "text/plain", "There are /, /metrics and /connections.\n")

    def may_enter(self, scope: Scope) -> bool:
        """Tell whether a request brings the token: in its query, or as Bearer."""
        from hmac import compare_digest

        given = [part[6:] for part in scope["query_string"].split(b"&") if part[:6] == b"token="]
        for name, value in scope["headers"]:
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given.append(value[7:].strip())
        return any(compare_digest(token, self.token.encode()) for token in given)

    async def live(self, receive: Receive, send: Send) -> None:
        """Send pictures, and do what the page asks for, until it leaves."""
        await send({"type": "websocket.accept"})
        view = View(self, send)
        self.recorder.watchers += 1
        task = spawn(view.show())
        try:
            while True:
                message = await receive()
                if message["type"] != "websocket.receive":
                    return
                view.obey(message)
        finally:
            task.cancel()
            self.recorder.watchers -= 1
            if not self.recorder.watchers:  # nobody is left who could let it go on
                self.observer.pace = "run"

    # -- facts ---------------------------------------------------------------------------------

    def connections(self) -> list[Any]:
        """Return all connections of the server, those on their way in first."""
        found = [*self.entrance.pending, *self.service.connections]
        return sorted(found, key=lambda one: int(one.transport.number))

    def everybody(self) -> dict[str, Any]:
        """Return every connection in full: /connections."""
        now = self.reactor.clock()
        return {
            "requests": self.service.requests,
            "in_flight": self.service.cycles,
            "connections": [describe_connection(one, now) for one in self.connections()],
        }

    def metrics(self) -> str:
        """Return the numbers in Prometheus' text format."""
        observer, service = self.observer, self.service
        stages = dict.fromkeys(STAGES, 0)
        for connection in self.connections():
            stages[stage_of(connection)] += 1
        out = MetricsText()
        out.add("requests_total", "counter", "requests begun", [("", service.requests)])
        answers = [(f'{{status="{key}xx"}}', n) for key, n in observer.answers.items()]
        answers[-1] = ('{status="none"}', answers[-1][1])
        out.add("answers_total", "counter", "calls of the app that have ended", answers)
        out.add("requests_in_flight", "gauge", "requests the app works on", [("", service.cycles)])
        each = [(f'{{stage="{stage}"}}', n) for stage, n in stages.items()]
        out.add("connections", "gauge", "connections, by what they are at", each)
        out.add("turns_total", "counter", "turns that did something", [("", observer.turn_count)])
        spent = [(f'{{phase="{p}"}}', round(observer.seconds[p], 6)) for p in PHASES]
        out.add("turn_seconds_total", "counter", "seconds, by phase of the turn", spent)
        out.add("slow_steps_total", "counter", "steps over 0.1 s", [("", observer.slow_count)])
        out.add("timers", "gauge", "timers set", [("", len(self.reactor.timers))])
        total = 0
        buckets: list[tuple[str, float]] = []
        for limit, number in zip((*LATENCIES, "+Inf"), observer.latencies):
            total += number
            buckets.append((f'_bucket{{le="{limit}"}}', total))
        buckets += [("_sum", round(observer.latency_sum, 6)), ("_count", total)]
        out.add("app_seconds", "histogram", "seconds from the call of the app to its end", buckets)
        return "".join(out.lines)


class MetricsText:
    """Prometheus' text format, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, name: str, kind: str, meaning: str, samples: list[Any]) -> None:
        """Add a metric with its samples: what follows the name, and the value."""
        name = f"selectserve_{name}"
        self.lines.append(f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n")
        self.lines += [f"{name}{labels} {value}\n" for labels, value in samples]


class View:
    """One page that looks: what it has seen already, and whom it follows."""

    def __init__(self, inspector: Inspector, send: Send) -> None:
        self.inspector = inspector
        self.send = send
        self.seen_moment = inspector.recorder.count
        self.seen_turn = 0
        self.follow = 0  # the number of a connection that is always shown
        self.orders = 0  # obeyed so far: the page tells by it what it has asked for and not got yet
        self.moved: dict[int, None] = {}  # those that something happened to, the last one last

    async def show(self) -> None:
        """Send a picture, then another one."""
        try:
            while True:
                text = json.dumps(self.picture(), separators=(",", ":"))
                await self.send({"type": "websocket.send", "text": text})
                await sleep(PERIOD)
        except OSError:
            pass  # the page is gone; receive() says so to the other task

    def obey(self, message: Message) -> None:
        """Do what the page asks for; what is no order is ignored."""
        self.orders += 1
        try:
            order = json.loads(message.get("text") or "")
            observer = self.inspector.observer
            if order.get("pace") in ("run", "slow", "paused"):
                observer.pace = order["pace"]
            if "delay" in order:
                observer.delay = min(5.0, max(0.05, float(order["delay"])))
            if "step" in order and observer.pace == "paused":
                observer.steps = 1
            if "follow" in order:
                self.follow = int(order["follow"])
        except (ValueError, TypeError, AttributeError):
            pass

    def picture(self) -> dict[str, Any]:
        """Return what the page draws."""
        inspector = self.inspector
        observer, service, recorder = inspector.observer, inspector.service, inspector.recorder
        moments = [moment for moment in recorder.moments if moment[0] > self.seen_moment]
        for moment in moments:
            self.moved.pop(moment[2], None)
            self.moved[moment[2]] = None
        while len(self.moved) > MAX_MOVED:
            del self.moved[next(iter(self.moved))]
        turns = [turn for turn in observer.turns if turn.number > self.seen_turn]
        self.seen_moment = recorder.count
        self.seen_turn = observer.turn_count
        now = observer.clock()
        return {
            "title": inspector.title,
            "pid": os.getpid(),
            "python": f"{sys.implementation.name} {sys.version.split()[0]}",
            "stepper": service.stepper.name,
            "now": observer.real(),
            "clock": now,
            "pace": observer.pace,
            "orders": self.orders,
            "delay": observer.delay,
            "waiting": observer.waiting() if observer.pace == "paused" else [],
            "turn_count": observer.turn_count,
            "seconds": observer.seconds,
            "turns": [
                [turn.number, [turn.seconds[p] for p in PHASES], [turn.counts[p] for p in PHASES]]
                for turn in turns
            ],
            "requests": service.requests,
            "in_flight": service.cycles,
            "limits": LATENCIES,
            "latencies": observer.latencies,
            "timers": observer.timers_ahead(MAX_TIMERS),
            "timer_count": len(inspector.reactor.timers),
            "slow": [[round(now - at, 1), s, who] for at, s, who in observer.slow],
            "log": inspector.keeper.lines,
            "moments": moments,
            **self.lanes(now),
        }

    def lanes(self, now: float) -> dict[str, Any]:
        """Return each connection as a letter, and those of most interest in full."""
        connections = self.inspector.connections()
        stages = [stage_of(connection) for connection in connections]
        ranked = sorted(
            zip(connections, stages),
            key=lambda one: (
                one[0].transport.number != self.follow,
                one[0].transport.number not in self.moved,
                RANK.get(one[1], len(RANK)),
                -one[0].transport.number,
            ),
        )
        lanes = [describe_connection(one, now) for one, _ in ranked[:MAX_LANES]]
        return {
            "stages": STAGES,
            "marks": [
                [one.transport.number, STAGES.index(stage)]
                for one, stage in zip(connections[:MAX_MARKS], stages)
            ],
            "total": len(connections),
            "lanes": sorted(lanes, key=lambda facts: int(facts["number"])),
        }


async def respond(send: Send, status: int, kind: str, text: str) -> None:
    """Answer with a text."""
    body = text.encode()
    content = [(b"content-type", kind.encode() + b"; charset=utf-8"), *HEADERS]
    content.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": content})
    await send({"type": "http.response.body", "body": body})
