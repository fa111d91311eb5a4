"""cli: the command line, made from the table in config; nothing is declared here."""

from __future__ import annotations

import os
import sys

from .config import Config, all_options, environment_values
from .errors import ConfigError
from .server import serve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence


def make_parser(version: str) -> argparse.ArgumentParser:
    """Make the argument parser out of the options."""
    import argparse  # 5 ms that a host program need not pay

    parser = argparse.ArgumentParser(
        prog="selectserve",
        usage="%(prog)s [options] [APP]",
        description="Serve an ASGI app with nothing but the standard library.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "app", nargs="?", metavar="APP", help="module:attribute; none: welcome page"
    )
    parser.add_argument("--version", action="version", version=f"selectserve {version}")
    groups = {}
    for option in all_options():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        group = groups[option.group]
        default = "" if option.default in (None, "", [], -1) else f" (default: {option.default})"
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    from . import __version__

    parser = make_parser(__version__)
    given = vars(parser.parse_args(arguments))
    app = given.pop("app", None) or os.environ.get("SELECTSERVE_APP")
    try:
        values = environment_values()
        for option in all_options():
            if option.name not in given:
                continue
            value = given[option.name]
            if option.repeat:
                value = [item for text in value for item in option.read(text, option.flag_name)]
            elif not option.flag:
                value = option.read(value, option.flag_name)
            values[option.name] = value
        config = Config(app, **values)
    except ConfigError as exc:
        parser.print_usage(sys.stderr)
        print(f"selectserve: error: {exc}", file=sys.stderr)
        return exc.exit_code
    return serve(config)
