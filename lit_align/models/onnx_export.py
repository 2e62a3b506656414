"""An agent's cached step as an ONNX file: pixels, the KV cache and noise in, actions and the new cache out."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_align import __version__
from lit_align.errors import UserError
from lit_align.files import beside
from lit_align.models.acting import prepare
from lit_align.models.agent import Agent
from lit_align.models.heads import AutoregressiveHeads, wide
from lit_align.models.lora import merge_lora
from lit_align.models.onnx_agent import FACTS, SCHEMA
from lit_align.models.quantize import is_quantized
from lit_align.models.transformer import KVCache

_PAD = -1e9  # log-probability of a class that a head does not have, as in `lit_align.models.heads`
_ONE_FILE = 1_500_000_000  # bytes of weights; protobuf ends at 2 GB
OUTPUTS = ["actions", "log_prob", "log_probs", "cache_out", "steps_out"]


class CachedStep(nn.Module):
    """`Agent.choose` without memory of its own: the cache and the counters come in, and go out changed.

    Args:
        agent: Its weights are shared.
    """

    def __init__(self, agent: Agent) -> None:
        super().__init__()
        self.agent = agent

    def forward(
        self,
        frames: Tensor | None,
        vectors: Tensor | None,
        cache: Tensor,
        steps: Tensor,
        uniform: Tensor,
        temperature: Tensor,
        top_p: Tensor,
    ) -> tuple[Tensor, ...]:
        """One step of B worlds; shapes and meanings stand in `docs/acting.md`. The outputs are `OUTPUTS`."""
        worlds, config = uniform.shape[0], self.agent.config
        past = KVCache(config, worlds, uniform.device, uniform.dtype)
        past.pairs, past.steps = cache.clone(), steps.clone()
        if frames is None:
            frames = torch.zeros(worlds, 0, 0, 3, dtype=torch.uint8)
        features = self.agent.backbone.step(frames, past, vectors)
        actions, log_prob, log_probs = self._choose(features, uniform, temperature, top_p)
        return actions, log_prob, log_probs, past.pairs, past.steps

    def _choose(self, features: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, ...]:
        """The heads' `sample`, with a temperature and a top_p that are known only when it runs."""
        head = self.agent.head
        divisor = torch.where(temperature > 0, temperature, 1.0)
        if not isinstance(head, AutoregressiveHeads):
            log_probs = head.spread(head(features) / divisor, 1.0)
            actions, told = _draw(log_probs, uniform, temperature, top_p)
            return actions, told.sum(-1), log_probs
        inward = F.linear(wide(features), wide(head.inward.weight), wide(head.inward.bias))
        rows: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for h, size in enumerate(head.sizes):
            part = slice(start, start + size)
            logits = F.linear(F.gelu(inward, approximate="tanh"), head.outward[part], head.bias[part])
            own = torch.log_softmax(logits / divisor, dim=-1)
            action, told = _draw(own[:, None], uniform[:, h : h + 1], temperature, top_p)
            rows.append((action, told, F.pad(own, (0, max(head.sizes) - size), value=_PAD)[:, None]))
            inward = inward + head.chosen[action[:, 0] + start]
            start += size
        actions, told, log_probs = (torch.cat(each, dim=1) for each in zip(*rows, strict=True))
        return actions, told.sum(-1), log_probs


def _draw(log_probs: Tensor, uniform: Tensor, temperature: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """`lit_align.models.heads.draw` without branches: classes `(B, heads)` and their log-probabilities."""
    order = log_probs.argsort(-1, descending=True)
    falling = log_probs.gather(-1, order).exp()
    above = falling.cumsum(-1) - falling
    kept = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above < top_p)
    cut = torch.log_softmax(torch.where(kept, log_probs, _PAD), dim=-1)
    drawn_from = torch.where((top_p < 1) & (temperature > 0), cut, log_probs)
    cumulative = drawn_from.double().exp().cumsum(-1)
    drawn = (cumulative <= (uniform.double() * cumulative[..., -1])[..., None]).sum(-1)
    actions = torch.where(temperature > 0, drawn, log_probs.argmax(-1))
    return actions, drawn_from.gather(-1, actions[..., None])[..., 0]


