"""Classes as JSON in the action space's terms."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from operator import getitem
from typing import Any

import numpy as np
from gymnasium import spaces

from lit_align.spaces import ActionCodec


class ActionText:
    """Writes actions as JSON; everything that can be is made ready beforehand, for this is done at every frame.

    Args:
        codec: The action space.

    Attributes:
        heads: Name, kind and the value of each class of every head, as the welcome tells them.
    """

    def __init__(self, codec: ActionCodec) -> None:
        self._values = _values(codec)
        self._text = _template(codec.space, iter(range(len(codec.heads))))
        self.heads: list[dict[str, Any]] = [
            {"name": head.name, "kind": head.kind, "values": [json.loads(text) for text in texts]}
            for head, texts in zip(codec.heads, self._values, strict=True)
        ]

    def __call__(self, classes: bytes) -> str:
        """Classes, one of each head, as JSON: objects for `Dict`, arrays for all else but a lone `Discrete`."""
        if len(classes) != len(self._values):
            raise ValueError(f"{len(classes)} classes; expected one for each of {len(self._values)} heads")
        return self._text % tuple(map(getitem, self._values, classes))


def _values(codec: ActionCodec) -> list[list[str]]:
    """What each class of each head decodes to, as JSON; the shortest number that is read back as the same."""
    null = codec.null
    texts: list[list[str]] = []
    for number, head in enumerate(codec.heads):
        texts.append([])
        for one in range(head.classes):
            classes = null.copy()
            classes[number] = one
            value = list(_flat(codec.decode(classes)))[number]
            texts[-1].append(str(value) if value.dtype.kind == "f" else str(int(value)))
    return texts


def _flat(action: Any) -> Iterator[Any]:
    """An action's numbers, as NumPy scalars of their own type, in the order of the heads."""
    if isinstance(action, dict | tuple):
        for part in action.values() if isinstance(action, dict) else action:
            yield from _flat(part)
    else:
        yield from np.asarray(action).ravel()


def _template(space: spaces.Space[Any], heads: Iterator[int]) -> str:
    """JSON of the space with a `%s` for each head, in their order."""
    if isinstance(space, spaces.Dict):
        parts = [f"{json.dumps(key).replace('%', '%%')}: {_template(sub, heads)}" for key, sub in space.spaces.items()]
        return "{" + ", ".join(parts) + "}"
    if isinstance(space, spaces.Tuple):
        return "[" + ", ".join(_template(sub, heads) for sub in space.spaces) + "]"
    shape: tuple[int, ...] = space.shape or ()
    for _ in range(math.prod(shape)):
        next(heads)
    return json.dumps(np.full(shape, "%s").tolist()).replace('"', "")
