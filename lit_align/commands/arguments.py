"""What every verb's parser shares: YAML files that overlay each other, and errors of one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings
from omegaconf.errors import OmegaConfBaseException

from lit_align.errors import UserError, did_you_mean, raise_all
from lit_align.files import read_yaml

PARSER_MODE = "omegaconf+"
"""Interpolations are resolved after all files and command-line values are merged, so an overlay reaches them."""

# Without this, an absolute path inside a `${...}` cannot be found.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)


class OneLineErrors:
    """Mixin for a jsonargparse parser: a mistake becomes a UserError with a suggestion, without the usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:  # noqa: D102 (argparse's own hook)
        if not getattr(self, "exit_on_error", True):  # parsers that jsonargparse makes inside, it catches theirs
            super().error(message, ex)  # type: ignore[misc]
        raise UserError(explain(message, known_keys(self))) from ex

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 (argparse's own)
        try:
            return super().parse_args(*args, **kwargs)  # type: ignore[misc]
        except OmegaConfBaseException as error:  # an interpolation that leads nowhere, which the parser lets through
            raise UserError(" ".join(str(error).split())) from error
        except RecursionError as error:
            raise UserError("a value is nested too deeply, or refers to itself") from error


class Parser(OneLineErrors, ArgumentParser):
    """The parser of a verb that is a function."""


def function_parser(prog: str, run: Any) -> Parser:
    """Returns a parser whose options are the parameters of `run` and whose help is its docstring."""
    summary = (run.__doc__ or "").strip().split("\n\n")[0]
    parser = Parser(prog=prog, description=summary, parser_mode=PARSER_MODE, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file with the options; later ones win")
    parser.add_function_arguments(run, fail_untyped=False)
    return parser


def known_keys(parser: Any) -> list[str]:
    """Returns the dotted names of all options of a parser, the fields of dataclasses that may be None included."""
    names: list[str] = []
    for action in parser._actions:
        if action.dest not in ("help", "print_config", "==SUPPRESS=="):
            names += [action.dest, *_fields(action.dest, getattr(action, "_typehint", None))]
    return names


def _fields(above: str, hint: Any) -> Iterator[str]:
    for part in (hint, *get_args(hint)):
        if isinstance(part, type) and is_dataclass(part):
            types = get_type_hints(part)
            for field in fields(part):
                yield f"{above}.{field.name}"
                yield from _fields(f"{above}.{field.name}", types[field.name])


def explain(message: str, known: Iterable[str]) -> str:
    """Turns a parser's message into lines for a person, with the nearest known option for each unknown one."""
    known = list(known)
    if message.startswith("unrecognized arguments:"):
        words = message.split(":", 1)[1].split()
        unknown = [word.split("=", 1)[0].lstrip("-") for word in words if word.startswith("--")]
        if not unknown:
            return f"these words belong to no option: {' '.join(words)}"
        return "\n".join(f"unknown option --{key}{_suggest(key, known, '--')}" for key in unknown)
    if found := re.search(r"(?:Option|Key) '([^']+)' is not (?:accepted|expected)", message):
        return f"unknown key {found[1]!r}{_suggest(found[1], known)}"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", message).replace("typing.", "")
    text = re.sub(r'^Parser key "([^"]+)":\s*', r"\1: ", text)
    text = re.sub(r"Expected an? (.*?)\. Got value: (.*)", r"expected \1, found \2", text, flags=re.DOTALL)
    text = re.sub(r"Literal\[([^\]]*)\]", lambda found: f"one of {found[1]}", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    return text if len(text) < 600 else text[:590] + " ..."


def check_config_files(parser: Any, argv: list[str]) -> None:
    """Raises one UserError that names every unknown key of every `--config` file, and files that are missing."""
    known = known_keys(parser)
    errors: list[str] = []
    for name in config_files(argv):
        path = Path(name)
        if not path.is_file():
            errors.append(f"--config {name}: there is no such file (looked in {Path.cwd()})")
            continue
        try:
            content = read_yaml(name)
        except UserError as error:
            errors.append(str(error))
            continue
        if content is not None and not isinstance(content, dict):
            errors.append(f"{name} holds a {type(content).__name__}, expected `key: value` lines")
            continue
        errors += [f"{name}: unknown key {key!r}{_suggest(key, known)}" for key in _unknown(content or {}, known)]
    raise_all(errors)


def config_files(argv: list[str]) -> list[str]:
    """Returns the values of `--config` in the order in which they overlay each other."""
    files = []
    for index, word in enumerate(argv):
        if word in ("--config", "-c") and index + 1 < len(argv):
            files.append(argv[index + 1])
        elif word.startswith("--config="):
            files.append(word.split("=", 1)[1])
    return files


def _unknown(content: dict[str, Any], known: list[str], above: str = "") -> Iterator[str]:
    for key, value in content.items():
        name = f"{above}{key}"
        if any(option.startswith(f"{name}.") for option in known):
            if isinstance(value, dict):
                yield from _unknown(value, known, f"{name}.")
        elif name not in known and key not in ("class_path", "init_args"):
            yield name


def _suggest(key: str, known: list[str], dashes: str = "") -> str:
    """The nearest option: in the same group if the key names one, else by its last part: people forget the `data.`."""
    group, _, last = key.rpartition(".")
    if group:
        hint = did_you_mean(key, [option for option in known if option.rpartition(".")[0] == group])
    elif not (hint := did_you_mean(key, known)):
        ends = {option.rpartition(".")[2]: option for option in known}
        near = difflib.get_close_matches(last, ends, n=1, cutoff=0.7)
        hint = f"; did you mean {ends[near[0]]}?" if near else ""
    return hint.replace("did you mean ", f"did you mean {dashes}")