def export_onnx(agent: Agent, path: str | Path, worlds: int | None = None) -> Path:
    """Writes an agent's cached step in float32; `lit_align.models.onnx_agent.OnnxAgent` plays it.

    Args:
        agent: Whose; it may have been prepared in bfloat16 or with adapters, not in 8 bits.
        path: The file; weights of more than 1.5 GB go into a second one beside it, `<name>.data`.
        worlds: How many worlds a step is of, if it is always the same; None leaves it open.

    Returns:
        The file.

    Raises:
        ValueError: A package is missing, the agent is in 8 bits, or the exporter cannot do its network.
    """
    need_onnx()
    if is_quantized(agent):
        raise UserError("an agent in int8 is for acting with torch; export the one that it was prepared from")
    if worlds is not None and worlds < 1:
        raise UserError(f"worlds is {worlds}; expected 1 or more, or nothing to leave it open")
    plain = prepare(agent).cpu()  # a copy, not compiled: what is compiled cannot be traced
    merge_lora(plain.backbone)
    program = _trace(plain.float(), worlds)
    program.model.metadata_props[FACTS] = json.dumps(describe(agent, worlds))
    program.model.producer_name, program.model.producer_version = "lit-align", __version__
    target = Path(path)
    heavy = sum(p.numel() for p in plain.parameters()) * 4 > _ONE_FILE
    with beside(target) as aside:
        program.save(aside / target.name, external_data=heavy)
        put_in_place(aside, target)
    return target


def put_in_place(folder: Path, target: Path) -> int:
    """Moves an ONNX file of this name, and its weights if they are beside it, out of a folder; returns their bytes."""
    # The weights first: a file that is there has all that it needs.
    parts = sorted(folder.iterdir(), key=lambda part: part.name == target.name)
    size = sum(part.stat().st_size for part in parts)
    for part in parts:
        os.replace(part, target.with_name(part.name))
    return size


def _trace(agent: Agent, worlds: int | None) -> Any:
    """The exporter's program of a step."""
    config, count = agent.config, worlds or 2
    cache = agent.new_cache(count)
    size, heads = config.image_size, len(agent.codec.heads)
    inputs = {
        "frames": torch.zeros(count, size, size, 3, dtype=torch.uint8) if size else None,
        "vectors": torch.zeros(count, config.vector_size) if config.vector_size else None,
        "cache": cache.pairs,
        "steps": cache.steps,
        "uniform": torch.zeros(count, heads),
        "temperature": torch.ones(()),
        "top_p": torch.ones(()),
    }
    shapes: dict[str, Any] | None = None
    if worlds is None:
        many = torch.export.Dim("worlds")
        shapes = {name: None if name in ("temperature", "top_p") else {0: many} for name in inputs}
        shapes |= {"cache": {2: many}} | {name: None for name, part in inputs.items() if part is None}
    try:
        with _quietly():
            return torch.onnx.export(
                CachedStep(agent).eval(),
                kwargs=inputs,
                dynamic_shapes=shapes,
                input_names=[name for name, part in inputs.items() if part is not None],
                output_names=OUTPUTS,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        said = str(error).strip().splitlines()[-1]
        raise UserError(f"the ONNX exporter of torch {torch.__version__} cannot do this agent: {said}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch and its exporter say of each other, and of torchvision, which is not needed."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def describe(agent: Agent, worlds: int | None) -> dict[str, Any]:
    """What a program needs to know to act, as the JSON that travels in the file."""
    config, heads = agent.config, agent.codec.heads
    return {
        "schema": SCHEMA,
        "kind": agent.kind,
        "version": __version__,
        "image_size": config.image_size,
        "vector_size": config.vector_size,
        "context": config.context,
        "cache": [config.layers, 2, worlds, config.heads, config.context, config.width // config.heads],
        "policy": agent.policy.heads,
        "actions": agent.codec.to_dict(),
        "heads": [{"name": h.name, "kind": h.kind, "classes": h.classes, "values": _values(h)} for h in heads],
    }


def _values(head: Any) -> list[float]:
    """The value of the action space that each class of a head stands for."""
    return list(head.centres) if head.kind == "axis" else [float(c + head.offset) for c in range(head.classes)]


def need_onnx() -> None:
    """Raises ValueError, in one line, where the packages of the extra `onnx` are missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"an ONNX file needs {missing[0]}: pip install 'lit-align[onnx]'")
