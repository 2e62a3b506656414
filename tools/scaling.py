"""What 8 and 64 devices would do, on paper: prints the tables of `docs/scaling.md`, or a line for a measured step.

Parameters and operations are counted on the networks of configs/sizes. The step is measured where one was (on two CPU
cores: docs/results/bench/quickstart_step.json; yours: `--step`), else made of what is assumed of a GPU. Nothing here
was measured on a GPU, and no link was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from lit_align.models.agent import Agent
from lit_align.spaces import ActionCodec, gamepad_space
from tools.bench._machine import ROOT
from tools.bench._sizes import load_size

SIZES, COUNTS, UTILISATIONS = ("tiny", "small", "paper", "300m", "1b"), (8, 64), (0.2, 0.4)
BYTES = 4
"""Of a gradient and of a weight: they are kept and sent in float32 in every mixed precision."""
PEAK, FRAMES = 989e12, 32 * 128
"""Assumed of a GPU: operations a second of products in bfloat16 (an H100's, by its maker), frames in its batch."""


@dataclass(frozen=True)
class Links:
    """What is assumed of the links: bytes a second that each device sends in a collective.

    Attributes:
        inside: Inside of a machine.
        between: Between machines.
        machine: Devices in a machine.
    """

    inside: float = 300e9
    between: float = 40e9
    machine: int = 8


ETHERNET = Links(1.25e9, 1.25e9)
"""10 Gbit/s, at its full rate."""


@dataclass(frozen=True)
class Size:
    """What is counted of a network.

    Attributes:
        name: Of the file in configs/sizes.
        parameters: How many.
        flops: Of training on one frame: three times those of the forward pass.
        frame: Bytes of a frame as it is stored.
    """

    name: str
    parameters: int
    flops: float
    frame: int


def counted(name: str, frames: int = 128) -> Size:
    """Counts a network of configs/sizes, which takes no memory."""
    config = load_size(name)
    with FakeTensorMode(), FlopCounterMode(display=False) as counter, torch.no_grad():
        agent = Agent(config, ActionCodec(gamepad_space()))
        agent(torch.zeros(1, frames, config.image_size, config.image_size, 3, dtype=torch.uint8))
        parameters = sum(parameter.numel() for parameter in agent.parameters())
    return Size(name, parameters, 3 * counter.get_total_flops() / frames, 3 * config.image_size**2)


def sent_seconds(parameters: int, count: int, sharded: bool, links: Links) -> float:
    """What a step's collectives take by themselves.

    A ring all-reduce has each device send `2 (N - 1) / N` times the gradients (Patarasuk and Yuan 2009); with sharded
    weights a reduce-scatter of the gradients and two all-gathers of the weights have it send `3 (N - 1) / N` times as
    much as there are weights.
    """
    rate = links.inside if count <= links.machine else links.between
    return (3 if sharded else 2) * (count - 1) / count * BYTES * parameters / rate


def efficiency(alone: float, sent: float, hidden: bool) -> float:
    """The rate of N devices over N times the rate of one.

    Args:
        alone: Seconds of a step of one device.
        sent: Seconds of a step's collectives.
        hidden: Whether they go on beside the whole step, or after it: the truth lies between.
    """
    return alone / (max(alone, sent) if hidden else alone + sent)


def row(size: Size, source: str, alone: float, frames: float, count: int, links: Links) -> str:
    """A line of the table; frames/s and bytes/s are those of DDP with nothing hidden."""
    ddp, fsdp = (sent_seconds(size.parameters, count, sharded, links) for sharded in (False, True))
    spans = [f"{efficiency(alone, s, False):.1%} to {efficiency(alone, s, True):.0%}" for s in (ddp, fsdp)]
    rate = count * frames / alone * efficiency(alone, ddp, False)
    return (
        f"| `{size.name}`, {size.parameters / 1e6:.1f}M | {source} | {alone * 1e3:.1f} ms | {count} "
        f"| {ddp * 1e3:.2f} ms | {spans[0]} | {spans[1]} | {rate:,.0f} | {rate * size.frame / 1e9:.2f} GB/s |"
    )


def measured() -> tuple[float, int]:
    """The quickstart's step on two CPU cores, as tools/bench/quickstart_step.py takes it: seconds and frames."""
    content = json.loads((ROOT / "docs" / "results" / "bench" / "quickstart_step.json").read_text())
    frames, steps = content["windows"] * 80, 10
    return statistics.median(content["wall_s"]["ours"]) / steps, frames


def table() -> Iterator[str]:
    """The lines of the table."""
    yield "| network | a step of one | it takes | devices | DDP sends for | DDP | FSDP2 | frames/s | pixels |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|---:|"
    alone, frames = measured()
    tiny = counted("tiny")
    for count in COUNTS:
        yield row(tiny, "measured, two CPU cores", alone, frames, count, ETHERNET)
    for size in map(counted, SIZES):
        for utilisation in UTILISATIONS:
            step = size.flops * FRAMES / (utilisation * PEAK)
            for count in COUNTS:
                yield row(size, f"assumed, {utilisation:.0%} of peak", step, FRAMES, count, Links())


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(prog="python -m tools.scaling", description=__doc__)
    made.add_argument("--size", choices=SIZES, default="paper", help="the network, with --step")
    made.add_argument("--step", type=float, metavar="SECONDS", help="a step of one device, as you measured it")
    made.add_argument("--frames", type=int, default=FRAMES, help="in that step")
    made.add_argument("--inside", type=float, default=Links.inside, help="bytes a second inside of a machine")
    made.add_argument("--between", type=float, default=Links.between, help="bytes a second between machines")
    return made


def main(argv: list[str] | None = None) -> int:
    """Prints the table, or the lines of a measured step."""
    options = parser().parse_args(argv)
    lines = list(table()) if options.step is None else []
    if options.step is not None:
        size, links = counted(options.size), Links(options.inside, options.between)
        lines = [row(size, "measured", options.step, options.frames, count, links) for count in COUNTS]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
