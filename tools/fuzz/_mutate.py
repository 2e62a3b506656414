"""Values, texts and bytes that nobody would write on purpose."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 8, 32, 64, 255, 256, 257, -1, -2, 10**6, 2**31, 2**32 + 1, 2**63, 10**9, 10**30, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), float("-inf"), 1e22)
TEXTS = (
    "", " ", "none", "None", "null", "~", "true", "1", "1e3", "-", "--", "=", ".", "..", "a.b.c", "../../x", "a/b",
    "x" * 5000, "\x00", "\x00\x01\x02", "\u202e", "\ufeff", "\u2028", "ｗｉｄｔｈ", "名前", "😀" * 3, "e\u0301" * 40,
    "%s%n{0}{}", "{", "}", "[", "]", "[[", "{{", "${", "${a}", "${out}", "${a.b.c}", "${${a}}", "${nothing:1}",
    "${oc.env:NO_SUCH}", "&a", "*a", "!!int", "\t", "\r\n", "\n", "'", '"', "\\", "#", "|", ">", "? ", "@", "`",
    "0x10", "0o17", "1_000", "12:30:45", "2020-01-01", ".inf", ".nan", "yes", "off", "int", "class_path", "\ud800",
)  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    """Any value that JSON can hold, NaN and infinities among them."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind in (1, 2):
        return rng.choice(NUMBERS) * rng.choice((1, 1, 1, -1))
    if kind == 3:
        return rng.choice(FLOATS)
    if kind in (4, 5):
        return rng.choice(TEXTS)
    if kind == 6:
        return [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 7:
        return {key(rng): value(rng, depth + 1) for _ in range(rng.randrange(4))}
    return nested(rng, rng.choice((2, 10, 60, 300)))


def key(rng: random.Random) -> str:
    """A key of an object."""
    return rng.choice(TEXTS)


def nested(rng: random.Random, depth: int) -> Any:
    """A value inside lists or objects, that many deep."""
    inner: Any = rng.choice((None, 1, "x"))
    for _ in range(depth):
        inner = [inner] if rng.random() < 0.5 else {"a": inner}
    return inner


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree, with every key or index in it."""
    if isinstance(tree, dict):
        for name, below in tree.items():
            yield tree, name
            yield from places(below)
    elif isinstance(tree, list):
        for index, below in enumerate(tree):
            yield tree, index
            yield from places(below)


def tree(rng: random.Random, given: Any, keys: tuple[str, ...] = ()) -> Any:
    """A copy of a tree with one to four places changed.

    Args:
        rng: Decides.
        given: Dicts, lists and plain values.
        keys: Keys that may come up anywhere.
    """
    changed = copy.deepcopy(given)
    for _ in range(rng.choice((1, 1, 2, 4))):
        known = list(places(changed))
        if not known:
            return value(rng)
        where, name = rng.choice(known)
        _change(rng, where, name, known, keys)
    return changed


def _change(rng: random.Random, where: Any, name: Any, known: list[tuple[Any, Any]], keys: tuple[str, ...]) -> None:
    how = rng.randrange(7)
    if how in (0, 1):
        where[name] = value(rng)
    elif how == 2:
        del where[name]
    elif how == 3 and isinstance(where, dict):
        where[rng.choice(keys) if keys and rng.random() < 0.5 else key(rng)] = value(rng)
    elif how == 4 and isinstance(where, dict):
        where[key(rng)] = where.pop(name)
    elif how == 5:
        other, at = rng.choice(known)
        where[name] = copy.deepcopy(other[at])
    else:
        where[name] = _near(rng, where[name])


def _near(rng: random.Random, old: Any) -> Any:
    """Something that looks like the old value."""
    if isinstance(old, bool) or old is None:
        return rng.choice((0, 1, "true", "", [old]))
    if isinstance(old, (int, float)):
        return rng.choice((-old, old + 1, old * 2, str(old)[:50], [old], [old] * 3, f"{old!r:.50}."))
    if isinstance(old, str):
        at = rng.randrange(len(old) + 1)
        return rng.choice((old[:at], old[:at] + rng.choice(TEXTS) + old[at:], old.upper(), [old], {old: old}))
    return rng.choice((None, [], {}, [old, old], "x"))


def text(rng: random.Random, given: str, pieces: tuple[str, ...] = TEXTS) -> str:
    """A text with one to four changes: something put in, left out, doubled or moved."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, to = sorted((rng.randrange(len(given) + 1), rng.randrange(len(given) + 1)))
        to = min(to, at + rng.choice((1, 5, 50, 500)))
        how = rng.randrange(5)
        if how == 0:
            given = given[:at] + rng.choice(pieces) + given[at:]
        elif how == 1:
            given = given[:at] + given[to:]
        elif how == 2:
            given = given[:at] + given[at:to] * 2 + given[to:]
        elif how == 3:
            given = given[:at] + rng.choice(pieces) + given[to:]
        else:
            lines = given.splitlines(keepends=True)
            rng.shuffle(lines)
            given = "".join(lines) if rng.random() < 0.2 else given[:to]
    return given


def data(rng: random.Random, given: bytes) -> bytes:
    """Bytes with one to sixteen of them changed, or cut, or with others put in."""
    how, changed = rng.randrange(5), bytearray(given)
    if not changed:
        return rng.randbytes(rng.randrange(64))
    at = rng.choice((rng.randrange(len(changed)), max(0, len(changed) - 1 - rng.randrange(64))))
    if how == 0:
        del changed[at:]
    elif how == 1:
        del changed[at : at + rng.choice((1, 4, 64, 1000))]
    elif how == 2:
        changed[at:at] = rng.randbytes(rng.choice((1, 4, 64)))
    else:
        for _ in range(rng.choice((1, 2, 16))):
            at = min(len(changed) - 1, at + rng.randrange(8))
            changed[at] = rng.choice((0, 255, 127, 128, changed[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    return bytes(changed)


def encoded(rng: random.Random, given: str) -> bytes:
    """A text as bytes; not always UTF-8."""
    found = given.encode("utf-8", "surrogatepass")
    how = rng.randrange(30)
    if how == 0:
        return given.encode("utf-16", "surrogatepass")
    if how == 1:
        return found.decode("utf-8", "replace").encode("latin-1", "replace")
    if how == 2:
        return b"\xef\xbb\xbf" + found
    return data(rng, found) if how < 6 else found
