"""Where the bytecodes of a request go: per function, how often it is called and what it executes.

    python3 -m tests.bench.opcodes [--only browser] [--requests 200]

Runs selectserve in this process with every opcode traced, asks it over one connection, and prints
the functions that execute most. A profile that no clock and no other program disturbs; what C code
costs is not in it (see instructions.py for the sum of both).
"""

from __future__ import annotations

import argparse
import collections
import os
import signal
import sys
import time
from pathlib import Path

from .client import Connection
from .environment import ROOT
from .instructions import KINDS
from .servers import free_port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType, FrameType
    from typing import Any

    TraceFunction = Callable[[FrameType, str, Any], Any]

    Counts = collections.Counter[CodeType]
WARM_UP = 20


def ask(port: int, request: bytes, requests: int) -> None:
    """In a child process: warm the server up, ask, and end it; each time say so by a signal."""
    for _ in range(200):
        try:
            connection = Connection(port)
            break
        except OSError:
            time.sleep(0.05)
    for _ in range(WARM_UP):
        connection.exchange(request)
    os.kill(os.getppid(), signal.SIGPROF)
    for _ in range(requests):
        connection.exchange(request)
    os.kill(os.getppid(), signal.SIGTERM)


def trace_opcodes(opcodes: Counts, calls: Counts) -> None:
    """Count from now on, in the frames there are and in those to come."""

    def local(frame: FrameType, event: str, argument: Any) -> TraceFunction:
        if event == "opcode":
            opcodes[frame.f_code] += 1
        return local

    def enter(frame: FrameType, event: str, argument: Any) -> TraceFunction:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        calls[frame.f_code] += 1
        return local

    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        frame.f_trace = local
        frame = frame.f_back
    sys.settrace(enter)


def main() -> None:
    """Serve, count, print."""
    parser = argparse.ArgumentParser(prog="python3 -m tests.bench.opcodes")
    parser.add_argument("--only", default="hello", choices=KINDS)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--lines", type=int, default=40, help="how many functions to print")
    given = parser.parse_args()
    app, request = KINDS[given.only]
    port = free_port()
    child = os.fork()
    if child == 0:
        ask(port, request, given.requests)
        os._exit(0)
    opcodes: Counts = collections.Counter()
    calls: Counts = collections.Counter()
    signal.signal(signal.SIGPROF, lambda number, frame: trace_opcodes(opcodes, calls))
    sys.argv[1:] = [f"tests.bench.{app}", "--port", str(port), "--no-access-log"]
    sys.argv[1:] += ["--lifespan", "off", "--log-level", "warning"]
    from selectserve.cli import main as serve

    try:
        serve()
    except SystemExit:
        pass
    sys.settrace(None)
    os.waitpid(child, 0)
    print(f"{given.only}: {opcodes.total() / given.requests:,.0f} opcodes a request\n")
    print("| opcodes | calls | function |\n|---:|---:|---|")
    for code, count in opcodes.most_common(given.lines):
        path = Path(code.co_filename)
        where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name
        print(
            f"| {count / given.requests:.1f} | {calls[code] / given.requests:.2f} "
            f"| {where}:{code.co_firstlineno} {getattr(code, 'co_qualname', code.co_name)} |"
        )


if __name__ == "__main__":
    main()
