"""Folders from elsewhere: a `meta.json` and Parquet columns that are what they have to be, or an error in words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lit_align.errors import UserError, did_you_mean, shortly

MAX_BYTES = 64 * 2**20
"""Of a `meta.json`; those of a million episodes in a thousand shards have a tenth of it."""
AGAIN = "record or fetch it again"

Described = TypeVar("Described")


def read_described(path: Path, kind: type[Described], schemas: Sequence[int]) -> Described:
    """A `meta.json` as the dataclass that it was made from.

    Args:
        path: The file.
        kind: The dataclass; `schema` is one of its fields.
        schemas: Versions of the format that can be read.

    Raises:
        UserError: It is not JSON, of another schema, or has an unknown key, a missing one, or one of a wrong type.
    """
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size} bytes; expected {MAX_BYTES} at most")
    try:
        data = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise UserError(f"{path} cannot be read: it is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise UserError(f"{path} cannot be read: it holds a {type(data).__name__}, expected an object")
    schema = data.get("schema", 1)
    if type(schema) is not int or schema not in schemas:  # first: a later version's file has keys not known here
        raise UserError(
            f"{path} has schema {shortly(schema)}; this version reads schema{'s' * (len(schemas) > 1)} "
            f"{' and '.join(map(str, schemas))}: install the version of lit-align that wrote it, or a newer one"
        )
    hints, known = get_type_hints(kind), {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise UserError(f"{path} cannot be read: unknown key {shortly(key)}{did_you_mean(key, known)}")
        if not _fits(data[key], hints[key]):
            name = getattr(hints[key], "__name__", "") if not get_args(hints[key]) else str(hints[key])
            raise UserError(f"{path} cannot be read: {key!r} is {shortly(data[key])}; expected {name}")
    for key, each in known.items():
        if key not in data and each.default is MISSING and each.default_factory is MISSING:
            raise UserError(f"{path} cannot be read: it lacks the key {key!r}")
    return kind(**data)


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) is dict:
        below = get_args(hint)[1]
        return isinstance(value, dict) and (below is Any or all(_fits(each, below) for each in value.values()))
    if isinstance(value, bool):
        return hint is bool
    if hint is int:
        return isinstance(value, int) and 0 <= value < 2**63  # sizes and counts
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) < 1e18 and math.isfinite(value)
    return isinstance(value, hint)


def inside(folder: Path, name: str) -> Path:
    """The shard of a folder that `meta.json` names; raises UserError where it leads out of the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".parquet" or "\\" in name or "\0" in name:
        raise UserError(f"{folder} names the shard {shortly(name)}; expected a .parquet file inside the folder")
    return folder / path


@contextmanager
def readable(shard: Path) -> Iterator[None]:
    """What Parquet raises at a broken file becomes a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, pa.ArrowException, UnicodeDecodeError, MemoryError, OverflowError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"shard {shard} cannot be read ({reason}); it is missing or was cut short: {AGAIN}") from error


INTEGER, FLOATING, BOOLEAN = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean


def text(kind: pa.DataType) -> bool:
    """Whether a column holds texts; Parquet may have replaced them by their numbers in a dictionary."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def lists_of(below: Callable[[pa.DataType], bool]) -> Callable[[pa.DataType], bool]:
    """Whether a column holds lists of such values."""
    return lambda kind: bool(pa.types.is_list(kind) and below(kind.value_type))


def images(kind: pa.DataType) -> bool:
    """Whether a column holds images as `datasets` keeps them."""
    names = {field.name: field.type for field in kind} if pa.types.is_struct(kind) else {}
    return bool("bytes" in names and pa.types.is_binary(names["bytes"]))


def check_columns(schema: pa.Schema, wanted: dict[str, Callable[[pa.DataType], bool]], shard: Path) -> None:
    """Raises a UserError where a column is missing, is there twice, or is of another type."""
    lacking = [name for name in wanted if schema.names.count(name) != 1]
    if lacking:
        raise UserError(
            f"shard {shard} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)} (or has more than one of "
            f"the name); it was written by another program or was changed: {AGAIN}"
        )
    for name, fits in wanted.items():
        if not fits(schema.field(name).type):
            raise UserError(
                f"the column {name} of shard {shard} is of type {schema.field(name).type}; it was written by another "
                f"program or was changed: {AGAIN}"
            )


def rows_of(values: list[Any], dtype: type, width: int | None, name: str) -> NDArray[Any]:
    """Rows of a column as an array `(rows,)`, or `(rows, width)` of lists.

    Raises:
        UserError: A value is missing, of another length or out of range.
    """
    shape = (len(values),) if width is None else (len(values), width)
    try:
        array: NDArray[Any] = np.array(values, dtype).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"the column {name} has a value that is missing, out of range or of another length ({error})"
        ) from error
    return array
