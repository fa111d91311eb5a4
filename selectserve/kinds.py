"""kinds: how the value of an option is read: from a text, or from what stands for one.

The command line and the environment give texts; what a program or a file gives is made one first,
and so checked by the same rules. A reader returns the value, or raises ValueError that says what
is allowed; config adds which option it was.
"""

from __future__ import annotations

import os

from .errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def text_of(value: Any, where: str, scalar: bool = False) -> str:
    """Write a text, a path or a whole number as the command line would; ``scalar``: any number."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and (scalar or not isinstance(value, bool)):
        return str(value).lower() if isinstance(value, bool) else f"{int(value)}"
    if isinstance(value, float) and scalar:
        return repr(float(value))
    allowed = "a text, number or boolean" if scalar else "a text in quotes"
    raise ConfigError(f"{where}: {allowed}, not {type(value).__name__}", 2)


def seconds(text: str) -> float:
    """Read a duration in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError("a number of seconds, 0 or more")
    return value


def count(text: str) -> int:
    """Read a whole number, 0 or more."""
    if not (text.isascii() and text.isdigit()):
        raise ValueError("a whole number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """Read a whole number, 1 or more."""
    if not count(text):
        raise ValueError("a whole number, 1 or more")
    return int(text)


def byte_size(text: str) -> int:
    """Read a number of bytes, as in 500M."""
    number = text.rstrip("kKMGiB")
    unit = text[len(number) :].rstrip("B").rstrip("i").upper()
    if len(unit) > 1:
        raise ValueError("a number of bytes, as in 500M or 2G")
    return count(number) << {"": 0, "K": 10, "M": 20, "G": 30}[unit]


def truth(text: str) -> bool:
    """Read true or false given as a word."""
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def header_pair(text: str) -> tuple[str, str]:
    """Read ``Name:Value``."""
    name, colon, value = text.partition(":")
    name, value = name.strip(), value.strip()
    if not colon or not name.isascii() or not name.replace("-", "").replace("_", "").isalnum():
        raise ValueError("a header is written Name:Value, its name in letters, digits, - and _")
    if not value.isprintable():
        raise ValueError("the value of a header has no control characters")
    if any(char > "\xff" for char in value):
        raise ValueError("the value of a header is latin-1: no letter beyond ÿ")
    return name, value


def permissions(text: str) -> int:
    """Read file permissions in octal."""
    try:
        value = int(text, 8)
    except ValueError:
        value = -1
    if not 0 <= value <= 0o777:
        raise ValueError("three octal digits, as in 660")
    return value


def one_text(text: str) -> list[str]:
    """Make a list of one, for options that may be repeated."""
    return [text]
