"""The appendix of the single file: packed, opened when it is asked for, and as good as the rest."""

from __future__ import annotations

import subprocess
import sys

import pytest

from selectserve.chapters import AT_ONCE, NEIGHBOURS, RARE, READABLE, ROOMS, TOGETHER, Chapter
from selectserve.errors import ConfigError

from .support import DEADLINE, UNDER_TEST, RawClient, Server

zlib = pytest.importorskip("zlib", reason="this Python has no zlib to compare with")

if UNDER_TEST:
    from selectserve import Inflater
else:
    from selectserve.appendix import Inflater

STRATEGIES = {"default": 0, "huffman only": 2, "fixed": 4}  # Z_FIXED has no name in PyPy
LIMIT = 250_000  # bytes
TEXT = b"".join(b"%d bottles, %d walls\n" % (n, n * n % 1009) for n in range(3000))
SAMPLES = {
    "nothing": b"",
    "a byte": b"a",
    "one byte, many times": b"a" * 1000,
    "what is no text": bytes(n * n * 7 % 251 for n in range(70_000)),
    "text": TEXT,
}


def run(place, program, *flags):
    """Run a program beside the built file; return what it prints."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=place,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_inflating_without_zlib(sample, level, strategy):
    """All three kinds of block: stored, of fixed codes, of codes of their own."""
    packer = zlib.compressobj(level, strategy=STRATEGIES[strategy])
    packed = packer.compress(SAMPLES[sample]) + packer.flush()
    assert Inflater(packed[2:]).inflate() == SAMPLES[sample]


# -- what is opened, and when ----------------------------------------------------------------------


def test_the_file_is_small(place):
    assert (place / "selectserve.py").stat().st_size < LIMIT


def test_to_import_it_opens_nothing(place):
    """… unpacks nothing, and imports none of what costs."""
    heavy = "logging json zlib ssl asyncio threading argparse http urllib inspect"
    program = (
        "import sys; before = set(sys.modules)\n"
        "import selectserve\n"
        "selectserve.Reactor; hasattr(selectserve, '__path__')\n"
        "assert not selectserve.appendix.opened, selectserve.appendix.opened\n"
        "assert selectserve.appendix.data, 'was unpacked'\n"
        f"print(sorted(set({heavy.split()!r}) & (set(sys.modules) - before)))"
    )
    at = f"import sys; sys.path.insert(0, {str(place)!r})\n"
    assert run(place, at + program, "-I", "-S") == "[]\n"


def test_serving_opens_what_it_needs(place):
    """A WebSocket, workers, TLS, the inspector: none is compiled before somebody comes for it."""
    program = (
        "import selectserve\n"
        "with selectserve.serving('tiny:app', lifespan='off') as server:\n"
        "    import socket\n"
        "    with socket.create_connection(('127.0.0.1', server.port)) as client:\n"
        "        client.sendall(b'GET / HTTP/1.0\\r\\nHost: x\\r\\n\\r\\n')\n"
        "        assert client.makefile('rb').read().startswith(b'HTTP/1.1 200')\n"
        "print(*sorted(selectserve.appendix.opened))"
    )
    opened = set(run(place, program).split())
    assert {"server", "http1", "connection", "embed"} <= opened
    assert not opened & set(
        "websocket upgrade supervisor inspector tls wsgi reload gunicorn".split()
    )


@pytest.mark.parametrize("back", [False, True])
def test_every_chapter_can_be_opened_in_any_order(place, back):
    program = (
        "import selectserve as s\n"
        "s.appendix.unpack()\n"
        f"for room in sorted(s.appendix.texts, reverse={back}):\n"
        "    s.appendix.open(room)\n"
        "print(len(s.appendix.opened))"
    )
    assert int(run(place, program)) == len(set(ROOMS) - AT_ONCE - {"chapters"})


def test_two_threads_that_ask_get_the_same(place):
    program = (
        "import threading, selectserve\n"
        "gate = threading.Barrier(8); found = []\n"
        "def ask():\n"
        "    gate.wait()\n"
        "    found.append(selectserve.Supervisor)\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(len(found), len(set(found)), selectserve.Supervisor is found[0])"
    )
    assert run(place, program) == "8 1 True\n"


def test_what_is_not_there(place):
    program = (
        "import selectserve\n"
        "try: selectserve.nothing\n"
        "except AttributeError as exc: print(exc)\n"
        "try: from selectserve import Nothing\n"
        "except ImportError as exc: print(exc.name)"
    )
    assert run(place, program) == "module 'selectserve' has no attribute 'nothing'\nselectserve\n"


def test_without_zlib_it_is_only_slower(place):
    program = (
        "import sys; sys.modules['zlib'] = None\n"
        "import selectserve; print(selectserve.Server.__name__)"
    )
    assert run(place, program) == "Server\n"


def test_a_websocket_opens_its_chapters_while_others_are_served(place):
    built = str(place / "selectserve.py")
    with (
        Server("tiny:app", "--lifespan", "off", cwd=place, program=[sys.executable, built]) as (
            server
        ),
        RawClient(server.address) as first,
    ):
        assert first.get("/").status == 200
        with RawClient(server.address) as client:
            client.upgrade()
            assert client.read_head().status == 101
        assert first.get("/").status == 200


# -- tracebacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("room", "call"),
    [
        ("server", "selectserve.http_date('now')"),
        ("http1", "selectserve.RequestParser.receive_data(None, b'x')"),
        ("reactor", "selectserve.Reactor.call_at(None, 0, None)"),
    ],
)
def test_tracebacks_show_the_lines(place, room, call):
    """… of a packed chapter from its text, of one to be read at its place in the file."""
    program = (
        f"import selectserve, traceback\ntry: {call}\n"
        "except Exception: print(traceback.format_exc())"
    )
    lines = [line.strip() for line in run(place, program).splitlines()]
    found = [n for n, line in enumerate(lines) if "selectserve.py" in line]
    assert found, lines
    where, shown = lines[found[-1]], lines[found[-1] + 1]
    number = int(where.split("line ")[1].split(",")[0])
    text = (place / "selectserve.py").read_text("utf-8")
    if room not in READABLE:
        assert f"selectserve.py/{room}.py" in where
        text = run(place, f"import selectserve; print(selectserve.appendix.text({room!r}))")
    assert text.split("\n")[number - 1].strip() == shown


# -- how it is written -----------------------------------------------------------------------------


def late(room, source):
    """Return the lines of a room as they come into the file, and the rooms that it needs."""
    chapter = Chapter(room, f'"""{room}: x."""\n\n{source}\n')
    chapter.check(ROOMS)
    chapter.ask_late()
    return "\n".join(chapter.lines[2:]), chapter.entry().split(":")[1].split()


def test_what_may_wait_is_asked_for_late():
    source = (
        "from .tls import TLSTransport\nfrom .server import Server\n\n"
        "def make(x: TLSTransport) -> Server:\n"
        "    é = 'é', isinstance(x, TLSTransport), lambda: TLSTransport\n"
        "    return Server"
    )
    text, needs = late("arrival", source)
    assert "'é', isinstance(x, late.TLSTransport), lambda: late.TLSTransport" in text
    assert "def make(x: TLSTransport) -> Server:\n" in text and "return Server" in text
    assert needs == ["server"]
    text, needs = late("reactor", source)
    assert "return late.Server" in text and needs == []


@pytest.mark.parametrize(
    "use",
    [
        "class Mine(TLSTransport): ...",
        "def make(kind=TLSTransport): ...",
        "PAIR = (1, TLSTransport)",
        "def say():\n    return f'{TLSTransport}'",
        "def say(TLSTransport):\n    return TLSTransport",
        "def say():\n    TLSTransport = 1",
    ],
)
def test_what_cannot_wait(use):
    """Its room is opened first; of the chapters that are there at once it is refused."""
    source = f"from .tls import TLSTransport\n\n{use}"
    text, needs = late("arrival", source)
    assert "late." not in text and needs == ["tls"]
    with pytest.raises(ConfigError, match=r"reactor\.py:\d+: TLSTransport is needed at once"):
        late("reactor", source)


def test_frames_do_not_ask_late():
    text, needs = late("upgrade", "from .websocket import Text\n\ndef show():\n    return Text")
    assert "late." not in text and needs == ["websocket"]


def test_the_word_itself_is_taken():
    source = "from .tls import TLSTransport\n\ndef say(late):\n    return TLSTransport"
    with pytest.raises(ConfigError, match="a name `late` would hide"):
        late("arrival", source)


def test_the_lists_name_rooms():
    assert AT_ONCE < READABLE <= set(ROOMS) and TOGETHER < RARE <= set(ROOMS) - READABLE
    assert sorted(NEIGHBOURS) == sorted(set(ROOMS) - READABLE - {"chapters"})
