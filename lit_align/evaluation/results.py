"""`results.json`: building, reading, merging and checking the numbers that are shown to people."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from lit_align.errors import UserError
from lit_align.evaluation import returns
from lit_align.evaluation.intervals import wilson
from lit_align.evaluation.returns import Return
from lit_align.files import write_whole

SCHEMA = 1
OTHER_WORLD = ("spawn", "sky")
"""Arguments of the island that make a world which agents were not trained in: what is played there is no headline."""


class Rate(TypedDict):
    """A share of the episodes with its Wilson 95 % interval, all in [0, 1]."""

    value: float
    low: float
    high: float


_Paid = TypedDict("_Paid", {"return": NotRequired[Return]})  # a keyword, which the body of a class cannot name


class AgentResult(_Paid):
    """What one agent did, and how it was made."""

    episodes: int
    seed: int
    temperature: float
    outcomes: dict[str, int]
    rates: dict[str, Rate]
    reasons: dict[str, int]
    train_frames: int | None
    train_seconds: float | None
    parameters: int | None
    episode_seeds: NotRequired[list[int]]
    mean_steps: NotRequired[float]
    blank: NotRequired[bool]
    top_p: NotRequired[float]
    precision: NotRequired[str]
    worlds_failed: NotRequired[int]
    env_steps: NotRequired[int | None]
    recovery: NotRequired[dict[str, Any]]
    env_args: NotRequired[dict[str, Any]]


class GapAccuracy(TypedDict):
    """The same of pairs whose episodes are from so far apart to so far, by the rule."""

    accuracy: float
    pairs: int
    gap: list[float]


class RewardAccuracy(TypedDict):
    """A reward model's accuracy on held-out pairs without ties, in [0, 1], and the number of those pairs.

    `ece` is its expected calibration error, `by_gap` its accuracy by how far apart the episodes are, and
    `best_accuracy` what their labels allow, all in [0, 1].
    """

    accuracy: float
    pairs: int
    ece: NotRequired[float]
    by_gap: NotRequired[dict[str, GapAccuracy]]
    best_accuracy: NotRequired[float]


class Paired(_Paid):
    """An agent against another one on the same episodes: `difference.compare`, and `returns.difference`."""

    episodes: int
    outcomes: dict[str, dict[str, float]]


class Results(TypedDict):
    """The whole file.

    `reward_models` is target -> start (`agent`, `random`) -> number of comparisons -> accuracy; `paired` is agent ->
    the one that it was compared with -> by how much it differs.
    """

    schema: int
    environment: str
    agents: dict[str, AgentResult]
    reward_models: dict[str, dict[str, dict[str, RewardAccuracy]]]
    ablations: NotRequired[dict[str, Any]]
    paired: NotRequired[dict[str, dict[str, Paired]]]


class ResultsError(UserError):
    """A results file that cannot be what it says it is."""


def _rate(count: int, total: int) -> Rate:
    value, low, high = wilson(count, total)
    return {"value": value, "low": low, "high": high}


def rate_of(entry: AgentResult, outcome: str) -> Rate:
    """Return how often an agent's episodes ended so: 0 of all where it never happened and is not counted by name."""
    return entry["rates"].get(outcome) or _rate(0, entry["episodes"])


def agent_result(
    outcomes: Mapping[str, int],
    *,
    seed: int,
    temperature: float = 1.0,
    reasons: Mapping[str, int] | None = None,
    train_frames: int | None = None,
    train_seconds: float | None = None,
    parameters: int | None = None,
    **extra: Any,
) -> AgentResult:
    """Return one agent's entry, its rates and intervals computed from the counts.

    Args:
        outcomes: `{outcome: episodes}`.
        seed: The seed that the episodes' seeds were drawn with.
        temperature: The temperature that actions were sampled at.
        reasons: `{reason: episodes}`.
        train_frames: Frames it learned from, all its stages together.
        train_seconds: Seconds of learning, all its stages together.
        parameters: Parameters of the agent.
        extra: The optional fields of `AgentResult`.
    """
    total = sum(outcomes.values())
    rates = {name: _rate(n, total) for name, n in outcomes.items()}
    result = {
        "episodes": total,
        "seed": seed,
        "temperature": temperature,
        "outcomes": dict(outcomes),
        "rates": rates,
        "reasons": dict(reasons or {}),
        "train_frames": train_frames,
        "train_seconds": train_seconds,
        "parameters": parameters,
    }
    return cast(AgentResult, {**result, **extra})


