"""Layers of a pipeline: an option of `args` is the same one in all of them, dotted in one and nested in another."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

DOTTED = re.compile(r"\w+(\.\w+)+")
"""Keys that are options; a path or `package.module:function`, by which a reward is named, stays in one piece."""


def lay_over(below: Any, above: Any) -> Any:
    """One configuration over another, where `trainer.max_epochs: 3` of `args` is `trainer: {max_epochs: 3}`.

    What is below keeps its form and its order, on which the words of the commands depend.

    Args:
        below: what a file says, or several.
        above: what a later file or the command line says.
    """
    content: Any = OmegaConf.to_container(above, resolve=False)
    low = dict(_args_of(OmegaConf.to_container(below, resolve=False)))
    for name, args in list(_args_of(content)):
        content["stages"][name]["args"] = _named_alike(args, low.get(name, {}))
    return OmegaConf.merge(below, OmegaConf.create(content))


def _args_of(content: Any) -> Iterator[tuple[Any, dict[Any, Any]]]:
    """Name and `args` of each stage; what has another shape is told of when the stages are read."""
    stages = content.get("stages") if isinstance(content, dict) else None
    for name, stage in stages.items() if isinstance(stages, dict) else ():
        if isinstance(stage, dict) and isinstance(stage.get("args"), dict):
            yield name, stage["args"]


def _named_alike(args: Mapping[Any, Any], below: Mapping[Any, Any]) -> dict[Any, Any]:
    """The options with the keys that the layer below has for them."""
    found: dict[Any, Any] = {}
    for keys, value in _leaves(args):
        parts = [part for key in keys for part in (key.split(".") if _is_dotted(key) else [key])]
        # An option that is there twice, dotted and nested, is replaced twice: the last of the two counts.
        for place in list(_places(below, parts)) or [keys]:
            _put(found, place, value)
    return found


def _leaves(values: Mapping[Any, Any], above: tuple[Any, ...] = ()) -> Iterator[tuple[Sequence[Any], Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*above, key))
        else:
            yield (*above, key), value


def _places(below: Mapping[Any, Any], parts: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Every row of keys that leads to an option below, or to the group that it would be a new one of."""
    options = [list(found) for found in _known(below, parts)]
    if options:
        yield from options
    elif len(parts) > 1 and isinstance(group := below.get(parts[0]), dict):
        yield from ([parts[0], *rest] for rest in list(_places(group, parts[1:])) or [list(parts[1:])])


def _known(below: Mapping[Any, Any], parts: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for count in range(1, len(parts) + 1):
        key = parts[0] if count == 1 else ".".join(map(str, parts[:count]))
        if key in below and count == len(parts):
            yield [key]
        elif isinstance(group := below.get(key), dict):
            yield from ([key, *rest] for rest in _known(group, parts[count:]))


def _put(into: dict[Any, Any], place: Sequence[Any], value: Any) -> None:
    *groups, last = place
    for group in groups:
        if not isinstance(into.get(group), dict):
            into[group] = {}
        into = into[group]
    into[last] = value


def _is_dotted(key: Any) -> bool:
    return isinstance(key, str) and DOTTED.fullmatch(key) is not None
