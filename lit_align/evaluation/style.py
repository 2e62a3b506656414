"""One palette, one font, one set of names for every picture and for the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lit_align.evaluation.palette import DARK as DARK
from lit_align.evaluation.palette import LIGHT as LIGHT
from lit_align.evaluation.palette import OUTCOME_COLOURS as OUTCOME_COLOURS
from lit_align.evaluation.palette import SPARE_COLOURS as SPARE_COLOURS
from lit_align.evaluation.palette import THEMES as THEMES
from lit_align.evaluation.palette import Theme as Theme

AGENT_TITLES = {
    "pretrain": "Base",
    "finetune": "Fine-tuned",
    "scratch": "Fine-tuned, no pre-training",
    "blank": "Frames blanked",
    **{name: name.upper() for name in ("reinforce", "rloo", "grpo", "ppo", "dpo", "cpl")},
    "rest": "ReST",
    "lora": "LoRA",
}
STAGE_WORDS = {
    "rest": "Preference fine-tuned",
    "align": "Aligned",
    "prefer": "Preferred",
    "reward": "Reward model",
    "direct": "Re-aligned as it stood,",
    "rerest": "Preference fine-tuned again,",
    "realign": "Re-aligned",
}
ORDER = ("pretrain", "finetune", "scratch", "rest", "prefer", "align")


# Transparent ground, so that the island is seen where nobody walked.
HEAT = LinearSegmentedColormap.from_list(
    "visits",
    [
        (0.0, (0.20, 0.22, 0.55, 0.0)),
        (0.12, (0.33, 0.20, 0.62, 0.75)),
        (0.40, (0.78, 0.23, 0.52, 0.95)),
        (0.70, (0.98, 0.55, 0.27, 1.0)),
        (1.0, (1.00, 0.97, 0.78, 1.0)),
    ],
)

FONT: dict[Any, Any] = {"font.family": "DejaVu Sans", "font.size": 10, "axes.titlesize": 11, "svg.fonttype": "none"}


def figure(width: float, height: float, theme: Theme, dpi: int = 160) -> Figure:
    """Return an empty figure of `width` x `height` inches, drawn without a display or pyplot's global state."""
    fig = Figure(figsize=(width, height), dpi=dpi, facecolor=theme.page)
    FigureCanvasAgg(fig)
    return fig


def tidy(ax: Axes, theme: Theme, grid: str | None = "y") -> None:
    """Take the clutter off an axes: no box, hairline grid, muted ticks."""
    ax.set_facecolor(theme.page)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(theme.grid)
    ax.tick_params(colors=theme.muted, length=0, labelsize=9)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, color=theme.grid, linewidth=0.8)  # type: ignore[arg-type]


def save(fig: Figure, path: str | os.PathLike[str]) -> Path:
    """Write the figure as PNG without a date in it, so that the same numbers give the same bytes."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(target, facecolor=fig.get_facecolor(), metadata={"Software": None})
    return target


def fonts() -> Any:
    """Return the context in which every figure is drawn."""
    return matplotlib.rc_context(FONT)


def outcome_colour(name: str, names: Sequence[str] = ()) -> str:
    """Return the colour of an outcome; worlds with other outcomes get the next free colour."""
    if name in OUTCOME_COLOURS:
        return OUTCOME_COLOURS[name]
    place = list(names).index(name) if name in names else 0
    return SPARE_COLOURS[place % len(SPARE_COLOURS)]


def agent_title(name: str) -> str:
    """Return an agent's name as people read it: `align_left` is `Aligned left`."""
    if name in AGENT_TITLES:
        return AGENT_TITLES[name]
    head, _, rest = name.partition("_")
    word = STAGE_WORDS.get(head, head.capitalize())
    return f"{word} {rest.replace('_', ' ')}".strip()


def agent_order(name: str) -> tuple[str, int, str]:
    """Return a sort key: what all targets share first, then target by target in the order of the procedure."""
    head, _, rest = name.partition("_")
    place = ORDER.index(head) if head in ORDER else len(ORDER)
    return (rest if head in ("rest", "prefer", "align") else "", place, name)
