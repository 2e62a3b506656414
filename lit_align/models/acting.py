"""Acting in real time: one frame in, one action out, in as few bits as the machine likes best."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_align.errors import UserError
from lit_align.models.lora import merge_lora
from lit_align.models.quantize import quantize_linears
from lit_align.models.transformer import KVCache

if TYPE_CHECKING:
    from lit_align.models.agent import Agent

Precision = Literal["fp32", "bf16", "int8"]
Array = NDArray[Any] | Tensor
Observation = Array | dict[str, Array]


class Actor:
    """What an agent remembers between calls of `act`: its worlds' pasts and its source of chance."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.cache: KVCache | None = None
        self.noise = torch.Generator().manual_seed(0)
        self.single = True

    @torch.inference_mode()  # the cache was made in it
    def reset(self, worlds: list[int] | None, seed: int | None) -> None:
        """Forgets; see `Agent.reset`."""
        if seed is not None:
            self.noise.manual_seed(seed)
        if worlds is None:
            self.cache = None
        elif self.cache is not None:
            self.cache.reset(worlds)

    @torch.inference_mode()
    def act(self, observation: Observation, temperature: float, top_p: float) -> Any:
        """See `Agent.act`."""
        check_sampling(temperature, top_p)
        frames, vectors, single = split(self.agent, observation)
        if self.cache is None:
            self.agent.eval()
            self.cache, self.single = self.agent.new_cache(len(frames)), single
        if (len(frames), single) != (len(self.cache.steps), self.single):
            before, now = (
                "one world" if one else f"a batch of {n}"
                for n, one in ((len(self.cache.steps), self.single), (len(frames), single))
            )
            raise UserError(f"act was given {now} after {before}; call reset() before another number of worlds")
        device = self.cache.pairs.device
        uniform = torch.rand(len(frames), len(self.agent.codec.heads), generator=self.noise)
        actions, _ = self.agent.choose(
            frames.to(device), self.cache, vectors.to(device), uniform.to(device), temperature, top_p
        )
        decoded = [self.agent.codec.decode(row) for row in actions.cpu().numpy()]
        return decoded[0] if single else decoded


def check_sampling(temperature: float, top_p: float) -> None:
    """Raises ValueError unless actions can be drawn so."""
    if not (temperature >= 0 and 0 < top_p <= 1):  # so written, NaN is refused too
        raise UserError(
            f"temperature is {temperature} and top_p {top_p}; expected a temperature of 0 or more and a top_p above 0 "
            "and up to 1"
        )


def split(agent: Agent, observation: Observation) -> tuple[Tensor, Tensor, bool]:
    """An observation of one world or many as frames `(B, H, W, 3)`, vectors `(B, V)`, and whether it was of one.

    Raises:
        ValueError: It is not what the agent sees.
    """
    config = agent.config
    parts = observation if isinstance(observation, dict) else {"pixels" if config.image_size else "vector": observation}
    wanted = {"pixels": config.image_size, "vector": config.vector_size}
    if set(parts) != {name for name, size in wanted.items() if size}:
        raise UserError(
            f"the observation holds {sorted(parts)}; the agent sees {sorted(n for n, s in wanted.items() if s)}: give "
            'them as {"pixels": ..., "vector": ...}'
        )
    shapes = {"pixels": (config.image_size, config.image_size, 3), "vector": (config.vector_size,)}
    tensors = {name: _checked(name, _tensor(part), shapes[name]) for name, part in parts.items()}
    lead = {tuple(tensor.shape[: tensor.ndim - len(shapes[name])]) for name, tensor in tensors.items()}
    if len(lead) > 1:
        raise UserError(f"pixels and vector are of different numbers of worlds: {sorted(lead)}")
    worlds = lead.pop()
    count = worlds[0] if worlds else 1
    frames = tensors.get("pixels", torch.zeros(count, 0, 0, 3, dtype=torch.uint8))
    vectors = tensors.get("vector", torch.zeros(count, 0))
    return frames.reshape(count, *frames.shape[-3:]), vectors.reshape(count, vectors.shape[-1]).float(), not worlds


def _checked(name: str, part: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A part of an observation, of one world or of a batch of worlds."""
    if part.shape[part.ndim - len(shape) :] != shape or part.ndim - len(shape) not in (0, 1):
        raise UserError(
            f"{name} is of shape {tuple(part.shape)}; the agent sees {shape}, of one world or of a batch of worlds"
        )
    if not (part.dtype == torch.uint8 if name == "pixels" else part.is_floating_point()):
        raise UserError(f"{name} is {part.dtype}; expected {'uint8' if name == 'pixels' else 'floats'}")
    if name == "vector" and not part.isfinite().all():
        raise UserError("vector holds a value that is not finite")
    return part


def prepare(agent: Agent, precision: Precision = "fp32", compile: bool = False) -> Agent:
    """A copy of an agent for acting: nothing of it can be trained.

    Args:
        agent: Whom to copy.
        precision: `fp32`; `bf16`: weights and arithmetic in bfloat16; `int8`: as bf16, with the matrices of the
            transformer as 8-bit whole numbers and a scale a row, which halves what is read from memory at every step.
            The heads stay in float32: probabilities that differ little must not be rounded to the same number.
        compile: Compile a step with `torch.compile` (the first call of each number of worlds takes up to a minute).

    Raises:
        ValueError: An unknown precision, or int8 elsewhere than on a CPU.
    """
    if precision not in ("fp32", "bf16", "int8"):
        raise UserError(f"precision is {precision!r}; expected fp32, bf16 or int8")
    device = next(agent.parameters()).device.type
    if precision == "int8" and device != "cpu":
        raise UserError(f"precision is int8 on {device}; 8-bit weights are for acting on a CPU: use bf16")
    made = copy.deepcopy(agent).eval().requires_grad_(False)
    made.backbone.__dict__.pop("step", None)  # one that was compiled belongs to the agent that was copied
    if precision != "fp32":
        made.backbone.to(torch.bfloat16)
    if precision == "int8":
        merge_lora(made.backbone)
        quantize_linears(made.backbone.transformer)
    if compile:
        made.backbone.step = torch.compile(made.backbone.step, dynamic=False)  # type: ignore[method-assign]
    return made


def _tensor(part: Array) -> Tensor:
    return part if isinstance(part, Tensor) else torch.from_numpy(np.ascontiguousarray(part))
