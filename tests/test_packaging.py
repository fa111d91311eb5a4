"""What a release consists of: a wheel and a source archive, both with the single file in them.

Needs the setuptools that pyproject.toml asks for, from the package index, as every build does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from .support import DEADLINE, ROOT, UNDER_TEST, RawClient, Server

FILE = "selectserve/onefile/selectserve.py"
BUILD = "import setuptools.build_meta as backend, sys; backend.build_{}(sys.argv[1])"
SOURCES = "pyproject.toml setup.py README.md LICENSE CHANGELOG.md selectserve tests".split()

pytestmark = pytest.mark.skipif(bool(UNDER_TEST), reason="a release is made of the package")


def run(*command, **options):
    """Run Python to its end."""
    done = subprocess.run(
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20 * DEADLINE,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The setuptools that the build asks for, in a folder."""
    folder = str(tmp_path_factory.mktemp("tools"))
    wanted = re.search(r'"(setuptools[^"]*)"', (ROOT / "pyproject.toml").read_text("utf-8"))[1]
    try:
        run("-m", "pip", "install", "--quiet", "--target", folder, wanted)
    except AssertionError as exc:
        pytest.skip(f"pip gives no {wanted}: {str(exc).strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def release(tools, tmp_path_factory):
    """Return the folder in which both archives are, made of a copy of the sources."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("out")
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=no_caches)
        else:
            shutil.copy(ROOT / name, source)
    before = sorted(path for path in source.rglob("*.py"))
    environ = {**os.environ, "PYTHONPATH": tools, "PYTHONDONTWRITEBYTECODE": "1"}
    run("-c", BUILD.format("sdist"), str(out), cwd=source, env=environ)
    assert sorted(path for path in source.rglob("*.py")) == before, "it left something behind"
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        archive.extractall(out / "unpacked", **safely)
    unpacked = next((out / "unpacked").iterdir())
    run("-c", BUILD.format("wheel"), str(out), cwd=unpacked, env=environ)
    return out


@pytest.fixture(scope="module")
def built():
    """The single file, as the sources make it now."""
    from selectserve.chapters import bind_chapters

    return bind_chapters().encode()


def test_the_source_archive_has_it(release, built):
    with tarfile.open(next(release.glob("*.tar.gz"))) as archive:
        (name,) = [name for name in archive.getnames() if name.endswith(FILE)]
        assert archive.extractfile(name).read() == built


def test_the_wheel_made_of_it_has_it_too(release, built):
    with zipfile.ZipFile(next(release.glob("*.whl"))) as wheel:
        assert wheel.read(FILE) == built
        record = wheel.read(next(n for n in wheel.namelist() if n.endswith("RECORD"))).decode()
        assert f"{FILE},sha256=" in record
        rooms = {path.name for path in (ROOT / "selectserve").iterdir() if path.is_file()}
        ours = {name[12:] for name in wheel.namelist() if name.startswith("selectserve/")}
        assert ours == rooms | {FILE[12:]}


def test_installed_both_serve(release, place, tmp_path):
    """The package under its name, and the file that lies beside its rooms."""
    wheel = next(release.glob("*.whl"))
    site = tmp_path / "site"
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel))
    environ = {"PYTHONPATH": str(site)}
    for program in (["-m", "selectserve"], [str(site / FILE)]):
        with (
            Server(
                "tiny:app",
                "--lifespan",
                "off",
                cwd=tmp_path,
                env=environ,
                program=[sys.executable, *program, "--app-dir", str(ROOT / "tests")],
            ) as server,
            RawClient(server.address) as client,
        ):
            assert client.get("/").body == b"hello from anywhere"
            assert server.stop() == 0
