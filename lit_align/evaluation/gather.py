"""Reading what a pipeline left in its folder, whole or in part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_align.evaluation import paired
from lit_align.evaluation.controls import Controls, aligned_in
from lit_align.evaluation.curves import Columns, read_metrics
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.footage import Film, read_index
from lit_align.evaluation.paired import PairedFilm
from lit_align.evaluation.plan import Plan, plan_of
from lit_align.evaluation.results import Paired, Results, ResultsError, build, merge, read
from lit_align.evaluation.style import agent_order
from lit_align.files import mapping_of

EVALUATION = "eval_"
MARK = ".report"  # in a report's folder, which is made anew


@dataclass
class Gathered:
    """Everything a report is made of; what was not run is absent.

    Attributes:
        folder: The pipeline's folder.
        results: All results files of the run in one.
        episodes: agent -> its evaluation's episodes.
        films: agent -> its videos.
        film_folders: agent -> where they lie.
        paired: stage -> its videos of two agents side by side.
        paired_folders: stage -> where they lie.
        metrics: stage -> columns of its metrics.csv.
        runs: stage -> what it says about itself: `seconds`, `state`, `versions`, ...
        plan: The world from above.
        notes: What could not be read, for people.
    """

    folder: Path
    results: Results
    episodes: dict[str, Episodes] = field(default_factory=dict)
    films: dict[str, list[Film]] = field(default_factory=dict)
    film_folders: dict[str, Path] = field(default_factory=dict)
    paired: dict[str, list[PairedFilm]] = field(default_factory=dict)
    paired_folders: dict[str, Path] = field(default_factory=dict)
    metrics: dict[str, Columns] = field(default_factory=dict)
    runs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    plan: Plan | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def agents(self) -> list[str]:
        """Names of the evaluated agents, in the order of the procedure."""
        return sorted(self.results["agents"], key=agent_order)

    @property
    def targets(self) -> list[str]:
        """What agents were aligned to, by what the run holds."""
        names = [*self.results["agents"], *self.metrics]
        found = {name.partition("_")[2] for name in names if name.startswith(("align_", "rest_", "prefer_"))}
        outcomes = {outcome for entry in self.results["agents"].values() for outcome in entry["outcomes"]}
        return sorted(found & outcomes if outcomes else found)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell of: no results, no metrics, no stage that ended, nothing damaged either."""
        told = (self.results["agents"], self.results.get("ablations"), self.results["reward_models"], self.episodes)
        return not any((*told, self.films, self.paired, self.metrics, self.runs, self.notes))

    def title_of_task(self) -> str:
        """Return the environment's name."""
        return self.results["environment"]


def gather(folder: Path) -> Gathered:
    """Read a run folder; parts that are missing or damaged become notes and not errors."""
    notes: list[str] = []
    parts = list(_results(folder, notes))
    environment = parts[0]["environment"] if parts else "an environment that nothing was evaluated in"
    found = Gathered(folder, build(environment), notes=notes, plan=plan_of(environment))
    controls = Controls(aligned_in(folder), [entry for part in parts for entry in part["agents"].values()])
    for part in [_with_ablations(part, controls) for part in parts]:
        try:
            found.results = merge([found.results, part])
        except ResultsError as error:
            notes.append(str(error))
    _add_reward_models(folder, found)
    for name, path in _evaluations(folder, controls):
        if name not in found.episodes and (path / "episodes.npz").is_file():
            try:
                found.episodes[name] = Episodes.load(path / "episodes.npz")
            except (ValueError, KeyError, OSError) as error:
                notes.append(f"{path.name}/episodes.npz cannot be read ({error})")
        films = read_index(path / "videos")
        if films and name not in found.films:
            found.films[name], found.film_folders[name] = films, path / "videos"
    for path in (folder / paired.FOLDER, *sorted(folder.glob(f"*/{paired.FOLDER}"))):
        pairs = paired.read_index(path)
        if pairs:
            found.paired[path.parent.name], found.paired_folders[path.parent.name] = pairs, path
    for path in sorted(folder.glob("*/metrics.csv")):
        found.metrics[path.parent.name] = read_metrics(path)
    found.runs = _runs(folder)
    return found


