"""How near the sampler comes to what its parts allow: sixteen islands at 64x64, played by the `tiny` agent.

One after the other, engine and agent would give 1 / (1/e + 1/n) steps a second: e is what sixteen islands give in two
threads that never wait for each other (the engine, and scaling its picture to 64x64), n is what the bare batched
`agent.step` gives. The ratio is the sampler's rate over that limit, turn by turn. CPU seconds leave the engines out:
they are processes of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import gymnasium
import numpy as np
import torch

from lit_align.envs.gym import make
from lit_align.models.agent import Agent
from lit_align.rollout.sampler import Sampler
from lit_align.spaces import ActionCodec, gamepad_space
from tools.bench._bench import Bench, Result
from tools.bench._peers.serve import timed
from tools.bench._race import from_values, interleave
from tools.bench._sizes import load_size

BENCH = Bench("island_sampler", "env steps/s", __doc__, threads=2)
ENV, WORLDS, ENGINE_THREADS, AIM = "LitAlign/Jumppads-v0", 16, 2, 0.6


def bare_engines(
    worlds: list[gymnasium.Env[Any, Any]], actions: list[Any], pool: ThreadPoolExecutor, seed: int
) -> None:
    """Takes ready-made actions in every world, an episode's worth; each thread has its own worlds."""

    def play(first: int) -> None:
        mine = worlds[first::ENGINE_THREADS]
        for world in mine:
            world.reset(seed=seed)
        for action in actions:
            for world in mine:
                _, _, terminated, truncated, _ = world.step(action)
                if terminated or truncated:
                    world.reset()

    list(pool.map(play, range(ENGINE_THREADS)))


def bare_agent(agent: Agent, frames: torch.Tensor, steps: int) -> None:
    """Steps the cached agent on frames that are there already."""
    with torch.inference_mode():
        cache = agent.new_cache(len(frames))
        for _ in range(steps):
            agent.step(frames, cache)


def measure(options: argparse.Namespace) -> Result:
    """Lets engines, agent and sampler take turns."""
    steps = 20 if options.quick else 120
    codec = ActionCodec(gamepad_space())
    agent = Agent(load_size("tiny"), codec).eval()
    size = agent.config.image_size
    frames = torch.randint(256, (WORLDS, size, size, 3), dtype=torch.uint8)
    rng = np.random.default_rng(options.seed)
    actions = [codec.decode(rng.integers(codec.sizes)) for _ in range(steps)]
    played: list[int] = []

    def make_world() -> gymnasium.Env[Any, Any]:
        return make(ENV, size=size, max_steps=steps)

    def sample() -> None:
        episodes = [(i, options.seed + i) for i in range(WORLDS)]
        played.append(sum(len(trajectory) for trajectory in sampler.play(episodes)))

    with ExitStack() as stack:
        sampler = stack.enter_context(Sampler(agent, make_world, WORLDS, seed=options.seed))
        pool = stack.enter_context(ThreadPoolExecutor(ENGINE_THREADS))
        worlds = []
        for _ in range(WORLDS):
            worlds.append(make_world())
            stack.callback(worlds[-1].close)
        work: dict[str, Callable[[], None]] = {
            "sampler": sample,
            "engines": lambda: bare_engines(worlds, actions, pool, options.seed),
            "agent": lambda: bare_agent(agent, frames, steps),
        }
        timings = interleave({who: lambda do=do: timed(do) for who, do in work.items()}, options.repeats)

    seconds = {who: [turn["wall"] for turn in turns] for who, turns in timings.items()}
    ours = [count / s for count, s in zip(played[-options.repeats :], seconds["sampler"], strict=True)]
    e, n = ([WORLDS * steps / s for s in seconds[part]] for part in ("engines", "agent"))
    limit = [1 / (1 / a + 1 / b) for a, b in zip(e, n, strict=True)]
    facts = {
        "parts": {"engines": float(np.median(e)), "agent": float(np.median(n))},
        "wall_s": {who: [round(s, 6) for s in each] for who, each in seconds.items()},
        "cpu_s": {who: [round(turn["cpu"], 6) for turn in turns] for who, turns in timings.items()},
    }
    case = from_values(ours, {"harmonic_limit": limit}, aim={"harmonic_limit": AIM}, facts=facts)
    return Result({"island": case}, facts={"worlds": WORLDS, "engine_threads": ENGINE_THREADS})


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
