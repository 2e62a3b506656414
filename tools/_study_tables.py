"""The study's tables as Markdown, each a function of the cells alone; what was not run says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lit_align.evaluation import paper
from lit_align.evaluation import study_tables as tables
from lit_align.evaluation.page import count, duration
from lit_align.evaluation.study_tables import Cells, Share
from lit_align.evaluation.style import agent_title
from tools.results_table import ABSENT, outcome_table

WORLD_WORDS = {
    "yard": "as in training",
    "away": "facing away from the pads",
    "elsewhere": "started at other places",
    "dusk": "under another sky",
}
PLAYER_WORDS = {
    "finetune": "fine-tuned",
    "scratch": "fine-tuned, no pre-training",
    "align_left": "aligned left",
    "align_scratch": "aligned left, no pre-training",
}


def outcomes(cells: Cells) -> str:
    """How the episodes of every agent of the headline end, beside the paper's."""
    return outcome_table(by_seed(cells)).rstrip()


def by_seed(cells: Cells) -> list[dict[str, Any]]:
    """For each seed the agents of the headline cells as one results file."""
    files: dict[int, dict[str, Any]] = {}
    for kind, agent in tables.OUTCOMES:
        for cell in tables.of_kind(cells, kind):
            if agent in cell["agents"]:
                file = files.setdefault(cell["seed"] or 0, {"agents": {}, "reward_models": {}})
                file["agents"][agent] = cell["agents"][agent]
    return [files[seed] for seed in sorted(files)]


def rewards(cells: Cells) -> str:
    """Held-out accuracy and calibration by comparisons and start, beside the paper's."""
    found = tables.reward_models(cells)
    rows = []
    for size in ("50", "100", "1000", "10000", "100000", "all"):
        cells_of_row = [f"{int(size):,}" if size != "all" else _all_of(found)]
        for start in ("agent", "random"):
            models = [model for starts in found.values() for model in starts.get(start, {}).get(size, [])]
            cells_of_row.append(_spread([100 * model["accuracy"] for model in models]))
            errors = [100 * model["ece"] for model in models if "ece" in model]
            cells_of_row.append(f"{sum(errors) / len(errors):.1f}" if errors else "-")
        for start in ("agent", "random"):
            theirs = paper.REWARD_ACCURACY[start].get(500_000 if size == "all" else int(size))
            cells_of_row.append("-" if theirs is None else f"{theirs[0]:.1f} ({theirs[1]:.1f}-{theirs[2]:.1f})")
        rows.append(cells_of_row)
    head = ["comparisons", "from the agent", "ECE", "from random weights", "ECE", "paper: agent", "paper: random"]
    return markdown(head, rows)


def _all_of(found: Mapping[str, Any]) -> str:
    counts = [m["comparisons"] for starts in found.values() for sizes in starts.values() for m in sizes.get("all", [])]
    return f"all ({min(counts):,}-{max(counts):,})" if counts else "all"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    many = f"{min(values):.1f}-{max(values):.1f}, {len(values)} models"
    return f"**{sum(values) / len(values):.1f}** ({many})" if len(values) > 1 else f"**{values[0]:.1f}** (1 model)"


def realigned(cells: Cells) -> str:
    """Left, then right, then left again."""
    rows = []
    for title, kind, agent, target in tables.REALIGNED:
        found = tables.entries(cells, kind, agent)
        shares = [_share(tables.share(found, outcome)) for outcome in ("left", "middle", "right", "none")]
        rows.append([title, target, *shares])
    return markdown(["agent", "wanted", "left", "middle", "right", "none"], rows)


def longer(cells: Cells) -> str:
    """The same alignment with more iterations; KL and env steps are the means over seeds."""
    rows = []
    for kind, agent in tables.LONGER:
        found = tables.entries(cells, kind, agent)
        runs = tables.entries(cells, kind, agent, "alignments")
        shares = [_share(tables.share(found, outcome)) for outcome in ("right", "middle", "left", "none")]
        iterations = {len(run["env_steps"]) for run in runs}
        kl = [run["last"]["kl"] for run in runs]
        steps = [run["last"]["env_steps"] for run in runs]
        means = [f"{sum(steps) / len(steps):,.0f}", f"{sum(kl) / len(kl):.3f}"] if runs else [ABSENT] * 2
        rows.append([", ".join(map(str, sorted(iterations))) or ABSENT, *shares, *means])
    head = ["iterations", "right", "middle", "left", "none", "env steps", "KL at the end, nats a step"]
    return markdown(head, rows)


