"""The build: what pyproject.toml says, and the single file beside the rooms.

It is made anew for each wheel and each source archive; nothing generated is checked in.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
PLACE = Path("selectserve", "onefile", "selectserve.py")


def write_single_file(folder: str) -> None:
    """Write it to its place in ``folder``; a source that breaks the rules ends the build."""
    path = Path(folder).resolve() / PLACE
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.check_call([sys.executable, "-m", "selectserve", "--bundle", str(path)], cwd=ROOT)


class BuildWithSingleFile(build_py):
    """Build the package, for a wheel."""

    def run(self) -> None:
        super().run()
        if not getattr(self, "editable_mode", False):
            write_single_file(self.build_lib)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / PLACE)]


class SdistWithSingleFile(sdist):
    """Pack the sources."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        write_single_file(base_dir)


setup(cmdclass={"build_py": BuildWithSingleFile, "sdist": SdistWithSingleFile})
