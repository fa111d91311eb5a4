"""aio: who steps the app's coroutines: the choice, and the stepper for apps that want asyncio.

An AsyncioStepper runs each request as an asyncio.Task on the reactor's facade, its first step
taken at once. In mode auto an app that has imported asyncio by the time it is loaded gets it, any
other is stepped natively; one that imports asyncio later gets it from the next request on. The
rooms that speak protocols see ``waiter()`` and ``spawn()`` and no mode. asyncio is imported inside
functions only.
"""

from __future__ import annotations

import sys
from contextvars import copy_context
from functools import partial

from .errors import Cancelled, ConfigError
from .facade import FacadeLoop, facade_class
from .guest import TrioStepper
from .logs import error_logger
from .reactor import Reactor
from .task import FINISHED, TIDY_TIME, NativeStepper, explain_trio, ignore_end, misses_loop, release

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Coroutine
    from contextvars import Context
    from importlib.machinery import ModuleSpec
    from typing import Any, Callable

    from .task import Cancels, Done, Result, Stepper

# An app that has imported one of these wants asyncio; all but the first import it when first used.
ASYNCIO_SIGNS = ("asyncio", "anyio", "httpx", "sniffio")
GOES_PAST_TASKS = (KeyboardInterrupt, SystemExit)  # a Task has and raises them: they end the turn
TASKS_START_EAGERLY = sys.version_info >= (3, 12)


class SpawnedTask:
    """An asyncio.Task that waits for something, and who wants to hear of its end."""

    __slots__ = ("on_done", "stepper", "task")

    def __init__(self, stepper: AsyncioStepper, task: asyncio.Task[Any], on_done: Done) -> None:
        self.stepper = stepper
        self.task: asyncio.Task[Any] | None = task
        self.on_done = on_done
        stepper.tasks.add(self)
        task.add_done_callback(self)

    def __call__(self, task: asyncio.Task[Any]) -> None:
        """The task has ended; the loop tells that at once, inside its last step."""
        stepper = self.stepper
        stepper.tasks.discard(self)
        exc = outcome(task)
        if exc is not None:  # asyncio notes only now that somebody has to look at it
            stepper.reactor.call_soon(partial(outcome, task))
        if isinstance(exc, GOES_PAST_TASKS):
            stepper.told = exc
        self.task = None
        on_done, self.on_done = self.on_done, ignore_end  # it holds the request, which holds this
        on_done(exc)

    def cancel(self) -> None:
        """Throw CancelledError in where the coroutine waits."""
        if self.task is not None:
            self.task.cancel()


def outcome(task: asyncio.Task[Any]) -> BaseException | None:
    """Return what a task that has ended did not catch."""
    return Cancelled() if task.cancelled() else task.exception()


