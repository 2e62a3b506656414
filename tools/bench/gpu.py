"""One CUDA GPU: how well the `paper` agent trains on it, with real data behind it, and how quickly it acts.

`train`: frames a second of a bfloat16 training step, compiled, against the same step uncompiled, at the batch that is
best; every batch size with its model FLOPs utilisation (MFU) is under `sweep`. `data`: the same through
`TrajectoryDataModule` and the Trainer, against the step on a batch that lies on the GPU. `act, B worlds`: milliseconds
of a cached step from host to host, replayed as a CUDA graph, against launching its kernels one by one.
Needs torch, lightning, torchmetrics, gymnasium, numpy, pyarrow and pillow; no game engine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_align.models.config import BackboneConfig
from lit_align.stages.flops import peak_flops
from tools.bench import _gpu
from tools.bench._bench import Bench, NotHere, Result
from tools.bench._gpu_data import frames_per_second, made_up_recording
from tools.bench._race import Case, from_timings, from_values, interleave
from tools.bench._sizes import load_size

BENCH = Bench("gpu", "frames/s", __doc__, threads=8)
WINDOW = 128
BATCHES = (4, 8, 16, 32, 64)
WORLDS = (1, 64)
STEPS = 1000


def measure(options: argparse.Namespace) -> Result:
    """All three parts, on the first GPU."""
    if not torch.cuda.is_available():
        raise NotHere("needs a CUDA device")
    device = torch.device("cuda", 0)
    torch.set_float32_matmul_precision("high")
    config = load_size("tiny" if options.quick else "paper")
    result = Result({}, headline="train")
    with _gpu.freed(device):
        train, batch = training(config, device, options)
    result.cases["train"] = train
    with _gpu.freed(device):
        result.cases["data"] = with_data(config, device, batch, options)
    for worlds in WORLDS:
        with _gpu.freed(device):
            result.cases[f"act, {worlds} worlds"] = acting(config, device, worlds, options)
    with torch.device("meta"):
        result.facts["parameters"] = sum(p.numel() for p in _gpu.Agent(config, _gpu.CODEC).parameters())
    return result


def training(config: BackboneConfig, device: torch.device, options: argparse.Namespace) -> tuple[Case, int]:
    """The case and the batch size that was best."""
    steps = 3 if options.quick else 10
    peak = peak_flops(device, "bf16-mixed") if device.type == "cuda" else None
    cost = _gpu.TrainStep(config, 1, WINDOW, device, compiled=False).flops_per_frame()
    facts: dict[str, Any] = {"train_flops_per_frame": cost, "peak_flops": peak, "window": WINDOW}
    if device.type == "cuda":
        facts["matmul_flops"] = _gpu.matmul_rate(device)
    sweep: dict[str, dict[str, float]] = {}
    for batch in BATCHES[: 2 if options.quick else None]:
        try:
            with _gpu.freed(device):
                rate = compiled_rate(config, batch, device, steps)
        except torch.cuda.OutOfMemoryError:
            break
        sweep[str(batch)] = {"frames_per_s": rate, **_utilisation(rate * cost, facts)}
    best = max(sweep, key=lambda batch: sweep[batch]["frames_per_s"])
    racers = {
        who: _gpu.TrainStep(config, int(best), WINDOW, device, compiled=who == "ours") for who in ("ours", "eager")
    }
    runners = {who: lambda step=step: step.timed(steps) for who, step in racers.items()}
    timings = interleave(runners, options.repeats)
    facts |= {"batch": int(best), "sweep": sweep}
    case = from_timings(timings, int(best) * WINDOW * steps, facts=facts)
    case.facts |= _utilisation(case.ours * cost, facts)
    return case, int(best)


def compiled_rate(config: BackboneConfig, batch: int, device: torch.device, steps: int) -> float:
    """Frames a second of the compiled step at one batch size."""
    step = _gpu.TrainStep(config, batch, WINDOW, device, compiled=True)
    step.timed(3)
    return batch * WINDOW * steps / step.timed(steps)["wall"]


def _utilisation(flops: float, facts: dict[str, Any]) -> dict[str, float]:
    told = {"mfu": flops / facts["peak_flops"]} if facts["peak_flops"] else {}
    return told | ({"of_matmul": flops / facts["matmul_flops"]} if facts.get("matmul_flops") else {})


def with_data(config: BackboneConfig, device: torch.device, batch: int, options: argparse.Namespace) -> Case:
    """Frames a second through the loader and the Trainer, against a batch that never moves; in turns."""
    steps = 3 if options.quick else 20
    compiled = device.type == "cuda"
    rates: dict[str, list[float]] = {"ours": [], "batch_on_device": []}
    still = _gpu.TrainStep(config, batch, WINDOW, device, compiled)
    still.timed(3)
    with tempfile.TemporaryDirectory() as folder:
        recording = made_up_recording(Path(folder) / "play", max(2 * batch, 8), WINDOW, config.image_size)
        for _ in range(options.repeats):
            rates["ours"].append(frames_per_second(config, recording, batch, WINDOW, steps, device, compiled))
            rates["batch_on_device"].append(batch * WINDOW * steps / still.timed(steps)["wall"])
    return from_values(rates.pop("ours"), rates, facts={"batch": batch, "steps": steps})


def acting(config: BackboneConfig, device: torch.device, worlds: int, options: argparse.Namespace) -> Case:
    """Milliseconds of a cached step; the ratio is that of the turns' medians."""
    racers = {
        "ours": _gpu.CachedStep(config, worlds, device, graph=device.type == "cuda"),
        "eager": _gpu.CachedStep(config, worlds, device, graph=False),
    }
    turns: dict[str, list[list[float]]] = {who: [] for who in racers}
    for step in racers.values():
        step.milliseconds(config.context + 1)
    for _ in range(options.repeats):
        for who, step in racers.items():
            turns[who].append(step.milliseconds((50 if options.quick else STEPS) // options.repeats))
    medians = {who: [statistics.median(turn) for turn in each] for who, each in turns.items()}
    pooled = {who: [ms for turn in each for ms in turn] for who, each in turns.items()}
    facts = {f"p{q}": {who: float(np.percentile(each, q)) for who, each in pooled.items()} for q in (50, 95, 99)}
    return from_values(medians.pop("ours"), medians, better="lower", unit="ms", facts={"worlds": worlds, **facts})


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
