"""facade: the reactor in the clothes of an asyncio event loop.

No asyncio loop ever runs. FacadeLoop is asyncio's own SelectorEventLoop with its heart taken out:
what it would queue goes to the reactor's ready queue, its timers to the reactor's heap, its
descriptors to the reactor's selector, and ``run_forever`` is ``Reactor.run``. Everything else,
transports, TLS, subprocesses, executors, signals, is inherited and works as ever. The reactor
knows nothing of it: whatever is handed to it is a callable.

asyncio is imported inside functions only, when the app has done so itself or is going to. The
private names of it that are relied on are the same from Python 3.9 to 3.15; tests/interop runs
CPython's own test_asyncio on this loop to notice when one goes.
"""

from __future__ import annotations

import sys
from contextvars import copy_context
from functools import cache, partial

from .reactor import EVENT_READ, EVENT_WRITE, Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    import socket
    from asyncio import Handle as HandleBase
    from asyncio import SelectorEventLoop as LoopBase
    from asyncio import TimerHandle as TimerHandleBase
    from contextvars import Context
    from typing import Any, Callable

    from typing_extensions import TypeVarTuple, Unpack

    from .reactor import Timer

    Args = TypeVarTuple("Args")
else:
    HandleBase = TimerHandleBase = LoopBase = object  # asyncio's come in by facade_class()


class FacadeCallable(HandleBase):
    """A Handle that the reactor can call like anything else in its ready queue.

    ``facade_class`` makes asyncio's own ``_run`` the ``__call__``; with a method between that looks
    whether it was cancelled, a turn of a task costs 8 % more than on the stock loop.
    """

    __slots__: tuple[str, ...] = ()
    if TYPE_CHECKING:
        _callback: Any
        _args: Any
        _loop: Any
        _source_traceback: list[Any] | None

        def __call__(self) -> None: ...

    def cancel(self) -> None:
        """Do nothing when called; the reactor cannot know."""
        super().cancel()
        self._callback = int
        self._args = ()


class FacadeHandle(FacadeCallable):
    """A Handle, made a little faster."""

    __slots__ = ()

    def __init__(
        self, callback: Callable[..., object], args: Any, loop: Any, context: Context | None = None
    ) -> None:
        if loop._debug:
            super().__init__(callback, args, loop, context)
            if self._source_traceback:
                del self._source_traceback[-1]  # this method
            return
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None


class FacadeTimerHandle(FacadeCallable, TimerHandleBase):
    """A TimerHandle that joins the ready queue when the reactor's clock has reached it."""

    __slots__: tuple[str, ...] = ()
    if TYPE_CHECKING:
        timer: Timer
        _scheduled: bool

    def fire(self) -> None:
        """Queue behind what is ready already, in asyncio's order."""
        self._scheduled = False
        loop = self._loop
        loop._ready.append(partial(loop.run_watched, self) if loop._debug else self)


class FacadeKey:
    """A descriptor that asyncio watches: its SelectorKey, and the reactor's handler for it."""

    __slots__ = ("data", "events", "fd", "fileobj", "loop")

    def __init__(self, loop: FacadeLoop, fileobj: Any, fd: int, events: int, data: Any) -> None:
        self.loop = loop
        self.fileobj = fileobj
        self.fd = fd
        self.events = events
        self.data = data  # (Handle to read or None, Handle to write or None)

    def __call__(self, ready: int) -> None:
        """Queue the handles that are meant."""
        loop = self.loop
        reader, writer = self.data
        if ready & EVENT_READ and reader is not None:
            if reader._cancelled:
                loop._remove_reader(self.fileobj)
            else:
                loop._add_callback(reader)
        if ready & EVENT_WRITE and writer is not None:
            if writer._cancelled:
                loop._remove_writer(self.fileobj)
            else:
                loop._add_callback(writer)


