"""ASGI apps that want asyncio, all of it; ``app`` serves each by the first segment of the path.

Nothing but the standard library. An app returns the body of its answer; what it does otherwise it
tells through stderr (``note``).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
import time

from .telling import say

APPS = {}
SEEN = contextvars.ContextVar("SEEN", default="nothing")
LIFESPAN = {}
AT_IMPORT = {"queue": asyncio.Queue(), "loop": asyncio.get_event_loop()}


def route(function):
    """Serve ``function`` under its own name."""
    APPS[function.__name__] = function
    return function


def note(*words):
    """Tell the test something."""
    say("APP", *words)


async def app(scope, receive, send):
    """Call the app that the path names and answer with what it returns."""
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    answer = APPS[scope["path"].split("/")[1]]
    body = await (answer(receive) if answer.__code__.co_argcount else answer())
    await respond(send, body)


async def respond(send, body):
    """Send a whole response."""
    body = body if isinstance(body, bytes) else repr(body).encode()
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive, send):
    """Set what requests look for, and leave tasks behind."""
    await receive()
    SEEN.set("by lifespan")
    LIFESPAN["loop"] = asyncio.get_running_loop()
    LIFESPAN["task"] = asyncio.current_task()
    LIFESPAN["worker"] = asyncio.create_task(worker())
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await asyncio.sleep(0)
    note("lifespan shutdown, worker", "done" if LIFESPAN["worker"].done() else "at work")
    await send({"type": "lifespan.shutdown.complete"})


async def worker():
    """Work for ever, and say how it ended."""
    try:
        while True:
            await asyncio.sleep(3600)
    except asyncio.CancelledError:
        note("worker cancelled")
        raise


# -- what is asked of asyncio ----------------------------------------------------------------------


@route
async def sleep():
    began = time.monotonic()
    await asyncio.sleep(0.05)
    return time.monotonic() - began >= 0.05


@route
async def gather():
    async def late(value, turns):
        for _ in range(turns):
            await asyncio.sleep(0)
        order.append(value)
        return value

    order = []
    values = await asyncio.gather(late("a", 3), late("b", 1), late("c", 2))
    return values, order


@route
async def call_order():
    """The order of asyncio: what was queued first, then timers that are due."""
    loop = asyncio.get_running_loop()
    order = []
    loop.call_soon(order.append, 1)
    loop.call_later(0, order.append, 3)
    cancelled = loop.call_soon(order.append, "cancelled")
    cancelled_timer = loop.call_later(0, order.append, "cancelled")
    loop.call_soon(order.append, 2)
    cancelled.cancel()
    cancelled_timer.cancel()
    await asyncio.sleep(0.01)
    return order


@route
async def task_group():
    if not hasattr(asyncio, "TaskGroup"):
        return "none"
    done = []

    async def work(number):
        await asyncio.sleep(0)
        done.append(number)

    async def fail():
        raise ValueError("in the group")

    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(work(number))
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(3600))
            group.create_task(fail())
    except BaseExceptionGroup as exc:  # noqa: F821, since 3.11
        done.append(str(exc.exceptions[0]))
    return done


@route
async def timeout():
    if not hasattr(asyncio, "timeout"):
        return "none"
    try:
        async with asyncio.timeout(0.01):
            await asyncio.sleep(3600)
    except TimeoutError:
        return "timed out", asyncio.current_task().cancelling()


@route
async def wait_for():
    try:
        await asyncio.wait_for(asyncio.sleep(3600), 0.01)
    except asyncio.TimeoutError:
        return "timed out"


@route
async def queue():
    items = asyncio.Queue(maxsize=1)
    seen = []

    async def consume():
        while True:
            seen.append(await items.get())
            items.task_done()

    consumer = asyncio.create_task(consume())
    for number in range(5):
        await items.put(number)
    await items.join()
    consumer.cancel()
    return seen


@route
async def locks():
    lock, event, limit = asyncio.Lock(), asyncio.Event(), asyncio.Semaphore(2)
    inside = []
    most = []

    async def enter(number):
        await event.wait()
        async with limit, lock:
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    entering = [asyncio.create_task(enter(number)) for number in range(4)]
    await asyncio.sleep(0)
    event.set()
    await asyncio.gather(*entering)
    return most


@route
async def to_thread():
    SEEN.set("by request")
    main = threading.get_ident()
    return await asyncio.to_thread(lambda: (SEEN.get(), threading.get_ident() != main))


@route
async def executors():
    from concurrent.futures import ThreadPoolExecutor

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(1) as pool:
        own = await loop.run_in_executor(pool, sum, [1, 2])
    return await loop.run_in_executor(None, sum, [3, 4]), own


@route
async def from_thread():
    loop = asyncio.get_running_loop()

    async def double(number):
        await asyncio.sleep(0)
        return number * 2

    def work():
        return asyncio.run_coroutine_threadsafe(double(21), loop).result(5)

    return await asyncio.to_thread(work)


@route
async def subprocesses():
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "print(input()[::-1]); raise SystemExit(3)",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(b"abc\n")
    return out.strip(), process.returncode


@route
async def udp():
    loop = asyncio.get_running_loop()
    answered = loop.create_future()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            self.transport = transport

        def datagram_received(self, data, address):
            self.transport.sendto(data.upper(), address)

    class Ask(asyncio.DatagramProtocol):
        def connection_made(self, transport):
            transport.sendto(b"hello")

        def datagram_received(self, data, address):
            answered.set_result(data)

    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    address = echo.get_extra_info("sockname")
    ask, _ = await loop.create_datagram_endpoint(Ask, remote_addr=address)
    try:
        return await answered
    finally:
        ask.close()
        echo.close()


async def shout(reader, writer):
    """Answer one line in capitals."""
    writer.write((await reader.readline()).upper())
    await writer.drain()
    writer.close()


@route
async def streams():
    server = await asyncio.start_server(shout, "127.0.0.1", 0, limit=1 << 20)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x" * 300_000 + b"\n")  # more than a socket takes at once
        data = await reader.read()
        writer.close()
        await writer.wait_closed()
    return len(data), data[:3]


@route
async def unix_streams():
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "socket")
        server = await asyncio.start_unix_server(shout, path)
        async with server:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"hello\n")
            data = await reader.read()
            writer.close()
    return data


@route
async def readers():
    """add_reader and add_writer on one descriptor."""
    loop = asyncio.get_running_loop()
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    events = []
    read = asyncio.Event()
    loop.add_writer(one, lambda: (events.append("write"), loop.remove_writer(one)))
    loop.add_reader(one, lambda: (events.append(one.recv(10)), read.set()))
    await asyncio.sleep(0.01)
    await loop.sock_sendall(other, b"data")
    await read.wait()
    removed = loop.remove_reader(one), loop.remove_reader(one), loop.remove_writer(one)
    one.close()
    other.close()
    return events, removed


@route
async def close_watched():
    """Close what is watched, without a word, as careless libraries do."""
    one, other = socket.socketpair()
    LIFESPAN["careless"] = one.fileno()
    asyncio.get_running_loop().add_reader(one, note, "called for what is closed")
    one.close()
    other.close()
    return LIFESPAN["careless"]


@route
async def remove_closed():
    """Remember too late."""
    return asyncio.get_running_loop().remove_reader(LIFESPAN["careless"])


@route
async def signals():
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    before = signal.getsignal(signal.SIGUSR1)
    loop.add_signal_handler(signal.SIGUSR1, came.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await asyncio.wait_for(came.wait(), 5)
    removed = loop.remove_signal_handler(signal.SIGUSR1)
    return removed, signal.getsignal(signal.SIGUSR1) == before


@route
async def take_sigterm():
    """Handle SIGTERM for a moment, as libraries do, and give it back."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, came.set)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(came.wait(), 5)
    return loop.remove_signal_handler(signal.SIGTERM)