def _results(folder: Path, notes: list[str]) -> Iterator[Results]:
    """Yield the results file of every stage; the report's own is made anew."""
    # An evaluation of several agents has a folder for each.
    for path in sorted([*folder.glob("*/results.json"), *folder.glob(f"*/{EVALUATION}*/results.json")]):
        if (path.parent / MARK).is_file():
            continue
        try:
            yield read(path)
        except ResultsError as error:
            notes.append(str(error))


def _evaluations(folder: Path, controls: Controls) -> Iterator[tuple[str, Path]]:
    """Yield the name and the folder of every agent's evaluation; those of a stage with several agents come last."""
    for path in sorted(folder.glob(f"{EVALUATION}*")):
        yield path.name.removeprefix(EVALUATION), path
    for path in sorted(folder.glob(f"*/{EVALUATION}*/results.json")):
        try:
            ((name, entry),) = read(path)["agents"].items()
        except ValueError:  # damaged, which is noted where its numbers are read
            continue
        yield controls.name(name, entry), path.parent


def _with_ablations(part: Results, controls: Controls) -> Results:
    """Move controls, as blanked frames and other worlds are, to where they cannot be taken for a headline."""
    apart = {name: entry for name, entry in part["agents"].items() if controls.words(entry)}
    if not apart:
        return part
    headline = {name: entry for name, entry in part["agents"].items() if name not in apart}
    kept = {**part.get("ablations", {}), **{controls.name(name, entry): entry for name, entry in apart.items()}}
    return build(part["environment"], headline, part.get("reward_models"), kept, _renamed(part, controls))


def _renamed(part: Results, controls: Controls) -> dict[str, dict[str, Paired]]:
    """The comparisons of agents under the names that controls have; both sides of one played in the same world."""
    agents, found = part["agents"], {}
    for name, others in part.get("paired", {}).items():
        if name not in agents:
            found[name] = others
            continue
        # Of an evaluation of several agents each has a file of its own, which lacks the one that it is compared with.
        called = {other: controls.name(other, agents.get(other, agents[name])) for other in others}
        found[controls.name(name, agents[name])] = {called[other]: entry for other, entry in others.items()}
    return found


def _add_reward_models(folder: Path, found: Gathered) -> None:
    """Add the accuracy that every reward model carries in its own `config.json`."""
    models = found.results["reward_models"]
    for path in sorted(folder.glob("*/reward_model/config.json")):
        try:
            info = json.loads(path.read_text()).get("info", {})
        except json.JSONDecodeError as error:
            found.notes.append(f"{path} is not whole JSON ({error})")
            continue
        if not info.get("comparisons") or info.get("accuracy") is None:
            continue
        name = path.parent.parent.name
        target = str(info.get("target") or name.removeprefix("reward_").split("_")[0])
        entry: dict[str, Any] = {"accuracy": float(info["accuracy"]), "pairs": int(info.get("pairs") or 0)}
        entry |= {fact: info[fact] for fact in ("ece", "by_gap", "best_accuracy") if info.get(fact) is not None}
        sizes = models.setdefault(target, {}).setdefault(str(info.get("start", "agent")), {})
        if sizes.setdefault(str(info["comparisons"]), entry) != entry:  # type: ignore[arg-type]
            # The same target, start and number of comparisons once more: a variant.
            found.results.setdefault("ablations", {})[name] = {"reward_model": entry, **info}


def _runs(folder: Path) -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for stage in sorted(path for path in folder.iterdir() if path.is_dir()):
        content = mapping_of(stage / "run.json")
        if "seconds" in content:
            found[stage.name] = content
    # The pipeline's own clock, where there is one, saw each stage from outside.
    for path in sorted(folder.glob(".pipeline/*.json")):
        content = mapping_of(path)
        if content.get("state") == "done" and "seconds" in content:
            found[path.stem] = {**found.get(path.stem, {}), "seconds": content["seconds"]}
    return found
