"""Many requests through FastAPI in each mode: resident memory has to stay flat.

    python3 -m tests.interop.leak [REQUESTS]

Each mode serves ``REQUESTS`` (100 000) requests of several kinds after a warm-up; the growth of
the server's resident memory is printed. Exits 1 when it is more than LIMIT. Linux only.
"""

from __future__ import annotations

import importlib.util
import sys

from tests.support import Server

LIMIT = 4096  # kB; the allocator's own noise is below 1 MB
WARM_UP = 5000
ON_ONE = 1000  # requests on one connection
MIX = ("/async", "/async", "/async", "/dependency", "/stream", "/state", "/echo/a?b=c", "/nothing")
MODES = {
    "asyncio": "tests.interop.apps.fastapi_app:app",
    "trio": "tests.interop.apps.trio_app:app",
    "native": "tests.apps:app",
}
OTHER_MIX = {
    "trio": ("/starlette/async", "/starlette/stream", "/sleep", "/nursery", "/fail_in_nursery"),
    "native": ("/hello", "/echo", "/scope", "/stream", "/raise_before"),
}


def resident(pid: int) -> int:
    """Return the resident memory in kB."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def ask(server: Server, number: int, mix: tuple[str, ...]) -> None:
    """Make ``number`` requests, ``ON_ONE`` on a connection unless the server closes it before."""
    client, left = server.connect(), ON_ONE
    for index in range(number):
        closing = client.get(mix[index % len(mix)]).get("connection") == b"close"
        left -= 1
        if closing or not left:
            client.close()
            client, left = server.connect(), ON_ONE
    client.close()


def measure(mode: str, app: str, number: int) -> int:
    """Return the growth in kB."""
    mix = OTHER_MIX.get(mode, MIX)
    with Server(app, "--loop", mode, "--no-access-log") as server:
        pid = server.process.pid
        ask(server, WARM_UP, mix)
        before = resident(pid)
        ask(server, number, mix)
        after = resident(pid)
    print(f"{mode}: {number} requests, {before} kB -> {after} kB", flush=True)
    return after - before


def main() -> int:
    """Measure each mode."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    modes = [mode for mode in MODES if mode != "trio" or importlib.util.find_spec("trio")]
    growth = {mode: measure(mode, MODES[mode], number) for mode in modes}
    return 1 if max(growth.values()) > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
