"""A made-up study: cells as pipelines leave them, with counts that a reader can add up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_align.evaluation.results import agent_result, build, write
from tests.evaluation import synthetic

WORLD = "LitAlign/Jumppads-v0"
Counts = tuple[int, int, int, int]
"""Episodes that ended left, middle, right, none."""


def cell(folder: Path, stages: tuple[str, ...] = (), unfinished: tuple[str, ...] = ()) -> Path:
    """A cell's folder, with what the pipeline wrote of its stages."""
    (folder / ".pipeline").mkdir(parents=True)
    for state, names in (("done", ("report", *stages)), ("failed", unfinished)):
        for name in names:
            (folder / ".pipeline" / f"{name}.json").write_text(json.dumps({"state": state, "seconds": 30.0}))
    write(build(WORLD), folder / "report" / "results.json")
    (folder / "report" / ".report").write_text("")
    return folder


def evaluation(folder: Path, agent: str, counts: Counts, seed: int = 0, stage: str = "", **more: Any) -> None:
    """What `lit-align evaluate` left of an agent."""
    numbers = dict(zip(("left", "middle", "right", "none"), counts, strict=True))
    first = 1000 * (seed + 1)
    more = {"parameters": 1_400_000, "env_steps": None, **more}
    entry = agent_result(numbers, seed=seed, episode_seeds=list(range(first, first + sum(counts))), **more)
    write(build(WORLD, {agent: entry}), folder / (stage or f"eval_{agent}") / "results.json")


def routes(folder: Path, agent: str) -> None:
    """The positions of some episodes of an agent."""
    synthetic.episodes(agent, 70).save(folder / f"eval_{agent}" / "episodes.npz")


def recordings(folder: Path, stage: str, episodes: int, steps: int) -> None:
    """What is read of a folder of trajectories."""
    (folder / stage).mkdir()
    content = {"episodes": episodes, "steps": steps, "outcomes": {"left": episodes}, "fps": 8.75}
    (folder / stage / "meta.json").write_text(json.dumps(content))


def reward_model(folder: Path, name: str, target: str, start: str, comparisons: int, accuracy: float) -> None:
    """What a reward model says about itself."""
    info = {"target": target, "start": start, "comparisons": comparisons, "accuracy": accuracy, "pairs": 20000}
    (folder / name / "reward_model").mkdir(parents=True)
    (folder / name / "reward_model" / "config.json").write_text(json.dumps({"info": {**info, "ece": 0.02}}))


def alignment(folder: Path, stage: str, target: str, rates: list[float]) -> None:
    """The numbers that an alignment left."""
    steps = [1000.0 * (n + 1) for n in range(len(rates))]
    last = {"env_steps": steps[-1], "true": rates[-1], "interval": None, "proxy": 1.0, "kl": 0.2}
    content = {"schema": 1, "target": target, "truth": target, "env_steps": steps, "proxy": rates, "return": None}
    content |= {"outcomes": {target: rates}, "kl": {"name": "policy/kl", "values": [0.1 * r for r in rates]}}
    (folder / stage).mkdir(exist_ok=True)
    text = json.dumps({**content, "episodes": None, "peak": last, "last": last, "words": "", "over_optimised": None})
    (folder / stage / "over_optimisation.json").write_text(text)
    (folder / stage / "metrics.csv").write_text("step\n0\n")


def study(root: Path) -> Path:
    """Two seeds of the headline, one of all else."""
    for seed in (0, 1):
        base = cell(root / f"base_{seed}", ("play", "pretrain"))
        evaluation(base, "pretrain", (10 + seed, 40, 10, 40 - seed), seed, recovery=back(10, 6 + seed))
        evaluation(base, "finetune", (30, 40, 25, 5), seed, recovery=back(10, 5))
        evaluation(base, "scratch", (30, 30, 25, 15), seed, recovery=back(10, 1))
        routes(base, "pretrain")
        recordings(base, "rollouts", 1800, 100_000)
        headline = cell(root / f"headline_{seed}")
        evaluation(headline, "align_left", (98 - seed, 1, 0, 1 + seed), seed)
        routes(headline, "align_left")
        longer = cell(root / f"longer_right_{seed}")
        evaluation(longer, "align_longer", (0, 1, 99 - seed, seed), seed)
        alignment(longer, "align_longer", "right", [0.5, 0.9, 0.95, 1.0][: 3 + seed])
    rewards = cell(root / "rewards_left_0")
    for comparisons, accuracy in ((50, 0.9), (473_112, 0.99)):
        reward_model(rewards, f"reward_agent_{comparisons}", "left", "agent", comparisons, accuracy)
    reward_model(rewards, "reward_random_50", "left", "random", 50, 0.6)
    online = cell(root / "methods_online_0", ("reinforce", "ppo"))
    evaluation(online, "reinforce", (95, 3, 0, 2), env_steps=80_000)
    evaluation(online, "ppo", (90, 5, 3, 2), env_steps=81_000)
    alignment(online, "reinforce", "left", [0.3, 0.6, 0.9, 0.95])
    offline = cell(root / "methods_offline_0", ("dpo", "compare", "grow_1"))
    evaluation(offline, "dpo", (80, 10, 5, 5))
    evaluation(offline, "rest", (85, 10, 3, 2))
    recordings(offline, "rollouts", 3336, 185_000)
    for number in (1, 2, 3):
        recordings(offline, f"grow_{number}", 512, 27_000 + number)
    parameters = cell(root / "parameters_0", ("heads",))
    evaluation(parameters, "heads", (70, 15, 10, 5))
    alignment(parameters, "heads", "left", [0.3, 0.4, 0.7])
    curves = cell(root / "curves_left_all_0")
    alignment(curves, "align_finetune", "left", [0.3, 0.89, 0.91])
    alignment(curves, "align_scratch", "left", [0.2, 0.5, 0.8])
    for size, parameters in (("small", 90_000), ("large", 1_400_000)):
        sized = cell(root / f"sizes_{size}_0")
        evaluation(sized, "align_left", (60 if size == "small" else 95, 5, 0, 35 if size == "small" else 0),
                   parameters=parameters)  # fmt: skip
    robust = cell(root / "robustness_0")
    for agent, reached in (("finetune", 70), ("scratch", 20)):
        counts = (reached, 0, 0, 100 - reached)
        more: dict[str, Any] = {"env_args": {"spawn": "away"}, "recovery": back(20, reached // 10)}
        evaluation(robust, agent, counts, stage=f"tuned_away/eval_{agent}", **more)
        evaluation(robust, agent, (90, 0, 0, 10), stage=f"tuned_yard/eval_{agent}", recovery=back(4, 2))
    unfinished = cell(root / "middle_0", unfinished=("align_middle",))
    evaluation(unfinished, "rest_middle", (5, 90, 3, 2))
    (root / "notes").mkdir()
    return root


def back(missed: int, recovered: int) -> dict[str, Any]:
    """The `recovery` of an agent's results."""
    rate = {"value": recovered / missed, "low": 0.0, "high": 1.0}
    return {"missed": missed, "recovered": recovered, "rate": rate}
