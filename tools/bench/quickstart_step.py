"""The quickstart's training step against the same network plainly run, and against the network of the first release.

Ours: `lit-align pretrain fit` with the network, optimizer and precision of configs/jumppads/pretrain.yaml, on batches
of 32 windows of 80 frames that lie in memory. `eager_fp32`: the same network in float32, contiguous NCHW, with torch's
plain AdamW. `first_release`: the network that those configs named at first, in float32, with the same plain AdamW.
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
FIRST_RELEASE = BackboneConfig(
    encoder="convnext", image_size=64, channels=16, blocks=0, width=160, layers=4, heads=5, context=32
)


def contiguous(agent: Agent) -> Agent:
    """Gives every convolution its input as NCHW: frames come channels-last, and torch would follow them."""
    for module in agent.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
    return agent


def measure(options: argparse.Namespace) -> Result:
    """Lets the three take turns; each run starts from the same seed and warms itself up."""
    content = yaml.safe_load(CONFIG.read_text())
    config = {"model": content["model"], "trainer": content["trainer"]}
    backbone = BackboneConfig.from_dict(content["model"]["backbone"])
    lr, clip = float(content["model"]["optimizer"]["lr"]), content["trainer"].get("gradient_clip_val")
    windows, steps = (4, 2) if options.quick else (WINDOWS, 10)
    data: dict[str, Any] = {"image_size": backbone.image_size, "windows": windows, "frames": FRAMES}
    data |= {"warm_up": 1 if options.quick else 3, "steps": steps}

    def ours() -> Timing:
        return through_lightning(config, data, options.seed)

    def plain(network: BackboneConfig, nchw: bool) -> Timing:
        torch.manual_seed(options.seed)
        agent = Agent(network, CODEC)
        # The first release laid its convolutions' weights out channels-last.
        agent = contiguous(agent) if nchw else agent.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(agent.parameters(), lr, fused=False)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
        laps = FixedBatches(**{**data, "image_size": network.image_size}, seed=options.seed).laps
        return bare_loop(agent, optimizer, schedule, laps, clip)

    runners = {
        "ours": ours,
        "eager_fp32": lambda: plain(backbone, nchw=True),
        "first_release": lambda: plain(FIRST_RELEASE, nchw=False),
    }
    timings = interleave(runners, options.repeats, warm_up=0)
    facts = {"precision": config["trainer"].get("precision"), "backbone": backbone.to_dict(), "windows": windows}
    aim = {"eager_fp32": AIM, "first_release": AIM}
    return Result({"step": from_timings(timings, windows * FRAMES * steps, aim=aim, facts=facts)})


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
