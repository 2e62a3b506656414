"""What the Trainer costs: a pre-training step of the `small` agent under Lightning and in a bare PyTorch loop.

Ours: the whole of `lit-align pretrain fit`, with its callbacks, its CSV logger (a line every 20 steps) and its
checkpoints. Theirs: forward, backward, clipping, optimizer and schedule, written out. Same batches (8 windows of 32
frames, in memory), same optimizer, same precision. The first steps and what happens once in a run are not timed.
"""

from __future__ import annotations

import argparse
import sys

import torch

from lit_align.models.agent import Agent
from lit_align.stages.optim import OptimizerConfig
from tools.bench._bench import Bench, Result
from tools.bench._imitation import CODEC, FixedBatches, bare_loop, through_lightning
from tools.bench._race import Timing, from_timings, interleave
from tools.bench._sizes import load_size

BENCH = Bench("lightning_overhead", "ms/step", __doc__)
CLIP, AIM = 1.0, 1.05


def measure(options: argparse.Namespace) -> Result:
    """Lets both loops take turns; each run starts from the same seed."""
    backbone = load_size("tiny" if options.quick else "small")
    steps = 4 if options.quick else 20
    data = {"image_size": backbone.image_size, "warm_up": 2, "steps": steps}
    config = {
        "model": {"backbone": backbone.to_dict()},
        "trainer": {"precision": "32-true", "gradient_clip_val": CLIP, "log_every_n_steps": 20},
    }

    def ours() -> Timing:
        return through_lightning(config, data, options.seed)

    def bare() -> Timing:
        torch.manual_seed(options.seed)
        laps = FixedBatches(**data, seed=options.seed).laps
        # As Pretrain lays its agent out, so that only the loop differs.
        agent = Agent(backbone, CODEC).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        made = OptimizerConfig().build(agent, len(laps))
        return bare_loop(agent, made["optimizer"], made["lr_scheduler"]["scheduler"], laps, CLIP)

    # Each run warms itself up.
    timings = interleave({"ours": ours, "bare_loop": bare}, options.repeats, warm_up=0)
    case = from_timings(timings, steps, scale=1000.0, better="lower", aim={"bare_loop": AIM})
    return Result({"tiny" if options.quick else "small": case})


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
