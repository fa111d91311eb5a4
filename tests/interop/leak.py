"""Many requests through FastAPI in each mode: resident memory has to stay flat.

    python3 -m tests.interop.leak [REQUESTS [CASE ...]]

Each case serves ``REQUESTS`` (100 000) requests of several kinds after a warm-up; the server's
resident memory is printed before, after, and four times between: a leak is a straight line, what is
still warming up bends. Exits 1 when one grows by more than LIMIT. Linux only. FastAPI runs in all
three modes, natively where it does not call anyio; the other cases are what it does not reach.
"""

from __future__ import annotations

import importlib.util
import sys

from tests.support import Server

LIMIT = 4096  # kB; the allocator's own noise is below 1 MB
WARM_UP = 5000
ON_ONE = 1000  # requests on one connection
PARTS = 5
FASTAPI = "tests.interop.apps.fastapi_app:app"
FASTAPI_ANY = "tests.interop.apps.fastapi_any_app:app"
ANY = ("/async", "/returned", "/stream", "/state", "/header/a?b=c", "/error", "/nothing")
TRIO = ("/starlette/async", "/starlette/stream", "/nursery", "/threads", "/fail_in_nursery")
# case: (mode, app, targets)
CASES = {
    "asyncio": ("asyncio", FASTAPI_ANY, (*ANY, "/sync", "/dependency")),
    "trio": ("trio", FASTAPI_ANY, (*ANY, "/sync", "/dependency")),
    "native": ("native", FASTAPI_ANY, ANY),
    "asyncio-middleware": ("asyncio", FASTAPI, ("/async", "/sync", "/dependency", "/stream")),
    "trio-itself": ("trio", "tests.interop.apps.trio_app:app", TRIO),
    "native-bare": ("native", "tests.apps:app", ("/hello", "/echo", "/stream", "/raise_before")),
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


def measure(case: str, number: int) -> int:
    """Return the growth in kB."""
    mode, app, mix = CASES[case]
    with Server(app, "--loop", mode, "--no-access-log") as server:
        pid = server.process.pid
        ask(server, WARM_UP, mix)
        seen = [resident(pid)]
        for _ in range(PARTS):
            ask(server, number // PARTS, mix)
            seen.append(resident(pid))
    print(f"{case}: {number} requests, {' '.join(map(str, seen))} kB", flush=True)
    return seen[-1] - seen[0]


def main() -> int:
    """Measure each case."""
    number = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    cases = sys.argv[2:] or [
        case for case in CASES if CASES[case][0] != "trio" or importlib.util.find_spec("trio")
    ]
    return 1 if max(measure(case, number) for case in cases) > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