def methods(cells: Cells) -> str:
    """Every method at the same number of episodes, with the env steps that these came to."""
    rows = []
    for title, kind, agent, stages in tables.METHODS:
        found = tables.entries(cells, kind, agent)
        steps = tables.env_steps(cells, agent)
        cell = next(iter(tables.of_kind(cells, kind)), None)
        names = _stages_of(agent, stages)
        seconds = None if cell is None else sum(cell["stages"].get(name, 0.0) for name in names)
        rows.append(
            [
                title,
                "no" if agent in tables.WITHOUT_REWARD_MODEL else "yes",
                "in rounds" if agent == "rest" else "no" if stages else "yes",
                _share(tables.share(found, "left")),
                _share(tables.share(found, "none")),
                *([ABSENT] * 3 if steps is None else [f"{n:,}" for n in (steps.recorded, steps.played, steps.total)]),
                duration(seconds) if seconds else ABSENT,
            ]
        )
    head = ["method", "reward model", "plays as it learns", "ends left", "none"]
    head += ["env steps compared", "env steps played", "env steps in all", "time"]
    return markdown(head, rows)


def _stages_of(agent: str, stages: Iterable[str]) -> list[str]:
    """The stages of a method's cell that it takes."""
    if agent == "rest":
        return [f"{step}_{number}" for number in (1, 2, 3) for step in ("grow", "score", "improve")]
    return [*stages, *(["compare"] if stages else []), agent]


def parameters(cells: Cells) -> str:
    """What of the network alignment trains."""
    rows = []
    for title, kind, agent in tables.PARAMETERS:
        found = tables.entries(cells, kind, agent)
        cell = next(iter(tables.of_kind(cells, kind)), None)
        run = {} if cell is None else cell["alignments"].get(agent, {})
        kl = (run.get("kl") or {}).get("values") or [None]
        steps = tables.steps_to(run, 0.9) if run else None
        rows.append(
            [
                title,
                _share(tables.share(found, "left")),
                _share(tables.share(found, "none")),
                ABSENT if not run else "never" if steps is None else f"{steps:,.0f}",
                ABSENT if kl[-1] is None else f"{kl[-1]:.3f}",
            ]
        )
    return markdown(["what trains", "ends left", "none", "env steps to 90 %", "KL at the end, nats a step"], rows)


def curves(cells: Cells) -> str:
    """Where each alignment curve ends, and how many steps it takes to 90 %."""
    rows = []
    for target in tables.TARGETS:
        for start, title in tables.STARTS:
            row = [target, title]
            for size in tables.REWARD_MODELS:
                run = tables.curve(cells, target, size, start)
                row.append(ABSENT if run is None or run["last"] is None else _end(run))
            rows.append(row)
    head = ["target", "aligned from", *(f"{size} comparisons" for size in ("50", "1,000", "all"))]
    return markdown(head, rows)


def _end(run: Mapping[str, Any]) -> str:
    steps = tables.steps_to(run, 0.9)
    when = "never at 90 %" if steps is None else f"90 % at {count(steps)} steps"
    return f"**{100 * run['last']['true']:.1f}**, {when}"


def sizes(cells: Cells) -> str:
    """The outcome after each stage for three sizes of the network."""
    stages = ("pretrain", "finetune", "rest_left", "align_left")
    rows = []
    for size in tables.SIZES:
        found = {stage: tables.entries(cells, f"sizes_{size}", stage) for stage in stages}
        known = next((entry[0]["parameters"] for entry in found.values() if entry), None)
        shares = [_share(tables.share(found[stage], "left")) for stage in stages]
        none = [_share(tables.share(found[stage], "none")) for stage in stages[:2]]
        rows.append([ABSENT if known is None else count(known), *none, *shares])
    head = ["parameters", "base: none", "fine-tuned: none"]
    return markdown([*head, *(f"{title}: left" for title in ("base", "fine-tuned", "ReST", "aligned"))], rows)


