"""appendix: the chapters of the single file that are packed until somebody asks for them.

Python compiles a program anew at each start, and all of it: so most chapters are carried as packed
text, which is unpacked as a whole, and compiled and run chapter by chapter, in the one namespace of
the file, when a name of theirs is asked for (PEP 562). ``appendix.text(room)`` shows one. In the
package, where every room is a module, nobody calls this.
"""

from __future__ import annotations

from .threadless import NoLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from types import ModuleType
    from typing import Any

# RFC 1951 §3.2.5 and §3.2.7: first length or distance of each code, with its number of extra bits.
LENGTHS = [*range(3, 11), 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163]
LENGTHS += [195, 227, 258]
LENGTH_BITS = [0] * 8 + [n for n in range(1, 6) for _ in range(4)] + [0]
DISTANCE_BITS = [0, 0] + [n for n in range(14) for _ in range(2)]
DISTANCES = [1 + sum(1 << n for n in DISTANCE_BITS[:code]) for code in range(30)]
CODE_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)


class Appendix:
    """Those chapters of ``module``; ``data`` has most of them: the base64 of a zlib stream.

    Chapters are divided by form feeds; the first line of each says ``room:rooms it needs:names``,
    the names of what is no function or class. Tabs stand for four spaces, which saves 3 %.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.data = ""
        self.texts: dict[str, str] = {}
        self.lines: dict[str, int] = {}  # of this file, where the text of a chapter begins
        self.needs: dict[str, list[str]] = {}
        self.rooms: dict[str, str] = {}  # by the names that they define
        self.opened: set[str] = set()
        self.lock: AbstractContextManager[Any] = NoLock()
        try:
            from _thread import RLock

            self.lock = RLock()
        except ImportError:
            pass

    def carry(self, entry: str, line: int, text: str) -> None:
        """Take in a chapter, whose text stands in the file from a line on, or nowhere (0)."""
        room, needs, names = entry.split(":")
        self.texts[room] = text
        self.lines[room] = line
        self.needs[room] = needs.split()
        self.rooms.update(dict.fromkeys([*names.split(), *defined_names(text)], room))

    def unpack(self) -> None:
        """Take in the packed chapters, once: 3 ms, and a third of a second without zlib."""
        if not self.data:
            return
        from binascii import a2b_base64

        packed = a2b_base64(self.data)
        try:
            from zlib import decompress

            text = decompress(packed)
        except ImportError:
            text = Inflater(packed[2:]).inflate()  # behind zlib's own head, RFC 1950
        for chapter in text.decode().split("\f"):
            entry, _, body = chapter.partition("\n")
            self.carry(entry, 0, body.replace("\t", "    "))
        self.data = ""

    def text(self, room: str) -> str:
        """Return a chapter as it is compiled; KeyError when it is not in here."""
        with self.lock:
            self.unpack()
        return self.texts[room]

    def find(self, name: str) -> Any:
        """Return what ``name`` means in the module, whose namespace does not have it yet."""
        space = vars(self.module)
        if not name.startswith("__"):
            with self.lock:
                self.unpack()
                if name in self.rooms:
                    self.open(self.rooms[name])
        if name not in space:
            raise AttributeError(f"module 'selectserve' has no attribute {name!r}")
        return space[name]

    def open(self, room: str) -> None:
        """Run a chapter, and first those that it needs."""
        if room in self.opened:
            return
        for needed in self.needs[room]:
            self.open(needed)
        text = self.texts[room]
        space = vars(self.module)
        place = space.get("__file__") or "selectserve.py"
        if place.endswith(".pyc"):
            place = place[:-1]  # where it was compiled from
        if self.lines[room]:
            text = "\n" * (self.lines[room] - 1) + text
        else:
            import linecache  # for tracebacks; logging has imported it anyway

            # Below the file, as if it were a folder: so it is no other file, and says what it is.
            place += f"/{room}.py"
            vars(linecache)["cache"][place] = (lambda: text,)
        exec(compile(text, place, "exec"), space)
        self.opened.add(room)


def defined_names(text: str) -> list[str]:
    """Return the names of the functions and classes of a chapter."""
    found = []
    for opening in ("\ndef ", "\nasync def ", "\nclass "):
        for piece in f"\n{text}".split(opening)[1:]:
            found.append(piece.partition("(")[0].partition(":")[0])
    return found


class Inflater:
    """DEFLATE (RFC 1951) for a Python without zlib, which is to lack compression and no more."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0  # the next byte
        self.held = 0  # bits read and not used yet, the lowest first
        self.count = 0
        self.out = bytearray()

    def bits(self, count: int) -> int:
        """Take ``count`` bits as a number."""
        while self.count < count:
            self.held |= self.data[self.at] << self.count
            self.at += 1
            self.count += 8
        value = self.held & ((1 << count) - 1)
        self.held >>= count
        self.count -= count
        return value

    def symbol(self, codes: dict[int, int]) -> int:
        """Take a Huffman code; the keys have a 1 in front, so that length counts."""
        code = 1
        while True:
            code = code << 1 | self.bits(1)
            if code in codes:
                return codes[code]

    def inflate(self) -> bytes:
        """Return all of it."""
        last = False
        while not last:
            last = bool(self.bits(1))
            kind = self.bits(2)
            if kind == 0:
                self.copy_stored()
            elif kind == 1:
                fixed = [8] * 144 + [9] * 112 + [7] * 24 + [8] * 8
                self.expand(huffman_codes(fixed), huffman_codes([5] * 30))
            else:
                self.expand(*self.read_codes())
        return bytes(self.out)

    def copy_stored(self) -> None:
        """Take a block that is not compressed (§3.2.4)."""
        self.at -= self.count // 8
        self.held = self.count = 0
        size = int.from_bytes(self.data[self.at : self.at + 2], "little")
        self.at += 4
        self.out += self.data[self.at : self.at + size]
        self.at += size

    def read_codes(self) -> tuple[dict[int, int], dict[int, int]]:
        """Take the codes of a block for literals and lengths, and for distances (§3.2.7)."""
        literals, distances, orders = self.bits(5) + 257, self.bits(5) + 1, self.bits(4) + 4
        widths = [0] * 19
        for place in CODE_ORDER[:orders]:
            widths[place] = self.bits(3)
        codes = huffman_codes(widths)
        found: list[int] = []
        while len(found) < literals + distances:
            symbol = self.symbol(codes)
            if symbol < 16:
                found.append(symbol)
            elif symbol == 16:
                found += [found[-1]] * (3 + self.bits(2))
            else:
                found += [0] * (3 + self.bits(3) if symbol == 17 else 11 + self.bits(7))
        return huffman_codes(found[:literals]), huffman_codes(found[literals:])

    def expand(self, literals: dict[int, int], distances: dict[int, int]) -> None:
        """Take a compressed block."""
        out = self.out
        while True:
            symbol = self.symbol(literals)
            if symbol < 256:
                out.append(symbol)
            elif symbol == 256:
                return
            else:
                length = LENGTHS[symbol - 257] + self.bits(LENGTH_BITS[symbol - 257])
                code = self.symbol(distances)
                distance = DISTANCES[code] + self.bits(DISTANCE_BITS[code])
                piece = out[-distance:][:length]  # may be shorter: what it makes, it reads again
                out += (piece * (length // len(piece) + 1))[:length]


def huffman_codes(widths: Sequence[int]) -> dict[int, int]:
    """Return the canonical codes for symbols of these widths in bits (§3.2.2)."""
    codes = {}
    code = 1
    for width in range(1, 16):
        code <<= 1
        for symbol, wanted in enumerate(widths):
            if wanted == width:
                codes[code] = symbol
                code += 1
    return codes
