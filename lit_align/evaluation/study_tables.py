"""What the cells of a study say together: agents pooled over seeds, methods at equal play, and so on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lit_align.evaluation.intervals import Interval, wilson
from lit_align.evaluation.results import AgentResult, agent_result

Cells = Mapping[str, Mapping[str, Any]]

ALL = 100_000
"""A reward model of more comparisons than these learned from all there were."""

# Agents of the paper's figure of outcomes and the middle pad: (kind of cell, agent).
OUTCOMES = (
    ("base", "pretrain"),
    ("base", "finetune"),
    ("base", "scratch"),
    ("headline", "rest_left"),
    ("headline", "align_left"),
    ("headline", "rest_right"),
    ("headline", "align_right"),
    ("middle", "rest_middle"),
    ("middle", "align_middle"),
)
# Left, then right, then left again: (title, kind of cell, agent, wanted pad).
REALIGNED = (
    ("aligned left", "headline", "align_left", "left"),
    ("then right, as it stands", "realign", "direct_right", "right"),
    ("then preference fine-tuned right", "realign", "rerest_right", "right"),
    ("and aligned right", "realign", "realign_right", "right"),
    ("and aligned left again", "realign", "realign_left", "left"),
)
# Aligned right, and the same with more iterations: (kind of cell, agent).
LONGER = (("headline", "align_right"), ("longer_right", "align_longer"))
# (title, kind of cell, agent, stages whose rollouts it learned from, in its own cell; the others' were those of `base`)
METHODS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("REINFORCE", "methods_online", "reinforce", ()),
    ("RLOO", "methods_online", "rloo", ()),
    ("GRPO", "methods_online", "grpo", ()),
    ("PPO", "methods_online", "ppo", ()),
    ("ReST, 3 rounds", "methods_offline", "rest", ("grow_1", "grow_2", "grow_3")),
    ("DPO", "methods_offline", "dpo", ("rollouts",)),
    ("CPL", "methods_offline", "cpl", ("rollouts",)),
)
WITHOUT_REWARD_MODEL = ("dpo", "cpl")
PARAMETERS = (
    ("all", "methods_online", "reinforce"),
    ("the heads and the last layer", "parameters", "last_layers"),
    ("the heads and LoRA adapters", "parameters", "lora"),
    ("the heads alone (the paper's)", "parameters", "heads"),
)
SIZES = ("small", "medium", "large")
STARTS = (
    ("pretrain", "base agent"),
    ("finetune", "fine-tuned"),
    ("rest", "fine-tuned + ReST"),
    ("scratch", "from scratch"),
)
REWARD_MODELS = ("50", "1000", "all")
TARGETS = ("left", "right")
WORLDS = ("yard", "away", "elsewhere", "dusk")
PLAYERS = (("finetune", None), ("scratch", None), ("align_left", "left"), ("align_scratch", "left"))


@dataclass(frozen=True)
class Share:
    """How often something happened.

    Attributes:
        count: Times it did.
        total: Times it could have.
        seeds: The share with each seed.
    """

    count: int
    total: int
    seeds: tuple[float, ...] = ()

    @property
    def interval(self) -> Interval:
        """The share with its Wilson 95 % interval."""
        return wilson(self.count, self.total)


def of_kind(cells: Cells, kind: str) -> list[Mapping[str, Any]]:
    """The cells of a kind, by seed."""
    return sorted((cell for cell in cells.values() if cell["kind"] == kind), key=lambda cell: cell["seed"] or 0)


def entries(cells: Cells, kind: str, agent: str, where: str = "agents") -> list[Mapping[str, Any]]:
    """What an agent did in each cell of a kind."""
    return [cell[where][agent] for cell in of_kind(cells, kind) if agent in cell[where]]


def share(found: Sequence[Mapping[str, Any]], outcome: str | None) -> Share | None:
    """How many episodes of an agent ended so, over all seeds; None if it never played.

    Args:
        found: The agent's entries.
        outcome: How they ended; None: at any pad.
    """
    if not found:
        return None

    def count(entry: Mapping[str, Any]) -> int:
        none = int(entry["outcomes"].get("none", 0))
        return int(entry["episodes"]) - none if outcome is None else int(entry["outcomes"].get(outcome, 0))

    counts, totals = [count(entry) for entry in found], [int(entry["episodes"]) for entry in found]
    return Share(sum(counts), sum(totals), tuple(n / total for n, total in zip(counts, totals, strict=True)))


def pooled(found: Sequence[Mapping[str, Any]]) -> AgentResult | None:
    """An agent's outcomes over all seeds as one result; None if it never played."""
    if not found:
        return None
    counts: Counter[str] = Counter()
    for entry in found:
        counts.update(entry["outcomes"])
    return agent_result(counts, seed=min(int(entry["seed"]) for entry in found))


