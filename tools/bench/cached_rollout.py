"""Acting with the KV cache against computing the whole past anew at every step, as Decision Transformers act.

Sixteen worlds, as many as the sampler plays by default, four layers of width 128, a window as long as the episode, 64
and 256 steps, float32. `recompute` sees the frames up to now and no padding, so it costs half of `recompute_padded`,
which fills the window up as Decision Transformers do (at 64 steps only: at 256 it takes minutes). `embeddings`: the
transformer and its action heads alone, on ready-made embeddings. `frames`: 32x32 pixels through the encoder too, 64
steps; `recompute` encodes every past frame again, `recompute_encoded_once` keeps the embeddings and recomputes the
transformer. All sides must agree on the log-probabilities at every step to 1e-5; the largest gap is in the JSON.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space
from tools.bench._bench import Bench, Result
from tools.bench._peers.serve import timed
from tools.bench._race import from_timings, interleave

BENCH = Bench("cached_rollout", "env steps/s", __doc__)
WORLDS, WIDTH, LAYERS, HEADS, SIZE = 16, 128, 4, 4, 32
AIMS = {64: 6.0, 256: 14.0}
TOLERANCE = 1e-5

Rollout = Callable[[], Tensor]
"""Log-probabilities `(T, B, heads, widest)` of an episode, computed step by step."""


def agent_of(steps: int) -> Agent:
    """An agent whose window is the episode; its weights are shaken so that the log-probabilities are not all alike."""
    config = BackboneConfig(image_size=SIZE, channels=8, width=WIDTH, layers=LAYERS, heads=HEADS, context=steps)
    agent = Agent(config, ActionCodec(gamepad_space())).eval()
    for parameter in agent.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return agent


def on_embeddings(agent: Agent, x: Tensor) -> dict[str, Rollout]:
    """The racers on embeddings `(B, T, width)`."""
    transformer, steps = agent.backbone.transformer, x.shape[1]
    heads = torch.nn.Linear(WIDTH, sum(agent.codec.sizes))  # one softmax over all is enough to compare

    def told(features: Tensor) -> Tensor:
        return torch.log_softmax(heads(features), -1)

    def cached() -> Tensor:
        cache = agent.new_cache(len(x))
        return torch.stack([told(transformer.step(x[:, t], cache)) for t in range(steps)])

    def recompute() -> Tensor:
        return torch.stack([told(transformer(x[:, : t + 1])[:, -1]) for t in range(steps)])

    def padded() -> Tensor:
        window, out = torch.zeros_like(x), []
        for t in range(steps):
            window[:, t] = x[:, t]
            out.append(told(transformer(window)[:, t]))
        return torch.stack(out)

    return {"ours": cached, "recompute": recompute, "recompute_padded": padded}


def on_frames(agent: Agent, frames: Tensor) -> dict[str, Rollout]:
    """The racers on frames `(B, T, H, W, 3)`."""
    steps, backbone = frames.shape[1], agent.backbone

    def cached() -> Tensor:
        cache = agent.new_cache(len(frames))
        return torch.stack([agent.step(frames[:, t], cache) for t in range(steps)])

    def recompute() -> Tensor:
        return torch.stack([agent(frames[:, : t + 1])[:, -1] for t in range(steps)])

    def encoded_once() -> Tensor:
        seen, out = torch.zeros(len(frames), steps, WIDTH), []
        for t in range(steps):
            seen[:, t] = backbone.embed(frames[:, t])
            out.append(agent.log_probs_of(backbone.transformer(seen[:, : t + 1])[:, -1]))
        return torch.stack(out)

    return {"ours": cached, "recompute": recompute, "recompute_encoded_once": encoded_once}


@torch.inference_mode()
def measure(options: argparse.Namespace) -> Result:
    """Races on embeddings and on frames, for both lengths."""
    result = Result({})
    for steps in (16,) if options.quick else (64, 256):
        agent = agent_of(steps)
        inputs: dict[str, Any] = {"embeddings": on_embeddings(agent, torch.randn(WORLDS, steps, WIDTH))}
        if steps < 256:  # what is left out at 256 takes many minutes and says nothing new
            frames = torch.randint(256, (WORLDS, steps, SIZE, SIZE, 3), dtype=torch.uint8)
            inputs["frames"] = on_frames(agent, frames)
        else:
            del inputs["embeddings"]["recompute_padded"]
        for kind, racers in inputs.items():
            answers = {who: rollout() for who, rollout in racers.items()}  # the warm-up too
            gap = max((answers["ours"] - answer).abs().max().item() for answer in answers.values())
            name = f"{kind}, {steps} steps"
            if not gap <= TOLERANCE:
                result.failures.append(f"{name}: log-probabilities differ by {gap:.2e}; {TOLERANCE} is allowed")
            runners = {who: lambda rollout=rollout: timed(rollout) for who, rollout in racers.items()}
            aim = {"recompute": AIMS[steps]} if steps in AIMS else {}
            facts = {"largest_gap": gap}
            timings = interleave(runners, options.repeats, warm_up=0)
            result.cases[name] = from_timings(timings, WORLDS * steps, aim=aim, facts=facts)
    result.facts["largest_gap"] = max(case.facts["largest_gap"] for case in result.cases.values())
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
