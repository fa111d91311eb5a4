"""apps: what the application does with a request, and what the client must therefore see.

Every answer carries its request's tag, in a field and all through its body, so that a byte of one
response in another cannot go unseen. ``Call`` stands between app and server: what must never be
received or raised is noticed there.
"""

from __future__ import annotations

from selectserve.asgi import HEAD_TIME
from selectserve.errors import Cancelled
from selectserve.task import Event, sleep, spawn, stepper_here

BEHAVIOURS = {}
SMALL, LARGE = 40, 200_000  # bytes


def text_of(tag, size):
    """Return ``size`` bytes that say whose they are."""
    word = f"[{tag}]".encode()
    return (word * (size // len(word) + 1))[:size]


class Behaviour:
    """How a request is answered.

    ``ending`` is what the wire must show: "whole"; "cut", a part and then the end of the
    connection; "error", a 500 of the server's; or "none", since the client leaves first.
    ``reads`` tells whether the body is read before the answer is complete.
    """

    def __init__(self, run, options):
        self.run = run
        self.name = run.__name__
        self.weight = options.get("weight", 4)
        self.status = options.get("status", 200)
        self.body = options.get("body", lambda ask: text_of(ask.tag, SMALL))
        self.ending = options.get("ending", "whole")
        self.reads = options.get("reads", False)
        self.closes = options.get("closes", False)
        self.silently = options.get("silently", False)  # it was too late to say so in the head
        self.stubborn = options.get("stubborn", False)
        self.leaver = options.get("leaver", False)
        self.framed = options.get("framed", True)  # the length is known before the body is

    def __repr__(self):
        return self.name


def behaviour(**options):
    """Register a behaviour."""

    def register(run):
        BEHAVIOURS[run.__name__] = Behaviour(run, options)
        return run

    return register


class Call:
    """One call of the app; notes what receive and send do wrong."""

    def __init__(self, world, ask, scope, receive, send):
        self.world = world
        self.ask = ask
        self.behaviour = ask.behaviour
        self.scope = scope
        self.plain_receive = receive
        self.plain_send = send
        self.got = b""
        self.state = "body"  # -> whole -> gone: what receive() has told
        self.complete = False  # the last message was sent, and taken
        self.waits = False  # for its client: in receive, or in a send that has to wait
        self.last_type = "http.response.body"
        self.began = world.clock.now
        self.random = world.random

    def __repr__(self):
        return f"<Call {self.ask!r} {self.state} complete={self.complete}>"

    async def receive(self):
        self.waits = True
        message = await self.plain_receive()
        self.waits = False
        world, kind = self.world, message["type"]
        if kind == "http.request":
            body, more = message["body"], message["more_body"]
            world.check(self.state == "body", f"{self!r} received a body after {self.state}")
            world.check(type(body) is bytes, f"{self!r} received {type(body)}")
            self.got += body
            world.check(self.ask.body.startswith(self.got), f"{self!r} received foreign bytes")
            if not more:
                world.check(self.got == self.ask.body, f"{self!r} received half a body as whole")
                self.state = "whole"
        elif kind == "http.disconnect":
            self.state = "gone"
            if not self.complete:
                self.ask.client.check_may_leave(f"{self!r} is told that its client left")
        else:
            world.blamed(f"{self!r} received {kind!r}")
        return message

    async def send(self, message):
        self.waits = True
        try:
            await self.plain_send(message)
        except OSError:
            self.waits = False
            self.ask.client.check_may_leave(f"send() tells {self!r} that its client left")
            raise
        self.waits = False
        if message["type"] == self.last_type and not message.get("more_body", False):
            self.complete = True
            self.ask.client.on_answered(self.ask)

    async def start(self, *fields, status=None, trailers=False):
        """Send a head with our tag."""
        headers = [(b"x-tag", self.ask.tag.encode()), *fields]
        status = self.behaviour.status if status is None else status
        message = {"type": "http.response.start", "status": status, "headers": headers}
        if trailers:
            message["trailers"] = True
            self.last_type = "http.response.trailers"
        await self.send(message)

    async def body(self, data, more=False):
        """Send a piece of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})

    async def pieces(self, data, count):
        """Send ``data`` in ``count`` pieces, with rests between, and the end by itself."""
        size = len(data) // count + 1
        for at in range(0, len(data), size):
            await self.body(data[at : at + size], more=True)
            await self.rest()
        await self.body(b"")

    async def read_all(self):
        """Read the whole body; None when the client left before."""
        while self.state == "body":
            await self.receive()
            await self.rest(0.3)
        return self.got if self.state == "whole" else None

    async def rest(self, probability=0.5):
        """Let others have a turn, or a little time pass, or neither."""
        if self.world.happens(probability):
            await sleep(self.random.choice((0, 0, 0.01, 0.2)))


def make_app(world):
    """Return the app of a world: every request is answered as its Ask says."""

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await world.lifespan(receive, send)
            return
        ask = world.asks.get(scope["path"])
        if ask is None:  # of a client that talks nonsense
            ask = world.nonsense(scope)
        make = Call if scope["type"] == "http" else world.conversation
        call = make(world, ask, scope, receive, send)
        world.running.append(call)
        try:
            ask.client.on_call(ask, scope)
            await ask.behaviour.run(call)
        except Cancelled:
            world.check(world.signals, f"{call!r} was cancelled without a reason")
            patient = len(world.signals) == 1 and world.options["timeout_graceful_shutdown"]
            if call.waits or (patient and ask.behaviour.name.startswith("streams")):
                told = f"{call!r} was cancelled, and not told before that it is over"
                world.check(world.storm, told)
            raise
        finally:
            world.running.remove(call)
            ask.client.on_return(ask)

    return app


# -- answers in one piece or several ---------------------------------------------------------------


@behaviour(weight=12)
async def hello(call):
    await call.start()
    await call.body(call.behaviour.body(call.ask))


@behaviour(weight=10, body=lambda ask: ask.body, reads=True)
async def echo(call):
    body = await call.read_all()
    if body is not None:
        await call.start()
        await call.body(body)


@behaviour(body=lambda ask: ask.body, reads=True, framed=False)
async def echo_as_it_comes(call):
    await call.start()
    while call.state == "body":
        before = len(call.got)
        await call.receive()
        if call.state != "gone":
            await call.body(call.got[before:], more=True)
    if call.state == "whole":
        await call.body(b"")


@behaviour(weight=8, framed=False)
async def parts(call):
    await call.start()
    await call.pieces(call.behaviour.body(call.ask), 4)


@behaviour(weight=6)
async def declared_parts(call):
    body = call.behaviour.body(call.ask)
    await call.start((b"content-length", b"%d" % len(body)))
    await call.pieces(body, 4)


@behaviour(body=lambda ask: text_of(ask.tag, LARGE))
async def large(call):
    await call.start()
    await call.body(call.behaviour.body(call.ask))


@behaviour(body=lambda ask: text_of(ask.tag, LARGE), framed=False)
async def large_parts(call):
    await call.start()
    await call.pieces(call.behaviour.body(call.ask), 9)


@behaviour(weight=8)
async def late(call):
    await sleep(call.random.choice((0, 0.05, 0.5, 3)))
    await hello(call)


@behaviour(weight=1)
async def very_late(call):
    await sleep(call.random.choice((7, 20, 90)))
    await hello(call)


@behaviour(framed=False)
async def trailers(call):
    await call.start(trailers=True)
    await call.body(call.behaviour.body(call.ask), more=True)
    await call.rest()
    await call.body(b"")
    await call.send({"type": "http.response.trailers", "headers": [(b"x-end", b"1")]})


@behaviour()
async def hints(call):
    if "http.response.early_hint" in call.scope["extensions"]:
        await call.start()
        await call.send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
        await call.rest()
        await call.body(call.behaviour.body(call.ask))
    else:
        await hello(call)


@behaviour(status=204, body=lambda ask: b"")
async def no_content(call):
    await call.start()
    await call.body(b"not to be sent")


@behaviour(status=304, body=lambda ask: b"")
async def not_modified(call):
    await call.start()
    await call.body(b"")


@behaviour(closes=True)
async def says_close(call):
    await call.start((b"connection", b"close"))
    await call.body(call.behaviour.body(call.ask))


@behaviour()
async def half_read(call):
    await call.receive()
    await hello(call)


@behaviour()
async def background(call):
    await hello(call)
    await sleep(call.random.choice((0, 0.1, 2, 20)))


@behaviour(reads=True)
async def receives_afterwards(call):
    await call.read_all()
    await hello(call)
    for _ in range(2):
        message = await call.receive()
        call.world.check(message["type"] == "http.disconnect", "a message after the response")


@behaviour(framed=False)
async def watches_while_it_streams(call):
    """A task of its own waits for the disconnect, as Starlette's responses do."""
    done = Event()

    async def watch():
        await call.read_all()
        if not call.complete:
            await call.receive()
        done.set()

    watcher = spawn(watch())
    try:
        await call.start()
        await call.pieces(call.behaviour.body(call.ask), 5)
        if call.random.random() < 0.5:
            await done.wait()
    finally:
        watcher.cancel()


@behaviour(weight=2)
async def gives_up_waiting(call):
    """Wait in a task of its own for something that comes when nobody waits for it any more."""
    world, done = call.world, Event()

    async def child():
        waiter = stepper_here().waiter()
        timer = world.reactor.call_later(0.1, lambda: waiter.set_result(None))
        try:
            await waiter
        except Cancelled:
            begun = world.clock.now
            await sleep(0.5)
            world.check(world.clock.now - begun >= 0.5, "an old wait has ended a new one")
        finally:
            timer.cancel()  # a shutdown may have been quicker
            done.set()

    task = spawn(child())
    await sleep(0.01)
    task.cancel()
    await done.wait()
    await hello(call)


@behaviour(weight=2)
async def stays_long(call):
    """Hold the reactor, as if the app computed something."""
    world, seconds = call.world, call.random.choice((0.01, 0.2, 1.5))
    world.held.append((world.clock.now, seconds))
    world.clock.now += seconds
    await hello(call)


# -- what goes wrong -------------------------------------------------------------------------------


@behaviour(ending="error")
async def raises_at_once(call):
    raise ZeroDivisionError


@behaviour(ending="error")
async def raises_after_start(call):
    await call.start()
    await sleep(call.random.choice((0, 0.01)))
    raise ZeroDivisionError


@behaviour(ending="cut", framed=False)
async def raises_behind_its_head(call):
    await call.start()
    await sleep(HEAD_TIME + 0.1)
    raise ZeroDivisionError


@behaviour(ending="cut", framed=False)
async def raises_in_the_body(call):
    await call.start()
    await call.body(call.behaviour.body(call.ask), more=True)
    await call.rest()
    raise ZeroDivisionError


@behaviour(ending="error")
async def returns_nothing(call):
    await call.rest()


@behaviour(ending="cut")
async def returns_half(call):
    body = call.behaviour.body(call.ask)
    await call.start((b"content-length", b"%d" % len(body)))
    await call.body(body[:10], more=True)


@behaviour(closes=True, silently=True)
async def says_too_much(call):
    body = call.behaviour.body(call.ask)
    await call.start((b"content-length", b"%d" % len(body)))
    await call.body(body + b"not to be sent")


@behaviour(ending="cut")
async def says_too_little(call):
    body = call.behaviour.body(call.ask)
    await call.start((b"content-length", b"%d" % len(body)))
    await call.body(body[:10])


@behaviour(ending="error")
async def sends_nonsense(call):
    await call.send({"type": "http.response.body", "body": b"before the start"})


@behaviour()
async def tries_bad_messages(call):
    for message in (
        {"type": "websocket.send", "text": ""},
        {"type": "http.response.start", "status": 200, "headers": [(b"a", b"b\r\nc: d")]},
        {"type": "http.response.start", "status": "200"},
    ):
        try:
            await call.plain_send(message)
        except (RuntimeError, TypeError, ValueError, OSError):
            pass
        else:
            call.world.blamed(f"{message} was taken")
    await hello(call)


# -- those that end with their client --------------------------------------------------------------


@behaviour(ending="none", leaver=True, reads=True)
async def waits_for_the_end(call):
    await call.read_all()
    while call.state != "gone":
        await call.receive()
    message = await call.receive()
    call.world.check(message["type"] == "http.disconnect", "the disconnect is told only once")
    call.ask.client.check_told_soon(call)


@behaviour(ending="none", leaver=True, framed=False)
async def streams_without_end(call):
    await call.start()
    try:
        while True:
            await call.body(text_of(call.ask.tag, 5000), more=True)
            await sleep(0.1)  # a reset is noticed here, or by the next send
    except OSError:
        await call.receive()
        call.world.check(call.state == "gone", "send() raised, and receive() knows of nothing")
        call.ask.client.check_told_soon(call)
        raise


@behaviour(ending="none", leaver=True, framed=False)
async def streams_much_without_end(call):
    await call.start()
    while True:
        await call.body(text_of(call.ask.tag, 5000) * 6, more=True)
        await sleep(0.03)


@behaviour(ending="none", leaver=True)
async def cleans_up(call):
    """Take a while to end when cancelled."""
    try:
        await sleep(500)
    except Cancelled:
        await sleep(call.random.choice((0, 0.5, 1.5)))
        raise


@behaviour(ending="none", leaver=True, stubborn=True)
async def will_not_end(call):
    """Swallow every cancel."""
    for _ in range(3):
        try:
            await sleep(100)
        except Cancelled:
            pass
