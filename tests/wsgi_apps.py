"""The WSGI apps that test_wsgi serves with ``--interface wsgi``, one for each thing to be shown."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from wsgiref.validate import validator

from .telling import say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Iterable, Iterator

    Environ = dict[str, Any]
    StartResponse = Callable[..., Callable[[bytes], None]]

TEXT = [("Content-Type", "text/plain")]


def note(text: str) -> None:
    """Tell the test something, over the log."""
    say(f"noted: {text}")


def peak_memory() -> int:
    """Return the peak of this process's resident memory in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def hello(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return [b"hello"]


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Say how the request looks from here, and what its body was."""
    text = {key: value for key, value in environ.items() if isinstance(value, (str, bool, tuple))}
    text["body"] = environ["wsgi.input"].read(10_000_000).decode("latin-1")
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(text).encode()]


validated_echo = validator(echo)


@validator
def validated(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Do all that wsgiref.validate looks at: input in every way, errors, write, pieces."""
    body = environ["wsgi.input"]
    pieces = [body.readline(100), body.read(3), *body.readlines(10), *body]
    environ["wsgi.errors"].write("noted: to wsgi.errors\n")
    environ["wsgi.errors"].writelines(["noted: another\n"])
    environ["wsgi.errors"].flush()
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("X-Twice", "1")])
    if environ["REQUEST_METHOD"] != "HEAD":
        write(b"[")
        return [b"".join(pieces), b"]"]
    return []


def duplex(environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
    """Answer each line of the body before the next one is read."""
    start_response("200 OK", TEXT)
    yield b"ready\n"
    for line in environ["wsgi.input"]:
        yield line.upper()


class Endless:
    """A response without an end, that tells when it is long, and when it is closed."""

    def __init__(self) -> None:
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        while True:
            self.size += 65536
            if self.size == 65536 * 800:
                note("50 MB produced")
            yield bytes(65536)

    def close(self) -> None:
        note(f"closed after {self.size} bytes")


def endless(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", TEXT)
    return Endless()


def endless_write(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    write = start_response("200 OK", TEXT)
    try:
        while True:
            write(bytes(65536))
    except OSError as exc:
        note(f"write raised {type(exc).__name__}")
        raise


def upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Hash the body; say how long it was and how much memory that took."""
    digest, size, before = hashlib.sha256(), 0, peak_memory()
    while True:
        block = environ["wsgi.input"].read(65536)
        if not block:
            break
        digest.update(block)
        size += len(block)
    start_response("200 OK", TEXT)
    return [f"{size} {digest.hexdigest()} {peak_memory() - before}".encode()]


def cut_upload(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    try:
        note(f"read {len(environ['wsgi.input'].read())}")
    except OSError as exc:
        note(f"read raised {type(exc).__name__}")
        raise
    start_response("200 OK", TEXT)
    return [b"complete"]


def this_file(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Send this file, from an offset on and for a length if the query says so: ``5+10``."""
    file = open(__file__, "rb")
    headers = list(TEXT)
    if environ["QUERY_STRING"]:
        offset, length = environ["QUERY_STRING"].split("+")
        file.seek(int(offset))
        headers.append(("Content-Length", length))
    start_response("200 OK", headers)
    return environ["wsgi.file_wrapper"](file, 4096)


def failing(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Fail where the path says."""
    where = environ["PATH_INFO"].strip("/")
    if where == "before":
        raise LookupError("the app failed before its response")
    if where == "replaced":
        start_response("200 OK", TEXT)
        try:
            raise LookupError("caught")
        except LookupError:
            start_response("503 Unavailable", [("X-Error", "yes")], sys.exc_info())
        return [b"sorry"]
    if where == "hop":
        start_response("200 OK", [("Connection", "close")])
    elif where == "newline":
        start_response("200 OK", [("X-A", "b\r\nX-C: d")])
    elif where == "twice":
        start_response("200 OK", TEXT)
        start_response("200 OK", TEXT)
    elif where == "never":
        return [b"body"]
    elif where == "text":
        start_response("200 OK", TEXT)
        return ["text"]  # type: ignore[list-item]
    return failing_later(start_response)


def failing_later(start_response: StartResponse) -> Iterator[bytes]:
    start_response("200 OK", TEXT)
    yield b"first "
    try:
        raise LookupError("the app failed in its response")
    except LookupError:
        start_response("500 Error", TEXT, sys.exc_info())
    yield b"never"


def make_flask() -> Any:
    """Make a Flask app that uses what Flask asks of a server."""
    from flask import Flask, Response, request, send_file, stream_with_context

    app = Flask("flask_under_test")

    @app.route("/")
    def index() -> str:
        return f"hello {request.args.get('name', 'you')} from {request.remote_addr}"

    @app.route("/form", methods=["POST"])
    def form() -> dict[str, Any]:
        return {"fields": request.form.to_dict(), "file": len(request.files["file"].read())}

    @app.route("/json", methods=["POST"])
    def json_back() -> dict[str, Any]:
        return {"got": request.get_json()}

    @app.route("/stream")
    def stream() -> Response:
        return Response(stream_with_context(f"{n} {request.path}\n" for n in range(5)))

    @app.route("/file")
    def file() -> Response:
        return send_file(__file__, conditional=True)

    @app.route("/fail")
    def fail() -> str:
        raise LookupError("flask fails")

    return app


def make_django() -> Any:
    """Make a Django WSGI app of a few views."""
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
    from django.urls import path

    def index(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"hello {request.GET.get('name', 'you')} at {request.get_host()}")

    def form(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{request.POST['a']} {request.FILES['file'].size}")

    def stream(request: HttpRequest) -> StreamingHttpResponse:
        return StreamingHttpResponse(f"{n} {request.path}\n" for n in range(5))

    def file(request: HttpRequest) -> FileResponse:
        return FileResponse(open(__file__, "rb"))

    def fail(request: HttpRequest) -> HttpResponse:
        raise LookupError("django fails")

    views = {"": index, "form": form, "stream": stream, "file": file, "fail": fail}
    urls = type(sys)("tests_wsgi_urls")
    urls.urlpatterns = [path(name, view) for name, view in views.items()]  # type: ignore
    sys.modules[urls.__name__] = urls
    settings.configure(ROOT_URLCONF=urls.__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="test")
    django.setup()
    return get_wsgi_application()
