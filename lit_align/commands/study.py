"""`lit-align study`: the numbers of all cells of a study in one file, and the figures drawn from it."""

from __future__ import annotations

from pathlib import Path

from lit_align.errors import UserError


def run(run: str, out: str | None = None) -> None:
    """Gathers the cells of a study, finished or not, into results.json, and draws the figures from that file alone.

    Args:
        run: The study's folder, such as outputs/study: each cell is a folder in it that `lit-align pipeline` left.
        out: Folder of the results and figures; by default `report` inside the study's.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"found no folder {run}; expected a study's, such as outputs/study")
    from lit_align.evaluation.study import gather_study, read_study, write_study
    from lit_align.evaluation.study_figures import draw_study

    target = Path(out) if out else folder / "report"
    write_study(gather_study(folder), target / "results.json")
    study = read_study(target / "results.json")
    drawn = draw_study(study["cells"], target, study["environment"])
    unfinished = [name for name, cell in study["cells"].items() if cell["lacks"]]
    line = f"{len(study['cells'])} cells, {len(drawn)} figures in {target}"
    line += f"; not finished: {', '.join(unfinished)}" if unfinished else ""
    print(line)  # noqa: T201  what the command found
    (target / "headline.txt").write_text(line + "\n")
