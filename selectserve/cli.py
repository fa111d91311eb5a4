"""cli: the command line, made from the table in config; nothing is declared here."""

from __future__ import annotations

import gc
import os
import sys
from functools import partial

from .bundle import write_bundle
from .config import Config, all_options, environment_values
from .errors import ConfigError
from .explain import explain
from .launch import check, serve
from .logs import wants_colour
from .sources import load_env_file, read_config_file, write_config

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any


def make_parser(version: str) -> argparse.ArgumentParser:
    """Make the argument parser out of the options."""
    import argparse  # 5 ms that a host program need not pay

    parser = argparse.ArgumentParser(
        prog="selectserve",
        formatter_class=partial(argparse.HelpFormatter, width=help_width()),
        usage="%(prog)s [options] [APP]",
        description="Serve an ASGI app with nothing but the standard library.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "app", nargs="?", metavar="APP", help="module:attribute; none: welcome page"
    )
    parser.add_argument("--version", action="version", version=f"selectserve {version}")
    add_commands(parser)
    groups = {}
    for option in all_options():
        if option.code_only:
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        group = groups[option.group]
        default = f" (default: {option.shown})" if option.shown else ""
        if option.flag:
            text = option.meaning if option.default is None else option.meaning + default
            group.add_argument(option.flag_name, dest=option.name, action="store_true", help=text)
            group.add_argument(
                "--no-" + option.flag_name[2:],
                dest=option.name,
                action="store_false",
                help=argparse.SUPPRESS if option.default is False else f"not {option.flag_name}",
            )
        else:
            group.add_argument(
                option.flag_name,
                dest=option.name,
                metavar=option.metavar or None if not option.choices else "|".join(option.choices),
                action="append" if option.repeat else "store",
                help=option.meaning + default,
            )
    return parser


def help_width() -> int:
    """Return how wide help may be: what argparse asks shutil, which loads three compressors."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns) - 2
    try:
        return (os.get_terminal_size().columns or 80) - 2
    except (OSError, ValueError):  # no terminal, or stdout is closed
        return 78


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add what is no option of a server, but about them, or instead of serving."""
    parser.add_argument("--config", metavar="FILE", help="read options from TOML or JSON")
    parser.add_argument(
        "--print-config", action="store_true", help="show all options as such a file, and end"
    )
    parser.add_argument(
        "--check", action="store_true", help="import APP, check everything, and end"
    )
    parser.add_argument(
        "--explain", action="store_true", help="tell the life of a request from the code, and end"
    )
    parser.add_argument(
        "--bundle",
        metavar="FILE",
        help="write the whole server to this one file, and end; a .pyz may hold apps too",
    )
    parser.add_argument(
        "--with",
        dest="apps",
        metavar="APP",
        action="append",
        default=[],
        help="put APP's module or package into the .pyz, which then serves the first of them",
    )


def read_options(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the options, ``app`` among them, and for each who said so; the last one wins."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    path = given.get("config") or os.environ.get("SELECTSERVE_CONFIG")
    if path:
        values = read_config_file(path)
        origins = dict.fromkeys(values, path)
    env_file = given.get("env_file") or values.get("env_file")
    if env_file:
        load_env_file(env_file, os.environ)
    found = environment_values()
    if "SELECTSERVE_APP" in os.environ:
        found["app"] = os.environ["SELECTSERVE_APP"]
    values.update(found)
    origins.update(dict.fromkeys(found, "from the environment"))
    for option in all_options():
        if option.name not in given:
            continue
        value = given[option.name]
        if option.repeat:
            value = [item for text in value for item in option.read(text, option.flag_name)]
        elif not option.flag:
            value = option.read(value, option.flag_name)
        values[option.name] = value
        origins[option.name] = "from the command line"
    if given.get("app"):
        values["app"] = given["app"]
    return values, origins


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from . import __version__

    given = vars(make_parser(__version__).parse_args(arguments))
    if given.get("explain"):
        print(explain(wants_colour(sys.stdout, None)), end="")
        return 0
    try:
        values, origins = read_options(given)
        config = Config(values.pop("app", None), **values)
        if "bundle" in given or given["apps"]:
            return write_bundle(given.get("bundle", ""), given["apps"], config.app_dir)
    except ConfigError as exc:
        if exc.exit_code == 2:
            make_parser(__version__).print_usage(sys.stderr)
        print(f"selectserve: error: {exc}", file=sys.stderr)
        return exc.exit_code
    if given.get("print_config"):
        print(write_config(config, origins), end="")
        return 0
    if given.get("check"):
        return check(config)
    gc.collect()  # what argparse has left, before an app needs room
    return serve(config)
