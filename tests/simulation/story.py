"""story: one seed, one world: who comes, what weather it is, when and how it ends."""

from __future__ import annotations

import logging
import random
import signal

from selectserve.task import sleep

from .apps import make_app
from .checks import check_end, check_turn
from .clients import KINDS
from .talkers import Conversation, Talker
from .world import Violation, World

CLIENTS = 25  # in one world
TALKERS = 3  # how often a WebSocket is wanted, beside the numbers in KINDS
LIFESPANS = ("good", "good", "good", "unknown", "slow", "fails", "hangs", "fails at the end")


class Records(logging.Handler):
    """Swallows the server's log, but for what says that the server has a bug."""

    def __init__(self):
        super().__init__()
        self.faults = []

    def emit(self, record):
        text = record.getMessage()
        if record.levelno >= logging.CRITICAL:
            self.faults.append(text)


class Story:
    """Everything that happens under one seed; ``tell`` plays it and raises Violation."""

    def __init__(self, seed, narrate=None):
        self.seed = seed
        rng = random.Random(f"story {seed}")
        self.storm = rng.choice((0, 0, 0, 0.3, 1.0))
        self.options = {
            "timeout_keep_alive": rng.choice((5.0, 5.0, 1.0)),
            "timeout_header": 15.0,
            "timeout_body": rng.choice((30.0, 5.0)),
            "timeout_write": rng.choice((60.0, 8.0)),
            "timeout_graceful_shutdown": rng.choice((10.0, 10.0, 2.0, 0.0)),
            "limit_concurrency": rng.choice((0, 0, 0, 0, 0, 0, 6)),
            "limit_memory": rng.choice((0, 0, 0, 0, 0, 0, 100_000, 1_000_000)),
        }
        self.lifespan_kind = rng.choice(LIFESPANS)
        self.world = world = World(seed, self.storm, self.app, self.options)
        world.narrate = narrate
        world.options = self.options
        world.busy = bool(self.options["limit_concurrency"] or self.options["limit_memory"])
        world.asks = {}
        world.conversation = Conversation
        world.lifespan = self.lifespan
        world.nonsense = self.nonsense
        world.before_wait = self.before_wait
        world.when_still = self.end_if_done
        self.app_of_world = make_app(world)
        self.plan_signals(rng)
        self.invite(rng)

    async def app(self, scope, receive, send):
        await self.app_of_world(scope, receive, send)

    def plan_signals(self, rng):
        """Draw when the server is told to stop: mostly when all is done, sometimes in between."""
        self.interrupted = rng.random() < 0.35
        if self.interrupted:
            moment = rng.choice((rng.random() * 0.01, rng.random() * 6))
            self.world.later(moment, lambda: self.world.signal(signal.SIGTERM))
            if rng.random() < 0.4:
                moment += rng.random() * rng.choice((0.001, 1, 14))
                self.world.later(moment, lambda: self.world.signal(signal.SIGINT))

    def invite(self, rng):
        """Draw the clients."""
        world = self.world
        kinds = rng.choices([*KINDS, Talker], [*KINDS.values(), TALKERS], k=CLIENTS)
        for number, kind in enumerate(kinds):
            client = kind(world, number)
            world.clients.append(client)
            asks = [client.the_ask] if kind is Talker else client.asks
            for ask in asks:
                world.asks["/" + ask.tag] = ask
            client.step()

    def before_wait(self):
        """Check the invariants, and whether this world is over."""
        check_turn(self.world)
        if not self.world.service.connections:
            self.end_if_done()

    def end_if_done(self):
        """Stop the server when everybody has what he came for; tell whether that is so."""
        world = self.world
        if world.signals or self.interrupted or not all(c.done for c in world.clients):
            return False
        for call in world.running:  # nobody is there any more for whom they could wait
            if call.waits and world.clock.now > call.ask.client.done_at + 1:
                raise Violation(f"nobody tells {call!r} that its client left")
        world.signal(signal.SIGTERM)
        return True

    def nonsense(self, scope):
        """No client of ours asks for what nobody knows."""
        raise Violation(f"the app was called for {scope['path']!r}")

    async def lifespan(self, receive, send):
        """Begin and end in one of several ways."""
        kind = self.lifespan_kind
        if kind == "unknown":
            raise RuntimeError("no lifespan here")
        await receive()
        if kind == "slow":
            await sleep(1.0)
        if kind == "fails" and self.seed % 4 == 0:
            await send({"type": "lifespan.startup.failed", "message": "not today"})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        world = self.world
        world.check(not world.service.connections, "lifespan shutdown before the last connection")
        if kind == "hangs":
            await sleep(1e6)
        if kind == "fails at the end":
            await send({"type": "lifespan.shutdown.failed", "message": "could not save"})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    def exit_code(self):
        """Return the exit code that this lifespan must lead to."""
        kind = self.lifespan_kind
        bad = kind in ("hangs", "fails at the end") or (kind == "fails" and self.seed % 4 == 0)
        return 3 if bad else 0

    def tell(self):
        """Play the world, and check what is left of it."""
        logger = logging.getLogger("selectserve.error")
        records = Records()
        before = logger.handlers, logger.propagate, logger.level
        logger.handlers, logger.propagate = [records], False
        logger.setLevel(logging.DEBUG)
        try:
            code = self.world.play()
        finally:
            logger.handlers, logger.propagate = before[0], before[1]
            logger.setLevel(before[2])
        if records.faults:
            raise Violation(records.faults[0])
        started = self.world.gate.was_opened
        if started and code != self.exit_code():
            raise Violation(f"exit code {code} instead of {self.exit_code()}")
        self.world.fade()
        check_end(self.world)
        return self.world


def replay(seed):
    """Return the sentence that says how a failure is seen again."""
    return f"seed {seed}: python3 -m tests.simulation --seed {seed}"


def run_seed(seed, narrate=None):
    """Play one seed; raise Violation with the way to replay it. Return the world."""
    try:
        return Story(seed, narrate).tell()
    except Exception as exc:
        raise Violation(f"{exc}\n  {replay(seed)}") from exc
