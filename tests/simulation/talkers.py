"""talkers: clients that upgrade to a WebSocket, the app they talk to, and what both must see.

A talker numbers its messages, the app answers each with what it got, so a message that is lost,
repeated, out of order or somebody else's is seen at once. Talkers say good-bye, leave without, fall
silent, or break the protocol.
"""

from __future__ import annotations

import struct

from selectserve.task import sleep

from .clients import Client
from .world import Violation

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
KEY = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="


def frame(opcode, data, rng):
    """Return a masked frame, as clients send it."""
    mask = bytes(rng.randrange(256) for _ in range(4))
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
    length = (
        bytes((0x80 | len(data),)) if len(data) < 126 else b"\xfe" + struct.pack("!H", len(data))
    )
    return bytes((0x80 | opcode,)) + length + mask + masked


class Ask:
    """What the simulation knows of the one call of the app for a talker."""

    def __init__(self, client):
        self.client = client
        self.tag = f"{client.number}.ws"
        self.behaviour = self
        self.stubborn = self.leaver = False
        self.name = "talks"
        self.settled = False
        self.calls = 0

    def __repr__(self):
        return f"<WebSocket {self.tag}>"

    async def run(self, call):
        await self.client.serve(call)


class Conversation:
    """One call of the app with a WebSocket scope; checks what receive and send tell."""

    def __init__(self, world, ask, scope, receive, send):
        self.world = world
        self.ask = ask
        self.behaviour = ask
        self.scope = scope
        self.plain_receive = receive
        self.plain_send = send
        self.got = 0  # messages
        self.code = None  # of the disconnect
        self.waits = False

    def __repr__(self):
        return f"<Conversation {self.ask!r} got={self.got} code={self.code}>"

    async def receive(self):
        self.waits = True
        message = await self.plain_receive()
        self.waits = False
        world, kind = self.world, message["type"]
        if kind == "websocket.receive":
            wanted = self.ask.client.message(self.got)
            world.check(message["text"] == wanted, f"{self!r} received {message}, not {wanted}")
            world.check(self.code is None, f"{self!r} received a message behind the disconnect")
            self.got += 1
        elif kind == "websocket.disconnect":
            again = self.code in (None, message["code"])
            world.check(again, f"{self!r} was told another code: {message}")
            self.code = message["code"]
        return message

    async def send(self, message):
        self.waits = True
        try:
            await self.plain_send(message)
        finally:
            self.waits = False


