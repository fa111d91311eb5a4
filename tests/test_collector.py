"""Python's garbage collector is calmed while we serve, where the process is ours, and not else."""

from __future__ import annotations

import gc
import json
import subprocess
import sys

import pytest

import selectserve
from selectserve.garbage import USUAL_THRESHOLD, Collector

pytestmark = pytest.mark.skipif(not USUAL_THRESHOLD, reason="this Python has another collector")
USUAL = list(USUAL_THRESHOLD)
FROZEN = gc.get_freeze_count() if USUAL_THRESHOLD else 0  # Python 3.12 begins with a few hundred
APP = """\
import gc, json

{tuning}
async def app(scope, receive, send):
    told = [gc.get_threshold(), gc.get_freeze_count(), gc.isenabled()]
    await send({{"type": "http.response.start", "status": 200}})
    await send({{"type": "http.response.body", "body": json.dumps(told).encode()}})
"""


@pytest.fixture
def ask(serve, tmp_path):
    """Return a function that serves an app with such options, and tells how it is collected."""

    def told(*options, tuning=""):
        (tmp_path / "collected.py").write_text(APP.format(tuning=tuning))
        server = serve("collected:app", "--app-dir", str(tmp_path), "--lifespan", "off", *options)
        with server.connect() as client:
            return json.loads(client.get("/").body)

    return told


def test_what_start_up_made_is_frozen_and_garbage_is_looked_for_as_ever(ask):
    """Less often would hold what only the collector frees: descriptors, and pages of memory."""
    threshold, frozen, enabled = ask()
    assert threshold == USUAL
    assert frozen > 1000
    assert enabled


def test_a_threshold_of_ones_own(ask):
    assert ask("--gc-threshold", "70000")[0] == [70000, *USUAL[1:]]


def test_one_too_large_for_python_is_its_largest(ask):
    assert ask("--gc-threshold", str(2**40))[0] == [2**31 - 1, *USUAL[1:]]


def test_a_threshold_without_the_freeze(ask):
    assert ask("--gc-threshold", "5000", "--no-gc-freeze")[:2] == [[5000, *USUAL[1:]], FROZEN]


def test_each_worker_is_calmed(ask):
    threshold, frozen, _ = ask("--workers", "2", "--gc-threshold", "5000")
    assert threshold == [5000, *USUAL[1:]]
    assert frozen > 1000


def test_without_either_python_is_as_it_is(ask):
    assert ask("--no-gc-freeze") == [USUAL, FROZEN, True]


def test_an_app_that_tunes_the_collector_knows_better(ask):
    assert ask(tuning="gc.set_threshold(123, 4, 5)") == [[123, 4, 5], FROZEN, True]


def test_a_program_that_tuned_it_before_the_import_knows_better():
    program = (
        "import gc; gc.set_threshold(50000, 20, 20)\n"
        "from selectserve.garbage import Collector; Collector(True, 5000).calm()\n"
        "print(gc.get_threshold(), gc.get_freeze_count())"
    )
    told = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True)
    assert told.stdout.decode().split() == f"(50000, 20, 20) {FROZEN}".split()


def test_an_app_that_turns_it_off_knows_better(ask):
    assert ask(tuning="gc.disable()") == [USUAL, FROZEN, False]


def test_a_host_program_keeps_its_own():
    before = gc.get_freeze_count()
    with selectserve.serving():
        assert list(gc.get_threshold()) == USUAL
        assert gc.get_freeze_count() == before


def test_a_host_program_that_asks_for_it_has_it_calmed():
    with selectserve.serving(gc_threshold=6000):
        assert gc.get_threshold()[0] == 6000
    assert list(gc.get_threshold()) == USUAL


def test_a_program_that_goes_on_behind_the_server_gets_it_back():
    collector = Collector(True, 5000)
    collector.calm()
    try:
        assert gc.get_threshold()[0] == 5000
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
