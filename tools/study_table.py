"""Numbers of the study in the documentation: every table between `<!-- study: NAME -->` and `<!-- /study -->`.

python -m tools.study_table              fills the pages from docs/results/study/*.json
python -m tools.study_table --check      says whether they are up to date, changes nothing
python -m tools.study_table keep RUN     writes docs/results/study/CELL.json for each finished cell of a study
python -m tools.study_table figures      draws docs/images/study/*.png from docs/results/study/*.json
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_align.errors import UserError
from lit_align.evaluation.study import STATE, as_text, read_cell
from lit_align.evaluation.study_tables import Cells
from lit_align.files import write_whole
from tools._study_tables import TABLES
from tools.results_table import ROOT, check_worlds, commit, hardware, run_tool, tool_parser

RESULTS, IMAGES = Path("docs") / "results" / "study", Path("docs") / "images" / "study"
PLACE = re.compile(r"(?P<start><!-- study: (?P<name>[\w-]+) -->\n).*?(?P<end><!-- /study -->)", re.DOTALL)


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the tool and returns its exit code.

    Args:
        argv: the arguments; those of the process if not given.
        root: the repository.
    """
    options = parser().parse_args(argv)
    writers = {"keep": lambda: keep(Path(options.run), options.command, root), "figures": lambda: figures(root)}
    return run_tool(writers, options, fill, root)


def parser() -> argparse.ArgumentParser:
    """The tool's command line."""
    made, what = tool_parser("study_table", "Fills the study's tables.")
    one = what.add_parser("keep", help="make docs/results/study/CELL.json for each finished cell")
    one.add_argument("run", help="the study's folder, such as outputs/study")
    one.add_argument("--command", help="what was typed, where it was not the study's file")
    what.add_parser("figures", help="draw docs/images/study/*.png")
    return made


def keep(run: Path, command: str | None, root: Path) -> list[Path]:
    """Writes a file for each cell that is finished: its numbers and how they were made. Call it where it was run.

    Args:
        run: the study's folder.
        command: what was typed.
        root: the repository.
    """
    folders = sorted(path.parent for path in run.glob(f"*/{STATE}"))
    finished = [folder for folder in folders if (folder / "report" / "results.json").is_file()]
    if not finished:
        raise UserError(f"found no finished cell in {run}; expected what `lit-align pipeline` left, each with a report")
    written = []
    for folder in finished:
        cell = read_cell(folder)
        if cell["lacks"]:
            continue
        check_worlds(cell["agents"], str(folder))
        made = datetime.datetime.fromtimestamp((folder / "report" / "results.json").stat().st_mtime, datetime.UTC)
        cell["run"] = {
            "command": command or f"lit-align pipeline --config configs/jumppads/study.yaml --only {folder.name}",
            "commit": commit(root),
            "hardware": hardware(folder),
            "date": made.date().isoformat(),
        }
        target = root / RESULTS / f"{folder.name}.json"
        write_whole(target, as_text(cell))
        written.append(target)
    return written


def kept(root: Path) -> dict[str, Any]:
    """The cells that were kept, by name."""
    import json

    return {path.stem: json.loads(path.read_text()) for path in sorted((root / RESULTS).glob("*.json"))}


def figures(root: Path) -> list[Path]:
    """Draws the figures from the kept numbers."""
    from lit_align.evaluation.study_figures import draw_study

    cells = kept(root)
    if not cells:
        raise UserError(f"found no {RESULTS}/*.json; make them with `python -m tools.study_table keep RUN`")
    environment = next((cell["environment"] for cell in cells.values() if cell["agents"]), "")
    return draw_study(cells, root / IMAGES, environment)


def fill(root: Path, check: bool) -> int:
    """Writes the pages with the numbers of today; with `check` only says which are out of date."""
    cells = kept(root)
    stale = []
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        text = page.read_text()
        wanted = with_tables(text, cells, page)
        if wanted != text:
            stale.append(page)
            if not check:
                page.write_text(wanted)
    for page in stale if check else []:
        print(f"{page.relative_to(root)} is out of date: python -m tools.study_table")
    return int(check and bool(stale))


def with_tables(text: str, cells: Cells, page: Path) -> str:
    """A page with all its tables made anew."""

    def table(found: re.Match[str]) -> str:
        if found["name"] not in TABLES:
            raise UserError(f"{page} asks for the table {found['name']}; there are {', '.join(TABLES)}")
        return f"{found['start']}\n{TABLES[found['name']](cells)}\n\n{found['end']}"

    if text.count("<!-- study: ") != len(PLACE.findall(text)):
        raise UserError(f"{page} has a `<!-- study: NAME -->` without its `<!-- /study -->`")
    return PLACE.sub(table, text)


if __name__ == "__main__":
    sys.exit(main())
