"""checks: what must hold after every turn of the server, and at its end.

A check reads the server's own books, compares them with each other and with the world's, and
raises Violation with what it found. It never changes anything.
"""

from __future__ import annotations

import gc

from selectserve.asgi import PIECE_COST
from selectserve.connection import BODY_WATERMARK, PIPELINE_WATERMARK, HTTPConnection
from selectserve.reactor import EVENT_READ, EVENT_WRITE, NEVER, UNHEARD_INTERVAL
from selectserve.transport import HIGH_WATERMARK, LARGE_READ, READ_SIZE
from selectserve.upgrade import WebSocketConnection

from .clients import SOON
from .world import Link, Violation

BIGGEST_MESSAGE = 500_000  # bytes that an app of ours sends at once


def require(condition, text, *subjects):
    """Raise Violation unless ``condition`` holds."""
    if not condition:
        raise Violation(f"{text}: {', '.join(map(repr, subjects))}")


def is_armed(deadline):
    """Tell whether a deadline will come: it has a moment, and a timer that is not later."""
    if deadline is None or deadline.at == NEVER or deadline.action is None:
        return False
    timer = deadline.timer
    return timer is not None and timer.action is not None and timer.at <= deadline.at


def check_turn(world):
    """Check everything between two turns."""
    if world.blame:
        raise Violation(world.blame[0])
    reactor, service = world.reactor, world.service
    require(not reactor.unflushed, "something waits to be flushed after the turn", reactor)
    require(not world.server.stepper.stepping, "a task is being stepped between turns")
    registered = 0
    for connection in service.connections:
        transport = connection.transport
        check_transport(world, transport)
        registered += transport.sock in world.keys
        if type(connection) is HTTPConnection:
            check_connection(connection)
        else:
            check_websocket(connection)
    others = sum(type(plug) is not Link for plug in world.keys)
    require(
        registered + others == len(world.keys),
        "descriptors are registered that belong to no connection",
        world.keys.keys(),
    )
    if not reactor.ready:  # else a call of the app may be about to begin
        require(service.cycles == len(world.running), "requests miscounted", service.cycles)
    if world.turns % 16 == 0:
        check_timers(world)
    if service.memory is not None:
        check_memory(world, service.memory)


def check_timers(world):
    """Every live timer is in the heap, and every cancelled one is counted."""
    timers = [timer for _, _, timer in world.reactor.timers]
    cancelled = sum(timer.action is None for timer in timers)
    require(cancelled == world.reactor.cancelled_timers, "cancelled timers miscounted", cancelled)
    inside = set(map(id, timers))
    for connection in world.service.connections:
        for deadline in (connection.deadline, connection.transport.deadline):
            if deadline is not None and deadline.timer is not None:
                require(id(deadline.timer) in inside, "a timer is not in the heap", connection)


def check_memory(world, memory):
    """Above the limit its measures are taken."""
    if memory.level > 1 and world.server.listeners:
        accepts = any(listener.listening for listener in world.server.listeners)
        require(not accepts, "clients are accepted that there is no room for", memory.level)


def check_transport(world, transport):
    """A transport waits for exactly what it needs, and something will end every wait."""
    state, sock = transport.state, transport.sock
    require(state != "closed", "a closed connection is still in the books", transport)
    key = world.keys.get(sock)
    heard = key is not None or sock in world.reactor.unheard
    require(heard, "nobody will notice when this client leaves", transport)
    if sock.broken and not world.storm:
        seen = world.seen_broken.setdefault(sock, world.clock.now)
        late = world.clock.now - seen - world.held_around(seen)
        patience = 0 if world.hears else UNHEARD_INTERVAL
        require(late <= patience + SOON, "a client that is gone is still in the books", transport)
    require(
        transport.interest == (0 if key is None else key.events),
        "interest and selector disagree",
        transport,
        key,
    )
    reads = transport.reading and not transport.held
    wanted = (EVENT_READ if reads else 0) | (EVENT_WRITE if transport.blocked else 0)
    require(transport.interest == wanted, "interest is not what is waited for", transport)
    require(
        bool(transport.out) == transport.blocked,
        "bytes wait to be written and nobody will write them, or the other way round",
        transport,
    )
    size = sum(map(len, transport.out))
    require(size == transport.out_size, "the write buffer is miscounted", transport, size)
    require(size <= HIGH_WATERMARK + BIGGEST_MESSAGE, "the write buffer has no bound", transport)
    if transport.out or state != "open":
        require(is_armed(transport.deadline), "a slow reader has no deadline", transport)
    if transport.writing_paused and state == "open":
        require(transport.blocked, "writers wait for a resume that will not come", transport)


