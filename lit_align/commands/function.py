"""Runs a verb that is a typed function: its signature is the command line, its docstring the help."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, get_type_hints

from lit_align.commands.arguments import check_config_files, function_parser
from lit_align.commands.signals import Signals, handlers_put_back


def run_function(verb: str, run: Callable[..., Any], argv: list[str]) -> None:
    """Calls `run` with what `argv` and its `--config` files say; SIGTERM ends it as Ctrl-C does.

    Raises:
        Terminated: After SIGTERM, once what was half written is gone and worlds are closed.
    """
    options = _parse(verb, run, argv)
    with handlers_put_back():
        Signals().take_terminations()
        run(**options)


def check_function(verb: str, run: Callable[..., Any], argv: list[str]) -> None:
    """Raises a UserError if `argv` does not parse."""
    _parse(verb, run, argv)


def _parse(verb: str, run: Callable[..., Any], argv: list[str]) -> dict[str, Any]:
    parser = function_parser(f"lit-align {verb}", run)
    parser.usage = _usage(verb, run)
    argv = _fill_flags(run, _name_leading_words(run, argv))
    check_config_files(parser, argv)
    options = parser.instantiate(parser.parse_args(argv))
    return {name: options[name] for name in inspect.signature(run).parameters if name in options}


def _name_leading_words(run: Callable[..., Any], argv: list[str]) -> list[str]:
    """Words before the first option are those of the first parameters, as `pull user/name OUT`; a list takes all."""
    count = next((index for index, word in enumerate(argv) if word.startswith("-")), len(argv))
    if not count:
        return argv
    taking, many = _leading(run)
    if many:
        return [f"--{taking[0].name}={json.dumps(argv[:count])}", *argv[count:]]
    named = [f"--{each.name}={word}" for each, word in zip(taking, argv[:count], strict=False)]
    return [*named, *argv[min(count, len(taking)) :]]


def _leading(run: Callable[..., Any]) -> tuple[list[inspect.Parameter], bool]:
    """The parameters that words before the first option are for, and whether it is one that takes them all."""
    first, *others = inspect.signature(run).parameters.values()
    hints = get_type_hints(run)
    if "list" in str(hints.get(first.name, "")):
        return [first], True
    # Beyond the first, only what has to be given, in one word: an option is named, and so are the parts of a rule.
    return [first, *(p for p in others if p.default is p.empty and not is_dataclass(hints.get(p.name)))], False


def _usage(verb: str, run: Callable[..., Any]) -> str:
    """How the verb is called, its words first, as the pages write it; the options are listed below it."""
    taking, many = _leading(run)
    words = " ".join(each.name.upper() for each in taking) + (" ..." if many else "")
    return f"lit-align {verb} {words} [--option VALUE ...]"


def _fill_flags(run: Callable[..., Any], argv: list[str]) -> list[str]:
    """`--dry_run` alone is `--dry_run=true`."""
    flags = {f"--{name}" for name, hint in get_type_hints(run).items() if hint is bool}
    following = [*argv[1:], "--"][: len(argv)]
    return [
        f"{word}=true" if word in flags and after.startswith("--") else word
        for word, after in zip(argv, following, strict=True)
    ]
