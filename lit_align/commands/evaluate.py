"""`lit-align evaluate`: play many episodes, count how they end, show it with intervals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lit_align.commands.agents import title_of, warn_of_another_world, with_size
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
    target: str | None = None,
    paired: bool = False,
    paired_videos: int = 0,
    isolate: bool = False,
    step_timeout: float | None = None,
) -> None:
    """Plays episodes with agents and counts how they end, with Wilson 95 % intervals.

    Where the world's rewards say more than outcomes, their undiscounted sum over an episode is told too: its mean, with
    a 95 % t interval.

    Args:
        agents: Folders of agents, or their names on the Hub: `user/name`, `user/name@revision`.
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
        target: The pad that is wanted: recovery after a miss is counted for it too; `left`, `middle` or `right`.
        paired: Compare each agent with the first on the same episodes: the difference of each outcome's rate with
            Newcombe's 95 % interval for paired proportions, and McNemar's exact p-value; of the world's return the
            mean difference with the 95 % t interval of paired samples; needs two agents or more.
        paired_videos: Videos of the first agent beside each of the others, of the first episodes in which one of the
            two missed its pad; needs `out` and two agents or more.
        isolate: Each world in a process of its own, for worlds that crash or hang.
        step_timeout: Seconds that a world's step may take (a reset ten times as long) before it counts as hung and is
            killed. Needs `isolate`, but not on the island, whose limit is 60 where this is None; elsewhere None is no
            limit.
    """
    titles = _names(agents, names)
    if paired and len(agents) < 2:
        raise UserError("paired compares agents with the first one, and there is one only; give two or more")
    _check_pads(env, target, paired_videos, len(agents), out)
    import torch

    from lit_align.evaluation import results
    from lit_align.evaluation.match import Match, play
    from lit_align.evaluation.returns import pays
    from lit_align.models.agent import Agent

    if threads:
        torch.set_num_threads(threads)
    # All are read before any plays: a wrong third folder must not cost the time of two.
    players = [Agent.load(folder).prepare(precision, compile) for folder in agents]
    for title, agent in zip(titles, players, strict=True):
        warn_of_another_world(title, agent, env)
    played: dict[str, Any] = {}
    against: dict[str, Any] = {}
    seats = _Seats(paired_videos)
    with _progress() as bar:
        for title, agent in zip(titles, players, strict=True):
            args = with_size(env, dict(env_args or {}), agent.config.image_size)
            match = Match(env, args, episodes, seed, temperature, worlds, blank, videos, top_p, precision, target)
            match.isolate, match.step_timeout = isolate, step_timeout
            folder = None if out is None else Path(out) / (f"eval_{title}" if len(agents) > 1 else "")
            task = bar.add_task(title, total=episodes)
            watched = seats.watch(title, agent, lambda task=task: bar.advance(task))
            played[title] = play(agent, match, title, folder, watched)
            if paired and title != titles[0]:
                against[title] = {titles[0]: seats.compare(titles[0], title)}
            if folder is not None:
                own = {title: against[title]} if title in against else None
                results.write(results.build(env, {title: played[title]}, paired=own), folder / "results.json")
    if json is not None:
        results.write(results.build(env, played, paired=against), json)
    seats.film(match, out)
    _show(played, target)
    if against:
        outcomes = dict.fromkeys(name for entry in played.values() for name in entry["rates"])
        _show_differences(against, titles[0], list(outcomes))
        if any(pays(entry) for entry in played.values()):
            _show_returns(against, titles[0])
    if out is not None and len(played) == 1:
        _headline(Path(out), *next(iter(played.items())))


class _Seats:
    """Keeps how every agent's episodes ended and what they paid, and what paired videos need, where asked for."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.seats: list[Any] = []
        self.ended: dict[str, dict[int, str]] = {}
        self.returns: dict[str, dict[int, float]] = {}

    def watch(self, title: str, agent: Any, advance: Callable[[], None]) -> Callable[[Any], None]:
        """Returns what is called after each of the agent's episodes."""
        from lit_align.evaluation.returns import return_of

        ended, returns = self.ended.setdefault(title, {}), self.returns.setdefault(title, {})
        seat: Any = None
        if self.count:
            from lit_align.evaluation.paired import Seat, without_frames

            seat = Seat(title, {}, agent.codec)
            self.seats.append(seat)

        def keep(trajectory: Any) -> None:
            ended[trajectory.id] = trajectory.outcome
            returns[trajectory.id] = return_of(trajectory)
            if seat is not None:
                seat.played[trajectory.id] = without_frames(trajectory)
            advance()

        return keep

    def compare(self, first: str, second: str) -> dict[str, Any]:
        """What `results.json` keeps of two agents that played the same episodes."""
        from lit_align.evaluation import difference, returns

        ended = difference.compare(self.ended[first], self.ended[second])
        return {**ended, "return": returns.difference(self.returns[first], self.returns[second])}

    def film(self, match: Any, out: str | None) -> None:
        """Writes the videos, when some are asked for."""
        if self.count and out is not None:
            from lit_align.evaluation.paired import FOLDER, film_pairs

            film_pairs(match, self.seats, Path(out) / FOLDER, self.count)


