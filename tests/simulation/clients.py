"""clients: those who ask: the good, the slow, the broken and those who leave, and their judge.

A client knows what it asked, so it knows what it must be told: each answer to its request, in
order, whole, and nothing else; or a reason why not. What it may be refused depends on how it
behaves, and on whether the world is calm.
"""

from __future__ import annotations

from selectserve.connection import ON_ITS_WAY

from .answers import BadAnswer, read_answer
from .apps import BEHAVIOURS, text_of
from .world import NEVER, Link, Violation

PATIENCE = 3000.0  # seconds; longer than any deadline of the server's and any jump of time
SOON = 0.6  # seconds within which an app is told that its client left
OWN_ERRORS = {400, 408, 413, 414, 417, 431, 500, 501, 503, 505}
NORMAL = [b for b in BEHAVIOURS.values() if not b.leaver]
NORMAL_WEIGHTS = [b.weight for b in NORMAL]
LEAVERS = [b for b in BEHAVIOURS.values() if b.leaver]
FOR_HEAD = [BEHAVIOURS[name] for name in ("hello", "declared_parts", "large", "late")]
BAD_WIRES = [
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", {400}),
    (b"GET / HTTP/1.1\n\n", {400}),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
    (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", {400}),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {505}),
    (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", {414}),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 200 + b"\r\n", {431}),
    (b"GET / HTTP/1.1\r\nHost: a\r\nA: " + b"b" * 70_000 + b"\r\n\r\n", {431}),
    (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        {400},
    ),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", {400}),
    (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", {501, 400}),
    (b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-maybe\r\n\r\n", {417}),
    (b"GET / HTTP/1.1\r\nHost: a\r\n fold: b\r\n\r\n", {400}),
]


class Ask:
    """One request: its bytes, and what must come back."""

    def __init__(self, client, number, behaviour, rng):
        self.client = client
        self.number = number
        self.tag = f"{client.number}.{number}"
        self.behaviour = behaviour
        self.version = "1.0" if rng.random() < 0.12 else "1.1"
        self.method = "GET"
        self.body = b""
        self.chunked = False
        self.expects = False
        self.calls = 0
        self.called_at = 0.0
        self.settled = False  # its answer is complete, or will never be
        self.forbidden = False  # it stands behind bytes that end a connection
        self.choose(rng)

    def __repr__(self):
        return f"<Ask {self.tag} {self.method} {self.behaviour} HTTP/{self.version}>"

    def choose(self, rng):
        """Draw method, body and persistence, and build the bytes."""
        fields = []
        if rng.random() < 0.08 and self.behaviour.ending == "whole":
            self.method, self.behaviour = "HEAD", rng.choice(FOR_HEAD)
        elif rng.random() < (0.8 if self.behaviour.reads else 0.2):
            self.method = rng.choice(("POST", "PUT"))
            size = rng.choice((0, 1, 10, 10, 100, 1000, 1000, 1000, 30_000, 150_000))
            size = size if rng.random() < 0.97 else 500_000
            self.body = text_of(self.tag, size)
            self.chunked = self.version == "1.1" and rng.random() < 0.4
            self.expects = self.version == "1.1" and size > 0 and rng.random() < 0.2
            if self.chunked:
                fields.append("Transfer-Encoding: chunked")
            else:
                fields.append(f"Content-Length: {size}")
            if self.expects:
                fields.append("Expect: 100-continue")
        persistent = self.version == "1.1"
        if rng.random() < 0.1:
            persistent = not persistent
            fields.append("Connection: " + ("keep-alive" if persistent else "close"))
        behaviour = self.behaviour
        self.is_last = not persistent  # as the client says itself
        self.closes = (
            not persistent
            or behaviour.closes
            or behaviour.ending != "whole"
            or (self.version == "1.0" and not behaviour.framed)
        )
        self.may_close = bool(self.body or self.chunked) and not behaviour.reads
        lines = [f"{self.method} /{self.tag} HTTP/{self.version}", "Host: sim", *fields]
        self.head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        self.wire_body = self.encode(rng) if self.chunked else self.body

    def encode(self, rng):
        """Return the body in the chunked coding."""
        out, at = [], 0
        while at < len(self.body):
            size = rng.randint(1, len(self.body))
            data = self.body[at : at + size]
            out.append(b"%x\r\n%b\r\n" % (len(data), data))
            at += size
        out.append(
            rng.choice((b"0\r\n\r\n", b"000\r\n\r\n", b"0;x=y\r\n\r\n", b"0\r\nA: b\r\n\r\n"))
        )
        return b"".join(out)


class Client:
    """One connection and who sits at its end; subclasses say how it behaves."""

    prompt = True  # reads at once
    excused = False  # it may be refused, cut off or told nothing

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.random = world.random
        self.asks = []
        self.link = None
        self.received = bytearray()
        self.answers = []
        self.partial = None
        self.owed = []  # asks whose answer the app has given while we were there
        self.ended = False  # no more bytes will come
        self.saw_end = False  # since the server has ended its side
        self.left_at = None
        self.heard_at = 0.0  # when bytes came last
        self.settled_at = 0.0  # when a request of ours was last done with, there or here
        self.half_closed = False
        self.silent = False  # we owe the body of a request, so that nothing can follow
        self.closed = False  # we have closed because we have all we wanted
        self.done = False
        self.done_at = NEVER
        self.reading = False  # a read is planned
        self.waiting = None
        self.spoke_at = 0.0
        self.script = self.live()

    def __repr__(self):
        return f"<{type(self).__name__} {self.number} {self.asks} answers={self.answers}>"

    # -- to be filled in -----------------------------------------------------------------------

    def live(self):
        """Yield seconds to wait for, or a condition to wait for."""
        raise NotImplementedError

    # -- the engine ----------------------------------------------------------------------------

    def step(self):
        """Go on with the script as far as possible."""
        while not self.done:
            try:
                wants = next(self.script)
            except StopIteration:
                self.finish()
                return
            if not callable(wants):
                self.world.later(wants, self.step)
                return
            if not wants():
                self.waiting = wants
                return

    def finish(self):
        """This client will do nothing any more."""
        self.done = True
        self.done_at = self.world.clock.now

    def poke(self):
        """Something has come: go on if that was waited for."""
        if self.waiting is not None and self.waiting():
            self.waiting = None
            self.step()

    def until(self, condition, patience=PATIENCE):
        """Wait for ``condition``, at most ``patience`` seconds; tell whether it came."""
        expired = []

        def expire():
            expired.append(True)
            self.poke()

        if not condition():
            self.world.later(patience, expire)
            yield lambda: expired or condition()
        if not condition() and patience == PATIENCE:
            self.world.blamed(f"{self!r} was neither answered nor sent away")

    def connect(self):
        """Begin the connection; False when nobody listens."""
        world = self.world
        if not world.gate.listening:
            self.ended = True
            return False
        self.link = Link(world, self.random.choice((2000, 5000, 70_000, 400_000)))
        self.link.on_outbound = self.on_outbound
        world.gate.backlog.append(self.link)
        world.tell(f"{self!r} connects as {self.link!r}")
        self.spoke_at = world.clock.now
        return True

    def say(self, data):
        """Send ``data`` in one segment or several."""
        at = 0
        while at < len(data) and not self.ended:
            size = len(data) if self.random.random() < 0.6 else self.random.randint(1, len(data))
            self.link.say(data[at : at + size])
            self.spoke_at = self.world.clock.now
            at += size
            if self.random.random() < 0.5:
                yield self.random.random() * 0.02

    def ask(self, ask):
        """Send one request, waiting for a 100 Continue where that was asked for."""
        if not ask.expects:
            yield from self.say(ask.head + ask.wire_body)
            return
        yield from self.say(ask.head)
        number = ask.number

        def told():
            answers = len(self.answers)
            return self.ended or answers > number or (answers == number and self.partial)

        yield from self.until(told, 1.0)
        if len(self.answers) <= number and not self.ended:
            yield from self.say(ask.wire_body)
        else:  # nobody wants it, and without it nothing can follow (RFC 9110 §10.1.1)
            self.silent = True

    def leave(self, how):
        """Go away: "hang_up" or "reset"."""
        self.left_at = self.world.clock.now
        self.world.tell(f"{self!r} leaves: {how}")
        self.finish()
        if self.link is not None:
            getattr(self.link, how)()

    # -- reading -------------------------------------------------------------------------------

    def on_outbound(self):
        """There is something to read, or the end."""
        if not self.reading and self.left_at is None:
            self.reading = True
            self.world.later(self.latency(), self.read)

    def latency(self):
        """Return how long it takes until we read."""
        return self.random.random() * 0.02

    def appetite(self):
        """Return how much we read at once."""
        return 1 << 30

    def read(self):
        """Read what is there, and judge what is complete."""
        self.reading = False
        link = self.link
        if self.left_at is not None or self.ended:
            return
        if link.outbound:
            self.heard_at = self.world.clock.now
        self.received += link.take(self.appetite())
        if link.outbound:
            self.on_outbound()
        elif link.lost or link.server_ended:
            self.ended = True
            self.saw_end = not link.lost
        number = len(self.answers)
        if self.ended or number >= len(self.asks) or not self.asks[number].behaviour.leaver:
            self.parse()
        self.poke()

    def parse(self):
        """Split what was received into answers and judge each."""
        while self.received:
            number = len(self.answers)
            method = self.asks[number].method if number < len(self.asks) else "GET"
            try:
                answer = read_answer(self.received, 0, method, self.saw_end)
            except BadAnswer as exc:
                raise Violation(f"{self!r} received bad bytes: {exc}") from exc
            if not answer.complete:
                self.partial = answer
                break
            self.partial = None
            del self.received[: answer.end]
            self.judge(answer)
            self.answers.append(answer)
            self.settled_at = self.world.clock.now

    # -- judging -------------------------------------------------------------------------------

    def fail(self, text, *subjects):
        """End the world."""
        raise Violation(f"{self!r}: {text} {', '.join(map(repr, subjects))}")

    def judge(self, answer):
        """Compare a complete answer with its request."""
        number = len(self.answers)
        if self.answers and self.answers[-1].closes:
            self.fail("bytes behind the last answer", answer)
        if number >= len(self.asks):
            if answer.tag or answer.status not in self.own_statuses(None):
                self.fail("an answer to nothing", answer)
            return
        ask = self.asks[number]
        if not answer.tag:
            if answer.status not in self.own_statuses(ask):
                self.fail("refused without a reason", answer, ask)
            if not answer.closes:
                self.fail("an error answer keeps the connection", answer)
            return
        self.compare(answer, ask)
        if ask.behaviour.ending != "whole" and not (ask.method == "HEAD"):
            self.fail("an answer that broke off looks complete", answer, ask)
        if ask.closes and not answer.closes and not ask.behaviour.silently:
            self.fail("the last answer does not say so", answer, ask)

    def compare(self, answer, ask):
        """Compare as much of an answer as is there."""
        if answer.tag != ask.tag or ask.forbidden:
            self.fail("an answer to another request", answer, ask)
        if answer.status != ask.behaviour.status:
            self.fail("another status", answer, ask)
        if any(status not in (100, 103) for status in answer.interim) or (
            100 in answer.interim and not ask.expects
        ):
            self.fail("an interim response nobody asked for", answer.interim, ask)
        if ask.method == "HEAD":
            return
        wanted = ask.behaviour.body(ask)
        if ask.behaviour.leaver:
            wanted = text_of(ask.tag, 5000)[: len(answer.body)]
            if not answer.body.startswith(wanted) or answer.complete:
                self.fail("foreign bytes in an endless body", answer, ask)
        elif answer.body != (wanted if answer.complete else wanted[: len(answer.body)]):
            self.fail("foreign bytes in a body", answer, ask)

    def own_statuses(self, ask):
        """Return the statuses that the server may answer with by itself."""
        allowed = set(self.allowed)
        if ask is not None and ask.behaviour.ending == "error":
            allowed.add(500)
        if self.world.signals or self.world.busy:
            allowed.add(503)
        if self.world.storm or self.world.busy:
            allowed.add(408)  # who is not read any more may be too late
        return allowed

    allowed = frozenset()

    def is_excused(self):
        """Tell whether we cannot complain of having been sent away."""
        world = self.world
        here = self.excused or world.storm > 0 or world.busy or self.signals_seen() > 0
        return here or self.may_be_overtaken()

    def may_be_overtaken(self):
        """Tell whether a reset may have destroyed answers that had been sent.

        A second signal aborts, and so does the end of a drain; and a body of HTTP/1.0 that
        breaks off, whose end would else look complete.
        """
        patience = self.world.options["timeout_graceful_shutdown"]
        if self.signals_seen() > (1 if patience >= 10 else 0):
            return True
        return self.link.lost and any(
            a.version == "1.0" and not a.behaviour.framed for a in self.asks
        )

    def was_held_up(self):
        """Tell whether apps held the reactor for so long that our keep-alive time was over."""
        held = self.world.held_around(self.spoke_at)
        return held > self.world.options["timeout_keep_alive"] / 2

    def signals_seen(self):
        """Return how many signals the server got while we were there."""
        return sum(moment <= self.done_at for moment, _ in self.world.signals)

    def check_may_leave(self, text):
        """The app is told that we are gone: that must be so."""
        here = self.left_at is None and not self.half_closed and not self.closed
        if here and not self.is_excused() and not self.world.signals:
            self.world.blamed(f"{text}: {self!r}")

    def check_told_soon(self, call):
        """The app has just noticed that we are gone: that must not have taken long."""
        world = self.world
        if self.left_at is None or world.storm or world.signals or world.busy:
            return
        since = max(self.left_at, call.began)
        took = world.clock.now - since - world.held_around(since)
        if took > SOON:
            world.blamed(f"{call!r} learned of the end of its client after {took:.3f} s")

    def on_call(self, ask, scope):
        """The app is called for one of our requests."""
        world = self.world
        ask.calls += 1
        ask.called_at = world.clock.now
        world.check(ask.calls == 1, f"{ask!r} was given to the app twice")
        world.check(not ask.forbidden, f"{ask!r} stands behind the end, and was served")
        world.check(scope["method"] == ask.method, f"{ask!r} became {scope['method']}")
        early = [earlier for earlier in self.asks[: ask.number] if not earlier.settled]
        world.check(not early, f"{ask!r} was given to the app before {early} was answered")

    def on_answered(self, ask):
        """The app has given its last message for one of our requests."""
        ask.settled = True
        if self.left_at is None and not self.ended:
            self.owed.append(ask)

    def on_return(self, ask):
        """The app is done with one of our requests."""
        ask.settled = True
        self.settled_at = self.world.clock.now

    def check_end(self):
        """The world is over: was everything answered, or is there a reason why not?"""
        if self.link is None or self.left_at is not None or not self.link.accepted:
            return
        if not self.ended:
            self.fail("the connection was never closed")
        if self.partial is not None and self.partial.status:
            self.check_partial(self.partial)
        if self.prompt and not self.world.storm and not self.may_be_overtaken():
            for ask in self.owed:
                answered = len(self.answers) > ask.number
                if not answered and ask.behaviour.ending == "whole" and not self.link.broken:
                    self.fail("an answer that the app has given did not arrive", ask)
        self.check_drain()
        if self.is_excused():
            return
        for number, ask in enumerate(self.asks):
            if ask.forbidden or self.silent:
                return
            if number < len(self.answers):
                if self.answers[number].closes or ask.may_close or ask.closes:
                    return
            elif ask.behaviour.ending == "cut" or self.was_held_up():
                return
            else:
                self.fail("a request was not answered", ask)

    def check_drain(self):
        """What had begun when the first signal came must have been brought to its end."""
        world = self.world
        calm = not (self.excused or world.storm or world.busy or self.may_be_overtaken())
        if not calm or self.signals_seen() != 1 or self.half_closed:
            return
        moment = world.signals[0][0]
        for ask in self.asks[len(self.answers) :]:
            if ask.calls and ask.called_at < moment and ask.behaviour.ending == "whole":
                if ask.behaviour.name != "very_late" and not self.was_held_up():
                    self.fail("a shutdown did not wait for the end of a request", ask)

    def check_partial(self, answer):
        """Judge an answer that broke off."""
        number = len(self.answers)
        if number >= len(self.asks):
            self.fail("half an answer to nothing", answer)
        ask = self.asks[number]
        if ask.forbidden:
            return  # the refusal, cut short: that it is allowed to be is checked elsewhere
        if answer.tag:
            self.compare(answer, ask)
        if ask.behaviour.ending == "whole" and not self.is_excused():
            self.fail("an answer broke off", answer, ask)


# -- the good --------------------------------------------------------------------------------------


class Good(Client):
    """Asks a few things, one after the other or all at once, and reads the answers."""

    half_closes = False

    def __init__(self, world, number):
        super().__init__(world, number)
        rng = self.random
        behaviours = rng.choices(NORMAL, NORMAL_WEIGHTS, k=rng.choice((1, 1, 2, 3, 5)))
        for number, behaviour in enumerate(behaviours):
            if behaviour.name == "stays_long" and world.noisy and not world.storm:
                behaviour = BEHAVIOURS["hello"]
            self.asks.append(Ask(self, number, behaviour, rng))
            if self.asks[-1].is_last:
                break
        self.pipelines = rng.random() < 0.4 or self.half_closes

    def live(self):
        yield self.random.random() * 3
        if not self.connect():
            return
        yield from self.talk()
        if not self.silent:
            yield from self.until(lambda: self.ended or self.is_answered(len(self.asks)))
        if self.random.random() < 0.5:
            yield from self.until(lambda: self.ended)  # the keep-alive deadline
            self.check_idle_end()
        self.bye()

    def check_idle_end(self):
        """An idle connection is closed when a shutdown begins, not when it is over."""
        world = self.world
        if world.signals and self.prompt and not world.storm:
            asked = max(world.signals[0][0], self.spoke_at, self.heard_at, self.settled_at)
            took = world.clock.now - asked - world.held_around(asked)
            if not any(ask.calls and not ask.settled for ask in self.asks):
                world.check(
                    took < ON_ITS_WAY + 0.2, f"{self!r} was sent away {took:.1f} s after the signal"
                )

    def talk(self):
        """Send all requests."""
        for number, ask in enumerate(self.asks):
            yield from self.ask(ask)
            if not self.pipelines:
                yield from self.until(lambda n=number: self.ended or self.is_answered(n + 1))
            if self.ended or self.silent:
                return
        if self.half_closes:
            self.half_closed = True
            self.link.end()

    def is_answered(self, count):
        """Tell whether so many answers are complete, or the last of them."""
        answers = self.answers
        return len(answers) >= count or bool(answers and answers[-1].closes and self.ended)

    def bye(self):
        """Close, if the server has not; what was not read is what we did not want."""
        self.closed = True
        if not self.ended:
            self.ended = True
            self.parse()
        self.link.hang_up()


class HalfCloser(Good):
    """Ends its side behind its last request, and is answered all the same."""

    half_closes = True

    def is_excused(self):
        # to an app that waits for the disconnect, the end of input is one
        watching = ("watches_while_it_streams", "receives_afterwards")
        return super().is_excused() or any(a.behaviour.name in watching for a in self.asks)


class Silent(Client):
    """Connects and says nothing."""

    allowed = frozenset({408})

    def live(self):
        yield self.random.random() * 3
        if self.connect():
            yield from self.until(lambda: self.ended)
            self.check_sent_away(self.world.options["timeout_keep_alive"])

    def check_sent_away(self, timeout):
        """The server must have closed when its deadline came."""
        world = self.world
        if self.ended and not (world.storm or world.signals or world.busy):
            took = world.clock.now - self.spoke_at
            # the linger, and a reactor held by apps that compute
            world.check(took <= timeout + 2 + 5, f"{self!r} was sent away after {took:.1f} s only")


# -- those who leave -------------------------------------------------------------------------------


class Leaver(Good):
    """Asks for what never ends, and leaves; or leaves in the middle of anything."""

    def __init__(self, world, number):
        super().__init__(world, number)
        rng = self.random
        if rng.random() < 0.6:
            self.asks = self.asks[: rng.choice((0, 0, 1))]
            self.asks.append(Ask(self, len(self.asks), rng.choice(LEAVERS), rng))
        self.goes_at = rng.choice((0.0, 0.01, 0.3, 1.0, 3.0, 30.0, 30.0))

    def live(self):
        yield self.random.random() * 3
        if not self.connect():
            return
        self.world.later(self.random.random() * self.goes_at, self.go)
        yield from self.talk()
        yield from self.until(lambda: self.done or self.ended)

    def go(self):
        """Leave, if the server was not faster."""
        if self.left_at is None and not self.closed:
            self.parse()
            self.leave(self.random.choice(("hang_up", "reset")))

    def check_end(self):
        if self.left_at is None and self.link is not None:
            super().check_end()


# -- the slow --------------------------------------------------------------------------------------


class SlowReader(Good):
    """Reads little at a time, seldom, or nothing at all."""

    prompt = False
    excused = True
    allowed = frozenset({408})

    def __init__(self, world, number):
        super().__init__(world, number)
        self.pace = self.random.choice((0.5, 3.0, 1e6))
        self.bite = self.random.choice((1, 5000, 60_000))

    def latency(self):
        return self.random.random() * self.pace

    def appetite(self):
        return self.random.randint(1, self.bite)

    def until(self, condition, patience=PATIENCE):
        """Who reads nothing learns nothing: its script ends when the server closed."""
        link = self.link
        return super().until(lambda: condition() or link.closed or link.lost, patience)

    def check_end(self):
        self.ended = self.ended or self.link is None or self.link.closed
        super().check_end()


class Stopper(Silent):
    """Says a part of its request, or says it much too slowly."""

    excused = True
    allowed = frozenset({408})

    def __init__(self, world, number):
        super().__init__(world, number)
        rng = self.random
        ask = Ask(self, 0, rng.choices(NORMAL, NORMAL_WEIGHTS)[0], rng)
        self.asks = [ask]
        self.pace = rng.choice((0, 0.7, 4.0))

    def live(self):
        yield self.random.random() * 3
        if not self.connect():
            return
        ask = self.asks[0]
        wire = ask.head + ask.wire_body
        cut = self.random.randint(0, len(wire) - 1)
        if self.pace:
            begin = self.world.clock.now
            for at in range(min(cut, 300)):
                if self.ended:
                    break
                self.link.say(wire[at : at + 1])
                yield self.random.random() * self.pace
            self.spoke_at = begin if cut <= len(ask.head) else self.world.clock.now
        else:
            self.link.say(wire[:cut])
            self.spoke_at = self.world.clock.now
        yield from self.until(lambda: self.ended)
        options = self.world.options
        # an app may answer late, and then the rest of the body is waited for, or the next request
        longest = options["timeout_header"] + options["timeout_body"] + 100
        self.check_sent_away(longest + options["timeout_keep_alive"])


# -- the broken ------------------------------------------------------------------------------------


class Broken(Good):
    """Says something good, then something bad, then something good that must not be heard."""

    allowed = frozenset(OWN_ERRORS - {500, 503, 408})

    def __init__(self, world, number):
        super().__init__(world, number)
        rng = self.random
        if any(ask.closes or ask.may_close for ask in self.asks):
            self.asks.clear()
        self.bad, self.allowed = rng.choice(BAD_WIRES)
        if rng.random() < 0.2:
            self.bad = bytes(rng.randrange(256) for _ in range(rng.randint(1, 200)))
            self.allowed = OWN_ERRORS
        self.good = len(self.asks)
        late = Ask(self, self.good, BEHAVIOURS["hello"], rng)
        late.forbidden = True
        self.asks.append(late)

    def live(self):
        yield self.random.random() * 3
        if not self.connect():
            return
        for ask in self.asks[:-1]:
            yield from self.ask(ask)
        if not self.ended and not self.silent:
            yield from self.say(self.bad)
            late = self.asks[-1]
            if self.allowed is not OWN_ERRORS:  # nonsense may be the beginning of a good line
                yield from self.say(late.head + late.wire_body)
        yield from self.until(lambda: self.ended)

    def own_statuses(self, ask):
        """Only the bad one may be refused."""
        allowed = super().own_statuses(ask)
        return allowed if ask is None or ask.forbidden else allowed & {500, 503, 408}

    def check_end(self):
        if self.link is None or not self.link.accepted:
            return
        if self.allowed is not OWN_ERRORS and not self.is_excused():
            refused = len(self.answers) == self.good + 1
            if not refused and not any(answer.closes for answer in self.answers):
                self.fail("the refusal did not arrive")
        super().check_end()


KINDS = {
    Good: 10,
    HalfCloser: 2,
    Silent: 1,
    Leaver: 5,
    SlowReader: 2,
    Stopper: 2,
    Broken: 2,
}