def build(
    environment: str,
    agents: Mapping[str, AgentResult] | None = None,
    reward_models: Mapping[str, Any] | None = None,
    ablations: Mapping[str, Any] | None = None,
    paired: Mapping[str, Any] | None = None,
) -> Results:
    """Return a checked results mapping."""
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "environment": environment,
        "agents": dict(agents or {}),
        "reward_models": dict(reward_models or {}),
    }
    if ablations:
        results["ablations"] = dict(ablations)
    if paired:
        results["paired"] = dict(paired)
    return validate(results, "results")


def merge(parts: Iterable[Results]) -> Results:
    """Return one results mapping out of several; the same name twice must mean the same numbers."""
    merged: Results | None = None
    for part in parts:
        if merged is None:
            merged = json.loads(json.dumps(part))
            merged.setdefault("reward_models", {})
            continue
        if part["environment"] != merged["environment"]:
            raise ResultsError(
                f"found results of {part['environment']!r} and of {merged['environment']!r}; "
                "expected one environment. Merge them into two files."
            )
        _merge_into(merged["agents"], part["agents"], "agents", depth=1)
        _merge_into(merged["reward_models"], part.get("reward_models", {}), "reward_models", depth=3)
        if part.get("ablations"):
            _merge_into(merged.setdefault("ablations", {}), part["ablations"], "ablations", depth=1)
        if part.get("paired"):
            _merge_into(merged.setdefault("paired", {}), part["paired"], "paired", depth=2)
    if merged is None:
        raise ResultsError("found no results to merge; expected at least one")
    return validate(merged, "merged results")


def _merge_into(into: Any, part: Mapping[str, Any], where: str, depth: int) -> None:
    for name, value in part.items():
        if name not in into:
            into[name] = copy.deepcopy(value)
        elif depth > 1:
            _merge_into(into[name], value, f"{where}.{name}", depth - 1)
        elif into[name] != value:
            raise ResultsError(f"{where}.{name} was found twice with different values; give one of them another name")


def write(results: Results, path: str | os.PathLike[str]) -> None:
    """Check the results and write them as JSON, whole or not at all."""
    text = json.dumps(validate(dict(results), "results"), indent=2)
    # Lists of seeds on one line: a file that people open.
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    write_whole(Path(path), text + "\n")


def read(path: str | os.PathLike[str]) -> Results:
    """Read and check a results file."""
    try:
        found = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise ResultsError(f"found no file {path}; expected the JSON of `lit-align evaluate --json`") from None
    except json.JSONDecodeError as error:
        raise ResultsError(f"{path} is not whole JSON ({error}); write it again with `lit-align evaluate`") from None
    return validate(found, str(path))


def validate(found: Any, where: str = "results") -> Results:
    """Return `found` as `Results`, or raise one error that lists everything that is wrong with it."""
    if not isinstance(found, Mapping):
        raise ResultsError(f"{where}: found {type(found).__name__}, expected a mapping")
    wrong: list[str] = []
    if found.get("schema") != SCHEMA:
        wrong.append(f"schema is {found.get('schema')!r}, expected {SCHEMA}")
    if not isinstance(found.get("environment"), str):
        wrong.append(f"environment is {found.get('environment')!r}, expected a name such as 'LitAlign/Jumppads-v0'")
    agents = found.get("agents")
    if not isinstance(agents, Mapping):
        wrong.append(f"agents is {type(agents).__name__}, expected a mapping of names")
    else:
        wrong += [message for name, entry in agents.items() for message in _agent_faults(name, entry)]
    wrong += _reward_faults(found.get("reward_models", {})) + _paired_faults(found.get("paired", {}))
    if wrong:
        raise ResultsError(f"{where}: " + "; ".join(wrong))
    return found  # type: ignore[return-value]


