"""Write the tables of README.md that are made from code: ``python3 -m tests.readme``.

The options are the table in ``selectserve/config.py``, the numbers what ``python3 -m tests.bench``
last wrote. ``tests/test_readme.py`` fails when the options are stale.
"""

from __future__ import annotations

import re

from selectserve.config import all_options

from .support import ROOT

README = ROOT / "README.md"


def options_table():
    """Return the options as a Markdown table, one row each, in groups."""
    rows = ["| option | default | meaning |", "|---|---|---|"]
    group = ""
    for option in all_options():
        if option.group != group:
            group = option.group
            rows.append(f"| **{group}** | | |")
        default = option.default
        if option.flag:
            shown = {True: "on", False: "off", None: "auto"}[default]
        else:
            shown = option.shown.split(", like")[0]
            shown = shown and f"`{shown}`"
        name = option.flag_name
        if option.flag and default is True:
            name = f"{name}` / `--no-{option.flag_name[2:]}"
        meaning = option.meaning.replace("|", "\\|")
        if option.choices:
            meaning += f" ({', '.join(option.choices)})"
        rows.append(f"| `{name}` | {shown} | {meaning} |")
    return "\n".join(rows)


def replaced(text, name, content):
    """Return ``text`` with what stands between the marks of ``name`` replaced."""
    pattern = rf"(<!-- {name}[^>]*-->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda mark: f"{mark[1]}\n{content}\n\n{mark[2]}", text, flags=re.S)


def current():
    """Return README.md as it should be."""
    return replaced(README.read_text("utf-8"), "options", options_table())


if __name__ == "__main__":
    README.write_text(current(), "utf-8")
