"""task: coroutines, driven by hand. Home of the only ``yield`` of the package.

A coroutine that cannot go on yields a trap, the Waiter it waits for, and so returns to whoever
stepped it; the next step begins where it stopped. That is all there is to it:

    created -> step -> (trap: parked -> released -> step)* -> done

A NativeStepper steps tasks on the reactor; the rooms aio and guest have others that let
asyncio and trio do it. Rooms that speak protocols, and the primitives below (sleep, spawn, Event,
wait_readable, run_in_thread), know only ``waiter()`` and ``spawn()`` and work in every mode.
"""

from __future__ import annotations

import sys
from contextvars import Context, ContextVar, copy_context

from .errors import Cancelled, ConfigError
from .reactor import EVENT_READ, EVENT_WRITE, Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Coroutine, Generator
    from typing import Any, Callable, Literal, Protocol, TypeVar, Union

    Result = TypeVar("Result")
    TaskState = Literal["ready", "stepping", "parked", "done"]
    Done = Callable[[Union[BaseException, None]], object]

    class Waits(Protocol):
        """One call's wait: awaited once, released once."""

        def done(self) -> bool: ...
        def set_result(self, result: None, /) -> None: ...
        def __await__(self) -> Generator[Any, None, Any]: ...

    class Cancels(Protocol):
        """What ``spawn`` returns."""

        def cancel(self) -> object: ...

    class Stepper(Protocol):
        """How coroutines run: the interface behind which the modes differ."""

        name: str
        reactor: Reactor

        def waiter(self) -> Waits: ...
        def spawn(
            self, coro: Coroutine[Any, Any, object], on_done: Done, context: Context
        ) -> Cancels: ...
        def run(self, main: Coroutine[Any, Any, Result]) -> Result: ...
        def cancel_all(self, spare: Cancels | None) -> None: ...
        def explain(self, exc: BaseException) -> str: ...


NO_LOOP_ERRORS = ("NoEventLoopError", "AsyncLibraryNotFoundError")  # of anyio and sniffio
TIDY_TIME = 2.0  # seconds for cancelled tasks to end, and as many for the threads at work
MAX_THREADS = 40  # of run_in_thread, as many as anyio allows
# Who steps the tasks of this context; set once by the server, copied into each request's context.
current_stepper: ContextVar[Stepper] = ContextVar("selectserve_stepper")


class Waiter:
    """One call's wait: a task parks on it, ``set_result`` releases it."""

    __slots__ = ("released", "task")

    def __init__(self) -> None:
        self.released = False
        self.task: Task | None = None

    def done(self) -> bool:
        """Tell whether the wait is over."""
        return self.released

    def set_result(self, _result: None = None, /) -> None:
        """End the wait: its task is stepped in the next round of the ready queue."""
        if not self.released:
            self.released = True
            task = self.task
            if task is not None and task.waiter is self:  # else it was cancelled out of this wait
                task.wake()

    def __await__(self) -> Generator[Waiter, None, None]:
        if not self.released:
            yield self  # the one yield: the trap goes to whoever steps


class Task:
    """A coroutine and the context it runs in; ``step`` runs it until it parks or ends."""

    __slots__ = ("context", "coro", "error", "on_done", "state", "stepper", "waiter")

    def __init__(
        self,
        stepper: NativeStepper,
        coro: Coroutine[Any, Any, object],
        on_done: Done,
        context: Context,
    ) -> None:
        self.stepper = stepper
        self.coro = coro
        self.on_done = on_done
        self.context = context
        self.state: TaskState = "ready"
        self.error: BaseException | None = None  # to be thrown in at the next step
        self.waiter: Waiter | None = None

    def __repr__(self) -> str:
        return f"<Task {getattr(self.coro, '__qualname__', self.coro)} {self.state}>"

    def step(self) -> None:
        """Run until the coroutine parks or ends; the first step of most was the stepper's."""
        self.state = "stepping"
        self.waiter = None
        error, self.error = self.error, None
        stepper = self.stepper
        stepper.stepping = True
        try:
            if error is None:
                trap = self.context.run(self.coro.send, None)
            else:
                trap = self.context.run(self.coro.throw, error)
        except StopIteration:
            self.finish(None)
        except BaseException as exc:
            stepper.reactor.on_return(exc)
            self.finish(exc)
        else:
            self.park(trap)
        finally:
            stepper.stepping = False

    def park(self, trap: object) -> None:
        """Wait for what the coroutine yielded."""
        if type(trap) is Waiter and trap.task is None and self.error is None:
            self.state = "parked"
            self.waiter = trap
            trap.task = self
            if not trap.released:
                return
        elif trap is not None:  # None is a bare yield: again in the next turn
            # an error that is there already: cancelled by what it did itself
            self.error = self.error or RuntimeError(explain_trap(trap))
        self.state = "ready"
        self.stepper.reactor.call_soon(self.step)

    def wake(self) -> None:
        """Step again in the next round: what was waited for has come."""
        if self.state == "parked":
            self.state = "ready"
            self.stepper.reactor.call_soon(self.step)

    def cancel(self) -> None:
        """Throw Cancelled in where the task waits, in the next round."""
        if self.state != "done":
            self.error = Cancelled()
            self.wake()

    def finish(self, exc: BaseException | None) -> None:
        """The coroutine has ended: tell who wants to know."""
        self.state = "done"
        self.stepper.tasks.discard(self)
        on_done, self.on_done = self.on_done, ignore_end
        on_done(exc)