def _agent_faults(name: str, entry: Any) -> list[str]:
    if not isinstance(entry, Mapping) or not isinstance(entry.get("outcomes"), Mapping):
        return [f"agents.{name} has no outcomes"]
    counts = entry["outcomes"]
    if any(not isinstance(n, int) or n < 0 for n in counts.values()):
        return [f"agents.{name}.outcomes is {dict(counts)}, expected whole numbers of episodes"]
    faults = _return_faults(f"agents.{name}", entry)
    total = sum(counts.values())
    if entry.get("episodes") != total:
        faults.append(f"agents.{name}.episodes is {entry.get('episodes')!r}, but its outcomes add up to {total}")
    rates = entry.get("rates")
    if not isinstance(rates, Mapping) or set(rates) != set(counts):
        return [*faults, f"agents.{name}.rates does not name the outcomes {sorted(counts)}"]
    for outcome, n in counts.items():
        value = rates[outcome].get("value") if isinstance(rates[outcome], Mapping) else None
        # Half a percent: files that people typed with two digits are fine, wrong ones are not.
        if not isinstance(value, int | float) or not math.isclose(value, n / max(1, total), abs_tol=0.0051):
            faults.append(f"agents.{name}.rates.{outcome} is {value!r}, but {n} of {total} is {n / max(1, total):.3f}")
    return faults


def _return_faults(where: str, entry: Mapping[str, Any]) -> list[str]:
    """What is wrong with a return; files of earlier versions have none."""
    return returns.faults(f"{where}.return", entry["return"]) if "return" in entry else []


def _reward_faults(models: Any) -> list[str]:
    if not isinstance(models, Mapping):
        return [f"reward_models is {type(models).__name__}, expected a mapping of targets"]
    faults: list[str] = []
    for target, starts in models.items():
        for start, sizes in starts.items():
            for size, entry in sizes.items():
                here = f"reward_models.{target}.{start}.{size}"
                if not str(size).isdigit():
                    faults.append(f"{here}: {size!r} is not a number of comparisons")
                facts = entry if isinstance(entry, Mapping) else {}
                shares = {"accuracy": facts.get("accuracy")}
                shares |= {name: facts[name] for name in ("ece", "best_accuracy") if name in facts}
                groups = facts.get("by_gap", {})
                shares |= {f"by_gap.{name}.accuracy": group.get("accuracy") for name, group in groups.items()}
                faults += [
                    f"{here}.{name} is {share!r}, expected a number in [0, 1]"
                    for name, share in shares.items()
                    if not isinstance(share, int | float) or not 0 <= share <= 1
                ]
    return faults


def _paired_faults(paired: Any) -> list[str]:
    if not isinstance(paired, Mapping) or not all(isinstance(others, Mapping) for others in paired.values()):
        return ["paired is no mapping of names to mappings of names"]
    faults: list[str] = []
    for name, others in paired.items():
        for other, entry in others.items():
            facts = entry if isinstance(entry, Mapping) else {}
            faults += _return_faults(f"paired.{name}.{other}", facts)
            for outcome, row in facts.get("outcomes", {"": {}}).items():
                counts = [row.get(key) for key in ("both", "gained", "lost", "neither")]
                if not all(isinstance(n, int) and n >= 0 for n in counts) or sum(counts) != facts.get("episodes"):
                    total = facts.get("episodes")
                    faults.append(f"paired.{name}.{other}.{outcome} counts {counts}, expected {total!r} episodes")
    return faults
