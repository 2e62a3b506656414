"""Runs a verb that is a typed function: its signature is the command line, its docstring the help."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, get_type_hints

from lit_align.commands.arguments import check_config_files, function_parser


def run_function(verb: str, run: Callable[..., Any], argv: list[str]) -> None:
    """Calls `run` with what `argv` and its `--config` files say."""
    run(**_parse(verb, run, argv))


def check_function(verb: str, run: Callable[..., Any], argv: list[str]) -> None:
    """Raises a UserError if `argv` does not parse."""
    _parse(verb, run, argv)


def _parse(verb: str, run: Callable[..., Any], argv: list[str]) -> dict[str, Any]:
    parser = function_parser(f"lit-align {verb}", run)
    argv = _name_leading_words(run, argv)
    check_config_files(parser, argv)
    options = parser.instantiate(parser.parse_args(argv))
    return {name: options[name] for name in inspect.signature(run).parameters if name in options}


def _name_leading_words(run: Callable[..., Any], argv: list[str]) -> list[str]:
    """Words before the first option are the first parameter's: `evaluate A B --episodes 3` is `--agents [A, B]`."""
    count = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    if not count:
        return argv
    name = next(iter(inspect.signature(run).parameters))
    if "list" in str(get_type_hints(run).get(name, "")):
        return [f"--{name}={json.dumps(argv[:count])}", *argv[count:]]
    return [f"--{name}={argv[0]}", *argv[1:]]
