"""What was measured of a model: evaluations beside its run, and the pictures and films that go with them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_align.evaluation.intervals import Interval, wilson
from lit_align.evaluation.results import OTHER_WORLD, SCHEMA, ResultsError, read, validate
from lit_align.evaluation.returns import Return, pays
from lit_align.sharing.facts import Facts, mapping, number_or_none
from lit_align.sharing.text import plain

_log = logging.getLogger(__name__)
_BIGGEST = 20_000_000
"""Bytes of a JSON file that may be somebody's results."""
HEATMAP, REPLAY, RESULTS = "heatmap.png", "replay.mp4", "results.json"
SAME = ("train_frames", "train_seconds", "parameters", "env_steps")
"""What an evaluation tells of the agent that played; it is of these weights if the agent tells the same."""


@dataclass(frozen=True)
class Evaluation:
    """An agent's episodes in a world, as counted.

    Attributes:
        name: What the agent was called.
        environment: Gymnasium id of the world.
        entry: The agent's entry of the file.
        file: The results file.
        control: Whether the frames were blanked or the world was another than agents are trained in.
    """

    name: str
    environment: str
    entry: dict[str, Any]
    file: Path
    control: bool = False

    @property
    def episodes(self) -> int:
        """How many."""
        return int(self.entry["episodes"])

    @property
    def outcomes(self) -> dict[str, int]:
        """Episodes for each outcome."""
        return {str(name): int(count) for name, count in self.entry["outcomes"].items()}

    @property
    def rates(self) -> dict[str, Interval]:
        """Shares with their Wilson 95 % interval, from the counts."""
        return {name: self.rate(name) for name in self.outcomes}

    def rate(self, outcome: str) -> Interval:
        """The share of one outcome, which may never have come."""
        return wilson(self.outcomes.get(outcome, 0), self.episodes)

    @property
    def returned(self) -> Return | None:
        """The world's own return, where it says more than the outcomes."""
        return self.entry["return"] if pays(self.entry) else None

    @property
    def under(self) -> str:
        """Under what the agent played, for people."""
        words = [f"seed {self.entry.get('seed', 'unknown')}", f"temperature {self.entry.get('temperature', 'unknown')}"]
        top_p, precision = number_or_none(self.entry.get("top_p")), self.entry.get("precision", "fp32")
        words += [f"top_p {top_p:g}"] if top_p is not None and top_p < 1 else []
        words += [str(precision)] if precision != "fp32" else []
        words += ["black frames"] if self.entry.get("blank") else []
        return ", ".join(words + [f"{name} {value}" for name, value in mapping(self.entry.get("env_args")).items()])


