"""An app for the tests of supervisor and workers: it tells who serves, and misbehaves on demand."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from urllib.parse import parse_qsl

from .telling import say

say(f"APP imported in {os.getpid()}")
if "APP_FIFO" in os.environ:  # an import that takes as long as the test wants
    with open(os.environ["APP_FIFO"]) as fifo:
        fifo.read()
if "APP_EXIT" in os.environ:
    sys.exit(int(os.environ["APP_EXIT"]))
if "APP_CRASH" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)

LEAK = []


async def app(scope, receive, send):
    """Do what the first segment of the path says."""
    if scope["type"] != "http":
        raise RuntimeError("no lifespan here")
    options = dict(parse_qsl(scope["query_string"].decode()))
    body = await APPS[scope["path"].strip("/")](options, receive)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(body).encode()})


async def failing_lifespan(scope, receive, send):
    """Serve nothing: the startup fails."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})


async def pid(options, receive):
    return os.getpid()


async def upload(options, receive):
    """Say that it has begun, read the body, return its size."""
    say("APP upload begun")
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    return f"{size} {os.getpid()}"


async def block(options, receive):
    """Keep the reactor from turning, as careless code does."""
    say("APP blocks")
    blocking_call(float(options["seconds"]))
    return os.getpid()


def blocking_call(seconds):
    time.sleep(seconds)


async def fork(options, receive):
    """Fork, and end that process as multiprocessing does, after a Ctrl-C that went to it, too.

    Return whether it was there in between, how it ended, and who we are.
    """
    ours, its = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        while its.send(b"x") and its.recv(1):
            pass
        os._exit(9)
    its.close()
    ours.recv(1)
    os.kill(pid, signal.SIGINT)
    ours.send(b"?")
    there = ours.recv(1) == b"x"
    os.kill(pid, signal.SIGTERM)
    status = os.waitpid(pid, 0)[1]
    ours.close()
    return there, status, os.getpid()


async def busy(options, receive):
    """Use all of the processor, turn by turn."""
    from selectserve import sleep

    until = time.monotonic() + float(options["seconds"])
    while time.monotonic() < until:
        await sleep(0)
    return os.getpid()


async def crash(options, receive):
    os.kill(os.getpid(), getattr(signal, options["signal"]))


async def leave(options, receive):
    os._exit(int(options["code"]))


async def managed(options, receive):
    """Say what is known of a service manager."""
    return [name for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC") if name in os.environ]


async def leak(options, receive):
    LEAK.append(bytearray(os.urandom(1 << 20) * int(options["megabytes"])))
    return os.getpid()


FUNCTIONS = (pid, upload, block, fork, busy, crash, leave, managed, leak)
APPS = {function.__name__: function for function in FUNCTIONS}
