"""An app that forks in the middle of a request; the path says how the child goes on.

The answer is what became of the child: its exit code, minus a signal's number. One that does not
end within ``PATIENCE`` is ended by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import selectserve

PATIENCE = 5.0  # seconds
EARLY = []  # signals that a child gets before anybody could prepare it
os.register_at_fork(after_in_child=lambda: [os.kill(os.getpid(), number) for number in EARLY])


def became(pid):
    """Return what became of a child."""
    until = time.monotonic() + PATIENCE
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            return -os.WTERMSIG(os.waitpid(pid, 0)[1])
        time.sleep(0.005)


def forked(child):
    """Fork; the child calls ``child``, which ends it. Return what became of it."""
    pid = os.fork()
    if not pid:
        child()
    return became(pid)


async def respond(send, body):
    """Send an answer of two pieces."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b"!"})


async def app(scope, receive, send):
    """Fork; both have an answer to give then, but the child has no business with the client."""
    if scope["type"] == "lifespan":
        raise RuntimeError("no lifespan here")
    if scope["type"] == "websocket":
        await websocket(scope, receive, send)
        return
    way = scope["path"].strip("/")
    if way.startswith("late_"):
        await selectserve.sleep(0)
    if way == "spawned":
        selectserve.spawn(spawned())
        await receive()
        await receive()  # which ends when the client has gone
        return
    if way == "threads":
        await respond(send, str(await selectserve.run_in_thread(fork_and_exit)).encode())
        return
    if way.startswith("executor_"):
        import asyncio

        fork = {"executor_leaves": fork_and_exit, "executor_returns": fork_and_return}[way]
        future = asyncio.get_running_loop().run_in_executor(None, fork)
        await respond(send, str(await future).encode())
        return
    if way in DECENT:
        await respond(send, str(DECENT[way]()).encode())
        return
    pid = os.fork()
    if pid:
        await respond(send, str(became(pid)).encode())
    else:
        await CHILDREN[way.replace("late_", "")](receive, send)


async def websocket(scope, receive, send):
    """Fork behind the accept, and say what became of the child."""
    await receive()
    await send({"type": "websocket.accept"})
    pid = os.fork()
    if not pid:
        if scope["path"] == "/exit":
            sys.exit(7)
        await send({"type": "websocket.send", "text": "child"})
        return
    await send({"type": "websocket.send", "text": str(became(pid))})


async def spawned():
    """Fork in a task that is not the request's."""
    print("became", fork_and_exit(), flush=True)


def fork_and_exit():
    """Fork; the child exits with 7."""
    return forked(lambda: sys.exit(7))


def fork_and_return():
    """Fork; the child comes back, too."""
    pid = os.fork()
    return became(pid) if pid else None


def wsgi(environ, start_response):
    """The same, for WSGI."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    pid = os.fork()
    if pid:
        return [b"%d!" % became(pid)]
    if environ["PATH_INFO"] == "/exit":
        sys.exit(7)
    return [b"child"]


# -- what a child does ---------------------------------------------------------------------------


async def leave(receive, send):
    sys.exit(7)


async def leave_with_words(receive, send):
    print("printed by the child")
    sys.exit("said by the child")


async def fail(receive, send):
    raise LookupError("in the child")


async def answer(receive, send):
    await respond(send, b"child")


async def answer_much(receive, send):
    await respond(send, b"child" * 200_000)


async def nothing(receive, send):
    pass


async def wait(receive, send):
    await selectserve.sleep(0)
    os._exit(9)


async def ask(receive, send):
    await receive()
    await receive()
    os._exit(9)


async def watch(receive, send):
    """Register what the parent must not hear of."""
    readable, writer = os.pipe()
    os.write(writer, b"x")
    await selectserve.wait_readable(readable)
    os._exit(9)


CHILDREN = {
    function.__name__: function
    for function in (leave, leave_with_words, fail, answer, answer_much, nothing, wait, ask, watch)
}


# -- children that are none of the server's business -----------------------------------------------


def own_exit():
    """End as os.fork()'s manual says."""
    return forked(lambda: os._exit(9))


def by_multiprocessing():
    """Have a child work, and one end by an exit."""
    import multiprocessing

    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        done = pool.map(abs, [-3, -2])
    process = context.Process(target=sys.exit, args=(3,))
    process.start()
    process.join()
    return done, process.exitcode


def by_subprocess():
    """Run a program, with Python's hooks at the fork, too."""
    command = [sys.executable, "-c", "raise SystemExit(4)"]
    return subprocess.call(command), subprocess.call(command, preexec_fn=os.getpid)


def asyncio_in_child():
    """Let the child have a loop of its own."""
    import asyncio

    def child():
        asyncio.run(asyncio.sleep(0))
        os._exit(9)

    return forked(child)


def stays():
    """Leave a child behind; it has a pipe of its own to tell that it is there."""
    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(writable, b"x")
        while True:
            signal.pause()
    os.read(readable, 1)
    return pid


def unseen():
    """Fork as a library in C does, of which Python learns nothing."""
    import ctypes

    library = ctypes.CDLL(None)
    pid = library.fork()
    while not pid:
        library.pause()
    return pid


def ended_at_once():
    """Send a child a signal as soon as it is there, as Pool.terminate() may do."""
    EARLY.append(signal.SIGTERM)
    pid = os.fork()
    if not pid:
        time.sleep(2 * PATIENCE)
        os._exit(9)
    EARLY.clear()
    return became(pid)


def ended_in_thread():
    """Fork in a thread, and send the child a signal."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(ended_at_once).result()


DECENT = {
    function.__name__: function
    for function in (
        ended_at_once,
        ended_in_thread,
        stays,
        unseen,
        own_exit,
        by_multiprocessing,
        by_subprocess,
        asyncio_in_child,
    )
}
