"""Python's garbage collector is calmed while we serve, where the process is ours, and not else."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys

import pytest

import selectserve
from selectserve.garbage import FEW_IN, MAX_AGE, USUAL_THRESHOLD, Collector

pytestmark = pytest.mark.skipif(not USUAL_THRESHOLD, reason="this Python has another collector")
USUAL = list(USUAL_THRESHOLD)
FROZEN = gc.get_freeze_count() if USUAL_THRESHOLD else 0  # Python 3.12 begins with a few hundred
# What one request does; it stays, or is garbage that only the collector frees.
MANY = 6000  # more than either threshold
KEEP = f"kept = [[] for _ in range({MANY})]"
WASTE = f"""
    for _ in range({MANY}):
        cycle = []
        cycle.append(cycle)
"""
APP = """\
import gc, json

{tuning}
async def app(scope, receive, send):
    {work}
    told = [{told}, gc.get_freeze_count(), gc.isenabled()]
    await send({{"type": "http.response.start", "status": 200}})
    await send({{"type": "http.response.body", "body": json.dumps(told).encode()}})
"""


@pytest.fixture
def ask(serve, tmp_path):
    """Return a function that serves an app with such options, and tells how it is collected."""

    def told(*options, tuning="", work="", told="gc.get_threshold()"):
        app = APP.format(tuning=tuning, work=work, told=told)
        (tmp_path / "collected.py").write_text(app)
        server = serve("collected:app", "--app-dir", str(tmp_path), "--lifespan", "off", *options)
        with server.connect() as client:
            return json.loads(client.get("/").body)

    return told


def test_what_start_up_made_is_frozen(ask):
    threshold, frozen, enabled = ask()
    assert threshold == USUAL  # as long as nothing was looked for in vain
    assert frozen > 1000
    assert enabled


def test_each_worker_is_calmed(ask):
    threshold, frozen, _ = ask("--workers", "2", work=KEEP)
    assert threshold == [5000, *USUAL[1:]]
    assert frozen > 1000


def test_after_a_look_in_vain_the_next_comes_later(ask):
    assert ask(work=KEEP)[0] == [5000, *USUAL[1:]]


def test_where_there_is_garbage_it_is_looked_for_as_ever(ask):
    """Less often would hold what only the collector frees: descriptors, and pages of memory."""
    assert ask(work=WASTE)[0] == USUAL


def test_garbage_that_begins_later_is_seen(ask):
    assert ask(work=KEEP + WASTE)[0] == USUAL


def test_a_threshold_of_ones_own(ask):
    assert ask("--gc-threshold", "70000", work=KEEP)[0] == [70000, *USUAL[1:]]


def test_one_too_large_for_python_is_its_largest(ask):
    assert ask("--gc-threshold", str(2**40), work=KEEP)[0] == [2**31 - 1, *USUAL[1:]]


def test_one_below_pythons_own_changes_nothing(ask):
    assert ask("--gc-threshold", "100", work=KEEP)[0] == USUAL


def test_none(ask):
    assert ask("--gc-threshold", "0", work=KEEP)[0] == USUAL


def test_a_threshold_without_the_freeze(ask):
    assert ask("--no-gc-freeze", work=KEEP)[:2] == [[5000, *USUAL[1:]], FROZEN]


def test_an_app_that_sets_it_while_we_serve_keeps_it(ask):
    assert ask(work=f"gc.set_threshold(800, 4, 5); {KEEP}")[0] == [800, 4, 5]
    assert ask(work=f"{KEEP}; gc.set_threshold(800, 4, 5); {KEEP}")[0] == [800, 4, 5]


def test_without_either_python_is_as_it_is(ask):
    options = ("--no-gc-freeze", "--gc-threshold", "0")
    assert ask(*options, work=KEEP) == [USUAL, FROZEN, True]


def test_an_app_that_tunes_the_collector_knows_better(ask):
    assert ask(tuning="gc.set_threshold(123, 4, 5)") == [[123, 4, 5], FROZEN, True]


def test_a_program_that_tuned_it_before_the_import_knows_better():
    program = (
        "import gc; gc.set_threshold(50000, 20, 20)\n"
        "from selectserve.garbage import Collector; Collector(None, True, 5000).calm()\n"
        "print(gc.get_threshold(), gc.get_freeze_count())"
    )
    told = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert told.stdout.decode().split() == f"(50000, 20, 20) {FROZEN}".split()


def test_an_app_that_turns_it_off_knows_better(ask):
    assert ask(tuning="gc.disable()") == [USUAL, FROZEN, False]


class FakeReactor:
    """Keeps what it is asked to do."""

    def __init__(self):
        self.later = []

    def call_from_thread(self, action):
        action()

    def call_later(self, delay, action):
        self.later.append((delay, action))


@pytest.fixture
def collector():
    """A calmed one of a reactor that does nothing by itself; what is found is told by hand."""
    collector = Collector(FakeReactor(), True, 5000)
    collector.calm()
    gc.callbacks.remove(collector.on_collection)
    yield collector
    collector.restore()
    gc.set_threshold(*USUAL)


def collected(collector, generation, found):
    collector.on_collection("start", {"generation": generation, "collected": 0})
    collector.on_collection("stop", {"generation": generation, "collected": found})
    return gc.get_threshold()[0]


def test_it_holds_for_a_moment_only(collector):
    assert collected(collector, 0, 0) == 5000
    [(delay, action)] = collector.reactor.later
    assert delay == MAX_AGE
    assert collected(collector, 0, 0) == 5000  # and is not made longer
    assert len(collector.reactor.later) == 1
    action()
    assert gc.get_threshold() == USUAL_THRESHOLD
    assert collected(collector, 0, 0) == 5000


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_a_generation_with_garbage_keeps_it_until_it_has_none(collector, generation):
    """What an app held for a while has become old: the young ones tell nothing of it."""
    much = USUAL[0] * 10**generation // FEW_IN + 1
    assert collected(collector, generation, much - 1) == 5000
    assert collected(collector, generation, much) == USUAL[0]
    for other in {0, 1, 2} - {generation}:
        assert collected(collector, other, 0) == USUAL[0]
    assert collected(collector, generation, 0) == 5000


def test_a_timer_that_comes_in_between_leaves_it_to_the_next(collector, monkeypatch):
    """Collections happen in any thread, and the reactor's lowers what an earlier one has raised."""

    class Threads:
        get_threshold, callbacks, unfreeze = gc.get_threshold, gc.callbacks, gc.unfreeze

        @staticmethod
        def set_threshold(*numbers):
            monkeypatch.undo()
            collector.lower()
            gc.set_threshold(*numbers)

    monkeypatch.setattr("selectserve.garbage.gc", Threads)
    assert collected(collector, 0, 0) == 5000
    collector.reactor.later[0][1]()
    assert gc.get_threshold() == USUAL_THRESHOLD


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_is_python_as_it_is(ask):
    """Its reactor does not turn, so nothing would end there."""
    work = f"""
    import os
    {KEEP}
    receiver, sender = os.pipe()
    if not os.fork():
        os.write(sender, json.dumps([gc.get_threshold(), len(gc.callbacks)]).encode())
        os._exit(0)
    os.wait()
    scope["told"] = json.loads(os.read(receiver, 1000))
"""
    [threshold, callbacks], *_ = ask(work=work, told='scope["told"]')
    assert (threshold, callbacks) == (USUAL, 0)