def robustness(cells: Cells) -> str:
    """Agents in worlds that they never trained in."""
    rows = []
    for agent, wanted in tables.PLAYERS:
        shares = [_share(tables.share(tables.in_world(cells, agent, world), wanted)) for world in tables.WORLDS]
        rows.append([PLAYER_WORDS[agent], "any" if wanted is None else wanted, *shares])
    return markdown(["agent", "wanted", *(WORLD_WORDS[world] for world in tables.WORLDS)], rows)


def recovery(cells: Cells) -> str:
    """How many episodes that went past the wanted pad came back to it."""
    rows = []
    for agent in ("pretrain", "finetune", "scratch"):
        found = tables.entries(cells, "base", agent)
        rows.append([agent_title(agent), "any", WORLD_WORDS["yard"], *_back(tables.recovered(found, None))])
    for world in tables.WORLDS:
        for agent, target in tables.PLAYERS:
            if world == "yard" and target is None:
                continue  # these played more episodes above
            found = tables.in_world(cells, agent, world)
            back = _back(tables.recovered(found, target))
            rows.append([PLAYER_WORDS[agent], target or "any", WORLD_WORDS[world], *back])
    return markdown(["agent", "wanted", "world", "went past it", "came back", "percent"], rows)


def _back(found: Share | None) -> list[str]:
    if found is None:
        return [ABSENT, "-", "-"]
    return [str(found.total), str(found.count), _share(found) if found.total else "-"]


def cells_table(cells: Cells) -> str:
    """What ran, and how long it took."""
    rows = []
    for name, cell in cells.items():
        run = cell.get("run") or {}
        machine = run.get("hardware") or {}
        where = f"{machine.get('cores', '?')} cores of {machine.get('cpu', '?')}" if machine else "-"
        gpus = ", ".join(machine.get("gpus", []))
        longest = max(cell["stages"], key=lambda stage: cell["stages"][stage], default="-")
        rows.append(
            [
                f"`{name}`",
                duration(sum(cell["stages"].values())),
                f"`{longest}`, {duration(cell['stages'].get(longest))}",
                ", ".join(part for part in (where, gpus) if part),
                (run.get("commit") or "-")[:10] + "-dirty" * ("dirty" in (run.get("commit") or "")),
                run.get("date") or "-",
            ]
        )
    if not rows:
        return f"{ABSENT[0].upper()}{ABSENT[1:]}."
    return markdown(["cell", "its stages, added up", "the longest", "machine", "commit", "date"], rows)


def figures(cells: Cells) -> str:
    """The pictures, once there are numbers to draw them from."""
    from tools.results_table import ROOT

    titles = {
        "outcomes": "How episodes end, beside the paper's agents",
        "heatmaps": "Where agents go",
        "reward-models": "Accuracy of reward models by the number of comparisons, the paper's behind",
        "curves-left": "Alignment to the left from four agents, by three reward models",
        "curves-right": "Alignment to the right from four agents, by three reward models",
        "methods": "Methods at the same number of episodes",
        "methods-curves": "Online methods as they learn",
        "realigned": "Left, then right, then left again",
        "parameters": "What of the network alignment trains",
        "sizes": "Three sizes of the network after each stage",
        "robustness": "Worlds that no agent trained in",
        "recovery": "Coming back after a miss",
    }
    drawn = [name for name in titles if cells and (ROOT / "docs" / "images" / "study" / f"{name}.png").is_file()]
    if not drawn:
        return f"{ABSENT[0].upper()}{ABSENT[1:]}."
    return "\n\n".join(f"![{titles[name]}](images/study/{name}.png)" for name in drawn)


def _share(found: Share | None) -> str:
    """`**98.7** (97.8-99.2), 98.1-99.3`: the value, its interval, and the lowest and highest seed."""
    if found is None or not found.total:
        return ABSENT
    rate = found.interval
    text = f"**{100 * rate.value:.1f}** ({100 * rate.low:.1f}-{100 * rate.high:.1f})"
    if len(found.seeds) > 1:
        text += f", {100 * min(found.seeds):.1f}-{100 * max(found.seeds):.1f}"
    return text


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


TABLES: dict[str, Callable[[Cells], str]] = {
    "outcomes": outcomes,
    "rewards": rewards,
    "longer": longer,
    "realigned": realigned,
    "methods": methods,
    "parameters": parameters,
    "curves": curves,
    "sizes": sizes,
    "robustness": robustness,
    "recovery": recovery,
    "cells": cells_table,
    "figures": figures,
}
"""Name, as pages ask for it -> the table."""
