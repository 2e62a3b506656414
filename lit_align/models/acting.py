"""Acting in real time: one frame in, one action out, in as few bits as the machine likes best."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor

from lit_align.errors import UserError
from lit_align.models.lora import merge_lora
from lit_align.models.observations import check_sampling as check_sampling
from lit_align.models.observations import check_worlds, read, world_numbers
from lit_align.models.quantize import quantize_linears
from lit_align.models.transformer import KVCache

if TYPE_CHECKING:
    from lit_align.models.agent import Agent
    from lit_align.models.observations import Observation, Worlds
    from lit_align.models.reward import RewardModel

    Model = TypeVar("Model", Agent, RewardModel)

Precision = Literal["fp32", "bf16", "int8"]


class Actor:
    """What an agent remembers between calls of `act`: its worlds' pasts and its source of chance."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.memory = Memory(agent)
        self.noise = torch.Generator().manual_seed(0)

    def reset(self, worlds: Worlds | None, seed: int | None) -> None:
        """Forgets; see `Agent.reset`."""
        if seed is not None:
            self.noise.manual_seed(seed)
        self.memory.reset(worlds)

    @torch.inference_mode()
    def act(self, observation: Observation, temperature: float, top_p: float) -> Any:
        """See `Agent.act`."""
        check_sampling(temperature, top_p)
        frames, vectors, cache = self.memory.read(observation, "act")
        uniform = torch.rand(len(frames), len(self.agent.codec.heads), generator=self.noise).to(frames.device)
        actions, _ = self.agent.choose(frames, cache, vectors, uniform, temperature, top_p)
        decoded = [self.agent.codec.decode(row) for row in actions.cpu().numpy()]
        return decoded[0] if self.memory.single else decoded


class Memory:
    """The pasts of a model's worlds, from one call to the next.

    Args:
        model: Who remembers.

    Attributes:
        cache: What was seen; None before the first call.
        single: Whether calls are of one world, without a batch dimension.
    """

    def __init__(self, model: Agent | RewardModel) -> None:
        self.model = model
        self.cache: KVCache | None = None
        self.single = True

    @torch.inference_mode()  # the cache was made in it
    def reset(self, worlds: Worlds | None) -> list[int] | None:
        """Forgets some worlds, or all of them and how many there were; gives their numbers, None for all."""
        if worlds is None:
            self.cache = None
            return None
        numbers = world_numbers(worlds, None if self.cache is None else len(self.cache.steps))
        if self.cache is not None:
            self.cache.reset(numbers)
        return numbers

    def read(self, observation: Observation, what: str) -> tuple[Tensor, Tensor, KVCache]:
        """An observation as frames `(B, S, S, 3)` and vectors `(B, V)` on the model's device, and its cache.

        Args:
            observation: Of one world or of many.
            what: The method that was called, said in errors.

        Raises:
            ValueError: It is not what the model sees, or of another number of worlds than before.
        """
        config = self.model.config
        seen = read(observation, config.image_size, config.vector_size, f"the {self.model.kind.replace('_', ' ')}")
        frames, vectors = (torch.as_tensor(part) for part in (seen.frames, seen.vectors))
        device = next(self.model.parameters()).device
        if self.cache is None:
            self.model.eval()
            self.cache, self.single = self.model.backbone.new_cache(len(frames)), seen.single
        check_worlds((len(frames), seen.single), (len(self.cache.steps), self.single), what)
        self.cache.to(device)  # the model may have moved
        return frames.to(device), vectors.to(device), self.cache


def prepare(model: Model, precision: Precision = "fp32", compile: bool = False) -> Model:
    """A copy of an agent or a reward model for acting: nothing of it can be trained. Arguments as in `make_ready`."""
    check_precision(precision, next(model.parameters()).device)
    return make_ready(copy.deepcopy(model), precision, compile)


def make_ready(model: Model, precision: Precision = "fp32", compile: bool = False) -> Model:
    """Makes a model fit for acting alone, itself, and returns it.

    Args:
        model: An agent, or a reward model.
        precision: `fp32`; `bf16`: weights and arithmetic in bfloat16; `int8`: as bf16, with the matrices of the
            transformer as 8-bit whole numbers and a scale a row, which halves what is read from memory at every step.
            The heads stay in float32: probabilities that differ little must not be rounded to the same number.
        compile: Compile a step with `torch.compile` (the first call of each number of worlds takes up to a minute).

    Raises:
        ValueError: An unknown precision, or int8 elsewhere than on a CPU.
    """
    check_precision(precision, next(model.parameters()).device)
    model.eval().requires_grad_(False)
    model.backbone.__dict__.pop("step", None)  # one that was compiled belongs to the model that was copied
    if precision != "fp32":
        model.backbone.to(torch.bfloat16)
    if precision == "int8":
        merge_lora(model.backbone)
        quantize_linears(model.backbone.transformer)
    if compile:
        model.backbone.step = torch.compile(model.backbone.step, dynamic=False)  # type: ignore[method-assign]
    return model


def check_precision(precision: str, device: torch.device) -> None:
    """Raises ValueError if a precision is unknown, or not one of that device."""
    if precision not in ("fp32", "bf16", "int8"):
        raise UserError(f"precision is {precision!r}; expected fp32, bf16 or int8")
    if precision == "int8" and device.type != "cpu":
        raise UserError(f"precision is int8 on {device.type}; 8-bit weights are for acting on a CPU: use bf16")
