"""The measurements of the `gpu` benchmark; each takes its device, so that a CPU can try them on a tiny agent."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lit_align.models.agent import Agent, gather_log_prob
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space
from tools.bench._race import Timing

CODEC = ActionCodec(gamepad_space())


def wait(device: torch.device) -> None:
    """Until the device has done all that it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, size: int = 8192, repeats: int = 10) -> float:
    """Operations a second of a large bfloat16 matrix product: what this device really reaches today."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    wait(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        a @ a
    wait(device)
    return repeats * 2 * size**3 / (time.perf_counter() - begun)


class TrainStep:
    """Pre-training's step on a batch that is on the device already: bfloat16 autocast, clipping, fused AdamW.

    Args:
        config: Of the agent.
        windows: Sequences in the batch.
        frames: Frames in a sequence.
        device: Where.
        compiled: Whether `torch.compile` made the agent's forward.
    """

    def __init__(self, config: BackboneConfig, windows: int, frames: int, device: torch.device, compiled: bool) -> None:
        torch.manual_seed(0)
        self.device, self.shape = device, (windows, frames)
        agent = Agent(config, CODEC).to(device)
        self.agent = agent.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.forward: Callable[[Tensor], Tensor] = torch.compile(self.agent, dynamic=False) if compiled else self.agent
        self.optimizer = torch.optim.AdamW(self.agent.parameters(), lr=1e-4, fused=True)
        side = config.image_size
        self.frames = torch.randint(256, (windows, frames, side, side, 3), device=device, dtype=torch.uint8)
        sizes = torch.tensor(CODEC.sizes, device=device)
        self.actions = (torch.rand(windows, frames, len(sizes), device=device) * sizes).to(torch.uint8)

    def __call__(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.agent.parameters(), 1.0)
        self.optimizer.step()

    def loss(self) -> Tensor:
        """The mean negative log-likelihood of the actions."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return -gather_log_prob(self.forward(self.frames), self.actions).mean()

    def flops_per_frame(self) -> float:
        """Operations of forward and backward, counted by torch in the agent as it is written, attention whole."""
        with FlopCounterMode(display=False) as counter, torch.autocast(self.device.type, torch.bfloat16):
            (-gather_log_prob(self.agent(self.frames), self.actions).mean()).backward()
        return counter.get_total_flops() / (self.shape[0] * self.shape[1])

    def timed(self, steps: int) -> Timing:
        """Seconds of some steps; the device is idle before and after."""
        wait(self.device)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(steps):
            self()
        wait(self.device)
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class CachedStep:
    """A cached step from frames in host memory to log-probabilities in host memory.

    Args:
        config: Of the agent, in bfloat16.
        worlds: Stepped together.
        device: Where.
        graph: Capture the step as a CUDA graph and replay it.
    """

    def __init__(self, config: BackboneConfig, worlds: int, device: torch.device, graph: bool) -> None:
        torch.manual_seed(0)
        self.device = device
        # The heads stay in float32; see `Agent.prepare`.
        self.agent = Agent(config, CODEC).to(device).prepare(precision="bf16")
        self.cache = self.agent.new_cache(worlds)
        side = config.image_size
        self.host = torch.randint(256, (worlds, side, side, 3), dtype=torch.uint8)
        self.host = self.host.pin_memory() if device.type == "cuda" else self.host
        self.frames = self.host.to(device)
        self.graph = self._capture() if graph else None

    def _capture(self) -> Any:
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream), torch.inference_mode():
            for _ in range(3):  # libraries choose their kernels before the capture
                self.agent.step(self.frames, self.cache)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), torch.inference_mode():
            self.out = self.agent.step(self.frames, self.cache)
        return graph

    @torch.inference_mode()
    def __call__(self) -> Tensor:
        """One step of all worlds."""
        self.frames.copy_(self.host, non_blocking=True)
        if self.graph is None:
            return self.agent.step(self.frames, self.cache).cpu()
        self.graph.replay()
        return self.out.cpu()

    def milliseconds(self, steps: int) -> list[float]:
        """Of each of some steps."""
        taken = []
        for _ in range(steps):
            begun = time.perf_counter()
            self()
            taken.append(1000 * (time.perf_counter() - begun))
        return taken


@contextlib.contextmanager
def freed(device: torch.device) -> Iterator[None]:
    """Gives the device's memory and compiled code back after a measurement, also after one that ran out of it."""
    try:
        yield
    finally:
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
