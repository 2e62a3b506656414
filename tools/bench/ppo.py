"""PPO through the Lightning Trainer against Stable-Baselines3's: what it learns and how fast.

`lit-align align` (estimator ppo, the environment's own reward, no reference, an agent that sees one frame) and
`PPO.learn` with the same hyper-parameters for the same number of env steps, on CartPole-v1 and in a world of 64x64
pixels, `_peers/catch.py`, with a seed for each turn. Ours trains on whole episodes, the fewest that hold as many env
steps as an iteration of theirs. Afterwards both play the same episodes greedily. Env steps a second are those of the
whole training, play and updates, ours with its callbacks, logger and checkpoints. Speed aims at 0.85 of theirs, the
return at not being below theirs: the 95 % intervals of the mean over the seeds overlap, or ours is higher.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_align.envs.gym import make
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec
from tools.bench._bench import Bench, Result
from tools.bench._peer import Peer, peer_python
from tools.bench._peers.catch import ID as CATCH
from tools.bench._ppo import PPO, align
from tools.bench._race import Timing, from_timings, interleave, reaches

BENCH = Bench("ppo", "env steps/s", __doc__)
AIM, PEER, EVALUATION, TOLERANCE = 0.85, "stable_baselines3", 20, 0.1


@dataclass
class Learning:
    """One environment, and how it is learnt.

    Attributes:
        env: Gymnasium id of the world; ours may name the module that registers it.
        total: Env steps of a run.
        ppo: Hyper-parameters of both sides.
        backbone: Our network.
        network: Their network: `default` for that of SB3's policy, or `small`.
        fragment: Env steps of a piece of an episode, for our minibatches.
        worlds: Stepped together.
    """

    env: str
    total: int
    ppo: PPO
    backbone: BackboneConfig
    network: str
    fragment: int
    worlds: int = 8


CASES = {
    "CartPole-v1": Learning(
        "CartPole-v1",
        50_000,
        PPO(n_steps=2048, batch_size=256, learning_rate=2e-3),
        BackboneConfig(image_size=0, vector_size=4, width=32, layers=1, heads=1, context=1, mlp_ratio=2.0),
        "default",
        fragment=1,
        worlds=1,
    ),
    "catch, 64x64 pixels": Learning(
        CATCH,
        30_000,
        PPO(n_steps=140, batch_size=280, n_epochs=4, gamma=0.95, learning_rate=1e-3),
        BackboneConfig(encoder="patch", channels=12, width=64, layers=1, heads=1, context=1, mlp_ratio=1.0),
        "small",
        fragment=1,
    ),
}


def flops(agent: Agent) -> float:
    """Floating-point operations of a forward pass for one observation, value head included."""
    config = agent.config
    frames = torch.zeros(1, 1, config.image_size, config.image_size, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        agent(frames, torch.zeros(1, 1, config.vector_size))
    return float(counter.get_total_flops() + 2 * config.width)


def race(name: str, case: Learning, options: argparse.Namespace, result: Result) -> None:
    """Trains and plays in turns, a seed each; seconds are for `total` env steps, since ours ends with an iteration."""
    evaluation = [10**6 + i for i in range(EVALUATION)]
    module = "tools.bench._peers.catch:" if case.env == CATCH else ""
    config = case.ppo.config(case.worlds, case.fragment)
    world = make(module + case.env)
    agent = Agent(case.backbone, ActionCodec(world.action_space))
    world.close()
    settings = {"env": case.env, "worlds": case.worlds, "total": case.total, "ppo": asdict(case.ppo)}
    settings |= {"network": case.network, "evaluation": evaluation, "threads": options.threads, "seed": options.seed}
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], PEER: []}
    with (
        tempfile.TemporaryDirectory() as folder,
        Peer("sb3_ppo", peer_python("stable-baselines3"), **settings) as sb3,
    ):
        agent.save(Path(folder) / "agent")

        def ours() -> Timing:
            seed = options.seed + len(runs["ours"])
            return kept("ours", align(config, Path(folder) / "agent", module + case.env, case.total, seed, evaluation))

        def kept(who: str, told: dict[str, Any]) -> Timing:
            runs[who].append(told)
            print(f"{name}, {who}: {told}", file=sys.stderr)
            return {clock: told[clock] * case.total / told["steps"] for clock in ("wall", "cpu")}

        # Each run is long enough to warm itself up.
        timings = interleave({"ours": ours, PEER: lambda: kept(PEER, sb3())}, options.repeats, warm_up=0)
    steps = {who: [int(each["steps"]) for each in told] for who, told in runs.items()}
    parameters = {"ours": int(runs["ours"][0]["parameters"]), PEER: sb3.facts["parameters"]}
    cost = {"ours": flops(agent), PEER: sb3.facts["flops"]}
    facts = {"env_steps": steps, "parameters": parameters, "flops_per_observation": cost}
    facts |= {"ppo": asdict(case.ppo), "worlds": case.worlds, "backbone": case.backbone.to_dict()}
    returns = {who: [each["return"] for each in told] for who, told in runs.items()}
    result.cases |= {
        name: from_timings(timings, case.total, aim={PEER: AIM}, facts=facts),
        f"{name}, return": reaches(returns["ours"], {PEER: returns[PEER]}, unit="return"),
    }
    result.versions |= sb3.facts["versions"]
    if abs(cost["ours"] / cost[PEER] - 1) > TOLERANCE:
        result.failures.append(f"{name}: the networks differ in cost by more than {TOLERANCE:.0%}: {cost}")


def measure(options: argparse.Namespace) -> Result:
    """Both worlds, one after the other; a turn is a seed."""
    result = Result({})
    for name, case in CASES.items():
        race(name, replace(case, total=3000) if options.quick else case, options, result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
