"""The quickstart's training step against the same network plainly run.

Ours: `lit-align pretrain fit` with the network, optimizer and precision of configs/jumppads/pretrain.yaml, on batches
of 32 windows of 80 frames that lie in memory. `eager_fp32`: the same network in float32, contiguous NCHW, with torch's
plain AdamW. The case `patch` is the same with that encoder, beside the plain run of the quickstart's network too.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch
import yaml

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from tools.bench._bench import Bench, Result
from tools.bench._imitation import CODEC, FixedBatches, bare_loop, through_lightning
from tools.bench._machine import ROOT
from tools.bench._race import Timing, from_timings, interleave

BENCH = Bench("quickstart_step", "frames/s", __doc__, threads=2)
CONFIG = ROOT / "configs" / "jumppads" / "pretrain.yaml"
WINDOWS, FRAMES, AIM = 32, 80, 2.0


def contiguous(agent: Agent) -> Agent:
    """Gives every convolution its input as NCHW: frames come channels-last, and torch would follow them."""
    for module in agent.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return agent


def measure(options: argparse.Namespace) -> Result:
    """Lets all take turns; each run starts from the same seed and warms itself up."""
    content = yaml.safe_load(CONFIG.read_text())
    shape = dict(content["model"]["backbone"])
    lr, clip = float(content["model"]["optimizer"]["lr"]), content["trainer"].get("gradient_clip_val")
    windows, steps = (4, 2) if options.quick else (WINDOWS, 10)
    data: dict[str, Any] = {"image_size": shape["image_size"], "windows": windows, "frames": FRAMES}
    data |= {"warm_up": 1 if options.quick else 3, "steps": steps}

    def ours(changes: dict[str, Any]) -> Timing:
        model = {**content["model"], "backbone": {**shape, **changes}}
        return through_lightning({"model": model, "trainer": content["trainer"]}, data, options.seed)

    def plain(changes: dict[str, Any]) -> Timing:
        torch.manual_seed(options.seed)
        agent = contiguous(Agent(BackboneConfig.from_dict({**shape, **changes}), CODEC))
        optimizer = torch.optim.AdamW(agent.parameters(), lr, fused=False)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        return bare_loop(agent, optimizer, schedule, FixedBatches(**data, seed=options.seed).laps, clip)

    own, patch = shape["encoder"], {"encoder": "patch"}
    runners = {
        own: lambda: ours({}),
        f"{own} plain": lambda: plain({}),
        "patch": lambda: ours(patch),
        "patch plain": lambda: plain(patch),
    }
    timings = interleave(runners, options.repeats, warm_up=0)
    facts = {"precision": content["trainer"].get("precision"), "backbone": shape, "windows": windows}
    amount, aim = windows * FRAMES * steps, {"eager_fp32": AIM}
    quickstart = {"ours": timings[own], "eager_fp32": timings[f"{own} plain"]}
    other = {
        "ours": timings["patch"],
        "eager_fp32": timings["patch plain"],
        f"{own}_eager_fp32": quickstart["eager_fp32"],
    }
    return Result(
        {
            f"{own}, the quickstart's": from_timings(quickstart, amount, aim=aim, facts=facts),
            "patch": from_timings(other, amount),
        }
    )


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