def outcomes(cells: Cells) -> dict[str, AgentResult]:
    """Agent -> its outcomes over all seeds, for those of `OUTCOMES` that played."""
    found = {agent: pooled(entries(cells, kind, agent)) for kind, agent in OUTCOMES}
    return {agent: entry for agent, entry in found.items() if entry is not None}


def reward_models(cells: Cells) -> dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]]:
    """Target -> start -> comparisons (`all` for the most) -> what each seed's model knows, of the cells `rewards`."""
    made: dict[str, dict[str, dict[str, list[Mapping[str, Any]]]]] = {}
    for target in TARGETS:
        for cell in of_kind(cells, f"rewards_{target}"):
            for start, sizes in cell["reward_models"].get(target, {}).items():
                for size, entry in sizes.items():
                    name = "all" if int(size) > ALL else size
                    models = made.setdefault(target, {}).setdefault(start, {}).setdefault(name, [])
                    models.append({**entry, "comparisons": int(size)})
    return made


@dataclass(frozen=True)
class Steps:
    """Env steps that a method's agent came from.

    Attributes:
        recorded: Of the rollouts whose comparisons taught the reward model, or the agent itself.
        played: That it played while it learned: online, or in rounds.
    """

    recorded: int
    played: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.recorded + self.played


def env_steps(cells: Cells, method: str) -> Steps | None:
    """Env steps of a method of `METHODS`; None where it did not run yet."""
    _, kind, agent, stages = next(row for row in METHODS if row[2] == method)
    cell, base = next(iter(of_kind(cells, kind)), None), next(iter(of_kind(cells, "base")), None)
    if cell is None or base is None or agent not in cell["agents"]:
        return None
    own = [cell["rollouts"].get(stage) for stage in stages]
    online = 0 if stages else cell["agents"][agent].get("env_steps")
    if online is None or None in own:
        return None
    steps = sum(int(rollouts["steps"]) for rollouts in own if rollouts)
    if method in WITHOUT_REWARD_MODEL:
        return Steps(steps, int(online))
    compared = base["rollouts"].get("rollouts")
    return None if compared is None else Steps(int(compared["steps"]), int(online) + steps)


def curve(cells: Cells, target: str, size: str, start: str) -> Mapping[str, Any] | None:
    """The numbers of an alignment's over_optimisation.json, of the first seed."""
    found = of_kind(cells, f"curves_{target}_{size}")
    return found[0]["alignments"].get(f"align_{start}") if found else None


def steps_to(numbers: Mapping[str, Any], level: float) -> float | None:
    """Env steps after which the wanted outcome's share was at `level` for the first time; None if it never was."""
    truth = numbers["outcomes"].get(numbers["target"] or "", [])
    return next(
        (
            float(steps)
            for steps, value in zip(numbers["env_steps"], truth, strict=False)
            if value is not None and value >= level
        ),
        None,
    )


def in_world(cells: Cells, agent: str, world: str) -> list[Mapping[str, Any]]:
    """What an agent did in a world of the cells `robustness`."""
    if world == "yard":
        return entries(cells, "robustness", agent)
    return entries(cells, "robustness", f"{agent}_{world}", "ablations")


def recovered(found: Iterable[Mapping[str, Any]], target: str | None) -> Share | None:
    """How many episodes that went past the wanted pad came back to it; None where that was not counted."""
    tallies = [(entry.get("recovery") or {}) for entry in found]
    tallies = [tally.get(target, {}) if target else tally for tally in tallies]
    tallies = [tally for tally in tallies if "missed" in tally]
    if not tallies:
        return None
    seeds = tuple(tally["recovered"] / tally["missed"] for tally in tallies if tally["missed"])
    return Share(sum(t["recovered"] for t in tallies), sum(t["missed"] for t in tallies), seeds)
