"""Training a reward model: comparisons a second, against `imitation`'s BasicRewardTrainer and PreferenceModel.

The reward net is imitation's own on both sides, its module and its first weights: an MLP on vectors (fragments of 50
steps) and a CNN on 64x64 pixels (16 steps). Theirs: an epoch of `BasicRewardTrainer.train`, 64 comparisons in a batch
of vectors, 32 in one of pixels. Ours: `lit-align reward fit` around the same net, its loss, its batches from disk,
AdamW under the Trainer with its callbacks and its logger. `disjoint`: no two comparisons share a fragment, so that both
sides score the same fragments in steps of as many comparisons; for the CNN ours adds up the gradients of 32 batches of
one for a step, since small arrays cost less memory traffic (the peer scores one fragment at a time). `shared`:
10,000 comparisons among 1,000 fragments; ours scores each fragment of a batch once and uses all comparisons among them
(`data.batch: trajectories`), a larger batch than theirs, and fewer of them in an epoch. Nothing is written unless both
losses of the same weights on the same comparisons, ties among them, agree to 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectories import TrajectoryWriter
from lit_align.data.trajectory import Trajectory
from lit_align.models.agent import Agent
from lit_align.spaces import ActionCodec
from lit_align.stages.reward import pairwise_loss
from tools.bench._bench import Bench, Result
from tools.bench._machine import ROOT
from tools.bench._peer import Peer, peer_python
from tools.bench._preferences import Borrowed, RacedPreferences, through_the_stage
from tools.bench._race import Timing, from_timings, interleave
from tools.bench._sizes import load_size

BENCH = Bench("reward_pairs", "pairs/s", __doc__)
CODEC = ActionCodec(spaces.Discrete(2))
PACKAGE, VENV = "imitation==1.0.1", ROOT / ".venv-imitation"
PROBE, LR, TIES, CLOSE = 32, 1e-3, 0.1, 1e-5
VECTOR, PIXELS, SIDE = 17, 64, 8


@dataclass
class Fragments:
    """Fragments and comparisons of one case.

    Attributes:
        steps: Observations of a fragment, all of which are scored.
        pixels: Whether they are pictures; else vectors.
        fragments: How many there are.
        pairs: Comparisons.
        shared: Whether comparisons share fragments.
        our_steps: Optimizer steps of one of our runs.
        their_steps: Optimizer steps of one of theirs.
        aim: Our pairs/s over theirs.
        network: Arguments of their reward net.
        batch: Comparisons of an optimizer step, where they are disjoint of ours too.
        together: Fragments in one of our batches where they are shared.
        accumulate: Our batches of a step; they share its comparisons out.
    """

    steps: int
    pixels: bool
    fragments: int
    pairs: int
    shared: bool
    our_steps: int
    their_steps: int
    aim: float
    network: dict[str, Any]
    batch: int = 32
    together: int = 500
    accumulate: int = 1


STRIDED = {"stride": 2, "padding": 1}
"""The default of imitation's CNN is two convolutions of stride 1: 41 million multiplications a frame."""
CASES = {
    "MLP, disjoint": Fragments(50, False, 1920, 960, False, 200, 10, 10.0, {}, batch=64),
    "CNN, disjoint": Fragments(16, True, 384, 192, False, 4, 3, 1.0, STRIDED, accumulate=32),
    "CNN, shared": Fragments(16, True, 1000, 10_000, True, 2, 3, 3.0, STRIDED),
}
QUICK = {
    "MLP, disjoint": replace(CASES["MLP, disjoint"], fragments=128, pairs=64, our_steps=5, their_steps=1),
    "CNN, disjoint": replace(CASES["CNN, disjoint"], fragments=128, pairs=64, our_steps=1, their_steps=1),
    "CNN, shared": replace(CASES["CNN, shared"], fragments=64, pairs=400, our_steps=1, their_steps=1, together=32),
}


