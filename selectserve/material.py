"""material: what the package brings besides code, wherever it lies: a folder, an archive, one file.

A room asks by the name of a file beside it; in the single file bundle has put the text in here.
"""

from __future__ import annotations

MATERIAL: dict[str, str] = {}


def read_material(name: str) -> str:
    """Return the text of a file of the package."""
    if name not in MATERIAL:
        from pkgutil import get_data

        MATERIAL[name] = (get_data("selectserve", name) or b"").decode()
    return MATERIAL[name]
