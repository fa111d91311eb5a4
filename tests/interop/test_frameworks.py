"""Every framework, every scenario, under selectserve and under uvicorn: the client sees the same.

What differs on purpose is listed in DIFFERENCES below and explained in DIFFERENCES.md; any other
difference fails.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest

from .apps import CHUNKS
from .scenarios import SCENARIOS

# framework: (its package, what it has no answer for)
FRAMEWORKS = {
    "starlette": ("starlette", {"dependency", "sync_stream"}),
    "fastapi": ("fastapi", {"sync_stream"}),
    "django": (  # it reads a body before it calls the view
        "channels",
        {"dependency", "background", "state", "method_not_allowed", "client_leaves_upload"},
    ),
    "quart": ("quart", {"dependency", "sync_stream", "client_leaves_waiting"}),
    "litestar": ("litestar", {"sync_stream", "client_leaves_waiting"}),
    "falcon": ("falcon", {"dependency", "sync_stream", "client_leaves_waiting"}),
    "blacksheep": (
        "blacksheep",
        {
            "dependency",
            "sync_stream",
            "client_leaves_waiting",
            "background",
            "echo",
            "method_not_allowed",
        },
    ),
}
CASES = [
    (framework, scenario)
    for framework, (_, without) in FRAMEWORKS.items()
    for scenario in SCENARIOS
    if scenario not in without
]
# What differs on purpose, with what ours sees; why is in DIFFERENCES.md.
DIFFERENCES = {
    ("starlette", "websocket_app_fails"): (1011, ""),
    ("fastapi", "websocket_app_fails"): (1011, ""),
    ("django", "websocket_app_fails"): (1011, ""),
    ("*", "client_leaves_stream"): "told",
    ("*", "client_leaves_idle_stream"): "told",
    ("*", "old_client"): [(200, b"async", None), (200, b"".join(CHUNKS), None)],
    ("*", "websocket_client_vanishes"): "websocket closed 1006",
    ("quart", "websocket_client_vanishes"): "websocket closed",  # it does not tell the code
}


def impossible(framework, scenario):
    """Return why a scenario makes no sense on this Python, "" if it does."""
    if sys.implementation.name == "pypy" and scenario == "client_leaves_stream":
        return "PyPy closes a dropped generator when it collects garbage"
    if (framework, scenario) == ("django", "client_leaves_stream"):
        return "Django leaves a response's generator to the garbage collector, soon or late"
    if (framework, scenario) == ("django", "client_leaves_waiting"):
        import django

        if django.VERSION < (5,):
            return "Django tells a view that its client has left since 5.0"
    return ""


@pytest.mark.parametrize("framework, scenario", CASES)
def test_same_as_under_uvicorn(pairs, framework, scenario):
    package = FRAMEWORKS[framework][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed on this Python")
    reason = impossible(framework, scenario)
    if reason:
        pytest.skip(reason)
    pair = pairs(f"tests.interop.apps.{framework}_app:app")
    ours = SCENARIOS[scenario](pair.ours)
    expected = DIFFERENCES.get((framework, scenario), DIFFERENCES.get(("*", scenario)))
    assert ours == (SCENARIOS[scenario](pair.theirs) if expected is None else expected)


@pytest.mark.parametrize("framework", [name for name in FRAMEWORKS if name != "django"])
def test_startup_and_shutdown(serve, framework):
    package = FRAMEWORKS[framework][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed on this Python")
    server = serve(f"tests.interop.apps.{framework}_app:app")
    server.wait_for_log("^APP startup")
    assert server.stop() == 0
    assert "APP shutdown" in server.log_text()
    assert "Traceback" not in server.log_text()