class FacadeSelector:
    """What asyncio holds for a selector: it registers handlers in the reactor's."""

    def __init__(self, loop: FacadeLoop) -> None:
        self.loop = loop
        self.keys: dict[int, FacadeKey] = {}

    def number(self, fileobj: Any) -> int:
        """Return the descriptor of ``fileobj``."""
        fd: int = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        return fd

    def register(self, fileobj: Any, events: int, data: Any = None) -> FacadeKey:
        """Watch a descriptor; KeyError when it is watched already."""
        key = FacadeKey(self.loop, fileobj, self.number(fileobj), events, data)
        self.loop.reactor.register(key.fd, events, key)
        self.keys[key.fd] = key
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> FacadeKey:
        """Watch for something else."""
        key = FacadeKey(self.loop, fileobj, self.number(fileobj), events, data)
        self.loop.reactor.modify(key.fd, events, key)
        self.keys[key.fd] = key
        return key

    def unregister(self, fileobj: Any) -> FacadeKey:
        """Watch no longer; KeyError when it was not watched."""
        key = self.get_key(fileobj)
        del self.keys[key.fd]
        self.loop.reactor.unregister(key.fd)
        return key

    def get_key(self, fileobj: Any) -> FacadeKey:
        """Return what is watched; KeyError when nothing is."""
        key = self.get(fileobj)
        if key is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return key

    def get(self, fileobj: Any, default: FacadeKey | None = None) -> FacadeKey | None:
        """Return what is watched, or ``default`` (Python 3.13 asks the map).

        What was closed without a remove_reader may have given its number to a client of ours.
        """
        fd = self.number(fileobj)
        key = self.keys.get(fd)
        if key is not None and self.loop.reactor.handler(fd) is not key:
            del self.keys[fd]
            key = None
        return default if key is None else key

    def get_map(self) -> FacadeSelector:
        """Return the mapping from descriptors to keys."""
        return self

    def close(self) -> None:
        """Forget all that asyncio watches; the reactor's own is not touched."""
        for fd in list(self.keys):
            if self.get(fd) is not None:
                self.unregister(fd)