@route
async def context():
    seen = SEEN.get()
    SEEN.set("by request")
    await asyncio.sleep(0)
    later = await asyncio.create_task(read_context())
    return seen, later


async def read_context():
    return SEEN.get()


@route
async def identity():
    """What libraries look at."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    return (
        type(task) is asyncio.Task,
        task in asyncio.all_tasks(),
        isinstance(loop, asyncio.SelectorEventLoop),
        loop.is_running() and not loop.is_closed(),
        loop is LIFESPAN["loop"] is asyncio.get_event_loop(),
        LIFESPAN["task"] in asyncio.all_tasks(),
        task is not LIFESPAN["task"],
    )


@route
async def at_import():
    """What modules make when they are imported belongs to the loop."""
    asyncio.get_running_loop().call_soon(AT_IMPORT["queue"].put_nowait, "item")
    item = await AT_IMPORT["queue"].get()
    return item, AT_IMPORT["loop"] is asyncio.get_running_loop()


@route
async def async_generator():
    """A generator dropped half-way has its finally run, though that awaits."""
    closed = asyncio.Event()

    async def numbers():
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set()

    generator = numbers()
    await generator.__anext__()
    del generator
    for _ in range(3):
        gc.collect()  # PyPy
    await asyncio.wait_for(closed.wait(), 5)
    return "closed"


@route
async def primitives():
    """selectserve's own primitives, among asyncio's."""
    import selectserve

    event = selectserve.Event()

    async def setter():
        await selectserve.sleep(0.001)
        event.set()

    selectserve.spawn(setter())
    await asyncio.wait_for(event.wait(), 5)
    return await selectserve.run_in_thread(lambda: "from a thread")


@route
async def many_tasks():
    done = []

    async def work(number):
        await asyncio.sleep(0.001 * (number % 3))
        done.append(number)

    await asyncio.wait([asyncio.create_task(work(number)) for number in range(1000)])
    return len(done)


@route
async def eager_factory():
    """Requests go through a task factory of the app's; this is the last app to be asked."""
    loop = asyncio.get_running_loop()
    made = []

    def factory(loop, coro, **options):
        task = asyncio.Task(coro, loop=loop, **options)
        made.append(task)
        return task

    loop.set_task_factory(factory)
    LIFESPAN["made"] = made
    return "set"


