"""answers: read responses out of the bytes that a client has received, and forgive nothing."""

from __future__ import annotations

import re

STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2}) [\t \x21-\x7e\x80-\xff]*")
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+): ?([\t \x21-\x7e\x80-\xff]*)")
CHUNK_LINE = re.compile(rb"[0-9a-f]{1,8}")


class BadAnswer(AssertionError):
    """These bytes are no response (RFC 9112)."""


class Answer:
    """One response; ``complete`` is False while bytes are missing."""

    __slots__ = ("body", "closes", "complete", "end", "fields", "interim", "status", "tag")

    def __init__(self):
        self.status = 0
        self.fields = {}
        self.body = b""
        self.complete = False
        self.closes = False  # says Connection: close, or ends with the connection
        self.end = 0  # where the next response begins
        self.interim = []  # statuses of the 1xx before it
        self.tag = ""

    def __repr__(self):
        return f"<Answer {self.status} to {self.tag!r} {len(self.body)} bytes {self.complete}>"


def read_answer(data, start, method, ended):
    """Read the response at ``start``; ``ended`` says that no more bytes will come."""
    answer = Answer()
    while True:
        end = data.find(b"\r\n\r\n", start)
        if end < 0:
            if len(data) - start > 20_000:
                raise BadAnswer(f"no end of a head: {bytes(data[start : start + 80])!r}")
            answer.end = len(data)
            return answer
        read_head(answer, bytes(data[start:end]))
        start = end + 4
        if answer.status >= 200 or answer.status == 101:
            break
        answer.interim.append(answer.status)
    read_body(answer, data, start, method, ended)
    return answer


def read_head(answer, head):
    """Read a status line and fields."""
    line, *lines = head.split(b"\r\n")
    match = STATUS_LINE.fullmatch(line)
    if match is None:
        raise BadAnswer(f"not a status line: {line[:80]!r}")
    answer.status = int(match[1])
    answer.fields = fields = {}
    for line in lines:
        match = FIELD_LINE.fullmatch(line)
        if match is None:
            raise BadAnswer(f"not a field line: {line[:80]!r}")
        name = match[1].lower()
        if name in fields:
            raise BadAnswer(f"{name!r} is there twice")
        fields[name] = match[2]
    answer.tag = fields.get(b"x-tag", b"").decode()
    answer.closes = fields.get(b"connection", b"").lower() == b"close"


def read_body(answer, data, start, method, ended):
    """Read the body as RFC 9112 §6.3 frames it."""
    fields, status = answer.fields, answer.status
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    if length is not None and coding is not None:
        raise BadAnswer("both Content-Length and Transfer-Encoding")
    if status in (101, 204) and (length is not None or coding is not None):
        raise BadAnswer(f"a {status} with a framing field")
    if method == "HEAD" or status in (101, 204, 304):
        answer.complete, answer.end = True, start
    elif coding is not None:
        if coding != b"chunked":
            raise BadAnswer(f"not a coding of ours: {coding!r}")
        read_chunks(answer, data, start)
    elif length is not None:
        answer.end = min(len(data), start + int(length))
        answer.body = bytes(data[start : answer.end])
        answer.complete = len(answer.body) == int(length)
    else:
        answer.body = bytes(data[start:])
        answer.complete, answer.end, answer.closes = ended, len(data), True


def read_chunks(answer, data, start):
    """Read a chunked body and its trailers."""
    parts = []
    while True:
        end = data.find(b"\r\n", start)
        if end < 0:
            break
        if CHUNK_LINE.fullmatch(data[start:end]) is None:
            raise BadAnswer(f"not a chunk size: {bytes(data[start:end])[:40]!r}")
        size = int(data[start:end], 16)
        start = end + 2
        if size == 0:
            end = data.find(b"\r\n", start)
            while end > start:
                if FIELD_LINE.fullmatch(data[start:end]) is None:
                    raise BadAnswer(f"not a trailer: {bytes(data[start:end])!r}")
                start = end + 2
                end = data.find(b"\r\n", start)
            answer.complete = end == start
            start = end + 2
            break
        parts.append(bytes(data[start : start + size]))
        if data[start + size : start + size + 2] != b"\r\n"[: max(0, len(data) - start - size)]:
            raise BadAnswer("no line end behind a chunk")
        start += size + 2
        if start > len(data):
            break
    answer.body = b"".join(parts)
    answer.end = start if answer.complete else len(data)