class FacadeLoop(LoopBase):
    """The reactor, in the clothes of an asyncio event loop.

    Made by ``facade_class()``, which puts asyncio.SelectorEventLoop behind this class. Without a
    reactor it makes one of its own and closes it in ``close``. ``on_stop`` is told when the app
    calls ``stop``; ``root`` is the task whose end ends the run.
    """

    if TYPE_CHECKING:
        handle_class: type[FacadeHandle]
        threadsafe_class: Any
        timer_class: type[FacadeTimerHandle]
        slow_callback_duration: float
        _asyncgen_finalizer_hook: Any
        _asyncgen_firstiter_hook: Any
        _check_callback: Callable[[Any, str], None]
        _check_closed: Callable[[], None]
        _check_running: Callable[[], None]
        _check_thread: Callable[[], None]
        _closed: bool
        _debug: bool
        _default_executor: Any
        _executor_shutdown_called: bool
        _handle_signal: Callable[[int], None]
        _remove_reader: Callable[[Any], bool]
        _remove_writer: Callable[[Any], bool]
        _set_coroutine_origin_tracking: Callable[[bool], None]
        _signal_handlers: dict[int, asyncio.Handle]
        _task_factory: Any

    def __init__(
        self, reactor: Reactor | None = None, on_stop: Callable[[], object] | None = None
    ) -> None:
        self.owns_reactor = reactor is None
        self.reactor = Reactor() if reactor is None else reactor
        self.on_stop = on_stop
        self.root: asyncio.Task[Any] | None = None
        self.grabbing = False  # the next call_soon is the first step of a task: grab it
        self.grabbed: Callable[..., object] = int
        self.grabbed_context: Any = None
        self.tells_at_once: type = FacadeLoop  # whose instances, as callbacks, are called at once
        self.outer_signal: Callable[[int], object] = int
        self.outer_hooks: Any = (None, None)
        self.outer_handlers: dict[int, Any] = {}
        self._internal_fds = 0
        selector: Any = FacadeSelector(self)
        super().__init__(selector)
        self._ready = self.reactor.ready
        self.no_handle = self.handle_class(int, (), self)

    # -- running ---------------------------------------------------------------------------------

    def enter(self) -> None:
        """Become the running loop of this thread."""
        import asyncio
        import threading

        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        self._thread_id: int | None = threading.get_ident()
        self.outer_hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook
        )
        self.outer_signal, self.reactor.on_signal = self.reactor.on_signal, self.on_signal
        asyncio._set_running_loop(self)

    def leave(self) -> None:
        """Be the running loop no longer."""
        import asyncio

        self._stopping = False
        self._thread_id = None
        asyncio._set_running_loop(None)
        self._set_coroutine_origin_tracking(False)
        self.reactor.on_signal = self.outer_signal
        sys.set_asyncgen_hooks(*self.outer_hooks)

    def run_forever(self) -> None:
        """Turn the reactor until ``stop``."""
        self.enter()
        try:
            if self._stopping:
                self.reactor.tick(0.0)
            else:
                self.reactor.run()
        finally:
            self.leave()

    def _run_once(self) -> None:
        raise RuntimeError("this event loop does not turn by itself: the reactor does")

    def stop(self) -> None:
        """End the run; called by the app, shut the server down gracefully."""
        if self.on_stop is None or (self.root is not None and self.root.done()):
            self._stopping = True
            self.reactor.stop()
        else:
            self.on_stop()

    def close(self) -> None:
        """Close, once; the reactor only if it is our own."""
        if not self.is_closed():
            super().close()
            if self.owns_reactor:
                self.reactor.close()

    # -- callbacks and time ----------------------------------------------------------------------

    def call_soon(
        self,
        callback: Callable[[Unpack[Args]], object],
        *args: Unpack[Args],
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback; the hottest method of a loop, so flat."""
        if self.grabbing:
            self.grabbing = False
            self.grabbed = callback
            self.grabbed_context = context
            return self.no_handle
        if type(callback) is self.tells_at_once:
            callback(*args)
            return self.no_handle
        if self._debug or self._closed:
            checked: Any = super().call_soon(callback, *args, context=context)
            if checked._source_traceback:
                del checked._source_traceback[-1]  # the caller's line, not ours, is the last
            called: asyncio.Handle = checked
            return called
        handle = self.handle_class(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _call_soon(
        self, callback: Callable[..., object], args: Any, context: Context | None
    ) -> FacadeHandle:
        handle = self.handle_class(callback, args, self, context)
        if handle._source_traceback:
            del handle._source_traceback[-1]
        self._ready.append(partial(self.run_watched, handle) if self._debug else handle)
        return handle

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Args]], object],
        *args: Unpack[Args],
        context: Context | None = None,
    ) -> asyncio.Handle:
        """Queue a callback, from any thread; asyncio's own would queue what cannot be called."""
        self._check_closed()
        if self._debug:
            self._check_callback(callback, "call_soon_threadsafe")
        handle: Any = self.threadsafe_class(callback, args, self, context)
        if handle._source_traceback:  # without what is not the caller's line
            del handle._source_traceback[-1 if self.threadsafe_class is self.handle_class else -2 :]
        self._ready.append(partial(self.run_watched, handle) if self._debug else handle)
        self._write_to_self()
        queued: asyncio.Handle = handle
        return queued

    def _add_callback(self, handle: asyncio.Handle) -> None:
        if not handle._cancelled:  # asyncio's own, of a descriptor or a signal
            self._ready.append(partial(self.run_watched, handle))

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Args]], object],
        *args: Unpack[Args],
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """Queue a callback once the clock has reached ``when``."""
        self._check_closed()
        if when is None:
            raise TypeError("when cannot be None")
        if self._debug:
            self._check_thread()
            self._check_callback(callback, "call_at")
        handle: Any = self.timer_class(when, callback, args, self, context)
        if handle._source_traceback:
            del handle._source_traceback[-1]
        handle.timer = self.reactor.call_at(when, handle.fire)
        handle._scheduled = True
        timer: asyncio.TimerHandle = handle
        return timer

    def _timer_handle_cancelled(self, handle: FacadeTimerHandle) -> None:
        if handle._scheduled:
            handle._scheduled = False
            handle.timer.cancel()

    def time(self) -> float:
        """Read the reactor's clock."""
        return self.reactor.clock()

    def run_watched(self, handle: Any) -> None:
        """Call back, unless cancelled meanwhile; in debug mode warn of what takes long."""
        if not handle._cancelled:
            if self._debug:
                self.run_timed(handle)
            else:
                handle._run()
        handle = None  # the frame may live on in a traceback, and must not keep the task of it

    def run_timed(self, handle: Any) -> None:
        """Call back, and warn as asyncio does."""
        from asyncio import base_events

        private: Any = base_events
        self._current_handle: asyncio.Handle | None = handle
        began = self.time()
        try:
            handle._run()
        finally:
            self._current_handle = None
        took = self.time() - began
        if took >= self.slow_callback_duration:
            text = private._format_handle(handle)
            private.logger.warning("Executing %s took %.3f seconds", text, took)
        handle = None

    # -- wakeups and signals ---------------------------------------------------------------------

    def _make_self_pipe(self) -> None:
        self._ssock: socket.socket | None = self.reactor.wakeup_receiver
        self._csock: socket.socket | None = self.reactor.wakeup_sender
        self._internal_fds += 1

    def _close_self_pipe(self) -> None:
        self._ssock = self._csock = None
        self._internal_fds -= 1

    def _write_to_self(self) -> None:
        self.reactor.wakeup()

    def on_signal(self, number: int) -> None:
        """Act on a signal that the app has a handler for; the others are the server's."""
        if number in self._signal_handlers:
            self._handle_signal(number)
        else:
            self.outer_signal(number)

    def add_signal_handler(
        self, sig: int, callback: Callable[[Unpack[Args]], object], *args: Unpack[Args]
    ) -> None:
        """Let the app have a signal, instead of the server."""
        import signal

        known = sig in self._signal_handlers
        handler = signal.getsignal(sig) if sig in signal.valid_signals() else None
        super().add_signal_handler(sig, callback, *args)
        if not known:
            self.outer_handlers[sig] = handler

    def remove_signal_handler(self, sig: int) -> bool:
        """Give a signal back; asyncio itself would cut the server's wakeups, too."""
        import signal

        removed = super().remove_signal_handler(sig)
        handler = self.outer_handlers.pop(sig, None)
        if removed and not self.owns_reactor:
            if handler is not None:
                signal.signal(sig, handler)
            signal.set_wakeup_fd(self.reactor.wakeup_sender.fileno(), warn_on_full_buffer=False)
        return removed


@cache
def facade_class() -> Any:
    """Return the loop's class, with asyncio's behind it; importing asyncio is the caller's wish."""
    import asyncio

    run = asyncio.Handle._run
    handle = type("Handle", (FacadeHandle, asyncio.Handle), {"__slots__": (), "__call__": run})
    timer = type(
        "TimerHandle",
        (FacadeTimerHandle, asyncio.TimerHandle),
        {"__slots__": ("timer",), "__call__": run},
    )
    # Pythons since 3.14 have one that another thread can cancel; it looks for that itself.
    safe: Any = getattr(asyncio.events, "_ThreadSafeHandle", None)
    if safe is not None:
        safe = type("ThreadSafeHandle", (safe,), {"__slots__": (), "__call__": safe._run})
    return type(
        "ReactorEventLoop",
        (FacadeLoop, asyncio.SelectorEventLoop),
        {"handle_class": handle, "threadsafe_class": safe or handle, "timer_class": timer},
    )
