"""README.md says what the code says."""

from __future__ import annotations

import re

from .readme import README, current
from .support import ROOT


def test_the_options_are_those_of_the_table():
    assert README.read_text("utf-8") == current(), "run python3 -m tests.readme"


def test_every_file_it_names_exists():
    text = README.read_text("utf-8")
    named = re.findall(r"`((?:selectserve|tests|examples)/[\w./-]*)`", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