def observations(case: Fragments, rng: np.random.Generator) -> np.ndarray:
    """Noise to score: vectors `(n, T, V)`, float32, or pictures of coarse squares `(n, T, S, S, 3)`, uint8."""
    if not case.pixels:
        return rng.standard_normal((case.fragments, case.steps, VECTOR), np.float32)
    cells = (case.fragments, case.steps, PIXELS // SIDE, PIXELS // SIDE, 3)
    return rng.integers(0, 256, cells, np.uint8).repeat(SIDE, 2).repeat(SIDE, 3)


def comparisons(case: Fragments, rng: np.random.Generator) -> Preferences:
    """Comparisons, no two alike, a tenth of them ties."""
    if case.shared:
        low, high = np.triu_indices(case.fragments, 1)
        drawn = rng.choice(len(low), case.pairs, replace=False)
        both = rng.permuted(np.stack((low[drawn], high[drawn]), 1), axis=1)
    else:
        both = rng.permutation(case.fragments)[: 2 * case.pairs].reshape(case.pairs, 2)
    return Preferences(both[:, 0].astype(np.int64), both[:, 1].astype(np.int64), rng.random(case.pairs) < TIES)


def write(case: Fragments, folder: Path, seed: int) -> dict[str, Path]:
    """Writes the fragments as both sides read them, and an agent, and gives the places."""
    rng = np.random.default_rng(seed)
    seen, pairs = observations(case, rng), comparisons(case, rng)
    places = {name: folder / name for name in ("trajectories", "preferences", "agent", "weights.pt", "data.npz")}
    np.savez(places["data.npz"], seen=seen, chosen=pairs.chosen, rejected=pairs.rejected, tie=pairs.tie)
    nothing = np.zeros((case.steps, 0, 0, 3), np.uint8)
    with TrajectoryWriter(places["trajectories"], CODEC, fps=10.0) as writer:
        for i, part in enumerate(seen):
            shown = {"frames": part} if case.pixels else {"frames": nothing, "vectors": part}
            writer.write(Trajectory(actions=np.zeros((case.steps - 1, 1), np.uint8), id=i, **shown))
    write_preferences(
        places["preferences"], {"train": pairs}, PreferenceMeta(str(places["trajectories"])), "2026-01-01T00:00:00Z"
    )
    sizes = {"image_size": PIXELS * case.pixels, "vector_size": VECTOR * (not case.pixels)}
    Agent(replace(load_size("tiny"), **sizes), CODEC).save(places["agent"])
    return places


def our_loss(places: dict[str, Path]) -> float:
    """Our loss on the first comparisons, of the weights that they start from."""
    data = RacedPreferences(preferences=str(places["preferences"]))
    batch = data.first(PROBE)
    with torch.no_grad():
        rewards = Borrowed(places["weights.pt"])(batch["frames"], batch["lengths"], batch["vectors"])
        return float(pairwise_loss(rewards, batch["chosen"], batch["rejected"], batch["tie"], 0.0))


def race(name: str, case: Fragments, options: argparse.Namespace, result: Result) -> None:
    """Races one case; seconds are for a thousand comparisons, since one run of ours sees more than one of theirs."""
    with tempfile.TemporaryDirectory() as folder:
        places = write(case, Path(folder), options.seed)
        settings = {"data": str(places["data.npz"]), "weights": str(places["weights.pt"]), "network": case.network}
        settings |= {"pairs": case.batch * case.their_steps, "batch": case.batch, "lr": LR, "probe": PROBE}
        python = peer_python(PACKAGE, venv=VENV, constrained=False)
        with Peer("imitation_rewards", python, threads=options.threads, seed=options.seed, **settings) as peer:
            losses = {"ours": our_loss(places), "imitation": peer.facts["loss"]}
            gap = abs(losses["ours"] - losses["imitation"])
            data = {"preferences": str(places["preferences"]), "steps": case.our_steps * case.accumulate}
            if case.shared:
                data |= {"batch": "trajectories", "trajectories_in_batch": case.together}
            else:
                data |= {"pairs": case.batch // case.accumulate}
            seen: list[float] = []

            def ours() -> Timing:
                told = through_the_stage(places["weights.pt"], places["agent"], data, LR, options.seed, case.accumulate)
                seen.append(told["pairs"])
                return {clock: told[clock] * 1000 / told["pairs"] for clock in ("wall", "cpu")}

            def theirs() -> Timing:
                return {clock: seconds * 1000 / settings["pairs"] for clock, seconds in peer().items()}

            timings = interleave({"ours": ours, "imitation": theirs}, options.repeats)
        facts = {
            "loss": losses,
            "loss_gap": gap,
            "parameters": peer.facts["parameters"],
            "pairs_of_a_step": {"ours": float(np.mean(seen)) / case.our_steps, "imitation": case.batch},
            "fragments_of_a_step": {
                "ours": case.together if case.shared else 2 * case.batch,
                "imitation": 2 * case.batch,
            },
        }
        result.cases[name] = from_timings(timings, 1000, aim={"imitation": case.aim}, facts=facts)
        result.versions |= peer.facts["versions"]
        if not gap <= CLOSE:
            result.failures.append(f"{name}: the losses differ by {gap:.2g}: {losses}")


def measure(options: argparse.Namespace) -> Result:
    """All cases, one after the other."""
    result = Result({})
    for name, case in (QUICK if options.quick else CASES).items():
        race(name, case, options, result)
    return result


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