class Talker(Client):
    """Upgrades, says a few numbered messages, and reads their echoes."""

    manner = "good"  # or "leaves", "silent", "broken"

    def __init__(self, world, number):
        super().__init__(world, number)
        rng = self.random
        self.the_ask = Ask(self)
        self.count = rng.choice((0, 1, 3, 20))
        self.size = rng.choice((10, 100, 3000))
        self.app_does = rng.choice(("echoes",) * 5 + ("closes", "refuses", "raises", "pushes"))
        self.manner = rng.choice(("good",) * 4 + ("leaves", "silent", "broken"))
        self.upgraded = False
        self.echoes = 0
        self.close_code = None  # in the server's close frame
        self.pinged = 0
        self.closing = False  # we have sent a close frame
        self.midway = False  # a part of a frame is sent: nothing else may come between
        self.replies = []  # that wait for the end of that frame
        self.call = None

    def message(self, number):
        """Return the text of our message of that number."""
        return (f"<{self.number}:{number}>" * self.size)[: self.size]

    # -- the app -------------------------------------------------------------------------------

    async def serve(self, call):
        """Play the app's part."""
        self.call = call
        message = await call.receive()
        call.world.check(message["type"] == "websocket.connect", f"{call!r} began with {message}")
        if self.app_does == "refuses":
            await call.send({"type": "websocket.close"})
            return
        if self.app_does == "raises":
            await sleep(self.random.choice((0, 0.1)))
            raise ZeroDivisionError
        await sleep(self.random.choice((0, 0, 0.1)))
        try:
            await call.send({"type": "websocket.accept"})
            await self.chat(call)
        except OSError:
            self.check_gone(call)
            raise

    async def chat(self, call):
        """Echo until the client is gone."""
        while True:
            if self.app_does == "pushes" and call.got == 0:
                for number in range(30):
                    await call.send({"type": "websocket.send", "text": f"{number:05}" * 400})
            message = await call.receive()
            if message["type"] == "websocket.disconnect":
                await call.receive()
                self.check_gone(call)
                return
            await call.send({"type": "websocket.send", "text": message["text"]})
            if self.app_does == "closes" and call.got == 2:
                await call.send({"type": "websocket.close", "code": 4001, "reason": "enough"})
                return

    def check_gone(self, call):
        """The app believes that we are gone: that must be so."""
        here = self.left_at is None and not self.closing and not self.closed
        if here and self.manner == "good" and not self.is_excused() and not self.world.signals:
            self.world.blamed(f"{call!r} is told that its client left: {self!r}")

    def on_return(self, ask):
        ask.settled = True

    def on_call(self, ask, scope):
        ask.calls += 1
        self.world.check(ask.calls == 1, f"{ask!r} was given to the app twice")
        self.world.check(scope["type"] == "websocket", f"{ask!r} became {scope['type']}")

    # -- the client ----------------------------------------------------------------------------

    def live(self):
        yield self.random.random() * 3
        if not self.connect():
            return
        head = f"GET /{self.the_ask.tag} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\n"
        head += f"Connection: Upgrade\r\n{KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        yield from self.say(head.encode())
        if self.random.random() < 0.7:  # else frames come before the 101
            yield from self.until(lambda: self.ended or self.upgraded)
        for number in range(self.count):
            if self.ended:
                return
            data = self.message(number).encode()
            yield from self.say(frame(TEXT, data, self.random))
            if self.random.random() < 0.3:
                yield from self.say(frame(PING, b"p", self.random))
            if self.random.random() < 0.3:
                yield self.random.random() * 0.5
        if self.manner == "leaves":
            yield self.random.random() * self.random.choice((0.01, 3, 50))
            if not self.ended:
                self.leave(self.random.choice(("hang_up", "reset")))
            return
        if self.manner == "broken":
            yield from self.say(b"\xff\xff\xff")  # reserved bits, and no mask
        elif self.manner == "good":
            yield from self.until(lambda: self.ended or self.has_all(), 200.0)
            if not self.ended:
                self.check_answered()
                self.closing = True
                yield from self.say(frame(CLOSE, struct.pack("!H", 1000), self.random))
        yield from self.until(lambda: self.ended)
        self.closed = True
        self.link.hang_up()

    def say(self, data):
        """Send a frame, in one segment or several; then the replies that had to wait."""
        self.midway = True
        yield from super().say(data)
        self.midway = False
        replies, self.replies = self.replies, []
        for reply in replies:
            self.reply(reply)

    def reply(self, data):
        """Answer a control frame: between two frames, never inside of one (RFC 6455 §5.4)."""
        if self.midway:
            self.replies.append(data)
        elif not self.ended:
            self.link.say(data)

    def has_all(self):
        """Tell whether every message was echoed, or the app has closed."""
        return self.echoes >= self.count or self.close_code is not None

    def check_answered(self):
        """All our messages were answered, or there is a reason why not."""
        if not self.has_all() and not self.is_excused() and self.app_does in ("echoes", "pushes"):
            self.fail("messages were not answered", self.echoes, self.count)

    def parse(self):
        """Read the answer to the handshake, then frames."""
        data = self.received
        if not self.upgraded:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                return
            status = int(data[9:12])
            if status != 101:
                self.judge_refusal(status)
                data.clear()
                return
            self.upgraded = True
            del data[: end + 4]
        while len(data) >= 2 and self.take_frame(data):
            pass

    def judge_refusal(self, status):
        """Not upgraded: the app must have wanted that, or the server is going."""
        allowed = {"refuses": {403}, "raises": {500}}.get(self.app_does, set())
        if self.world.signals or self.world.busy:
            allowed = allowed | {503, 500}
        if self.world.storm or self.world.busy:
            allowed = allowed | {408}
        if status not in allowed:
            self.fail(f"refused with {status}", self.app_does)

    def take_frame(self, data):
        """Take one frame off ``data``; False when it is not complete."""
        size, start = data[1], 2
        if data[0] & 0x70 or not data[0] & 0x80:
            raise Violation(f"{self!r} received bad bytes: {bytes(data[:20])!r}")
        if size & 0x80:
            raise Violation(f"{self!r} received a masked frame")
        if size == 126:
            if len(data) < 4:
                return False
            size, start = struct.unpack("!H", data[2:4])[0], 4
        if len(data) < start + size:
            return False
        body = bytes(data[start : start + size])
        opcode = data[0] & 15
        del data[: start + size]
        self.on_frame(opcode, body)
        return True

    def on_frame(self, opcode, body):
        """Judge a frame of the server's."""
        if self.close_code is not None:
            self.fail("a frame behind the close frame", opcode, body)
        if opcode == TEXT:
            if self.app_does == "pushes" and body[:1].isdigit():
                return
            if body.decode() != self.message(self.echoes):
                self.fail("another echo", self.echoes, body)
            self.echoes += 1
        elif opcode == PING:
            self.pinged += 1
            if self.manner != "silent":
                self.reply(frame(PONG, body, self.random))
        elif opcode == PONG:
            if body != b"p":
                self.fail("a pong to nothing", body)
        elif opcode == CLOSE:
            self.on_close(struct.unpack("!H", body[:2])[0] if body else 1005)
        else:
            self.fail("an unknown frame", opcode)

    def on_close(self, code):
        """Judge the server's close frame, and answer it."""
        self.close_code = code
        allowed = {1000} if self.closing else set()
        allowed |= {4001} if self.app_does == "closes" else set()
        allowed |= {1002} if self.manner == "broken" else set()
        allowed |= {1011} if self.manner == "silent" or self.world.storm else set()
        allowed |= {1012} if self.is_late() else set()
        if self.world.busy:
            allowed |= {1011}
        if code not in allowed:
            self.fail(f"closed with {code}", sorted(allowed))
        if not self.closing and self.manner != "silent":
            self.closing = True
            self.reply(frame(CLOSE, struct.pack("!H", code), self.random))

    def is_late(self):
        """Tell whether half of the drain is over, or a second signal has cut it short."""
        world, signals = self.world, self.world.signals
        half = world.options["timeout_graceful_shutdown"] / 2
        return len(signals) > 1 or (signals and world.clock.now >= signals[0][0] + half)

    def check_end(self):
        """Was the end told as it was?"""
        if self.link is None or self.left_at is not None or not self.link.accepted:
            return
        if not self.ended:
            self.fail("the connection was never closed")
        call = self.call
        if call is None or self.is_excused() or not self.upgraded:
            return
        if self.manner == "good" and self.app_does == "echoes" and not self.link.lost:
            if call.code != 1000:
                self.fail("the app was told another code", call.code)
        if self.manner == "silent" and self.app_does == "echoes" and not self.pinged:
            self.fail("nobody asked whether we are still there")
