"""A static file server, on the extensions that let the kernel send the file.

    STATIC_ROOT=public python -m selectserve examples.static:app       (or else this directory)

A directory is shown by its index.html, or as a list. GET and HEAD; ETag and Last-Modified, and the
conditions of RFC 9110 §13 on them; one Range of bytes (§14). A request for several ranges gets the
whole file, which §14.2 allows and which is less work for both sides than multipart/byteranges.

What is not below the root, after all symbolic links have been followed, is not there: 404, and so
for names that begin with a dot. Where http.response.pathsend and zerocopysend are offered they are
used; elsewhere the file is read in a thread, piece by piece, so that no disk holds up the server.
"""

import email.utils
import html
import mimetypes
import os
import re
from pathlib import Path
from urllib.parse import quote

from selectserve import run_in_thread

ROOT = Path(os.environ.get("STATIC_ROOT", ".")).resolve()
PIECE = 262144  # bytes read at a time
RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.ASCII)
LIST = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark; font: 17px/1.7 system-ui; margin: 2rem }}</style>
<h1>{title}</h1><ul>{items}</ul></html>
"""


async def app(scope, receive, send):
    if scope["type"] != "http":
        raise NotImplementedError(f"static speaks http only, not {scope['type']}")
    if scope["method"] not in ("GET", "HEAD"):
        return await say(send, 405, "Only GET and HEAD", (b"allow", b"GET, HEAD"))
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    found = find(path, ROOT)
    if found is None:
        return await say(send, 404, "There is no such file")
    if found.is_file():
        return await send_file(scope, send, found)
    if not path.endswith("/"):
        return await redirect(scope, send)
    index = find(path + "index.html", ROOT)
    if index and index.is_file():
        return await send_file(scope, send, index)
    await show_list(scope, send, found)


def find(path, root):
    """Return the file or directory that a decoded path names, None when there is none to be had."""
    names = [name for name in path.split("/") if name]
    if any(name.startswith(".") or "\0" in name or "\\" in name for name in names):
        return None  # hidden files, "." and ".." among them, and what another system might split on
    try:
        found = root.joinpath(*names).resolve(strict=True)
        if found != root and root not in found.parents:
            return None  # a link out of the root
        if os.access(found, os.R_OK):
            if found.is_dir() or (found.is_file() and not path.endswith("/")):
                return found
    except (OSError, RuntimeError):  # it is not there, or in a loop of links
        pass
    return None  # not there, a device, a socket, not for us


async def redirect(scope, send):
    """Add the slash. The target is relative: it cannot lead to another host."""
    name = quote(scope["path"].rpartition("/")[2])
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    location = f"./{name}/".encode() + query
    await say(send, 308, "This is a directory", (b"location", location))


async def show_list(scope, send, directory):
    entries = [entry for entry in os.scandir(directory) if not entry.name.startswith(".")]
    names = sorted((entry.name + "/" * entry.is_dir() for entry in entries), key=str.casefold)
    items = "".join(
        f'<li><a href="./{html.escape(quote(os.fsencode(name)))}">{html.escape(name)}</a>'
        for name in names
    )
    page = LIST.format(title=html.escape(scope["path"]), items=items)
    page = page.encode("utf-8", "replace")
    await answer(send, 200, page, (b"content-type", b"text/html; charset=utf-8"))


async def send_file(scope, send, path):
    """Answer with a file, a part of it, or with why not."""
    file = path.stat()
    etag = f'"{file.st_mtime_ns:x}-{file.st_size:x}"'
    modified = email.utils.formatdate(file.st_mtime, usegmt=True)
    headers = [
        (b"etag", etag.encode()),
        (b"last-modified", modified.encode()),
        (b"accept-ranges", b"bytes"),
    ]
    asked = {name: value.decode("latin-1") for name, value in scope["headers"]}
    refused = condition(asked, etag, int(file.st_mtime))
    if refused == 304:
        return await answer(send, 304, b"", *headers)
    if refused:
        return await say(send, refused, "The file is not the one that you mean")
    headers += [(b"content-type", content_type(path)), (b"x-content-type-options", b"nosniff")]
    status, start, end = 200, 0, file.st_size
    part = byte_range(asked, scope["method"], file.st_size, etag, modified)
    if part is not None:
        status, (start, end) = 206, part
        if start >= end:
            size = (b"content-range", b"bytes */%d" % file.st_size)
            return await say(send, 416, "The file is not as long as that", size)
        content_range = b"bytes %d-%d/%d" % (start, end - 1, file.st_size)
        headers.append((b"content-range", content_range))
    headers.append((b"content-length", b"%d" % (end - start)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["method"] == "HEAD":
        await send({"type": "http.response.body", "body": b""})
    else:
        await send_bytes(scope, send, path, start, end, whole=part is None)


def condition(asked, etag, mtime):
    """Return 304 or 412 when a condition says so, in the order of RFC 9110 §13.2.2; or None."""
    if b"if-match" in asked:
        if not matches(asked[b"if-match"], etag, weak=False):
            return 412
    elif mtime > seconds(asked.get(b"if-unmodified-since"), default=mtime):
        return 412
    if b"if-none-match" in asked:
        return 304 if matches(asked[b"if-none-match"], etag, weak=True) else None
    return 304 if mtime <= seconds(asked.get(b"if-modified-since"), default=-1) else None


def matches(field, etag, weak):
    """Look for a tag in a list of them (RFC 9110 §8.8.3.2); ours are strong."""
    tags = re.findall(r'(?:W/)?"[^"]*"', field)
    if weak:
        tags = [tag[2:] if tag.startswith("W/") else tag for tag in tags]
    return field.strip() == "*" or etag in tags


def seconds(date, default):
    """Return an HTTP date in seconds since 1970; what is none is ignored (RFC 9110 §13.1.3)."""
    try:
        return email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return default


def byte_range(asked, method, size, etag, modified):
    """Return the first byte asked for and the one behind the last; None for all of them."""
    match = RANGE.fullmatch(asked.get(b"range", ""))
    if method != "GET" or match is None or asked.get(b"if-range", etag) not in (etag, modified):
        return None
    first, last = match.groups()
    if first:
        end = min(int(last) + 1, size) if last else size
        return (int(first), end) if not last or int(first) <= int(last) else None
    return (max(0, size - int(last)), size) if last else None


def content_type(path):
    kind, encoding = mimetypes.guess_type(path.name)
    if encoding:  # a .tar.gz is to be kept as it is, not to be unpacked on the way
        kind = {"gzip": "application/gzip"}.get(encoding)
    kind = kind or "application/octet-stream"
    return (f"{kind}; charset=utf-8" if kind.startswith("text/") else kind).encode()


async def send_bytes(scope, send, path, start, end, whole):
    """Send a file from start to end: by the kernel where it may, else in pieces."""
    extensions = scope.get("extensions", {})
    if whole and "http.response.pathsend" in extensions:
        return await send({"type": "http.response.pathsend", "path": str(path)})
    with open(path, "rb") as file:
        if "http.response.zerocopysend" in extensions:
            message = {"type": "http.response.zerocopysend", "file": file, "offset": start}
            return await send({**message, "count": end - start, "more_body": False})
        file.seek(start)
        while start < end:
            data = await run_in_thread(file.read, min(PIECE, end - start))
            if not data:
                raise RuntimeError(f"{path} has become shorter while it was sent")
            start += len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def say(send, status, text, *headers):
    await answer(send, status, f"{text}.\n".encode(), (b"content-type", b"text/plain"), *headers)


async def answer(send, status, body, *headers):
    """Send a short answer; the server leaves the body out where there is none."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
