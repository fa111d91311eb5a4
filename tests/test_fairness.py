"""Nobody waits longer for what another asks: counted in turns, which no machine slows down."""

from __future__ import annotations

import pytest

from selectserve.connection import PIPELINE_BURST
from selectserve.reactor import FEW

from .simulation.world import Link
from .test_deadlines import GET, Stage, hello


class Client:
    """Says something in a given turn of the server, and notes in which turn it was answered."""

    def __init__(self, stage, at, said, again=False):
        self.stage = stage
        self.at = at
        self.said = said
        self.again = again  # the same in every turn from then on
        self.link = None
        self.answers = []  # the turns in which something was sent to us

    def act(self):
        """Between two turns: connect ten turns before we speak."""
        world = self.stage.world
        if world.turns == max(1, self.at - 10):
            self.link = Link(world, 1 << 30)
            self.link.on_outbound = lambda: self.answers.append(world.turns)
            world.gate.backlog.append(self.link)
        if world.turns == self.at or (self.again and world.turns > self.at):
            self.link.say(self.said)


def play(app, clients, turns):
    """Let the clients act for so many turns; then they hang up."""
    stage = Stage(app, timeout_keep_alive=1.0)
    clients = [Client(stage, *client) for client in clients]

    def turn_again():  # turns must go by also when nobody has anything to do
        if stage.world.turns < turns:
            stage.world.reactor.call_soon(turn_again)

    def act():
        for client in clients:
            client.act()
            if stage.world.turns == turns and client.link is not None:
                client.link.hang_up()

    stage.world.before_wait = act
    turn_again()
    stage.play()
    return clients


@pytest.mark.parametrize("clients", [1, 2, 3, 10])
def test_an_answer_leaves_while_its_app_still_runs_when_there_are_few(clients):
    log = []

    async def app(scope, receive, send):
        await hello(scope, receive, send)
        log.append("app")

    stage = Stage(app)
    links = [Link(stage.world, 1 << 30) for _ in range(clients)]
    for link in links:
        link.on_outbound = lambda link=link: link.server_ended or log.append("answer")
        link.say(GET.replace(b"Host", b"Connection: close\r\nHost"))
    stage.world.gate.backlog += links
    stage.play()
    at_once = ["answer", "app"] * clients
    together = ["app"] * clients + ["answer"] * clients
    assert log == (at_once if clients <= FEW else together)


@pytest.mark.parametrize("greedy", [1, 10])
def test_a_pipeliner_does_not_delay_the_others(greedy):
    asks = [(20, GET * 20, True)] * greedy
    others = [(at, GET) for at in range(100, 900, 50)]
    clients = play(hello, asks + others, 2000)
    for client in clients[:greedy]:
        assert client.answers[-1] > 900, "it was at it all the time"
        answered = client.link.outbound.count(b"HTTP/1.1 200")
        assert answered <= 2000 * PIPELINE_BURST, "so many a turn, and no more"
    for client in clients[greedy:]:
        assert client.answers[0] - client.at <= 1, "a request waits for no more than its own turn"


def test_a_large_upload_does_not_delay_the_others():
    async def app(scope, receive, send):
        more = True
        while more:
            more = (await receive()).get("more_body", False)
        await hello(scope, receive, send)

    size = 100_000_000
    upload = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size + bytes(size)
    clients = play(app, [(20, upload), *((at, GET) for at in range(50, 300, 50))], 2000)
    for client in clients[1:]:
        assert client.answers[0] - client.at <= 1


def test_those_who_connect_do_not_delay_those_who_are_here():
    crowd = [(20, b"")] * 500
    clients = play(hello, [*crowd, (21, GET)], 200)
    assert clients[-1].answers[0] - 21 <= 500 // 64 + 2, "at most 64 are accepted in a turn"