def test_what_a_program_sets_meanwhile_is_its_own(collector):
    collected(collector, 0, 0)
    gc.set_threshold(9)
    collector.reactor.later[0][1]()
    assert gc.get_threshold()[0] == 9
    assert collected(collector, 0, 0) == 9
    collector.restore()
    assert gc.get_threshold()[0] == 9


def test_a_host_program_keeps_its_own():
    before = (len(gc.callbacks), gc.get_freeze_count())
    with selectserve.serving():
        assert list(gc.get_threshold()) == USUAL
        assert (len(gc.callbacks), gc.get_freeze_count()) == before


def test_a_host_program_that_asks_for_it_has_it_calmed():
    before = len(gc.callbacks)
    with selectserve.serving(gc_threshold=6000):
        assert len(gc.callbacks) == before + 1
    assert len(gc.callbacks) == before
    assert list(gc.get_threshold()) == USUAL


def test_a_program_that_goes_on_behind_the_server_gets_it_back():
    collector = Collector(FakeReactor(), True, 5000)
    collector.calm()
    try:
        collected(collector, 0, 0)
        assert gc.get_freeze_count() > FROZEN
    finally:
        collector.restore()
    assert list(gc.get_threshold()) == USUAL
    assert gc.get_freeze_count() == 0
    gc.set_threshold(9)
    try:
        collector.restore()  # a second time: it is the program's again
        assert gc.get_threshold()[0] == 9
    finally:
        gc.set_threshold(*USUAL)
