"""The figures of a study, drawn from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from lit_align.evaluation import study_tables as tables
from lit_align.evaluation import style
from lit_align.evaluation.charts import reward_accuracy, success_bars
from lit_align.evaluation.curves import Line, Panel, curves, short
from lit_align.evaluation.heatmap import Routes, heatmaps
from lit_align.evaluation.plan import plan_of
from lit_align.evaluation.study_dots import Row, dots, percent, some
from lit_align.evaluation.study_tables import Cells

BLUE, GREEN, GREY = style.SPARE_COLOURS[0], style.SPARE_COLOURS[3], style.SPARE_COLOURS[7]
SIZE_STAGES = {
    "pretrain": "base",
    "finetune": "fine-tuned",
    "rest_left": "preference fine-tuned",
    "align_left": "aligned",
}
_SHORT = {
    "finetune": "fine-tuned",
    "scratch": "fine-tuned scratch",
    "align_left": "aligned",
    "align_scratch": "aligned scratch",
}


def draw_study(cells: Cells, out: Path, environment: str) -> list[Path]:
    """Draws every figure that there are numbers for, light, as PNG.

    Args:
        cells: By name, as `lit_align.evaluation.study.read_cell` gives them, or read back from JSON.
        out: Folder of the pictures.
        environment: Id of the world, whose plan lies under the heatmaps.

    Returns:
        The files.
    """
    drawn = [
        _outcomes(cells, out / "outcomes.png"),
        _rewards(cells, out / "reward-models.png"),
        *(_curves(cells, target, out / f"curves-{target}.png") for target in tables.TARGETS),
        _heatmaps(cells, out / "heatmaps.png", environment),
        _methods(cells, out / "methods.png"),
        _online(cells, out / "methods-curves.png"),
        _realigned(cells, out / "realigned.png"),
        _parameters(cells, out / "parameters.png"),
        _sizes(cells, out / "sizes.png"),
        _robustness(cells, out / "robustness.png"),
        _recovery(cells, out / "recovery.png"),
    ]
    return [path for path in drawn if path is not None]


def _outcomes(cells: Cells, path: Path) -> Path | None:
    found = tables.outcomes(cells)
    return success_bars(found, path, columns=3) if found else None


def _rewards(cells: Cells, path: Path) -> Path | None:
    """The mean over seeds, with the number of test pairs of one."""
    found = {
        target: {
            start: {
                str(int(float(f"{np.mean([m['comparisons'] for m in models]):.2g}"))): {
                    "accuracy": float(np.mean([model["accuracy"] for model in models])),
                    "pairs": models[0]["pairs"],
                }
                for models in sizes.values()
            }
            for start, sizes in starts.items()
        }
        for target, starts in tables.reward_models(cells).items()
    }
    return reward_accuracy(found, path) if found else None


def _curves(cells: Cells, target: str, path: Path) -> Path | None:
    """A panel for each reward model, a line for each agent that alignment started from."""
    panels = []
    for size in tables.REWARD_MODELS:
        lines = []
        for place, (start, title) in enumerate(tables.STARTS):
            made = _truth(tables.curve(cells, target, size, start), title, style.SPARE_COLOURS[place])
            lines += [made] if made else []
        label = "all comparisons" if size == "all" else f"{int(size):,} comparisons"
        panels.append(Panel(f"Ends {target}; {label}", lines, "steps in the world", percent=True))
    return curves(panels, path) if any(panel.lines for panel in panels) else None


def _online(cells: Cells, path: Path) -> Path | None:
    """The true outcome and the KL of the online methods as they learn."""
    cell = next(iter(tables.of_kind(cells, "methods_online")), None)
    runs = {} if cell is None else cell["alignments"]
    truth, kl = [], []
    for place, (title, kind, agent, _) in enumerate(tables.METHODS):
        if kind == "methods_online" and agent in runs:
            colour = style.SPARE_COLOURS[place]
            made = _truth(runs[agent], title, colour)
            truth += [made] if made else []
            if runs[agent]["kl"]:
                kl.append(Line(title, *_points(runs[agent]["env_steps"], runs[agent]["kl"]["values"]), colour))
    panels = [
        Panel("Ends left", truth, "steps in the world", percent=True),
        Panel("KL to the fine-tuned agent, nats a step", kl, "steps in the world"),
    ]
    return curves(panels, path) if truth else None


def _truth(numbers: Mapping[str, Any] | None, label: str, colour: str) -> Line | None:
    if not numbers or numbers["target"] not in numbers["outcomes"]:
        return None
    return Line(label, *_points(numbers["env_steps"], numbers["outcomes"][numbers["target"]]), colour)


def _points(x: Sequence[float], y: Sequence[float | None]) -> tuple[Any, Any]:
    """Two curves without the places where the second has no number."""
    values = np.array([np.nan if value is None else value for value in y])
    known = ~np.isnan(values)
    return np.array(x, float)[known], values[known]


def _heatmaps(cells: Cells, path: Path, environment: str) -> Path | None:
    """The routes of the first seed that has them."""
    routes = []
    for kind, agent in (row for row in tables.OUTCOMES if not row[1].startswith("rest")):
        cell = next((cell for cell in tables.of_kind(cells, kind) if agent in cell["routes"]), None)
        if cell is not None:
            paths = [np.array(path, np.float32).reshape(-1, 2) for path in cell["routes"][agent]]
            routes.append(Routes(style.agent_title(agent), paths, cell["agents"][agent]["outcomes"]))
    if not routes:
        return None
    return heatmaps(routes, path, plan_of(environment), theme=style.LIGHT, columns=3)


def _methods(cells: Cells, path: Path) -> Path | None:
    rows: list[Row] = [
        ("fine-tuned, not aligned", tables.share(tables.entries(cells, "base", "finetune")[:1], "left"), GREY)
    ]
    for title, kind, agent, _ in tables.METHODS:
        steps = tables.env_steps(cells, agent)
        label = title if steps is None else f"{title}\n{short(round(steps.total, -3))} steps"
        rows.append(
            (label, tables.share(tables.entries(cells, kind, agent), "left"), BLUE if "online" in kind else GREEN)
        )
    return dots({"Ends left (blue: plays as it learns)": rows}, path) if some(rows[1:]) else None


def _realigned(cells: Cells, path: Path) -> Path | None:
    rows: list[Row] = [
        (title, tables.share(tables.entries(cells, kind, agent), target), style.OUTCOME_COLOURS[target])
        for title, kind, agent, target in tables.REALIGNED
    ]
    return dots({"Ends at the pad that it was aligned to last": rows}, path) if some(rows[1:]) else None


def _parameters(cells: Cells, path: Path) -> Path | None:
    rows: list[Row] = [
        (title, tables.share(tables.entries(cells, kind, agent), "left"), BLUE)
        for title, kind, agent in tables.PARAMETERS
    ]
    return dots({"Ends left, by what alignment trains": rows}, path) if some(rows[1:]) else None


def _robustness(cells: Cells, path: Path) -> Path | None:
    groups: dict[str, list[Row]] = {}
    for title, players, wanted in (
        ("Fine-tuned: reaches a pad", ("finetune", "scratch"), None),
        ("Aligned left: ends left", ("align_left", "align_scratch"), "left"),
    ):
        groups[title] = [
            (f"{world}, {_training(agent)}", tables.share(tables.in_world(cells, agent, world), wanted), _colour(agent))
            for world in tables.WORLDS
            for agent in players
        ]
    return dots(groups, path) if any(map(some, groups.values())) else None


def _recovery(cells: Cells, path: Path) -> Path | None:
    """What was counted alone: agents that never miss have nothing to come back from."""
    base: list[Row] = [
        (style.agent_title(agent), tables.recovered(tables.entries(cells, "base", agent), None), _colour(agent))
        for agent in ("pretrain", "finetune", "scratch")
    ]
    other: list[Row] = [
        (
            f"{world}, {_SHORT[agent]}",
            tables.recovered(tables.in_world(cells, agent, world), target),
            _colour(agent),
        )
        for world in tables.WORLDS
        for agent, target in tables.PLAYERS
    ]
    groups = {"Comes back after a miss": base, "The same, in other worlds": other}
    known = {title: [row for row in rows if row[1] is not None] for title, rows in groups.items()}
    known = {title: rows for title, rows in known.items() if rows}
    return dots(known, path) if known else None


def _sizes(cells: Cells, path: Path) -> Path | None:
    """How many episodes end left after each stage, by the network's size, as in InstructGPT's figure."""
    stages = {
        "pretrain": "base",
        "finetune": "fine-tuned",
        "rest_left": "preference fine-tuned",
        "align_left": "aligned",
    }
    lines = {}
    for stage, title in stages.items():
        found = [tables.entries(cells, f"sizes_{size}", stage) for size in tables.SIZES]
        points = [(entry[0]["parameters"], tables.share(entry, "left")) for entry in found if entry]
        lines[title] = [(size, made.interval) for size, made in points if size and made]
    if not any(lines.values()):
        return None
    with style.fonts():
        fig = style.figure(6.4, 4.2, style.LIGHT)
        ax = fig.add_axes((0.1, 0.13, 0.62, 0.75))
        style.tidy(ax, style.LIGHT)
        for place, (title, points) in enumerate(lines.items()):
            if points:
                x, y = [size for size, _ in points], [100 * rate.value for _, rate in points]
                bars = [[100 * (r.value - r.low) for _, r in points], [100 * (r.high - r.value) for _, r in points]]
                colour = style.SPARE_COLOURS[place]
                ax.errorbar(x, y, yerr=bars, color=colour, marker="o", lw=2, elinewidth=1.1, capsize=2.5)
                ax.annotate(title, (x[-1], y[-1]), xytext=(9, 0), textcoords="offset points", color=colour, va="center",
                            fontsize=9, weight="bold", annotation_clip=False)  # fmt: skip
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ticks = sorted({size for points in lines.values() for size, _ in points})
        ax.set_xticks(ticks, [short(float(f"{tick:.2g}")) for tick in ticks])
        ax.set_xlabel("parameters", color=style.LIGHT.muted, fontsize=9)
        percent(ax.yaxis)
        ax.set_ylim(0, 103)
        ax.set_title("Ends left, after each stage", loc="left", color=style.LIGHT.text, weight="bold")
        return style.save(fig, path)


def _training(agent: str) -> str:
    return "from scratch" if "scratch" in agent else "pre-trained"


def _colour(agent: str) -> str:
    return style.SPARE_COLOURS[2] if "scratch" in agent else BLUE
