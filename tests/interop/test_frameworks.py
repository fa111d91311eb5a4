"""Every framework, every scenario, under selectserve and under uvicorn: the client sees the same.

What differs is listed in DIFFERENCES below, and explained in DIFFERENCES.md; a difference that is
not listed fails, and so does one that is listed and gone.
"""

from __future__ import annotations

import importlib.util

import pytest

from .scenarios import SCENARIOS

# framework: (its package, what it has no answer for)
FRAMEWORKS = {
    "starlette": ("starlette", {"dependency", "sync_stream"}),
    "fastapi": ("fastapi", {"sync_stream"}),
    "django": ("channels", {"dependency", "background", "state", "method_not_allowed"}),
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
# What differs on purpose: {(framework or "*", scenario): (what ours sees, why)}.
DIFFERENCES = {
    ("*", "websocket_app_fails"): "closed with 1011, where uvicorn cuts the connection",
    ("falcon", "client_leaves_stream"): "send() raises; under uvicorn the generator never ends",
    ("blacksheep", "client_leaves_stream"): "the same",
}


@pytest.mark.parametrize("framework, scenario", CASES)
def test_same_as_under_uvicorn(pairs, framework, scenario):
    package = FRAMEWORKS[framework][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed on this Python")
    pair = pairs(f"tests.interop.apps.{framework}_app:app")
    ours = SCENARIOS[scenario](pair.ours)
    theirs = SCENARIOS[scenario](pair.theirs)
    if ("*", scenario) in DIFFERENCES or (framework, scenario) in DIFFERENCES:
        assert ours != theirs, "listed in DIFFERENCES and gone"
    else:
        assert ours == theirs


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
