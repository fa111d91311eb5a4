"""census: who is connected, and what each connection waits for, as plain facts.

Asked by the inspector, and by the server when SIGUSR1 wants the table in the log. It only reads:
a connection knows nothing of it, and pays nothing for it.
"""

from __future__ import annotations

from .access import asked_for
from .connection import HTTPConnection
from .logs import printable
from .narrator import parked_at, place_of
from .reactor import NEVER
from .transport import HIGH_WATERMARK, LOW_WATERMARK
from .upgrade import WebSocketConnection
from .watchdog import line_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .service import Service

# The stations of a connection's life, in order; an answer in pieces goes from app to answer.
STAGES = ("arrive", "idle", "head", "body", "app", "answer", "socket", "close")
MAX_TARGET = 120  # characters of a path that are shown


def stage_of(connection: Any) -> str:
    """Return at which station a connection is."""
    if connection.transport.state != "open":
        return "close"
    if isinstance(connection, WebSocketConnection):
        state = connection.session.state
        return "socket" if state == "open" else "close" if state == "closed" else "app"
    if not isinstance(connection, HTTPConnection):
        return "arrive"
    cycle = connection.cycle
    if cycle is None:
        return {"head": "head", "rest": "body", "close": "close"}.get(connection.awaited, "idle")
    if cycle.state in ("waiting", "started"):
        return "body" if connection.awaited == "body" else "app"
    return "answer"


def describe_connection(connection: Any, now: float) -> dict[str, Any]:
    """Return all that can be told of a connection; ``now`` is the reactor's clock."""
    transport = connection.transport
    at = connection.deadline.at
    facts: dict[str, Any] = {
        "number": transport.number,
        "peer": transport.peer_name,
        "secure": transport.secure is not None,
        "stage": stage_of(connection),
        "transport": transport.state,
        "reading": transport.reading,
        "paused": transport.writing_paused,
        "out": transport.out_size,
        "high": HIGH_WATERMARK,
        "low": LOW_WATERMARK,
        "deadline": None if at == NEVER else round(at - now, 1),
        "waits": getattr(connection, "awaited", "a handshake"),
        "parser": "",
        "in": 0,
        "request": "",
        "state": "",
        "parked": None,
    }
    if isinstance(connection, HTTPConnection):
        facts["parser"], facts["in"] = connection.parser.state, connection.parser.buffered
        cycle = connection.cycle
        if cycle is not None:
            facts["in"] += cycle.pieces_size
            facts["request"] = f"{cycle.request.method} {cycle.request.target.decode('latin-1')}"
            facts["state"] = f"response {cycle.state}, request {cycle.input}"
            facts["age"] = round(now - cycle.started_at, 3)
            facts["parked"] = describe_parking(cycle.task)
    elif isinstance(connection, WebSocketConnection):
        session = connection.session
        facts["parser"] = "" if connection.machine is None else connection.machine.read.__name__
        facts["request"] = f"WS {session.request.target.decode('latin-1')}"
        facts["state"] = f"{session.state}, {len(session.inbox)} messages wait for the app"
        facts["parked"] = describe_parking(session.task)
    facts["request"] = printable(facts["request"])[:MAX_TARGET]
    return facts


def describe_parking(task: Any) -> dict[str, str] | None:
    """Return where an app's coroutine is parked: what it waits for, the place, the line's text."""
    if getattr(task, "coro", None) is None:
        return None
    waits, frame = parked_at(task)
    text = ""
    if frame is not None:
        import linecache

        text = linecache.getline(frame.f_code.co_filename, line_of(frame)).strip()
    return {"waits": waits, "place": place_of(frame), "text": text}


def unfinished_work(service: Service, arrivals: int) -> str:
    """Count what is not at its end, and name the request that has been in flight for longest."""
    cycles, sockets, others = [], 0, arrivals
    for connection in service.connections:
        if isinstance(connection, HTTPConnection) and connection.cycle is not None:
            cycles.append(connection.cycle)
        elif isinstance(connection, WebSocketConnection) and connection.session.task is not None:
            sockets += 1
        else:
            others += 1
    texts = [count_of(len(cycles), "request")]
    if cycles:
        oldest = min(cycles, key=lambda cycle: cycle.started_at)
        asked = asked_for(oldest.request)[:MAX_TARGET]
        age = service.reactor.clock() - oldest.started_at
        texts[0] += f" (the oldest {asked}, {age:.1f} s)"
    behind = service.cycles - len(cycles) - sockets  # of clients that are answered, or gone
    texts += [
        count_of(sockets, "WebSocket"),
        count_of(behind, "background call"),
        count_of(others, "other connection" if cycles or sockets else "connection"),
    ]
    return ", ".join(filter(None, texts)) or "nothing"


def count_of(count: int, what: str) -> str:
    """Return "1 request", "2 requests" or, for none, nothing."""
    return f"{count} {what}{'s' * (count > 1)}" if count > 0 else ""


def connection_table(service: Service) -> str:
    """Return a line for each connection, and one for all of them."""
    connections = sorted(service.connections, key=lambda one: one.transport.number)
    now = service.reactor.clock()
    lines = [
        f"{len(connections)} connections, {service.cycles} requests in flight, "
        f"{service.requests} begun in all"
    ]
    for connection in connections:
        facts = describe_connection(connection, now)
        parked = facts["parked"]
        where = f", waits for {parked['waits']} {parked['place']}" if parked else ""
        age = f" for {facts['age']:.1f} s" if "age" in facts else ""
        lines.append(
            f"  #{facts['number']:<5} {facts['peer']:<21} {facts['stage']:<6} "
            f"{facts['out']:>8} to write  {facts['request']}{age}{where}".rstrip()
        )
    return "\n".join(lines)
