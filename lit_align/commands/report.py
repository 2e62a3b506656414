"""`lit-align report`: the page that tells what a run did."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lit_align.errors import UserError


def run(run: str, out: str | None = None, wandb: Literal["offline", "online"] | None = None) -> None:
    """Writes a page with charts, heatmaps and videos from a pipeline's folder.

    Args:
        run: The pipeline's folder, such as outputs/quickstart; parts of it may be missing.
        out: Folder of the report; by default `report` inside the run.
        wandb: Log the report's tables, pictures and videos to Weights & Biases: `online`, or `offline` for `wandb
            sync`.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"found no folder {run}; expected what `lit-align pipeline` left, such as outputs/quickstart")
    from lit_align.evaluation.report import build_report

    page = build_report(folder, Path(out) if out else folder / "report")
    if wandb is not None:
        from lit_align.commands.wandb_tables import log_folder

        log_folder(page.parent, wandb, f"{folder.absolute().name}-report")
    (page.parent / "headline.txt").write_text(f"{page}\n")
    print(page)  # noqa: T201  where the report is
