"""guest: trio as a guest of the reactor, for apps that are written for it (``--loop trio``).

In its guest mode trio lets another loop decide when it runs: the reactor turns, and each of trio's
turns is one call from its ready queue. Each request is a task of trio's own, so that nurseries,
cancel scopes and trio's primitives work in it. trio waits for its own descriptors in a thread.
"""

from __future__ import annotations

from importlib import import_module

from .errors import Cancelled, ConfigError, group_parts
from .reactor import Reactor
from .task import TIDY_TIME, ignore_end, misses_loop

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from contextvars import Context
    from typing import Any

    from .task import Cancels, Done, Result


class TrioWaiter:
    """One call's wait, on a trio.Event."""

    __slots__ = ("event",)

    def __init__(self, event: Any) -> None:
        self.event = event

    def done(self) -> bool:
        """Tell whether the wait is over."""
        released: bool = self.event.is_set()
        return released

    def set_result(self, _result: None = None, /) -> None:
        """End the wait."""
        self.event.set()

    def __await__(self) -> Generator[Any, None, Any]:
        waiting: Generator[Any, None, Any] = self.event.wait().__await__()
        return waiting


class TrioTask:
    """A coroutine in a trio task, in a cancel scope of its own."""

    __slots__ = ("coro", "on_done", "scope", "stepper")

    def __init__(
        self, stepper: TrioStepper, coro: Coroutine[Any, Any, object], on_done: Done
    ) -> None:
        self.stepper = stepper
        self.coro = coro
        self.on_done = on_done
        self.scope = stepper.trio.CancelScope()

    async def run(self) -> None:
        """Run to the end and tell it; only a cancellation goes through, for trio to see."""
        error: BaseException | None = None
        try:
            with self.scope:
                try:
                    await self.coro
                except self.stepper.trio.Cancelled:
                    error = Cancelled()
                    raise
        except self.stepper.trio.Cancelled:
            raise
        except BaseException as exc:
            error = told_exit(exc)
        finally:
            self.stepper.tasks.discard(self)
            on_done, self.on_done = self.on_done, ignore_end
            on_done(error)
            error = None  # it holds this frame by its traceback

    def cancel(self) -> None:
        """Cancel all that the coroutine waits for."""
        self.scope.cancel()


def told_exit(exc: BaseException, removes: int = 10) -> BaseException:
    """Return the KeyboardInterrupt or SystemExit that nurseries have put into groups, else all."""
    for part in group_parts(exc) if removes else ():
        part = told_exit(part, removes - 1)
        if isinstance(part, (KeyboardInterrupt, SystemExit)):
            return part
    return exc


class TrioStepper:
    """Run each coroutine as a task of trio's."""

    name = "trio"

    def __init__(self, reactor: Reactor) -> None:
        try:
            self.trio: Any = import_module("trio")
        except ImportError:
            raise ConfigError("--loop trio: the package trio is not installed") from None
        self.reactor = reactor
        self.tasks: set[TrioTask] = set()

    def waiter(self) -> TrioWaiter:
        """Make the wait of one call."""
        return TrioWaiter(self.trio.Event())

    def spawn(self, coro: Coroutine[Any, Any, object], on_done: Done, context: Context) -> TrioTask:
        """Start a task; trio takes its first step in its next turn."""
        task = TrioTask(self, coro, on_done)
        self.tasks.add(task)
        self.trio.lowlevel.spawn_system_task(task.run, name=repr(coro), context=context)
        return task

    def cancel_all(self, spare: Cancels | None) -> None:
        """Cancel every task that was spawned, but ``spare``."""
        for task in list(self.tasks):
            if task is not spare:
                task.cancel()

    def explain(self, exc: BaseException) -> str:
        """Say what to do about what asyncio misses here."""
        return "start with --loop asyncio" if misses_loop(exc) else ""

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Turn the reactor until ``main`` has ended; return or raise what it did."""
        outcomes: list[Any] = []
        results: list[Result] = []

        async def root() -> None:
            try:
                results.append(await main)
            finally:  # trio has no deadline for what it waits for now, such as threads
                self.reactor.call_later(TIDY_TIME, self.reactor.stop)

        def on_done(outcome: Any) -> None:
            outcomes.append(outcome)
            self.reactor.stop()

        self.trio.lowlevel.start_guest_run(
            root,
            run_sync_soon_threadsafe=self.reactor.call_from_thread,
            run_sync_soon_not_threadsafe=self.reactor.call_soon,
            done_callback=on_done,
            host_uses_signal_set_wakeup_fd=True,
        )
        self.reactor.run()
        if outcomes:
            outcomes[0].unwrap()
        return results[0]
