"""bundle: the package as one file, which runs as a program and can be imported like the package.

chapters says what is in it. With an app, and for a name that ends in .pyz, an archive is made that
Python runs. A file so made can make others: it copies itself.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

SHEBANG = b"#!/usr/bin/env python3\n"
ARCHIVE_MAIN = """\
import sys

import selectserve

if __name__ == "__main__":
    sys.exit(selectserve.main([*{arguments!r}, *sys.argv[1:]]))
"""


def build_file() -> str:
    """Return the whole server as the text of one file; raise ConfigError with file and line."""
    if not hasattr(sys.modules["selectserve"], "__path__"):
        return own_text()
    chapters: Any = import_module("selectserve.chapters")  # which the single file is without
    return str(chapters.bind_chapters())


def own_text() -> str:
    """Return the text of the file that we are."""
    loader = getattr(sys.modules["selectserve"], "__loader__", None)
    try:
        text = loader.get_source(getattr(loader, "name", "selectserve")) if loader else None
    except (AttributeError, ImportError, OSError):
        text = None
    if not text:
        raise ConfigError("--bundle: this server was not started from a file that it could copy")
    return str(text)


def app_files(target: str, app_dir: str) -> dict[str, bytes]:
    """Return the files of the module or package that holds an app: names in the archive, bytes."""
    top = target.partition(":")[0].partition(".")[0]
    module, folder = os.path.join(app_dir, top + ".py"), os.path.join(app_dir, top)
    paths = [module] if os.path.isfile(module) else []
    if not paths and top:
        for place, folders, names in os.walk(folder):
            folders[:] = sorted(name for name in folders if name != "__pycache__")
            paths += [os.path.join(place, n) for n in sorted(names) if not n.endswith(".pyc")]
    if not paths:
        raise ConfigError(f"--with {target}: no module {top!r} in {os.path.abspath(app_dir)}")
    files = {}
    for path in paths:
        with open(path, "rb") as stream:
            files[os.path.relpath(path, app_dir).replace(os.sep, "/")] = stream.read()
    return files


def build_archive(apps: Sequence[str], app_dir: str) -> bytes:
    """Return an archive of the server and the module of each of ``apps``; the first is served.

    Nothing in it is compressed, so that a Python without zlib can run it.
    """
    from io import BytesIO
    from zipfile import ZipFile, ZipInfo

    files = {"selectserve.py": build_file().encode()}
    for target in apps:
        files.update(app_files(target, app_dir))
    arguments = [apps[0]] if apps else []
    main = ARCHIVE_MAIN.format(arguments=arguments)
    if apps:  # its own modules first, whatever lies in the current directory
        main = main.replace("[*", '["--app-dir", sys.path[0], *', 1)
    files["__main__.py"] = main.encode()
    stream = BytesIO()
    stream.write(SHEBANG)
    with ZipFile(stream, "w") as archive:
        for name in sorted(files, key=lambda name: (name != "__main__.py", name)):
            info = ZipInfo(name)  # of 1980: the same sources give the same bytes
            info.create_system = 3
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])
    return stream.getvalue()


def is_bundle(path: str) -> bool:
    """Tell whether the file begins as those do that are made here; an empty one will do."""
    with open(path, "rb") as stream:
        head = stream.read(200)
    main = ARCHIVE_MAIN.partition("if")[0].encode()  # of an archive it is the first file
    return (
        not head
        or head.startswith(SHEBANG + b"#\n# selectserve ")
        or (head.startswith(SHEBANG + b"PK") and main in head)
    )


def check_target(path: str) -> None:
    """Refuse to write to no file, to a directory, or over what was not made here."""
    if not path:
        raise ConfigError("--bundle and --with need a file to write, as in --bundle app.pyz", 2)
    if os.path.isdir(path) or path.endswith("/"):
        raise ConfigError(f"--bundle {path}: a directory; name the file to write in it", 2)
    if os.path.isfile(path) and not is_bundle(path):
        raise ConfigError(
            f"--bundle {path} exists, and is no bundle: delete it first, or choose another name", 2
        )


def write_bundle(path: str, apps: Sequence[str], app_dir: str = ".") -> int:
    """Write the single file, or for a name that ends in .pyz an archive; return the exit code."""
    try:
        check_target(path)
    except OSError as exc:
        raise ConfigError(f"--bundle {path}: {exc.strerror}") from None
    if path.endswith(".pyz"):
        data = build_archive(apps, app_dir)
    elif apps:
        raise ConfigError("--with: an app goes into an archive, whose name ends in .pyz", 2)
    else:
        data = build_file().encode()
    try:
        with open(path, "wb") as stream:
            stream.write(data)
        os.chmod(path, 0o755)
    except OSError as exc:
        raise ConfigError(f"--bundle {path}: {exc.strerror}") from None
    print(f"{path}: {len(data)} bytes")
    return 0