class FinishedTask:
    """What ``spawn`` returns of a task that has ended already."""

    __slots__ = ()

    def cancel(self) -> None:
        """There is nothing left to cancel."""


FINISHED = FinishedTask()


def ignore_end(_exc: BaseException | None) -> None:
    """Stand in for ``on_done`` once it was called: a task must not keep its request alive."""


def explain_trap(trap: object) -> str:
    """Say what was awaited, why it cannot work here, and what to do."""
    what = f"{type(trap).__module__}.{type(trap).__qualname__}"
    if hasattr(trap, "_asyncio_future_blocking"):
        return (
            f"awaited {what}, which needs asyncio, but this app is stepped without it: "
            "start with --loop asyncio"
        )
    if type(trap) is Waiter:
        return "awaited something that another task waits for already: each needs its own"
    return (
        f"awaited something that yielded {what}, which selectserve does not know: use its own "
        "sleep, Event, wait_readable…, or start with --loop asyncio"
    )


def explain_trio(exc: BaseException) -> str:
    """Say what to do when trio says that it does not run."""
    misses = type(exc) is RuntimeError and "must be called from async context" in str(exc)
    return "this app needs trio: start with --loop trio" if misses else ""


def misses_loop(exc: BaseException) -> bool:
    """Tell whether asyncio says that no loop runs; str() of the app's own classes may fail."""
    return type(exc) is RuntimeError and "no running event loop" in str(exc)


class NativeStepper:
    """Step coroutines on the reactor, each in its own context, without asyncio."""

    name = "native"

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.stepping = False  # a task is being stepped
        self.tasks: set[Task] = set()

    def waiter(self) -> Waiter:
        """Make the wait of one call."""
        return Waiter()

    def spawn(self, coro: Coroutine[Any, Any, object], on_done: Done, context: Context) -> Cancels:
        """Start a task; its first step runs at once, unless another task is being stepped."""
        if not self.stepping:
            # Most requests end in their first step: those never become a Task.
            self.stepping = True
            try:
                trap = context.run(coro.send, None)
            except StopIteration:
                self.stepping = False
                on_done(None)
                return FINISHED
            except BaseException as exc:
                self.stepping = False
                self.reactor.on_return(exc)
                on_done(exc)
                return FINISHED
            self.stepping = False
            task = Task(self, coro, on_done, context)
            task.park(trap)
        else:
            task = Task(self, coro, on_done, context)
            self.reactor.call_soon(task.step)
        self.tasks.add(task)
        return task

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Turn the reactor until ``main`` has ended; return or raise what it did."""
        results: list[Result] = []
        errors: list[BaseException] = []

        async def root() -> None:
            results.append(await main)

        def on_done(exc: BaseException | None) -> None:
            if exc is not None:
                errors.append(exc)
            self.reactor.stop()

        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=self.finalize)
        try:
            self.reactor.call_soon(Task(self, root(), on_done, copy_context()).step)
            self.turn()
        finally:
            sys.set_asyncgen_hooks(*hooks)
        if errors:
            raise errors[0]
        return results[0]

    def turn(self) -> None:
        """Turn the reactor until it is stopped."""
        self.reactor.run()

    def cancel_all(self, spare: Cancels | None) -> None:
        """Cancel every task but the root and ``spare``."""
        for task in list(self.tasks):
            if task is not spare:
                task.cancel()

    def explain(self, exc: BaseException) -> str:
        """Say what to do when the app missed the event loop that it does not have here."""
        cause: BaseException | None = exc
        while cause is not None:
            if type(cause).__name__ in NO_LOOP_ERRORS or misses_loop(cause):
                return "this app is stepped without asyncio: start with --loop asyncio"
            if explain_trio(cause):
                return explain_trio(cause)
            cause = cause.__cause__ or cause.__context__
        return ""

    def finalize(self, generator: Any) -> None:
        """Close an async generator that the app dropped half-way: its finally may await."""
        context = copy_context()
        self.reactor.call_from_thread(
            lambda: self.spawn(generator.aclose(), lambda _exc: None, context)
        )


# -- primitives for apps: each works under every stepper -----------------------------------------


def stepper_here() -> Stepper:
    """Return who steps the calling coroutine; raise RuntimeError outside of an app's code."""
    stepper = current_stepper.get(None)
    if stepper is None:
        raise RuntimeError("selectserve's primitives work inside an app that selectserve serves")
    return stepper


