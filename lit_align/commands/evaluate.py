"""`lit-align evaluate`: play many episodes, count how they end, show it with intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lit_align.errors import UserError


def run(
    agents: list[str],
    env: str = "LitAlign/Jumppads-v0",
    episodes: int = 200,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    compile: bool = False,
    worlds: int = 16,
    json: str | None = None,
    out: str | None = None,
    names: list[str] | None = None,
    videos: int = 3,
    blank: bool = False,
    env_args: dict[str, Any] | None = None,
    threads: int | None = None,
) -> None:
    """Plays episodes with agents and counts how they end, with Wilson 95 % intervals.

    Args:
        agents: Folders of agents.
        env: Gymnasium id of the world.
        episodes: Episodes an agent plays.
        seed: The run's seed; evaluation seeds are never those of training.
        temperature: Sampling temperature of the actions; 0 takes the likeliest.
        top_p: Draw from the smallest set of classes that holds this much probability; 1 leaves every class.
        precision: Precision of the agent's arithmetic: `fp32`; `bf16`; `int8`: 8-bit weights, the quickest where one
            world is played on a CPU.
        compile: Compile the agent's step with `torch.compile`, which takes up to a minute.
        worlds: Worlds played in one batch.
        json: File to write the numbers to.
        out: Folder for results.json, episodes.npz (positions, outcomes) and videos; several agents have one each in it.
        names: What the agents are called, in their order; by default the folder of the stage that made each.
        videos: Episodes filmed for each outcome, and one for each reason; needs `out`.
        blank: The agents see black frames (and vectors of zeros): what is left then was not seen.
        env_args: Arguments that the world is made with, such as `{size: 64}`; the island's frames are of the agent's
            size by default.
        threads: Torch threads; None leaves torch's own number.
    """
    titles = _names(agents, names)
    import torch

    from lit_align.evaluation import results
    from lit_align.evaluation.match import Match, play
    from lit_align.models.agent import Agent

    if threads:
        torch.set_num_threads(threads)
    # All are read before any plays: a wrong third folder must not cost the time of two.
    players = [Agent.load(folder).prepare(precision, compile) for folder in agents]
    played: dict[str, Any] = {}
    with _progress() as bar:
        for title, agent in zip(titles, players, strict=True):
            args = _with_size(env, dict(env_args or {}), agent.config.image_size)
            match = Match(env, args, episodes, seed, temperature, worlds, blank, videos, top_p, precision)
            folder = None if out is None else Path(out) / (f"eval_{title}" if len(agents) > 1 else "")
            task = bar.add_task(title, total=episodes)
            played[title] = play(agent, match, title, folder, lambda _, task=task: bar.advance(task))  # type: ignore[misc]
            if folder is not None:
                results.write(results.build(env, {title: played[title]}), folder / "results.json")
    if json is not None:
        results.write(results.build(env, played), json)
    _show(played)
    if out is not None and len(played) == 1:
        _headline(Path(out), *next(iter(played.items())))


def _names(agents: list[str], names: list[str] | None) -> list[str]:
    """What the agents are called: all different."""
    if not agents:
        raise UserError("no agent was given; expected one or more folders: lit-align evaluate FOLDER [FOLDER ...]")
    if names is not None and len(names) != len(agents):
        raise UserError(f"found {len(names)} names for {len(agents)} agents; expected one each")
    titles = names or [_stage_of(Path(folder)) for folder in agents]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise UserError(f"several agents are called {', '.join(twice)}; tell them apart with --names '[first, second]'")
    return titles


def _stage_of(folder: Path) -> str:
    path = folder.resolve()
    return path.parent.name if path.name == "agent" else path.name


def _with_size(env: str, args: dict[str, Any], size: int) -> dict[str, Any]:
    """The island draws frames of any size: the agent's, unless one was asked for."""
    return {"size": size, **args} if "Jumppads" in env and size else args


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True, console=Console(stderr=True))


def _line(entry: Any) -> dict[str, str]:
    from lit_align.evaluation.intervals import Interval

    return {name: Interval(**rate).percent() for name, rate in entry["rates"].items()}


def _show(played: dict[str, Any]) -> None:
    outcomes = list(dict.fromkeys(name for entry in played.values() for name in entry["rates"]))
    table = Table(title="how episodes ended (Wilson 95 % interval)", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("agent", no_wrap=True)
    for name in outcomes:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("episodes", justify="right")
    table.add_column("steps", justify="right")
    for title, entry in played.items():
        cells = _line(entry)
        row = [cells.get(name, "-") for name in outcomes]
        table.add_row(title, *row, str(entry["episodes"]), f"{entry['mean_steps']:.0f}")
    console = Console()
    # A log file is no terminal of 80 columns.
    (console if console.is_terminal else Console(width=120)).print(table)


def _headline(out: Path, title: str, entry: Any) -> None:
    """One line for the pipeline's progress."""
    shares = ", ".join(f"{name} {cell}" for name, cell in _line(entry).items())
    (out / "headline.txt").write_text(f"{title}: {shares}\n")