@route
async def made_by_factory():
    SEEN.get()
    return asyncio.current_task() in LIFESPAN["made"], SEEN.get()


# -- receive and send among tasks ------------------------------------------------------------------


@route
async def receive_timeout(receive):
    """A receive() that is given up leaves nothing behind: the body comes to the next one."""
    missed = 0
    while True:
        try:
            message = await asyncio.wait_for(receive(), 0.02)
        except asyncio.TimeoutError:
            missed += 1
            if missed == 1:
                note("receive given up")
            continue
        if message["body"]:
            return message["body"], missed > 0


@route
async def two_receivers(receive):
    """Two tasks wait in receive(); the one that is cancelled takes nothing with it."""
    one = asyncio.create_task(receive())
    other = asyncio.create_task(receive())
    await asyncio.sleep(0.01)
    one.cancel()
    note("one cancelled")
    message = await other
    return message["body"], one.cancelled()


@route
async def watch_disconnect(receive):
    """The pattern of streaming frameworks: a task for the disconnect, another for the work."""
    await receive()
    watching = asyncio.create_task(receive())
    await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.wait([watching])
    return watching.cancelled()


@route
async def disconnect(receive):
    await receive()
    note("waiting")
    note((await receive())["type"])
    return b""


# -- misuse ----------------------------------------------------------------------------------------


@route
async def system_exit():
    raise SystemExit(7)


@route
async def collect():
    gc.collect()
    return True


@route
async def late_failure():
    await asyncio.sleep(0)
    raise LookupError("after a wait")


class Note:
    """Tells when nobody has it any more."""

    def __del__(self):
        note("forgotten")


@route
async def fail_with_a_note():
    held = Note()
    await asyncio.sleep(0)
    raise LookupError(f"with {type(held).__name__}")


@route
async def late_system_exit():
    await asyncio.sleep(0)
    raise SystemExit(7)


@route
async def keyboard_interrupt():
    await asyncio.sleep(0)
    raise KeyboardInterrupt


@route
async def keyboard_interrupt_in_a_part():
    await asyncio.gather(keyboard_interrupt(), asyncio.sleep(60))


@route
async def stop_loop():
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.01)
    return "still answered"


@route
async def close_loop():
    return attempt(asyncio.get_running_loop().close)


@route
async def nested():
    loop = asyncio.get_running_loop()
    coro = asyncio.sleep(0)
    try:
        return (
            attempt(asyncio.run, coro),
            attempt(loop.run_until_complete, coro),
            attempt(loop.run_forever),
            attempt(asyncio.new_event_loop().run_until_complete, coro),
        )
    finally:
        coro.close()


def attempt(function, *args):
    """Return what is raised."""
    try:
        function(*args)
    except RuntimeError as exc:
        return str(exc)


@route
async def background_failure():
    async def fail():
        raise ValueError("in the background")

    asyncio.get_running_loop().call_soon(int, "not a number")
    task = asyncio.create_task(fail())
    await asyncio.sleep(0.01)
    del task
    gc.collect()  # PyPy; asyncio tells when nobody can ask for the exception any more
    return "answered"


@route
async def background_exit():
    async def leave():
        sys.exit(9)

    LIFESPAN["leaving"] = asyncio.create_task(leave())
    await asyncio.sleep(0.05)
    return "answered"


@route
async def stubborn():
    """Leave a task that does not end, a thread that works on, and a generator that is open."""

    async def never():
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                note("not cancelled")

    async def numbers():
        try:
            yield 1
        finally:
            note("generator closed")

    LIFESPAN["never"] = asyncio.create_task(never())
    LIFESPAN["numbers"] = numbers()
    await LIFESPAN["numbers"].__anext__()
    await asyncio.sleep(0)
    return "left"


@route
async def hold():
    """Never answer."""
    note("holding")
    try:
        await asyncio.sleep(3600)
    finally:
        note("finally")


@route
async def cancel_self():
    asyncio.current_task().cancel()
    await asyncio.sleep(0)


@route
async def block():
    """Block the loop, for debug mode to notice."""
    time.sleep(0.15)
    return "blocked"