class AsyncioStepper:
    """Run each coroutine as an asyncio.Task on a FacadeLoop.

    ``on_stop(reason)`` is told when the app wants the server to end.
    """

    name = "asyncio"

    def __init__(self, reactor: Reactor, on_stop: Callable[..., object]) -> None:
        import asyncio

        self.reactor = reactor
        self.on_stop = on_stop
        self.loop: FacadeLoop = facade_class()(reactor, on_stop)
        self.task_class: Callable[..., asyncio.Task[Any]] = asyncio.Task
        self.current_task = asyncio.current_task
        self.loop.tells_at_once = SpawnedTask
        self.tasks: set[SpawnedTask] = set()  # those that wait
        self.told: BaseException | None = None  # the last that went past its task, too
        self.waiter: Callable[[], asyncio.Future[None]] = partial(asyncio.Future, loop=self.loop)

    def spawn(self, coro: Coroutine[Any, Any, object], on_done: Done, context: Context) -> Cancels:
        """Start a task; its first step is taken at once, unless inside another task's step.

        Python can do that from 3.12. Before, the call_soon by which the new Task asks for its
        first step is grabbed. In debug mode the step is queued, so that it is timed.
        """
        loop = self.loop
        task: asyncio.Task[Any] | None = None
        try:
            if loop._task_factory is not None or self.current_task(loop) is not None or loop._debug:
                task = context.run(loop.create_task, coro)
            elif TASKS_START_EAGERLY:
                task = self.task_class(coro, loop=loop, context=context, eager_start=True)
            else:
                loop.grabbing = True
                task = context.run(self.task_class, coro, loop=loop)
                loop.grabbed_context.run(loop.grabbed)
        except GOES_PAST_TASKS as exc:
            self.reactor.on_return(exc)
            if task is None:
                on_done(exc)
                return FINISHED
        loop.grabbed, loop.grabbed_context = int, None  # which have the task
        if not task.done():
            return SpawnedTask(self, task, on_done)
        on_done(outcome(task))  # as most requests do
        task = None  # this frame may live on in a traceback, which the task has
        return FINISHED

    def cancel_all(self, spare: Cancels | None) -> None:
        """Cancel every task that was spawned, but ``spare``."""
        for spawned in list(self.tasks):
            if spawned is not spare:
                spawned.cancel()

    def has_told(self, exc: BaseException) -> bool:
        """Tell whether ``exc`` is a request's that was told when it went past its task."""
        told, self.told = self.told, None
        return exc is told

    def explain(self, exc: BaseException) -> str:
        """Say what to do about what trio misses here."""
        return explain_trio(exc)

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Turn the reactor until ``main`` has ended; return or raise what it did.

        By run_until_complete, so that anyio finds a root task: else each call of a sync endpoint
        would start a thread of its own. SystemExit and KeyboardInterrupt that come out of a task
        of the app's stop the server; the former is raised again in the end.
        """
        import asyncio

        loop = self.loop
        asyncio.set_event_loop(loop)
        leaving: SystemExit | None = None
        try:
            loop.root = loop.create_task(self.run_and_tidy(main))
            while True:
                try:
                    result: Result = loop.run_until_complete(loop.root)
                    break
                except GOES_PAST_TASKS as exc:
                    if loop.root.done():
                        raise
                    if self.has_told(exc):
                        continue
                    error_logger.error("%s in a task of the app: stopping", type(exc).__name__)
                    leaving = exc if isinstance(exc, SystemExit) else leaving
                    self.on_stop(exc)
        finally:
            self.close()
        if leaving is not None:
            raise leaving
        return result

    def close(self) -> None:
        """Close the loop; the reactor goes on."""
        import asyncio

        asyncio.set_event_loop(None)
        self.loop.close()

    async def run_and_tidy(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Leave nothing behind ``main``."""
        try:
            return await main
        finally:
            await self.tidy()

    async def tidy(self) -> None:
        """Cancel all other tasks, close async generators, join the executor; each in its time."""
        import asyncio

        others = asyncio.all_tasks(self.loop) - {self.loop.root, self.current_task(self.loop)}
        if others:
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=TIDY_TIME)
            for task in others:
                self.report(task)
        closing = self.loop.create_task(self.loop.shutdown_asyncgens())
        await asyncio.wait({closing}, timeout=TIDY_TIME)
        await self.join_executor()

    def report(self, task: asyncio.Task[Any]) -> None:
        """Tell of a task that did not end, or died, when it was cancelled."""
        if not task.done():
            error_logger.warning("a task does not end: %r", task)
            quiet: Any = task
            quiet._log_destroy_pending = False  # it has been told
        elif not task.cancelled() and task.exception() is not None:
            self.loop.call_exception_handler(
                {
                    "message": "unhandled exception during shutdown",
                    "exception": task.exception(),
                    "task": task,
                }
            )

    async def join_executor(self) -> None:
        """Wait for the threads of the default executor, but not for ever.

        asyncio's own shutdown_default_executor cannot be given up before Python 3.12.
        """
        executor = self.loop._default_executor
        self.loop._executor_shutdown_called = True
        if executor is None:
            return
        import threading

        waiter = self.waiter()
        let_go = partial(release, waiter)
        joined = threading.Event()

        def join() -> None:
            executor.shutdown()
            joined.set()
            self.reactor.call_from_thread(let_go)

        threading.Thread(target=join, name="selectserve-join", daemon=True).start()
        timer = self.reactor.call_later(TIDY_TIME, let_go)
        await waiter
        timer.cancel()
        if not joined.is_set():
            error_logger.warning("threads of the app are still at work")


# -- the choice ------------------------------------------------------------------------------------


