"""Action spaces and the classes of an agent's action heads.

An agent chooses one class per head. A head is one dimension of the environment's action space: a button (two classes),
a discrete choice, or an axis cut into bins. `ActionCodec` translates both ways for any Gymnasium space made of `Box`,
`Discrete`, `MultiDiscrete`, `MultiBinary`, `Dict` and `Tuple`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from lit_align.errors import UserError, shortly

# The stick bins of the paper's game (Bleeding Edge): non-uniform, finer near the centre. Edges are those of the WHAM
# release; `np.digitize` semantics.
STICK_EDGES = (-1.05, -0.95, -0.75, -0.5, -0.25, -0.05, 0.05, 0.25, 0.5, 0.75, 0.95, 1.05)
STICK_CENTRES = (-1.0, -0.85, -0.625, -0.375, -0.15, 0.0, 0.15, 0.375, 0.625, 0.85, 1.0)
AXIS_BINS = 11
MOST_CLASSES = 256
"""Of a head: classes are kept as bytes."""
DEEPEST = 50
"""Spaces inside one another that a description may have."""
MAX_HEADS = 4096
"""More dimensions than any world has: a description that asks for more is wrong, and is not let fill the memory."""

Classes = NDArray[np.uint8]


@dataclass(frozen=True)
class Head:
    """One categorical action head.

    Attributes:
        name: Path of the dimension in the action space, such as `right_stick.x`.
        classes: Number of classes.
        kind: `button`, `choice` or `axis`.
        centres: For an axis, the value that each class stands for; empty otherwise.
        edges: For an axis, the `classes - 1` inner boundaries between bins; empty otherwise.
        offset: For a choice, the value of class 0.
    """

    name: str
    classes: int
    kind: str
    centres: tuple[float, ...] = ()
    edges: tuple[float, ...] = ()
    offset: int = 0


def gamepad_space() -> spaces.Dict:
    """Two sticks in [-1, 1] and twelve buttons: the action space of the paper's agent.

    16 heads (12 x 2 and 4 x 11 classes).
    """
    return spaces.Dict(
        {
            "buttons": spaces.MultiBinary(12),
            "left_stick": spaces.Box(-1.0, 1.0, (2,), np.float32),
            "right_stick": spaces.Box(-1.0, 1.0, (2,), np.float32),
        }
    )


class ActionCodec:
    """Translates actions of a Gymnasium space to head classes and back.

    Attributes:
        space: The action space.
        heads: One `Head` for each dimension, in a fixed order (a `Dict` is walked in the order of its keys).
        sizes: Number of classes of each head.
        bins: Number of classes of each axis.

    Args:
        space: A space built of `Box` (bounded), `Discrete`, `MultiDiscrete`, `MultiBinary`, `Dict` and `Tuple`.
        bins: Into how many bins each axis is cut, from 2 to 256. 11 cuts an axis from -1 to 1 as the paper's game does,
            finer near the centre; all else is cut evenly, the two ends among the bins' centres. Of an axis that rests
            in its middle an odd number has a bin for that.

    Raises:
        ValueError: The space has a part that cannot be cut into classes, or `bins` is no such number.
    """

    def __init__(self, space: spaces.Space[Any], bins: int = AXIS_BINS) -> None:
        if isinstance(bins, bool) or not isinstance(bins, int) or not 2 <= bins <= MOST_CLASSES:
            raise UserError(f"bins is {shortly(bins)}; expected a whole number from 2 to {MOST_CLASSES}")
        self.space, self.bins = space, bins
        heads: list[Head] = []
        _collect(space, "", heads, bins)
        if not heads:
            raise UserError(f"the action space {space} has no dimension; an agent needs at least one action head")
        self.heads: tuple[Head, ...] = tuple(heads)
        self.sizes: tuple[int, ...] = tuple(head.classes for head in heads)

    def __eq__(self, other: object) -> bool:
        # The heads as well, since dicts are equal whatever the order of their keys.
        return isinstance(other, ActionCodec) and self.heads == other.heads and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash(self.heads)

    def __repr__(self) -> str:
        return f"ActionCodec({_counts(self.heads)} classes: {_cut(_space_in_words(self.space))})"

    @property
    def null(self) -> Classes:
        """The classes `(heads,)`, uint8, of doing nothing.

        A button is not pressed, an axis rests at 0 (in its middle bin where 0 is out of its range), and a choice takes
        its class 0, which most worlds give to doing nothing.
        """
        return np.array([_rest(head) for head in self.heads], np.uint8)

    def encode(self, action: Any) -> Classes:
        """An action of the space as classes.

        Args:
            action: An element of `space`; axes hold real values, the nearest bin is taken.

        Returns:
            Classes `(heads,)`, uint8.

        Raises:
            ValueError: A value is not finite or lies outside the space; the message names the dimension.
        """
        values: list[float] = []
        _flatten(self.space, action, "", values)
        if len(values) != len(self.heads):
            raise UserError(
                f"the action has {len(values)} values, the action space {len(self.heads)} dimensions: "
                f"{describe(self.heads)}"
            )
        return np.array(
            [_to_class(head, value) for head, value in zip(self.heads, values, strict=True)], dtype=np.uint8
        )

    def decode(self, classes: NDArray[Any]) -> Any:
        """Classes `(heads,)` as an action of the space.

        Raises:
            ValueError: The number of classes is wrong, or one is out of its head's range or no whole number.
        """
        picked = _numbers(classes, "the classes of the action heads")
        if len(picked) != len(self.heads):
            raise UserError(f"got {len(picked)} classes for {len(self.heads)} action heads")
        values = [_to_value(head, cls) for head, cls in zip(self.heads, picked, strict=True)]
        return _build(self.space, iter(values))

    def check(self, classes: NDArray[Any]) -> None:
        """Raises ValueError unless every class in `classes` `(..., heads)` fits its head."""
        if classes.shape[-1:] != (len(self.heads),):
            raise UserError(
                f"actions are of shape {classes.shape}, expected a column for each of the {len(self.heads)} heads"
            )
        flat = classes.reshape(-1, len(self.heads))
        bad = (flat < 0) | (flat >= np.array(self.sizes))
        if bad.any():
            row, col = np.argwhere(bad)[0]
            head = self.heads[col]
            raise UserError(
                f"action {row}: class {flat[row, col]} of head '{head.name}' is out of range 0..{head.classes - 1}"
            )

    def of(self, space: spaces.Space[Any]) -> ActionCodec:
        """The codec of another space, whose axes are cut into as many bins."""
        return ActionCodec(space, self.bins)

    def to_dict(self) -> dict[str, Any]:
        """The space as plain JSON types, with `bins` where axes have others than 11; `from_dict` reads it."""
        other = self.bins != AXIS_BINS and any(head.kind == "axis" for head in self.heads)
        return _space_to_dict(self.space) | ({"bins": self.bins} if other else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ActionCodec:
        """Builds the codec that `to_dict` described.

        Raises:
            ValueError: The description is of an unknown kind or lacks a field.
        """
        if isinstance(data, dict) and "bins" in data:
            return cls(_space_from_dict({key: data[key] for key in data if key != "bins"}), data["bins"])
        return cls(_space_from_dict(data))


def describe(heads: tuple[Head, ...]) -> str:
    """A short line for people: `12 x 2, 4 x 11 classes (buttons.0, ..., right_stick.1)`."""
    names = [head.name or "action" for head in heads]
    shown = names if len(names) <= 4 else [names[0], names[1], "...", names[-1]]
    return f"{_counts(heads)} classes ({', '.join(shown)})"


def _counts(heads: tuple[Head, ...]) -> str:
    """How many heads in a row have so many classes: `12 x 2, 4 x 11`."""
    counts: list[list[int]] = []
    for head in heads:
        if counts and counts[-1][1] == head.classes:
            counts[-1][0] += 1
        else:
            counts.append([1, head.classes])
    return _cut(", ".join(f"{n} x {c}" for n, c in counts))


def _space_in_words(space: spaces.Space[Any]) -> str:
    """A space without what goes without saying, such as `Dict(fire: MultiBinary(3), wheel: Box(-1.0..1.0, 2))`."""
    if isinstance(space, spaces.Dict):
        return f"Dict({', '.join(f'{key}: {_space_in_words(sub)}' for key, sub in space.spaces.items())})"
    if isinstance(space, spaces.Tuple):
        return f"Tuple({', '.join(_space_in_words(sub) for sub in space.spaces)})"
    if isinstance(space, spaces.Discrete):
        return f"Discrete({space.n}{f', start {space.start}' if space.start else ''})"
    if isinstance(space, spaces.MultiDiscrete):
        start = f", start {_in_words(space.start)}" if np.any(space.start) else ""
        return f"MultiDiscrete({_in_words(space.nvec)}, {_shape(space)}{start})"
    if isinstance(space, spaces.Box):
        dtype = "" if space.dtype == np.float32 else f", {space.dtype}"
        return f"Box({_in_words(space.low)}..{_in_words(space.high)}, {_shape(space)}{dtype})"
    return f"{type(space).__name__}({_shape(space)})"


def _shape(space: spaces.Space[Any]) -> str:
    return " x ".join(map(str, space.shape or ()))


def _in_words(values: NDArray[Any]) -> str:
    """Numbers, or the one that all of them are."""
    shown = [str(value) for value in values.ravel()]
    return shown[0] if len(set(shown)) == 1 else f"[{' '.join(shown)}]"


def _cut(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def _join(path: str, part: object) -> str:
    return f"{path}.{part}" if path else str(part)


def _collect(space: spaces.Space[Any], path: str, heads: list[Head], bins: int) -> None:
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            if not isinstance(key, str):
                raise UserError(
                    f"the action space {path or 'action'} has the key {shortly(key)}, {type(key).__name__}; expected "
                    "text, which files keep as it is: name the parts of the Dict by words"
                )
            _collect(sub, _join(path, key), heads, bins)
    elif isinstance(space, spaces.Tuple):
        for i, sub in enumerate(space.spaces):
            _collect(sub, _join(path, i), heads, bins)
    elif isinstance(space, spaces.Discrete):
        heads.append(_choice(path, int(space.n), int(space.start)))
        _check_count(len(heads))
    elif isinstance(space, spaces.MultiDiscrete):
        _check_count(len(heads) + space.nvec.size)
        starts = np.broadcast_to(space.start, space.nvec.shape).ravel()
        heads.extend(
            _choice(_join(path, i), int(n), int(s))
            for i, (n, s) in enumerate(zip(space.nvec.ravel(), starts, strict=True))
        )
    elif isinstance(space, spaces.MultiBinary):
        _check_count(len(heads) + math.prod(space.shape))
        heads.extend(Head(_join(path, i), 2, "button") for i in range(math.prod(space.shape)))
    elif isinstance(space, spaces.Box):
        _check_count(len(heads) + space.low.size)
        heads.extend(_axes(space, path, bins))
    else:
        raise UserError(
            f"action space part '{path or 'action'}' is {space}; "
            "expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
        )


def _check_count(heads: int) -> None:
    if heads > MAX_HEADS:
        raise UserError(f"the action space has {heads} dimensions or more; at most {MAX_HEADS} are supported")


def _choice(path: str, classes: int, offset: int) -> Head:
    if classes > MOST_CLASSES:
        raise UserError(
            f"action dimension '{path or 'action'}' has {classes} choices; at most {MOST_CLASSES} are supported"
        )
    return Head(path, classes, "choice", offset=offset)


def _axes(space: spaces.Box, path: str, bins: int) -> list[Head]:
    heads = []
    for i, (low, high) in enumerate(zip(space.low.ravel().tolist(), space.high.ravel().tolist(), strict=True)):
        name = _join(path, i)
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(
                f"action dimension '{name}' has bounds [{low}, {high}]; "
                f"a bounded Box is needed to cut it into {bins} bins"
            )
        if (low, high) == (-1.0, 1.0) and bins == AXIS_BINS:
            heads.append(Head(name, bins, "axis", STICK_CENTRES, STICK_EDGES[1:-1]))
        else:
            centres = np.linspace(low, high, bins)
            edges = (centres[1:] + centres[:-1]) / 2
            heads.append(Head(name, bins, "axis", tuple(centres.tolist()), tuple(edges.tolist())))
    return heads


def _flatten(space: spaces.Space[Any], action: Any, path: str, out: list[float]) -> None:
    """Appends the numbers of an action, in the order of the heads; raises a UserError that names a part of no sense."""
    name = f"the part '{path}' of the action" if path else "the action"
    if isinstance(space, spaces.Dict):
        if not isinstance(action, dict) or set(action) != set(space.spaces):
            found = sorted(map(str, action)) if isinstance(action, dict) else type(action).__name__
            raise UserError(f"{name} must be a dict with the keys {sorted(space.spaces)}, found {found}")
        for key, sub in space.spaces.items():
            _flatten(sub, action[key], _join(path, key), out)
    elif isinstance(space, spaces.Tuple):
        if not isinstance(action, (tuple, list)) or len(action) != len(space.spaces):
            found = f"{type(action).__name__}{f' of {len(action)}' if isinstance(action, (tuple, list)) else ''}"
            raise UserError(f"{name} must be a tuple of {len(space.spaces)}, found {found}")
        for i, (sub, part) in enumerate(zip(space.spaces, action, strict=True)):
            _flatten(sub, part, _join(path, i), out)
    else:
        values = _numbers(action, name)
        count = math.prod(space.shape or ())
        if len(values) != count:
            raise UserError(f"{name} has {len(values)} values; expected {count}")
        out.extend(values)


def _numbers(value: Any, name: str) -> list[float]:
    """An array, or lists of numbers, as one list; anything else is a UserError."""
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":  # texts that look like numbers are none
            raise TypeError(f"{array.dtype} values")
        found: list[float] = array.astype(np.float64).ravel().tolist()
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} must be numbers, found {shortly(value)} ({error})") from error
    return found


def _to_class(head: Head, value: float) -> int:
    if not math.isfinite(value):
        raise UserError(f"action dimension '{head.name or 'action'}' is {value}; expected a finite number")
    if head.kind == "axis":
        low, high = head.centres[0], head.centres[-1]
        slack = 1e-4 * (high - low)
        if not low - slack <= value <= high + slack:
            raise UserError(
                f"action dimension '{head.name or 'action'}' is {value}; expected a value in [{low}, {high}]"
            )
        return int(np.searchsorted(head.edges, value, side="right"))
    cls = round(value) - head.offset
    if not 0 <= cls < head.classes or value != round(value):
        raise UserError(
            f"action dimension '{head.name or 'action'}' is {value}; "
            f"expected an integer in {head.offset}..{head.offset + head.classes - 1}"
        )
    return cls


def _to_value(head: Head, cls: float) -> float:
    if not 0 <= cls < head.classes or cls != int(cls):
        raise UserError(f"class {cls:g} of head '{head.name or 'action'}' is out of range 0..{head.classes - 1}")
    return head.centres[int(cls)] if head.kind == "axis" else cls + head.offset


def _rest(head: Head) -> int:
    """The class of doing nothing; see `ActionCodec.null`."""
    if head.kind != "axis":
        return 0
    if not head.centres[0] <= 0.0 <= head.centres[-1]:
        return head.classes // 2
    return int(np.searchsorted(head.edges, 0.0, side="right"))


def _build(space: spaces.Space[Any], values: Any) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _build(sub, values) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_build(sub, values) for sub in space.spaces)
    if isinstance(space, spaces.Discrete):
        return np.int64(next(values))
    shape: tuple[int, ...] = space.shape or ()
    numbers = np.array([next(values) for _ in range(math.prod(shape))])
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.integer):
        numbers = np.rint(numbers)  # the nearest, not the one towards 0
    return numbers.astype(space.dtype).reshape(shape)


def _space_to_dict(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"kind": "Dict", "spaces": {key: _space_to_dict(sub) for key, sub in space.spaces.items()}}
    if isinstance(space, spaces.Tuple):
        return {"kind": "Tuple", "spaces": [_space_to_dict(sub) for sub in space.spaces]}
    if isinstance(space, spaces.Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {
            "kind": "MultiDiscrete",
            "nvec": space.nvec.tolist(),
            "start": np.broadcast_to(space.start, space.nvec.shape).tolist(),
        }
    if isinstance(space, spaces.MultiBinary):
        return {"kind": "MultiBinary", "shape": [int(n) for n in space.shape]}
    if isinstance(space, spaces.Box):
        return {"kind": "Box", "low": space.low.tolist(), "high": space.high.tolist(), "dtype": str(space.dtype)}
    raise UserError(f"cannot describe the space {space}")


_PARTS = {
    "Dict": {"spaces"},
    "Tuple": {"spaces"},
    "Discrete": {"n", "start"},
    "MultiDiscrete": {"nvec", "start"},
    "MultiBinary": {"shape"},
    "Box": {"low", "high", "dtype"},
}


def _space_from_dict(data: dict[str, Any], depth: int = 0) -> spaces.Space[Any]:
    if depth > DEEPEST:
        raise UserError(f"the description of the action space is nested too deeply: more than {DEEPEST} spaces")
    kind = data.get("kind") if isinstance(data, dict) else None
    parts = _PARTS.get(kind) if isinstance(kind, str) else None
    if parts is not None and (unknown := sorted(set(data) - parts - {"kind"}, key=str)):
        raise UserError(
            f"the description of a {kind} space holds the unknown key {unknown[0]!r}; known are {sorted(parts)}"
        )
    try:
        if kind == "Dict":
            parts_of = [(key, _space_from_dict(sub, depth + 1)) for key, sub in data["spaces"].items()]
            return spaces.Dict(OrderedDict(parts_of))  # a plain dict would be sorted by its keys
        if kind == "Tuple":
            return spaces.Tuple([_space_from_dict(sub, depth + 1) for sub in data["spaces"]])
        if kind == "Discrete":
            return spaces.Discrete(data["n"], start=data["start"])
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(data["nvec"], start=data["start"])
        if kind == "MultiBinary":
            return spaces.MultiBinary(data["shape"])
        if kind == "Box":
            dtype = np.dtype(data["dtype"])
            if dtype.kind not in "biuf":
                raise TypeError(f"dtype is {dtype}; expected one of numbers")
            return spaces.Box(np.array(data["low"], dtype), np.array(data["high"], dtype), dtype=dtype.type)
    except UserError:
        raise  # of a part inside this one
    except (KeyError, TypeError, ValueError, OverflowError, AssertionError, AttributeError) as error:
        raise UserError(
            f"the description of a {kind} space is not complete: {type(error).__name__}: {error}"
        ) from error
    raise UserError(
        f"unknown kind of space {kind!r}; expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    )
