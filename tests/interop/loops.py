"""The facade as a loop of its own: a class and a factory for suites that bring their own tests."""

from __future__ import annotations

import asyncio

from selectserve.facade import facade_class
from selectserve.reactor import Reactor


class StandaloneLoop(facade_class()):
    """A loop on a reactor of its own, made like SelectorEventLoop(selector)."""

    def __init__(self, selector=None):
        super().__init__(Reactor(selector))
        self.owns_reactor = True  # close() closes it


def new_loop():
    """Make a loop: a ``loop_factory``."""
    return StandaloneLoop()


def install():
    """Let asyncio make StandaloneLoops wherever it would make its own."""
    asyncio.SelectorEventLoop = StandaloneLoop
    asyncio.unix_events.SelectorEventLoop = StandaloneLoop
    if hasattr(asyncio, "EventLoop"):  # since 3.13
        asyncio.EventLoop = StandaloneLoop
        asyncio.unix_events.EventLoop = StandaloneLoop
    for name in ("_UnixDefaultEventLoopPolicy", "DefaultEventLoopPolicy"):
        policy = getattr(asyncio.unix_events, name, None)
        if policy is not None:
            policy._loop_factory = StandaloneLoop


def pytest_configure(config):
    """As a pytest plugin (``-p loops``): have the whole run on our loop."""
    install()