@dataclass(frozen=True)
class Measured:
    """Everything that was measured of a model.

    Attributes:
        evaluations: In the world as it is; the one with most episodes first.
        controls: With blanked frames, or in another world.
        notes: What was found and is not shown, and why.
        others: The first evaluation's world and seed: what agents of other names did in it.
    """

    evaluations: list[Evaluation] = field(default_factory=list)
    controls: list[Evaluation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    others: dict[str, Evaluation] = field(default_factory=dict)


def measured(facts: Facts, run: Path | None) -> Measured:
    """The evaluations of an agent that lie in its folder, in its run, or beside that."""
    found: list[Evaluation] = []
    others: list[Evaluation] = []
    notes: list[str] = []
    for one in _read_all(facts, run):
        own = one.name == facts.name or one.file.parent == facts.folder
        if not own:
            others.append(one)
        elif _of_these_weights(one, facts):
            found.append(one)
        else:
            notes.append(
                f"an evaluation of `{one.name}` is of other weights and is not shown ({_where(one.file, run)})"
            )
    best = sorted((one for one in _distinct(found) if not one.control), key=lambda one: -one.episodes)
    beside = {}
    if best:
        first = _terms(best[0])
        beside = {one.name: one for one in _distinct(others) if not one.control and _terms(one) == first}
    return Measured(best, [one for one in _distinct(found) if one.control], sorted(set(notes)), beside)


def pictures(evaluation: Evaluation) -> tuple[dict[str, Path], str]:
    """The evaluation's numbers, heatmap and one film as files of a card, and how the film's episode ended.

    The heatmap is drawn beside the episodes, and again when they are newer.
    """
    files = {RESULTS: evaluation.file}
    folder = evaluation.file.parent
    heatmap = _heatmap(evaluation, folder)
    if heatmap is not None:
        files[HEATMAP] = heatmap
    if (folder / REPLAY).is_file():  # of a card that was pulled
        return {**files, REPLAY: folder / REPLAY}, ""
    for place in (folder / "videos", folder / "videos" / evaluation.name):
        films = [one for one in _films(place) if one.get("outcome") is not None]
        if films:
            counts = evaluation.outcomes
            film = max(films, key=lambda one: counts.get(str(one["outcome"]), 0))  # the first of the most frequent
            return {**files, REPLAY: place / film["file"]}, str(film["outcome"])
    return files, ""


def accuracy_of(info: dict[str, Any]) -> tuple[Interval, int] | None:
    """A reward model's accuracy on held-out comparisons with its Wilson 95 % interval, and how many these are."""
    share, pairs = number_or_none(info.get("accuracy")), number_or_none(info.get("pairs"))
    if share is None or not pairs or not 0 <= share <= 1:
        return None
    return wilson(round(share * pairs), int(pairs)), int(pairs)


def _read_all(facts: Facts, run: Path | None) -> Iterator[Evaluation]:
    for path in _files(facts, run):
        try:
            content = read(path)
        except (ResultsError, OSError, ValueError, RecursionError):
            continue
        world, headline = content["environment"], content["agents"]
        for name, entry in [*headline.items(), *mapping(content.get("ablations")).items()]:
            if not _counts_episodes(world, entry):
                continue
            apart = name not in headline or bool(entry.get("blank"))
            apart = apart or any(argument in mapping(entry.get("env_args")) for argument in OTHER_WORLD)
            yield Evaluation(str(name), world, entry, path, apart)


def _counts_episodes(world: str, entry: Any) -> bool:
    """Whether an entry is one of an agent that played: what stands under `ablations` may be anything."""
    try:
        return validate({"schema": SCHEMA, "environment": world, "agents": {"": entry}})["agents"][""]["episodes"] > 0
    except ResultsError:
        return False


def _files(facts: Facts, run: Path | None) -> list[Path]:
    """Results files, those nearest to the model first; a report, which repeats others, last."""
    places = [facts.folder / RESULTS]
    if run is not None:
        at = run.absolute()
        for root in (at, at.parent):
            places += sorted([*root.glob("*.json"), *root.glob(f"*/{RESULTS}"), *root.glob(f"*/eval_*/{RESULTS}")])
    known = [path for path in dict.fromkeys(places) if path.is_file() and _may_be_results(path)]
    return sorted(known, key=lambda path: (path.parent / ".report").is_file())


def _may_be_results(path: Path) -> bool:
    return path.name == RESULTS or (path.name not in _NO_RESULTS and path.stat().st_size < _BIGGEST)


_NO_RESULTS = {"run.json", "environment.json", "over_optimisation.json", "timings.json", "meta.json", "config.json"}


def _of_these_weights(one: Evaluation, facts: Facts) -> bool:
    told = {name: one.entry.get(name) for name in SAME if one.entry.get(name) is not None}
    return all(facts.info.get(name, value) == value for name, value in told.items())


def _distinct(found: list[Evaluation]) -> list[Evaluation]:
    """Each evaluation once, whoever repeats it."""
    kept: dict[str, Evaluation] = {}
    for one in found:
        kept.setdefault(json.dumps([one.name, one.environment, one.entry], sort_keys=True), one)
    return list(kept.values())


def _terms(one: Evaluation) -> tuple[str, str]:
    return one.environment, one.under


def _where(file: Path, run: Path | None) -> str:
    root = file.parent if run is None else run.absolute().parent
    return str(file.relative_to(root)) if file.is_relative_to(root) else file.name


def _films(folder: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads((folder / "videos.json").read_text())
    except (OSError, ValueError, RecursionError):
        rows = []
    known = [mapping(row) for row in rows] if isinstance(rows, list) else []
    if not known:  # a report copies films without their index
        known = [{"file": path.name, "outcome": path.name.split("-")[0]} for path in sorted(folder.glob("*.mp4"))]
    named = [{**row, "file": Path(str(row.get("file", ""))).name} for row in known]
    return [row for row in named if row["file"] and (folder / row["file"]).is_file()]


def _heatmap(evaluation: Evaluation, folder: Path) -> Path | None:
    path, source = folder / HEATMAP, folder / "episodes.npz"
    if not source.is_file():
        return path if path.is_file() else None
    if path.is_file() and path.stat().st_mtime_ns > source.stat().st_mtime_ns:
        return path
    try:
        from lit_align.evaluation.episodes import Episodes
        from lit_align.evaluation.heatmap import Routes, heatmaps
        from lit_align.evaluation.plan import plan_of

        played = Episodes.load(source)
        if not any(abs(route).max() > 0 for route in played.positions if len(route)):
            return None  # the world does not tell where players are
        aside = folder / f".{HEATMAP}"
        heatmaps(
            [Routes(plain(evaluation.name), played.positions, evaluation.outcomes)],
            aside,
            plan_of(evaluation.environment),
        )
        return aside.replace(path)
    except (OSError, ValueError, KeyError) as error:
        _log.warning("no heatmap of %s: %s", evaluation.name, error)
        return None