def check_connection(connection):
    """An HTTP connection has a deadline unless it waits for the app only; its buffers are bound."""
    transport, cycle, parser = connection.transport, connection.cycle, connection.parser
    limits = connection.service.limits
    # one read begins the request, the next one notices that it is too much; the one that ends a
    # large body may bring as much of what follows
    head = limits.header_size + limits.request_line
    bound = max(PIPELINE_WATERMARK, head) + max(2 * READ_SIZE, LARGE_READ)
    require(parser.buffered <= bound, "the read buffer has no bound", connection, parser)
    if transport.state != "open":
        require(cycle is None, "a request goes on while its connection closes", connection)
        return
    armed = is_armed(connection.deadline)
    if cycle is None:
        require(armed, "a connection waits for its client without a deadline", connection)
        require(
            transport.reading
            or connection.parser.eof
            or transport.writing_paused
            or parser.buffered > PIPELINE_WATERMARK,
            "a connection waits for bytes that it does not read",
            connection,
        )
        return
    require(cycle.state != "complete", "a complete response is still in flight", connection)
    bound = BODY_WATERMARK + PIPELINE_WATERMARK + LARGE_READ
    require(cycle.pieces_size <= bound, "a body has no bound", connection)
    pieces = cycle.pieces or ()
    size = sum(map(len, pieces)) + PIECE_COST * len(pieces)
    require(size == cycle.pieces_size, "a body is miscounted", connection, size)
    if cycle.input == "open":
        paused = cycle.pieces_size > BODY_WATERMARK
        require(armed or paused or cycle.unanswered_expect, "a body has no deadline", connection)
        require(transport.reading or paused, "a body is waited for and not read", connection)
    elif not transport.reading:
        require(
            connection.parser.eof or cycle.disconnected or parser.buffered > PIPELINE_WATERMARK,
            "reading is paused without a reason",
            connection,
        )


def check_websocket(connection):
    """A WebSocket has a deadline unless it waits for the app only."""
    transport, session = connection.transport, connection.session
    if transport.state != "open":
        require(session.state == "closed", "a session goes on while it closes", connection)
    elif connection.machine is not None and connection.awaited in ("data", "pong", "close"):
        require(
            is_armed(connection.deadline) or not connection.service.ws_ping_interval,
            "a WebSocket has no deadline",
            connection,
        )
    require(
        len(session.inbox) <= connection.service.ws_max_queue + 1,
        "an inbox has no bound",
        connection,
    )


def check_end(world):
    """Nothing may be left of a server that has ended."""
    if world.blame:
        raise Violation(world.blame[0])
    service, reactor = world.service, world.reactor
    require(not service.connections, "connections are left", list(service.connections))
    require(not world.server.entrance.pending, "arrivals are left", world.server.entrance.pending)
    left = [plug for plug in world.plugs if not plug.closed and was_opened(plug)]
    require(not left, "descriptors are left", left)
    others = [plug for plug in world.last_keys if type(plug) is Link]
    require(not others, "descriptors are registered", others)
    require(not reactor.unheard, "somebody is looked after", reactor.unheard)
    abandoned = [call for call in world.running if not call.behaviour.stubborn]
    require(world.storm or not abandoned, "requests were abandoned", abandoned)
    none = None, reactor.look_after  # the reactor's own ends when it finds nothing to look after
    live = [timer for _, _, timer in world.last_timers if timer.action not in none]
    require(not live or world.running or world.storm, "timers are left", live)
    require(service.cycles == len(world.running), "requests are left in the books", service.cycles)
    require(not reactor.unflushed, "something is unflushed", reactor)
    for client in world.clients:
        client.check_end()


def was_opened(plug):
    """Tell whether the server ever had this descriptor."""
    return not isinstance(plug, Link) or plug.accepted


def count_left():
    """Return how many objects of a request's life exist; the cycles among them are collected."""
    gc.collect()
    kinds = (HTTPConnection, WebSocketConnection, Link)
    return sum(type(thing) in kinds for thing in gc.get_objects())
