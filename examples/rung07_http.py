"""07 · HTTP: bytes to events.

Read first:  rung05_deadlines, whose Server and Patient are used here; rung06 comes back in 08.
New here:    a parser with no socket, no clock and no log. Bytes go into receive_data(), events come
             out of next_event(): Request, Data, EndOfMessage; or NEED_DATA, which is how a parser
             says what it waits for, and returns. Its state is the method that reads next. However
             the network cuts the bytes, the events are the same (a body may come in more pieces).
Still wrong: answer() is called by a handler and must know the answer at once. Ask for /slow, which
             waits as for a database, and everybody waits. And there is more to HTTP than this: a
             chunked body gets 501, and http1 refuses a good deal that is let through here.

    python -m examples.rung07_http 8000      then: curl -i localhost:8000/; curl localhost:8000/slow
"""

import re
import sys
import time

from .rung05_deadlines import Patient, Reactor, Server

MAX_HEAD = 65536  # bytes
NEED_DATA = "NEED_DATA"
REQUEST_LINE = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.([0-9])")
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\0\r\n]*)")


class ProtocolError(Exception):
    """The client broke a rule; the error knows its answer."""

    def __init__(self, reason, status=400):
        super().__init__(reason)
        self.status = status


class Request:
    def __init__(self, method, target, headers):
        self.method, self.target, self.headers = method, target, headers


class Data:
    def __init__(self, data):
        self.data = data


class EndOfMessage:
    pass


class RequestParser:
    """read_head -> read_body -> read_head -> ...: the state is the method that reads next."""

    def __init__(self):
        self.buffer = bytearray()
        self.left = 0  # bytes of the body that have not been read
        self.next_event = self.read_head

    def receive_data(self, data):
        self.buffer += data

    def take(self, size):
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def read_head(self):
        end = self.buffer.find(b"\r\n\r\n", 0, MAX_HEAD)
        if end < 0:
            if len(self.buffer) >= MAX_HEAD:
                raise ProtocolError("the head is too large", 431)
            return NEED_DATA
        line, *lines = self.take(end + 4)[:-4].split(b"\r\n")
        match = REQUEST_LINE.fullmatch(line)
        if match is None or match[3] != b"1":
            raise ProtocolError("this is not a request of HTTP/1.1", 505 if match else 400)
        headers = [self.read_field(line) for line in lines]
        self.left = self.read_length(headers)
        self.next_event = self.read_body
        return Request(match[1].decode(), match[2].decode(), headers)

    def read_field(self, line):
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise ProtocolError(f"this is not a header field: {line[:40]!r}")
        return match[1].lower(), match[2].rstrip(b" \t")

    def read_length(self, headers):
        """Return the size of the body. Two readings of it would be a hole: they are refused."""
        if any(name == b"transfer-encoding" for name, _ in headers):
            raise ProtocolError("only Content-Length is understood here", 501)
        lengths = [value for name, value in headers if name == b"content-length"] or [b"0"]
        if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
            raise ProtocolError("this is not a Content-Length")
        return int(lengths[0])

    def read_body(self):
        if not self.left:
            self.next_event = self.read_head
            return EndOfMessage()
        if not self.buffer:
            return NEED_DATA
        data = self.take(self.left)
        self.left -= len(data)
        return Data(data)


class Connection(Patient):
    """Where the bytes of a client become events, and the events an answer."""

    def connection_made(self, transport):
        super().connection_made(transport)
        self.parser = RequestParser()

    def data_received(self, data):
        self.move_deadline()
        self.parser.receive_data(data)
        self.advance()

    def advance(self):
        """Make events of the bytes that are there."""
        try:
            while (event := self.parser.next_event()) is not NEED_DATA:
                self.on_event(event)
        except ProtocolError as error:
            self.transport.write(response(error.status, f"{error}\n".encode(), "close"))
            self.transport.close()

    def on_event(self, event):
        if isinstance(event, Request):
            self.request, self.size = event, 0
        elif isinstance(event, Data):
            self.size += len(event.data)
        else:
            self.transport.write(response(200, answer(self.request, self.size)))


def answer(request, size):
    """The application, in a manner of speaking."""
    if request.target == "/slow":
        time.sleep(1)  # a handler that waits
    return f"{request.method} {request.target}, with a body of {size} bytes\n".encode()


def response(status, body, connection="keep-alive"):
    head = f"HTTP/1.1 {status} \r\nContent-Length: {len(body)}\r\nConnection: {connection}\r\n\r\n"
    return head.encode() + body


if __name__ == "__main__":
    Server(Reactor(), Connection, *sys.argv[:0:-1]).run()
