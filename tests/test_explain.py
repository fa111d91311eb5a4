"""--explain: the tour names what exists, where it is, and every state there is."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import selectserve
from selectserve.asgi import HTTP_LIFECYCLE
from selectserve.http1 import RequestParser
from selectserve.lifespan import LIFESPAN_LIFECYCLE
from selectserve.session import SESSION_LIFECYCLE
from selectserve.trace import MOMENTS
from selectserve.websocket import WEBSOCKET_LIFECYCLE

from .support import DEADLINE, ROOT, UNDER_TEST, run_server, server_command


def tour():
    done = run_server("--explain")
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout


def source_text(file):
    """Return the text of a file of the package, or of a chapter in the appendix of the one file."""
    if UNDER_TEST and file != os.path.basename(UNDER_TEST):
        return str(selectserve.appendix.text(file[: -len(".py")]))
    return Path(UNDER_TEST or ROOT / file).read_text("utf-8")


def test_each_name_has_a_place_and_a_sentence():
    stops = re.findall(r"^  (\w+\.[\w.]+)  (\S+):(\d+)\n      (\S.*)$", tour(), re.M)
    assert len(stops) > 15
    for name, file, line, _sentence in stops:
        # a decorator may stand on the first line
        near = source_text(file).split("\n")[int(line) - 1 : int(line) + 2]
        assert any(re.search(rf"(def|class) {name.split('.')[-1]}\b", text) for text in near), name


def test_every_state_and_message_of_the_tables_is_there():
    text = tour()
    for table in (HTTP_LIFECYCLE, SESSION_LIFECYCLE, WEBSOCKET_LIFECYCLE, LIFESPAN_LIFECYCLE):
        for state, row in table.items():
            assert re.search(rf"^  {state} ", text, re.M), state
            assert all(str(cause) in text for cause in row)
    for moment, meaning in MOMENTS.items():
        assert f"{moment:<9} {meaning}" in text


def test_the_parser_s_states_follow_each_other():
    text = tour()
    states = re.findall(r"^  (read_\w+)", text[: text.index("The parser of frames")], re.M)
    assert "read_idle" in states and "read_section" not in states
    assert all(hasattr(RequestParser, state) for state in states)
    sized = text[text.index("  read_sized ") :].split("\n")[1]
    assert "-> read_end" in sized


def test_no_colour_but_on_a_terminal():
    assert "\x1b" not in tour()


@pytest.mark.skipif(os.name != "posix", reason="a shell closes it")
def test_with_nobody_to_tell_it_to():
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *server_command("--explain")]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=DEADLINE)
    assert done.returncode == 0 and done.stderr == b""