class AsyncioWatch:
    """Stand at the head of sys.meta_path until asyncio is wanted, then call ``told``.

    That costs a request nothing, and the moment is exact: the importing code goes on afterwards.
    """

    def __init__(self, told: Callable[[], object]) -> None:
        self.told = told

    def start(self) -> None:
        """Begin to watch."""
        sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Watch no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find nothing, but a sign as the others find it, and hear of the end of its import."""
        if name not in ASYNCIO_SIGNS:
            return None
        from importlib.util import find_spec

        self.stop()
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            loader = spec.loader
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                try:
                    execute(module)
                except BaseException:
                    self.start()  # not imported after all
                    raise
                self.told()

            try:
                vars(loader)["exec_module"] = exec_module
            except TypeError:
                pass  # a frozen module's; load_and_choose looks afterwards, too
        return spec


class LateStepper(NativeStepper):
    """Step natively; when the app imports asyncio after all, have new requests stepped by it.

    ``on_asyncio(stepper)`` is told then. The request that did the import fails with a hint.
    """

    def __init__(
        self,
        reactor: Reactor,
        on_stop: Callable[..., object],
        on_asyncio: Callable[[Stepper], object],
    ) -> None:
        super().__init__(reactor)
        self.on_stop = on_stop
        self.on_asyncio = on_asyncio
        self.asyncio: AsyncioStepper | None = None
        self.watch = AsyncioWatch(lambda: reactor.call_from_thread(self.attach))

    def attach(self) -> None:
        """Answer as an event loop from now on."""
        import asyncio

        self.asyncio = AsyncioStepper(self.reactor, self.on_stop)
        asyncio.set_event_loop(self.asyncio.loop)
        self.asyncio.loop.enter()
        error_logger.info("the app has imported asyncio: from now on it steps new requests")
        self.on_asyncio(self.asyncio)

    def run(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Turn the reactor until ``main`` has ended; return or raise what it did."""
        self.watch.start()
        try:
            return super().run(self.run_and_leave(main))
        finally:
            self.watch.stop()
            if self.asyncio is not None:
                self.asyncio.close()

    def turn(self) -> None:
        """Turn the reactor until it is stopped."""
        while True:
            try:
                return super().turn()
            except GOES_PAST_TASKS as exc:
                if self.asyncio is None or not self.asyncio.has_told(exc):
                    raise

    async def run_and_leave(self, main: Coroutine[Any, Any, Result]) -> Result:
        """Leave nothing behind ``main``."""
        try:
            return await main
        finally:
            stepper = self.asyncio
            if stepper is not None:
                waiter = self.waiter()
                self.reactor.call_soon(  # not inside this step
                    lambda: stepper.spawn(
                        stepper.tidy(), lambda _exc: release(waiter), copy_context()
                    )
                )
                await waiter
                stepper.loop.leave()

    def cancel_all(self, spare: Cancels | None) -> None:
        """Cancel every task but the root and ``spare``, however it is stepped."""
        super().cancel_all(spare)
        if self.asyncio is not None:
            self.asyncio.cancel_all(spare)


def wants_asyncio() -> bool:
    """Tell whether anybody has imported what runs on asyncio."""
    return any(name in sys.modules for name in ASYNCIO_SIGNS)


def load_with_loop(load: Callable[[], Any], steppers: list[AsyncioStepper]) -> Any:
    """Load the app; again, while the loop of the one in ``steppers`` runs, if it misses that."""
    try:
        return load()
    except RuntimeError as exc:
        if not steppers or not misses_loop(exc):
            raise
    steppers[0].loop.enter()
    try:
        return load()
    finally:
        steppers[0].loop.leave()


def load_and_choose(
    load: Callable[[], Any],
    reactor: Reactor,
    mode: str,
    on_stop: Callable[..., object],
    on_asyncio: Callable[[Stepper], object],
) -> tuple[Any, Stepper]:
    """Load the app; return it, and who is to step it.

    While an app that imports asyncio is loaded, the facade is the thread's event loop: what modules
    make at import (queues, futures) belongs to it. It does not run: modules may call asyncio.run()
    or Django's database. One that wants a running loop, for a task or a client session, is loaded
    again, in it. uvicorn loads without a loop, except with --workers and --reload.
    """
    if mode == "native":
        return load(), NativeStepper(reactor)
    if mode == "trio":
        stepper = TrioStepper(reactor)
        return load(), stepper
    steppers: list[AsyncioStepper] = []

    if mode == "asyncio":
        try:
            import asyncio  # noqa: F401
        except ImportError as exc:
            raise ConfigError(f"--loop asyncio: this Python cannot import it: {exc}") from None

    def begin() -> None:
        import asyncio

        steppers.append(AsyncioStepper(reactor, on_stop))
        asyncio.set_event_loop(steppers[0].loop)

    watch = AsyncioWatch(begin)
    if mode == "asyncio" or wants_asyncio():
        begin()
    else:
        watch.start()
    try:
        app = load_with_loop(load, steppers)
        if not steppers and wants_asyncio():
            begin()
    except BaseException:
        if steppers:
            steppers[0].close()
        raise
    finally:
        watch.stop()
    if not steppers:
        return app, LateStepper(reactor, on_stop, on_asyncio)
    return app, steppers[0]
