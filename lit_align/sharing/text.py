"""Text of a card: names that nothing in them can break out of, tables that align, commands without this machine."""

from __future__ import annotations

import json
import re
import shlex
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

LONGEST = 120
"""Characters of a name that are shown."""
WIDTH = 100
"""Characters after which a command goes on in the next line."""
_ABSOLUTE = re.compile(
    # The name of a home folder may hold spaces.
    r"""(?<![\w.~-])/+(?:home|Users)/[^\s'",\[\]{}/]+(?:[ ][\w.]+){1,2}/[^\s'",\[\]{}]*|"""
    r"""(?:file:/+|(?<![\w.~:/-])/+|(?<=[^/]:)/(?!/))[^\s'",\[\]{}]*|"""
    r"""\b[A-Za-z]:\\[^\s'",\[\]{}]*|\\\\[^\s'",\[\]{}]+"""
)
_HOMES = {"home", "Users"}


def plain(text: object, longest: int = LONGEST) -> str:
    """A name as one line of printable characters, cut where it is longer."""
    shown = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in str(text))
    shown = " ".join(shown.split())
    return shown if len(shown) <= longest else f"{shown[: longest - 3].rstrip()}..."


def quoted(text: object) -> str:
    """A name as a string of Python."""
    return json.dumps(plain(text), ensure_ascii=False)


def code(text: object) -> str:
    """A name as a Markdown code span; what is in it is no Markdown."""
    shown = plain(text) or "(empty)"
    fence = "`" * (_longest_run(shown) + 1)
    space = " " if shown.startswith("`") or shown.endswith("`") else ""
    return f"{fence}{space}{shown}{space}{fence}"


def cell(text: object) -> str:
    """A name in a table: a code span, or where it holds a bar, which would end the cell, the same in escapes."""
    shown = plain(text)
    if "|" not in shown:
        return code(text)
    escaped = re.sub(r"([\\`*_\[\]<>#&~!:@])", r"\\\1", shown)
    return escaped.replace("|", "&#124;")


def fenced(text: str, language: str = "") -> str:
    """Lines as a Markdown code block."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Collection[int] = ()) -> str:
    """A Markdown table whose columns stand under each other in a terminal too.

    Args:
        header: Of the columns.
        rows: Cells, Markdown already (see `cell`).
        right: Columns of numbers.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(3, *(_width(line[i]) for line in lines)) for i in range(len(header))]

    def padded(line: Sequence[str]) -> str:
        shown = []
        for i, (text, width) in enumerate(zip(line, widths, strict=True)):
            gap = " " * (width - _width(text))
            shown.append(gap + text if i in right else text + gap)
        return f"| {' | '.join(shown)} |"

    rule = "|".join(f" {'-' * (w - 1)}{':' if i in right else '-'} " for i, w in enumerate(widths))
    return "\n".join([padded(lines[0]), f"|{rule}|", *(padded(line) for line in lines[1:])])


def percent(share: float) -> str:
    """A share as `97.5 %`."""
    return f"{100 * share:.1f} %"


def span(low: float, high: float) -> str:
    """An interval of shares as `94.3 - 98.9 %`."""
    return f"{100 * low:.1f} - {100 * high:.1f} %"


def command_line(words: Iterable[object], root: Path | None = None) -> str:
    """A command to be typed, broken at its options; see `without_paths`."""
    lines = [""]
    for word in (shlex.quote(plain(without_paths(str(each), root), 2000)) for each in words):
        if word.startswith("--") and len(lines[-1]) + len(word) > WIDTH:
            lines.append("   ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def without_paths(text: str, root: Path | None = None) -> str:
    """A text without absolute paths: below `root` they begin with its name, elsewhere only their end is left."""
    return _ABSOLUTE.sub(lambda found: _ending(found[0], root), text)


def _ending(path: str, root: Path | None) -> str:
    parts = [part for part in re.sub("^file:", "", path).replace("\\", "/").split("/") if part]
    if root is not None and tuple(parts[: len(root.parts) - 1]) == root.parts[1:]:
        return "/".join([root.name, *parts[len(root.parts) - 1 :]])
    parts = parts[1:] if parts and parts[0].endswith(":") else parts
    home = Path.home().parts[1:]
    if home and tuple(parts[: len(home)]) == home:
        parts = parts[len(home) :]
    elif parts and parts[0] in _HOMES:
        parts = parts[2:]
    return "/".join(["...", *parts[-(2 if parts and parts[-1] in ("agent", "reward_model") else 1) :]])


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _width(text: str) -> int:
    """Columns of a terminal; wide East Asian characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.combining(c) > 0 for c in text)
