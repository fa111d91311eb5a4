"""sources: where the values of options come from, besides run() and the command line.

A file (``--config``: TOML where Python can read it, JSON everywhere), an env file, and back: what
``--print-config`` shows can be given to ``--config``. The command line wins over the environment,
the environment over the file, and that over the defaults. A wrong name or value is told with the
place it stands in.
"""

from __future__ import annotations

import json
import re
from importlib import import_module

from .config import all_options
from .errors import ConfigError
from .kinds import permissions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from typing import Any

    from .config import Config, Option

ENV_LINE = re.compile(
    r"""\s*(?:export\s+)?(?P<name>[A-Za-z_][A-Za-z0-9_.]*)\s*=\s*"""
    r"""(?:'(?P<single>[^']*)'|"(?P<double>(?:[^"\\]|\\.)*)"|(?P<bare>.*?))\s*(?:(?:^|\s)\#.*)?"""
)
ENV_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
SECRET_OPTIONS = frozenset(("ssl_keyfile_password", "inspect_token"))


def read_config_file(path: str) -> dict[str, Any]:
    """Read options from a TOML or JSON file; ``app`` may be among them."""
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as exc:
        raise ConfigError(f"--config {path}: {exc.strerror}", 2) from None
    try:
        given = json.loads(data) if path.endswith(".json") else parse_toml(data, path)
    except ValueError as exc:  # both decoders', and of what is no UTF-8
        raise ConfigError(f"--config {path}: {exc}", 2) from None
    if not isinstance(given, dict):
        raise ConfigError(f"--config {path}: not a table of options", 2)
    known = {option.name: option for option in all_options() if not option.code_only}
    values = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name == "app":
            values["app"] = value
        elif name in known:
            values[name] = known[name].accept(value, f"{path}: {key}")
        else:
            raise ConfigError(f"{path}: unknown option {key!r}: {nearest(name, known)}", 2)
    return values


def parse_toml(data: bytes, path: str) -> Any:
    """Parse TOML, which Python can since 3.11."""
    tomllib = find_tomllib()
    if tomllib is None:
        raise ConfigError(
            f"--config {path}: this Python cannot read TOML (3.11 and later can): write it as "
            f"JSON, in a file that ends in .json",
            2,
        )
    return tomllib.loads(data.decode())


def find_tomllib() -> Any:
    """Return the module, None before Python 3.11."""
    try:
        return import_module("tomllib")
    except ImportError:
        return None


def nearest(name: str, known: Mapping[str, object]) -> str:
    """Guess what was meant."""
    from difflib import get_close_matches

    close = get_close_matches(name, known, 1)
    return f"did you mean {close[0]}?" if close else "see python -m selectserve --help"


def load_env_file(path: str, environ: MutableMapping[str, str]) -> None:
    """Set the variables of a file of NAME=value lines; those that are set already win."""
    try:
        with open(path, encoding="utf-8-sig") as stream:
            lines = stream.read().split("\n")
    except OSError as exc:
        raise ConfigError(f"--env-file {path}: {exc.strerror}", 2) from None
    except UnicodeDecodeError:
        raise ConfigError(f"--env-file {path}: not UTF-8", 2) from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = ENV_LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"--env-file {path}, line {number}: not NAME=value: {line[:60]!r}", 2)
        name, single, double, bare = match.group("name", "single", "double", "bare")
        if double is not None:
            value = re.sub(r"\\(.)", lambda m: ENV_ESCAPES.get(m[1], m[1]), double)
        else:
            value = bare if single is None else single
        environ.setdefault(name, value)


def write_config(config: Config, origins: Mapping[str, str]) -> str:
    """Return all options as TOML for ``--config``, with ``origins``; defaults as comments.

    As comments, because a value that is given can mean more than the same value as a default.
    """
    lines = [] if config.app is None else [f"app = {toml_value(str(config.app))}"]
    group = ""
    for option in all_options():
        if option.code_only:
            continue
        if option.group != group:
            group = option.group
            lines += ["", f"# -- {group}"]
        value = shown_value(option, config)
        if option.name not in config.values:
            shown = "" if value is None else f" {toml_value(value)}"
            lines.append(f"# {option.name} ={shown}")
        elif value is None:
            lines.append(f"# {option.name} = (not shown)")
        else:
            origin = origins.get(option.name, "")
            lines.append(f"{option.name} = {toml_value(value)}" + (origin and f"  # {origin}"))
    return "\n".join(lines) + "\n"


def shown_value(option: Option[Any], config: Config) -> Any:
    """Return a value in the types of a file, None for what cannot be written there."""
    value = getattr(config, option.name)
    if option.code_only or value is None or (option.name == "fd" and value < 0):
        return None
    if option.name in SECRET_OPTIONS:
        return None
    if option.kind is permissions:
        return f"{value:o}"
    if option.repeat:
        return [": ".join(item) if isinstance(item, tuple) else item for item in value]
    return value


def toml_value(value: Any) -> str:
    """Write a value: JSON's texts, numbers, booleans and lists are TOML's too, its escapes not."""
    if isinstance(value, dict):
        pairs = (f"{toml_value(str(key))} = {toml_value(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    text = json.dumps(value, ensure_ascii=False)
    return "".join([char if char < "\x7f" else f"\\U{ord(char):08x}" for char in text])
