"""Acting in real time: one frame in, one action out, in as few bits as the machine likes best."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lit_align.errors import UserError
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
        frames, vectors, single = split(self.agent, observation)
        if self.cache is None:
            self.agent.eval()
            self.cache, self.single = self.agent.new_cache(len(frames)), single
        if (len(frames), single) != (len(self.cache.steps), self.single):
            raise UserError(
                f"act was given {len(frames)} worlds after {len(self.cache.steps)}; call reset() before another number"
            )
        device = self.cache.pairs.device
        uniform = torch.rand(len(frames), len(self.agent.codec.heads), generator=self.noise)
        actions, _ = self.agent.choose(
            frames.to(device), self.cache, vectors.to(device), uniform.to(device), temperature, top_p
        )
        decoded = [self.agent.codec.decode(row) for row in actions.cpu().numpy()]
        return decoded[0] if single else decoded


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
    tensors = {name: _tensor(part) for name, part in parts.items()}
    shapes = {"pixels": (config.image_size, config.image_size, 3), "vector": (config.vector_size,)}
    dims = {tensors[name].ndim - len(shapes[name]) for name in tensors}
    counts = {len(t) if t.ndim > len(shapes[name]) else 1 for name, t in tensors.items()}
    for name, tensor in tensors.items():
        right_type = tensor.dtype == torch.uint8 if name == "pixels" else tensor.is_floating_point()
        if len(dims) > 1 or len(counts) > 1 or tensor.shape[tensor.ndim - len(shapes[name]) :] != shapes[name]:
            raise UserError(
                f"{name} is of shape {tuple(tensor.shape)}; the agent sees {shapes[name]}, or (worlds, "
                f"{str(shapes[name])[1:]}"
            )
        if not right_type or dims - {0, 1}:
            raise UserError(
                f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}; expected "
                f"{'uint8' if name == 'pixels' else 'floats'} of one world or of a batch of worlds"
            )
    count = counts.pop()
    frames = tensors.get("pixels", torch.zeros(count, 0, 0, 3, dtype=torch.uint8))
    vectors = tensors.get("vector", torch.zeros(count, 0))
    shaped = frames.reshape(count, *frames.shape[-3:])
    return shaped, vectors.reshape(count, vectors.shape[-1]).float(), dims == {0}


def prepare(agent: Agent, precision: Precision = "fp32", compile: bool = False) -> Agent:
    """A copy of an agent for acting: nothing of it can be trained.

    Args:
        agent: Whom to copy.
        precision: `fp32`; `bf16`: weights and arithmetic in bfloat16; `int8`: as bf16, with the matrices of the
            transformer as 8-bit whole numbers and a scale a row, which halves what is read from memory at every step.
            The heads stay in float32: probabilities that differ little must not be rounded to the same number.
        compile: Compile a step with `torch.compile` (the first call of each number of worlds takes up to a minute).

    Raises:
        ValueError: An unknown precision.
    """
    if precision not in ("fp32", "bf16", "int8"):
        raise UserError(f"precision is {precision!r}; expected fp32, bf16 or int8")
    made = copy.deepcopy(agent).eval().requires_grad_(False)
    made._actor = None
    if precision != "fp32":
        made.backbone.to(torch.bfloat16)
    if precision == "int8":
        quantize_linears(made.backbone.transformer)
    if compile:
        # Static shapes: a CUDA graph can take it; on a CPU it merges what lies between the matrix products.
        mode = "reduce-overhead" if next(agent.parameters()).device.type == "cuda" else "default"
        made.backbone.step = torch.compile(made.backbone.step, mode=mode, dynamic=False)  # type: ignore[method-assign]
    return made


def _tensor(part: Array) -> Tensor:
    return part if isinstance(part, Tensor) else torch.from_numpy(np.ascontiguousarray(part))