async def sleep(seconds: float) -> None:
    """Wait for ``seconds``; 0 or less lets the others have a turn."""
    stepper = stepper_here()
    waiter = stepper.waiter()
    timer = stepper.reactor.call_later(max(0.0, seconds), lambda: release(waiter))
    try:
        await waiter
    finally:
        timer.cancel()


def release(waiter: Waits) -> None:
    """End a wait, unless it ended already."""
    if not waiter.done():
        waiter.set_result(None)


def spawn(coro: Coroutine[Any, Any, object]) -> Cancels:
    """Run ``coro`` as a task of its own, in a copy of this context; ``cancel()`` it by the result.

    What it raises is logged as an error; nobody else would see it.
    """
    stepper = stepper_here()
    return stepper.spawn(coro, report_task, copy_context())


def report_task(exc: BaseException | None) -> None:
    """Log what a spawned task died of."""
    if exc is not None and not isinstance(exc, Cancelled):
        import logging

        logging.getLogger("selectserve.error").error("a spawned task failed", exc_info=exc)


class Parking:
    """Where calls park until something has changed; each then looks whether it was meant."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        # One for each call, so that a cancel hits one; no list while there are none.
        self.waiters: list[Waits] | None = None

    def release_waiters(self) -> None:
        """Step on everyone who waits here."""
        waiters, self.waiters = self.waiters, None
        for waiter in waiters or ():
            release(waiter)

    async def park(self, stepper: Stepper) -> None:
        """Wait for the next ``release_waiters``."""
        waiter = stepper.waiter()
        if self.waiters is None:
            self.waiters = []
        self.waiters.append(waiter)
        try:
            await waiter
        finally:
            if self.waiters is not None and waiter in self.waiters:
                self.waiters.remove(waiter)


class Event(Parking):
    """A flag that tasks can wait for; once set it stays set until ``clear``."""

    __slots__ = ("flag",)

    def __init__(self) -> None:
        super().__init__()
        self.flag = False

    def is_set(self) -> bool:
        """Tell whether the flag is set."""
        return self.flag

    def set(self) -> None:
        """Raise the flag and release all who wait; on the reactor's thread only."""
        self.flag = True
        self.release_waiters()

    def clear(self) -> None:
        """Lower the flag."""
        self.flag = False

    async def wait(self) -> None:
        """Return at once if the flag is set, else when it is."""
        if not self.flag:
            await self.park(stepper_here())


async def wait_readable(fileobj: int | socket.socket) -> None:
    """Wait until ``fileobj`` can be read (or accepted from, or has failed).

    Raises RuntimeError while another task waits for it, to read or to write; a dup() helps.
    """
    await wait_ready(fileobj, EVENT_READ)


async def wait_writable(fileobj: int | socket.socket) -> None:
    """Wait until ``fileobj`` can be written (or has connected, or has failed).

    Raises RuntimeError while another task waits for it, to read or to write; a dup() helps.
    """
    await wait_ready(fileobj, EVENT_WRITE)


async def wait_ready(fileobj: int | socket.socket, interest: int) -> None:
    """Wait for one readiness; one task at a time may wait for a descriptor."""
    stepper = stepper_here()
    waiter = stepper.waiter()
    try:
        stepper.reactor.register(fileobj, interest, lambda _ready: release(waiter))
    except KeyError:
        raise RuntimeError(f"another task waits for {fileobj!r} already") from None
    try:
        await waiter
    finally:
        stepper.reactor.unregister(fileobj)


async def run_in_thread(function: Callable[..., Result], *args: Any) -> Result:
    """Call ``function(*args)`` in a worker thread; return or raise what it does.

    Runs in a copy of this context. At most ``MAX_THREADS`` run at once, others wait their turn. A
    task that is cancelled meanwhile goes on at once; the thread cannot be stopped.
    """
    stepper = stepper_here()
    reactor, waiter = stepper.reactor, stepper.waiter()

    def on_done(future: Any) -> None:
        reactor.on_return(future.exception())
        reactor.call_from_thread(lambda: release(waiter))

    future = thread_pool(reactor).submit(copy_context().run, function, *args)
    future.add_done_callback(on_done)
    await waiter
    result: Result = future.result()
    return result


def thread_pool(reactor: Reactor) -> Any:
    """Return the reactor's pool of worker threads, made when first asked for."""
    if reactor.threads is None:
        reactor.threads = thread_pool_class("run_in_thread")(MAX_THREADS, "selectserve")
    return reactor.threads


def thread_pool_class(wanted_by: str) -> Any:
    """Return the class of such pools; raise ConfigError where Python has no threads."""
    try:
        from concurrent.futures import ThreadPoolExecutor
    except ImportError:
        raise ConfigError(f"this Python has no threads, which {wanted_by} needs") from None

    class ThreadPool(ThreadPoolExecutor):
        """One that makes do with the threads it has: what it is given is queued already."""

        def _adjust_thread_count(self) -> None:
            try:
                super()._adjust_thread_count()
            except RuntimeError:  # the system has no more
                if not self._threads:
                    raise

    return ThreadPool
