"""Drawing every picture of a report, and collecting its videos."""

from __future__ import annotations

import shutil
from pathlib import Path

from PIL import Image

from lit_align.evaluation import style
from lit_align.evaluation.charts import reward_accuracy, success_bars
from lit_align.evaluation.curves import align_panels, curves, loss_panel
from lit_align.evaluation.footage import Film
from lit_align.evaluation.gather import Gathered
from lit_align.evaluation.heatmap import Routes, heatmaps
from lit_align.evaluation.over_optimisation import Watch, watch_in
from lit_align.evaluation.over_optimisation_chart import draw as draw_watch
from lit_align.evaluation.overview import Story, overview
from lit_align.evaluation.video import read_mp4

FILMS_EACH = 5
PIXELS_PER_INCH = 88  # of the page: four panels fill it, and two are not blown up


def headline_agents(found: Gathered) -> list[str]:
    """Return base, fine-tuned and the aligned agents, as far as they were evaluated."""
    wanted = ["pretrain", "finetune", *(f"align_{target}" for target in found.targets)]
    return [name for name in wanted if name in found.results["agents"]]


def other_agents(found: Gathered) -> list[str]:
    """Return the evaluated agents that are no headline."""
    return [name for name in found.agents if name not in headline_agents(found)]


def draw_all(found: Gathered, out: Path) -> dict[str, int]:
    """Write every picture that the run has the numbers for, light and dark; return name -> width in CSS pixels."""
    drawn: set[str] = set()
    for theme in style.THEMES:
        drawn |= _draw(found, out, theme)
    return {name: _page_width(out / f"{name}.png") for name in drawn}


def _page_width(path: Path) -> int:
    with Image.open(path) as picture:
        dpi = float(picture.info.get("dpi", (160, 160))[0])
        return round(picture.width / dpi * PIXELS_PER_INCH)


def _draw(found: Gathered, out: Path, theme: style.Theme) -> set[str]:
    drawn: set[str] = set()
    agents = found.results["agents"]

    def path(name: str) -> Path:
        drawn.add(name)
        return out / f"{name}{theme.suffix}.png"

    if agents:
        order = headline_agents(found) + other_agents(found)
        success_bars({name: agents[name] for name in order}, path("success"), theme)
    if any(name in found.episodes for name in agents):
        outcomes = {name: entry["outcomes"] for name, entry in agents.items()}
        seen = {name: played for name, played in found.episodes.items() if name in agents and _moves(found, name)}
        story = Story(seen, outcomes, found.results["reward_models"], found.targets or ("left", "right"), found.plan)
        overview(story, path("overview"), theme)
        for picture, names in (("heatmaps", headline_agents(found)), ("heatmaps-others", other_agents(found))):
            routes = [
                Routes(style.agent_title(name), seen[name].positions, outcomes[name]) for name in names if name in seen
            ]
            if routes:
                heatmaps(routes, path(picture), found.plan, theme)
    if found.results["reward_models"]:
        reward_accuracy(found.results["reward_models"], path("reward-models"), theme)
    aligned = {
        target: found.metrics[f"align_{target}"] for target in found.targets if f"align_{target}" in found.metrics
    }
    if aligned:
        curves(align_panels(aligned), path("alignment"), theme)
    for name, watch in watches(found).items():
        title = f"{style.agent_title(name)}: what it was told, and what it did"
        draw_watch(watch, path(f"over-optimisation-{name}"), theme, title)
    losses = [
        loss_panel(f"{style.agent_title(name)}: loss", found.metrics[name])
        for name in ("pretrain", "finetune", "scratch")
        if name in found.metrics
    ]
    if losses:
        curves(losses, path("training"), theme)
    rewards = [name for name in found.metrics if name.startswith("reward")]
    if rewards:
        panels = [loss_panel(name.replace("_", " "), found.metrics[name]) for name in rewards[:4]]
        curves(panels, path("reward-training"), theme)
    return drawn


def watches(found: Gathered) -> dict[str, Watch]:
    """Return stage -> what its alignment was told and did, for every stage that is one."""
    seen = {name: watch_in(found.folder / name, columns) for name, columns in found.metrics.items()}
    return {name: watch for name, watch in sorted(seen.items(), key=lambda item: style.agent_order(item[0])) if watch}


def _moves(found: Gathered, name: str) -> bool:
    """Whether positions are known: worlds that do not tell leave zeros."""
    return any(abs(path).max() > 0 for path in found.episodes[name].positions)


def choose_films(films: list[Film], limit: int = FILMS_EACH) -> list[Film]:
    """Return up to `limit` films, each outcome once before any comes twice."""
    seen: dict[str, int] = {}
    ranked = []
    for place, one in enumerate(films):
        seen[one.outcome] = seen.get(one.outcome, 0) + 1
        ranked.append((seen[one.outcome], place, one))
    return [one for _, _, one in sorted(ranked, key=lambda item: item[:2])[:limit]]


def failures(films: list[Film]) -> list[Film]:
    """Return one film for each reason of episodes that reached nothing."""
    first: dict[str, Film] = {}
    for one in films:
        if one.outcome == "none":
            first.setdefault(one.reason, one)
    return list(first.values())


def pair_films(found: Gathered, stage: str) -> list[tuple[Film, str]]:
    """Return a stage's paired videos as films, each with its caption."""
    pairs = []
    for one in found.paired[stage]:
        told = [
            f"{style.agent_title(side.name)}: {side.outcome} after {side.steps} steps"
            + ("" if side.missed_at is None else f", past the pad at {side.missed_at}")
            for side in (one.left, one.right)
        ]
        steps = max(one.left.steps, one.right.steps)
        pairs.append((Film(one.file, "", "", "", one.seed, steps), "; ".join(told)))
    return pairs


def copy_films(films: list[Film], source: Path, target: Path) -> None:
    """Copy videos into the report, so that it can be moved, with a poster (JPEG) of each."""
    target.mkdir(parents=True, exist_ok=True)
    for one in films:
        shutil.copyfile(source / one.file, target / one.file)
        frames, _ = read_mp4(target / one.file)
        poster = target / f"{Path(one.file).stem}.jpg"
        Image.fromarray(frames[len(frames) // 3]).save(poster, quality=85)
        if one.strip and (source / one.strip).is_file():
            shutil.copyfile(source / one.strip, target / one.strip)
