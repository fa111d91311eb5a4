"""Starlette's FileResponse, unmodified, sends files by pathsend, also behind its middleware."""

from __future__ import annotations

import os

import pytest

from ..support import Server

starlette = pytest.importorskip("starlette", reason="starlette is not installed")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("files")
    (home / "large").write_bytes(os.urandom(1 << 20) * 3 + b"end")
    (home / "page.html").write_text("<h1>page</h1>")
    return home


@pytest.fixture(scope="module")
def server(home):
    with Server("tests.interop.apps.files_app:app", env={"FILES_HOME": str(home)}) as server:
        yield server


def get(server, target, tag, *headers, method="GET"):
    """Return the response and the kinds of messages that it was made of."""
    with server.connect() as client:
        client.request(method, f"{target}?{tag}", *headers)
        response = client.read_response(method)
        kinds = server.wait_for_log(f"^APP {tag} (.*)")[1].split()
        if response.get("connection") != b"close":
            assert client.get("/static/page.html").status == 200
        return response, kinds


@pytest.mark.parametrize("target", ["/download", "/static/large"])
@pytest.mark.parametrize("coding", ["identity", "gzip"])
def test_a_whole_file_is_a_path(server, home, tag, target, coding):
    response, kinds = get(server, target, tag, f"Accept-Encoding: {coding}")
    data = (home / "large").read_bytes()
    assert (response.status, response.body == data, kinds) == (200, True, ["start", "pathsend"])
    assert response.get("content-length") == b"%d" % len(data)
    assert response.get("x-passed") == b"1" and response.get("content-encoding") is None


def test_what_is_not_the_whole_file(server, home, tag):
    """HEAD, conditions, ranges: as anywhere, and no path where there is no whole."""
    data = (home / "large").read_bytes()
    head, kinds = get(server, "/static/large", f"{tag}-1", method="HEAD")
    assert (head.status, head.get("content-length")) == (200, b"%d" % len(data))
    etag = head.get("etag").decode()
    fresh, kinds = get(server, "/static/large", f"{tag}-2", f"If-None-Match: {etag}")
    assert (fresh.status, fresh.body, "pathsend" in kinds) == (304, b"", False)
    part, kinds = get(server, "/download", f"{tag}-3", "Range: bytes=5-1000004")
    assert (part.status, part.body == data[5:1000005]) == (206, True) and "pathsend" not in kinds
    # the last: Starlette 0.49 sends a byte more than it has announced, which ends the connection
    parts, kinds = get(server, "/download", f"{tag}-4", "Range: bytes=0-1,-3", "Connection: close")
    assert parts.status == 206 and parts.body.lower().count(b"content-range: ") == 2


def test_a_file_that_is_removed_when_it_was_sent(server, home, tag):
    """The background task runs behind send(), which returns when the kernel has the file."""
    response, kinds = get(server, "/once", tag)
    assert response.body == b"once" * 300_000 and kinds == ["start", "pathsend"]
    assert not (home / "once").exists()


def test_a_file_that_is_missing(server, tag):
    response, kinds = get(server, "/missing", tag)
    assert response.status == 500 and "pathsend" not in kinds
