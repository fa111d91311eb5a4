"""Replay a seed, or search for a failing one for hours.

``python3 -m tests.simulation --seed 17`` plays one world and narrates it;
``python3 -m tests.simulation --soak 3600 [--seed FIRST]`` plays one after the other for so many
seconds, tells how far it is, and ends with 1 at the first failure.
"""

from __future__ import annotations

import argparse
import sys
import time

from selectserve.trace import Tracer

from .story import CLIENTS, Story, run_seed
from .world import Violation

REPORT_EVERY = 10.0  # seconds


def narrate_seed(seed):
    """Play one world out loud; return the exit code."""
    story = Story(seed)
    world = story.world
    tracer = Tracer(world.clock, sys.stdout)
    world.reactor.trace = tracer
    world.narrate = lambda text: print(f"{world.clock.now - tracer.start:10.6f}  world  {text}")
    print(f"seed {seed}: storm {world.storm}, {story.options}, lifespan {story.lifespan_kind}")
    try:
        story.tell()
    except Exception as exc:
        print(f"FAILED after {world.turns} turns: {exc!r}")
        raise
    print(f"well ended after {world.turns} turns, digest {world.digest:08x}")
    return 0


def soak(seconds, first):
    """Play world after world for ``seconds``; return the exit code."""
    begin = reported = time.monotonic()
    seed, turns = first, 0
    while time.monotonic() - begin < seconds:
        try:
            turns += run_seed(seed).turns
        except Violation as exc:
            print(f"FAILED: {exc}")
            return 1
        seed += 1
        now = time.monotonic()
        if now - reported >= REPORT_EVERY:
            reported = now
            done = seed - first
            print(
                f"{now - begin:7.0f} s  {done} worlds  {done * CLIENTS} conversations  "
                f"{turns} turns  next seed {seed}",
                flush=True,
            )
    done = seed - first
    print(f"{done} worlds, {done * CLIENTS} conversations, {turns} turns: nothing failed")
    return 0


def main():
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.simulation")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="search for so long")
    parser.add_argument("--seed", type=int, default=None, help="replay it, or begin with it")
    given = parser.parse_args()
    if given.soak is not None:
        first = time.time_ns() % 10**9 if given.seed is None else given.seed
        print(f"first seed {first}")
        return soak(given.soak, first)
    if given.seed is None:
        parser.error("give --seed N to replay, or --soak SECONDS to search")
    return narrate_seed(given.seed)


if __name__ == "__main__":
    sys.exit(main())
