"""Action codecs over random spaces, and actions, classes and descriptions that do not fit them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from lit_align.errors import UserError
from lit_align.spaces import ActionCodec
from tools.fuzz import _mutate


def one(rng: random.Random) -> str:
    """A codec that must keep its promises, or a description that must be taken or refused."""
    space = random_space(rng)
    try:
        codec = ActionCodec(space, rng.choice((2, 3, 11, 11, 64, 256)))
    except UserError:
        return "refused"
    codec.space.seed(rng.randrange(2**31))
    round_trips(codec)
    refuses_classes(rng, codec)
    takes_or_refuses_action(rng, codec)
    return description(rng, codec)


def round_trips(codec: ActionCodec) -> None:
    """Actions to classes and back, and the codec itself through JSON."""
    action = codec.space.sample()
    classes = codec.encode(action)
    assert classes.shape == (len(codec.heads),), classes.shape
    assert classes.dtype == np.uint8, classes.dtype
    codec.check(classes)
    near(codec, action, codec.decode(classes))
    assert codec.space.contains(codec.decode(classes)), (codec.space, codec.decode(classes))
    assert (codec.encode(codec.decode(classes)) == classes).all(), "an action decoded is of other classes"
    assert codec.space.contains(codec.decode(codec.null)), "doing nothing is no action of the space"
    again = ActionCodec.from_dict(json.loads(json.dumps(codec.to_dict())))
    assert again == codec, "another codec came back from its description"
    assert again.to_dict() == codec.to_dict(), "another description came back"


def near(codec: ActionCodec, action: Any, back: Any) -> None:
    """What comes back is the same, or for an axis less than half a bin away."""
    before, after = (list(flat(codec.space, each)) for each in (action, back))
    for head, (a, step), (b, _) in zip(codec.heads, before, after, strict=True):
        if head.kind == "axis":
            half = max(right - left for left, right in zip(head.centres, head.centres[1:], strict=False)) / 2
            assert abs(a - b) <= half * (1 + 1e-3) + step, (head, a, b)
        else:
            assert a == b, (head, a, b)


def flat(space: spaces.Space[Any], action: Any) -> Iterator[tuple[float, float]]:
    """The numbers of an action in the order of the heads, each with half the distance of the values that there are.

    Written without looking at the codec's own way.
    """
    if isinstance(space, spaces.Dict):
        for name in space.spaces:
            yield from flat(space[name], action[name])
    elif isinstance(space, spaces.Tuple):
        for part, below in zip(space.spaces, action, strict=True):
            yield from flat(part, below)
    else:
        whole = not np.issubdtype(space.dtype, np.floating)
        for number in np.asarray(action).reshape(-1):
            yield float(number), 0.5 if whole else float(np.spacing(abs(number)))


def refuses_classes(rng: random.Random, codec: ActionCodec) -> None:
    """Classes out of range, too few and too many are refused by name."""
    sizes = np.array(codec.sizes)
    good = np.array([rng.randrange(size) for size in codec.sizes])
    assert codec.space.contains(codec.decode(good)), (codec.space, good)
    at = rng.randrange(len(good))
    for wrong in (-1, int(sizes[at]), 255 + int(sizes[at]), -(2**31)):
        bad = good.copy()
        bad[at] = wrong
        must_refuse(codec.decode, bad)
        must_refuse(codec.check, bad)
    must_refuse(codec.decode, good + 0.5)
    must_refuse(codec.decode, good[:-1])
    must_refuse(codec.check, np.append(good, 0))


def must_refuse(call: Any, argument: Any) -> None:
    """Raises unless the call raises a UserError."""
    try:
        call(argument)
    except UserError:
        return
    raise AssertionError(f"{call.__qualname__} takes {argument!r}")


def takes_or_refuses_action(rng: random.Random, codec: ActionCodec) -> None:
    """A malformed action is refused, or what is made of it is in range."""
    plain = jsonable(codec.space.sample())
    for _ in range(3):
        wrong = rng.choice((_mutate.value(rng), _mutate.tree(rng, plain) if isinstance(plain, (dict, list)) else None))
        try:
            codec.check(codec.encode(wrong))
        except UserError:
            continue


def jsonable(action: Any) -> Any:
    """An action as lists, dicts and numbers."""
    if isinstance(action, dict):
        return {name: jsonable(part) for name, part in action.items()}
    if isinstance(action, tuple):
        return [jsonable(part) for part in action]
    return np.asarray(action).tolist()


def description(rng: random.Random, codec: ActionCodec) -> str:
    """A changed description is refused, or gives a codec that keeps its promises."""
    keys = ("kind", "spaces", "n", "start", "nvec", "shape", "low", "high", "dtype", "bins")
    changed = _mutate.tree(rng, codec.to_dict(), keys)
    try:
        other = ActionCodec.from_dict(changed)
    except UserError:
        return "refused"
    round_trips(other)
    return "accepted"


def random_space(rng: random.Random, depth: int = 0) -> spaces.Space[Any]:
    """A space that a codec takes, most of the time."""
    kind = rng.randrange(8 if depth < 3 else 5)
    if kind == 0:
        return spaces.Discrete(rng.choice((1, 2, 3, 18, 255, 256, 257)), start=rng.choice((0, 0, 1, -3, 10**6)))
    if kind == 1:
        return spaces.MultiBinary(rng.choice((1, 2, 12, [2, 3], [1])))
    if kind == 2:
        return _multi_discrete(rng)
    if kind in (3, 4):
        return _box(rng)
    names = rng.sample(("a", "b", "a.b", "0", "名", "left stick", ""), rng.randrange(4))
    if kind == 5:
        return spaces.Tuple([random_space(rng, depth + 1) for _ in names])
    return spaces.Dict({name: random_space(rng, depth + 1) for name in names})


def _multi_discrete(rng: random.Random) -> spaces.MultiDiscrete:
    shape = rng.choice(((1,), (3,), (2, 2), (2, 1, 2)))
    count = int(np.prod(shape))
    sizes = np.array([rng.choice((1, 2, 5, 256)) for _ in range(count)]).reshape(shape)
    starts = np.array([rng.choice((0, 1, -4)) for _ in range(count)]).reshape(shape)
    return spaces.MultiDiscrete(sizes, start=starts)


def _box(rng: random.Random) -> spaces.Box:
    dtype: Any = rng.choice((np.float32, np.float32, np.float64, np.float16, np.int8, np.uint8, np.int32, np.int64))
    shape = rng.choice(((), (1,), (2,), (2, 2), (0,)))
    ranges = [(-1, 1), (0, 1), (-5, 5), (0, 100), (3, 4), (-128, 127)]
    if np.issubdtype(dtype, np.floating):
        ranges += [(-1e-3, 1e-3), (0.1, 0.3), (-np.inf, np.inf), (-3e4, 6e4), (1000.0, 1000.5)]
    if np.issubdtype(dtype, np.unsignedinteger):
        ranges = [(low, high) for low, high in ranges if low >= 0]
    picked = [rng.choice(ranges) for _ in range(int(np.prod(shape)))]
    low, high = (np.array([pair[i] for pair in picked], dtype).reshape(shape) for i in (0, 1))
    return spaces.Box(low, high, dtype=dtype)