def _check_pads(env: str, target: str | None, paired_videos: int, agents: int, out: str | None) -> None:
    """Raises a UserError before anything is loaded if what depends on the world's pads cannot be had."""
    from lit_align.evaluation.recovery import check_target, gates_of

    check_target(env, target)
    if paired_videos < 0 or (paired_videos and (agents < 2 or out is None or not gates_of(env))):
        raise UserError(
            f"paired_videos is {paired_videos}, with {agents} agent(s), out {out} and env {env}; expected 0, or two "
            "agents or more, a folder --out, and a world whose pads are known: the island"
        )


def _names(agents: list[str], names: list[str] | None) -> list[str]:
    """What the agents are called: all different."""
    if not agents:
        raise UserError("no agent was given; expected one or more folders: lit-align evaluate FOLDER [FOLDER ...]")
    if names is not None and len(names) != len(agents):
        raise UserError(f"found {len(names)} names for {len(agents)} agents; expected one each")
    titles = names or [title_of(agent) for agent in agents]
    twice = sorted({title for title in titles if titles.count(title) > 1})
    if twice:
        raise UserError(f"several agents are called {', '.join(twice)}; tell them apart with --names '[first, second]'")
    return titles


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes"))
    return Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), transient=True, console=Console(stderr=True))


def _line(entry: Any) -> dict[str, str]:
    from lit_align.evaluation.intervals import Interval

    return {name: Interval(**rate).percent() for name, rate in entry["rates"].items()}


def _show(played: dict[str, Any], target: str | None) -> None:
    from lit_align.evaluation import results, returns
    from lit_align.evaluation.intervals import Interval

    outcomes = list(dict.fromkeys(name for entry in played.values() for name in entry["rates"]))
    table = Table(title="how episodes ended (Wilson 95 % interval)", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("agent", no_wrap=True)
    for name in outcomes:
        table.add_column(name, justify="right", no_wrap=True)
    paid = any(returns.pays(entry) for entry in played.values())
    if paid:
        table.add_column("return (t 95 %)", justify="right", no_wrap=True)
    table.add_column("episodes", justify="right")
    table.add_column("steps", justify="right")
    misses = {title: entry.get("recovery", {}) for title, entry in played.items()}
    misses = {title: found.get(target, found) for title, found in misses.items()}
    if any(misses.values()):
        table.add_column("back after a miss", justify="right")
    for title, entry in played.items():
        row = [Interval(**results.rate_of(entry, name)).percent() for name in outcomes]
        row += [returns.in_words(entry["return"])] if paid else []
        back = [f"{found['recovered']} of {found['missed']}"] if (found := misses[title]) else []
        table.add_row(title, *row, str(entry["episodes"]), f"{entry['mean_steps']:.0f}", *back)
    _print(table)


def _show_differences(against: dict[str, Any], first: str, outcomes: list[str]) -> None:
    from lit_align.evaluation.difference import Difference

    table = Table(title=f"against {first}, episode by episode", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("agent", no_wrap=True)
    table.add_column("outcome", no_wrap=True)
    for name in ("points (Newcombe 95 %)", "McNemar p", "gained", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    for agent, entry in against.items():
        rows = entry[first]["outcomes"]
        for name in (outcome for outcome in outcomes if outcome in rows):
            row = rows[name]
            found = Difference(*(row[key] for key in Difference._fields))
            table.add_row(agent, name, found.points(), found.luck(), str(row["gained"]), str(row["lost"]))
    _print(table)


def _show_returns(against: dict[str, Any], first: str) -> None:
    from lit_align.evaluation.returns import in_words

    table = Table(title=f"return against {first}, episode by episode", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("agent", no_wrap=True)
    table.add_column("difference (paired t 95 %)", justify="right", no_wrap=True)
    for agent, entry in against.items():
        table.add_row(agent, in_words(entry[first]["return"], "+"))
    _print(table)


def _print(table: Table) -> None:
    console = Console()
    # A log file is no terminal of 80 columns.
    (console if console.is_terminal else Console(width=120)).print(table)


def _headline(out: Path, title: str, entry: Any) -> None:
    """One line for the pipeline's progress."""
    from lit_align.evaluation.returns import in_words, pays

    told = [f"{name} {cell}" for name, cell in _line(entry).items()]
    told += [f"return {in_words(entry['return'])}"] if pays(entry) else []
    (out / "headline.txt").write_text(f"{title}: {', '.join(told)}\n")
