"""Collecting experience in a world that costs nothing, against Stable-Baselines3.

A 64x64 world of ready-made pictures, sixteen of them in one process, eight discrete actions. Theirs:
`PPO("CnnPolicy").collect_rollouts` over a DummyVecEnv, with its own network (`NatureCNN`) and with a small one of one
convolution. Ours: the Sampler with the `patch` encoder and a transformer of two layers, whose encoder is made so wide
that a frame costs as many floating-point operations as theirs within 10 %. Both write down frames, actions and
log-probabilities. `network alone` is the same race without world and bookkeeping, a cached step against the policy's
forward, and `beside the network` what is left of a step when that is taken away.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from lit_align.models.agent import Agent
from lit_align.rollout.sampler import Sampler
from lit_align.spaces import ActionCodec
from tools.bench._bench import Bench, Result
from tools.bench._peer import Peer, peer_python
from tools.bench._peers.null_world import SIZE, STEPS, NullWorld
from tools.bench._peers.serve import timed
from tools.bench._race import from_timings, interleave
from tools.bench._sizes import load_size

BENCH = Bench("null_world", "env steps/s", __doc__)
WORLDS, AIM, TOLERANCE = 16, 3.0, 0.1
LAYERS, HEAD_WIDTH = 2, 32
NETWORKS = {"NatureCNN": 5, "one convolution": 2}
"""Their networks, and how many attention heads our transformer has beside each."""


def flops(agent: Agent) -> float:
    """Floating-point operations of a cached step for one world."""
    frames = torch.zeros(WORLDS, SIZE, SIZE, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        agent.step(frames, agent.new_cache(WORLDS))
    return counter.get_total_flops() / WORLDS


def agent_like(cost: float, heads: int, codec: ActionCodec) -> Agent:
    """The agent of a given transformer whose step costs nearest to `cost` operations a frame."""
    like = replace(
        load_size("tiny"), encoder="patch", image_size=SIZE, layers=LAYERS, width=HEAD_WIDTH * heads, heads=heads
    )
    made = (Agent(replace(like, channels=channels), codec).eval() for channels in range(2, 65, 2))
    return min(made, key=lambda agent: abs(flops(agent) - cost))


def race(network: str, heads: int, options: argparse.Namespace, result: Result) -> None:
    """Races a rollout of all worlds, and the networks alone, in the same turns."""
    steps = 20 if options.quick else STEPS
    python = peer_python("stable-baselines3")
    settings = {"worlds": WORLDS, "steps": steps, "threads": options.threads, "seed": options.seed, "network": network}
    with (
        Peer("sb3", python, what="collect", **settings) as peer,
        Peer("sb3", python, what="forward", **settings) as net,
    ):
        theirs = peer.facts["flops"]
        agent = agent_like(theirs, heads, ActionCodec(NullWorld().action_space))
        cost = {"ours": flops(agent), "stable_baselines3": theirs}
        print(f"operations a frame: ours {cost['ours'] / 1e6:.2f}M, theirs {theirs / 1e6:.2f}M", file=sys.stderr)
        frames = torch.zeros(WORLDS, SIZE, SIZE, 3, dtype=torch.uint8)

        @torch.inference_mode()
        def forward() -> None:
            cache = agent.new_cache(WORLDS)
            for _ in range(steps):
                agent.step(frames, cache)

        with Sampler(agent, lambda: NullWorld(steps), WORLDS, seed=options.seed) as sampler:

            def sample() -> None:
                played = sum(len(each) for each in sampler.play((i, i) for i in range(WORLDS)))
                assert played == WORLDS * steps

            timings = interleave(
                {"ours": lambda: timed(sample), "sb3": peer, "our network": lambda: timed(forward), "sb3 network": net},
                options.repeats,
            )
        result.versions |= peer.facts["versions"]
    facts = {"flops_per_frame": cost, "backbone": agent.config.to_dict()}
    rollout = {"ours": timings["ours"], "stable_baselines3": timings["sb3"]}
    alone = {"ours": timings["our network"], "stable_baselines3": timings["sb3 network"]}
    beside = {
        who: [{clock: a[clock] - b[clock] for clock in a} for a, b in zip(rollout[who], alone[who], strict=True)]
        for who in rollout
    }
    amount = WORLDS * steps
    result.cases |= {
        network: from_timings(rollout, amount, aim={"stable_baselines3": AIM}, facts=facts),
        f"{network}, network alone": from_timings(alone, amount),
        f"{network}, beside the network": from_timings(beside, amount),
    }
    if abs(cost["ours"] / theirs - 1) > TOLERANCE:
        result.failures.append(f"the networks differ in cost by more than {TOLERANCE:.0%}: {cost}")


def measure(options: argparse.Namespace) -> Result:
    """Both networks, one after the other."""
    result = Result({})
    for network, heads in NETWORKS.items():
        race(network, heads, options, result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
