"""06 · A coroutine driven by hand: rung 01 again, and nobody waits.

Read first:  rung05_deadlines, whose Reactor is used here as it is. The rest of it rests.
New here:    a coroutine is a function that can be left in the middle and entered again there.
             Where it cannot go on it yields a trap, which says what it is waiting for; there is
             one yield in the whole ladder, and it is in trap(). A task takes the trap, parks, and
             asks the reactor to be called when it is there: then it steps the coroutine again.
             Compare serve() and echo() with those of rung 01: the only new word is await.
Still wrong: nothing reaches a parked coroutine, so that rung 05's deadline is lost: as many silent
             clients as there are SEATS, and nobody else gets in. And a coroutine that computes
             instead of awaiting holds up all the others. The real `task` has cancel() and threads.

    python -m examples.rung06_coroutine 8000
"""

import contextlib
import sys
import traceback
import types

from .rung02_busy_echo import listen
from .rung04_buffers import READ, WRITE
from .rung05_deadlines import Reactor

SEATS = 100  # clients at a time


@types.coroutine
def trap(what, thing):
    """Say what is waited for, and return to the task; it comes back when that is there."""
    yield what, thing


async def wait_readable(sock):
    await trap("readable", sock)


async def wait_writable(sock):
    await trap("writable", sock)


async def sleep(seconds):
    await trap("sleep", seconds)


class Event:
    """What one task does and others wait for."""

    def __init__(self):
        self.parked = []

    async def wait(self):
        await trap("event", self)

    def set(self):
        """Let those go on who wait now."""
        while self.parked:
            self.parked.pop(0).resume()


class Task:
    """A coroutine, stepped by the reactor from one trap to the next."""

    def __init__(self, reactor, coro):
        self.reactor, self.coro = reactor, coro
        self.resume()

    def resume(self):
        """Step in this tick or the next: never from inside another task's step."""
        self.reactor.ready.append(self.step)

    def step(self):
        try:
            what, thing = self.coro.send(None)  # it runs up to its next trap
        except StopIteration:
            return  # it has returned
        except Exception:
            return traceback.print_exc()  # its own fault; the others go on
        self.park(what, thing)

    def park(self, what, thing):
        if what == "event":
            thing.parked.append(self)
        elif what == "sleep":
            self.reactor.call_at(self.reactor.clock() + thing, self.resume)
        else:
            interest = READ if what == "readable" else WRITE
            self.reactor.register(thing, interest, lambda ready: self.unpark(thing))

    def unpark(self, sock):
        self.reactor.unregister(sock)
        self.resume()


async def accept(listener):
    while True:
        await wait_readable(listener)
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            continue  # gone again already
        except OSError:  # out of descriptors: there will be one when somebody leaves
            await sleep(0.1)
            continue
        client.setblocking(False)
        return client


async def recv(client):
    await wait_readable(client)
    return client.recv(1024)


async def sendall(client, data):
    while data:
        try:
            data = data[client.send(data) :]
        except BlockingIOError:
            await wait_writable(client)


async def serve(reactor, listener):
    clients, left = set(), Event()
    while True:
        while len(clients) >= SEATS:
            await left.wait()
        client = await accept(listener)
        clients.add(client)
        Task(reactor, sit(client, clients, left))


async def sit(client, clients, left):
    with client, contextlib.suppress(ConnectionError):  # a client may leave without a word
        await echo(client)
    clients.remove(client)
    left.set()


async def echo(client):
    while data := await recv(client):
        await sendall(client, data)


if __name__ == "__main__":
    reactor = Reactor()
    Task(reactor, serve(reactor, listen(*sys.argv[:0:-1])))
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            reactor.tick()
