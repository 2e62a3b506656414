"""`config.json` and `model.safetensors` of agents and reward models, changed in every way: loaded whole or refused."""

from __future__ import annotations

import json
import random
import struct
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.models.folder import CONFIG, WEIGHTS, fingerprint, read_config
from lit_align.models.heads import PolicyConfig
from lit_align.models.reward import RewardModel
from lit_align.spaces import ActionCodec, gamepad_space
from tools.fuzz import _mutate

SECONDS = 30.0
"""The largest network that has room here takes a while to make."""
TINY = BackboneConfig(image_size=32, channels=2, blocks=1, width=8, layers=1, heads=2, context=4)
KEYS = ("schema", "kind", "backbone", "policy", "actions", "info", "heads", "readout", *TINY.to_dict())


@cache
def given() -> list[tuple[dict[str, Any], bytes]]:
    """`config.json` and the bytes of the weights of each kind of model."""
    codec = ActionCodec(gamepad_space())
    wide = BackboneConfig(**{**TINY.to_dict(), "image_size": 0, "vector_size": 3, "norm": "rmsnorm", "qk_norm": True})
    models = [
        Agent(TINY, codec, {"stage": "pretrain"}),
        Agent(wide, codec, policy=PolicyConfig("autoregressive", 4)),
        RewardModel(TINY, heads=2),
    ]
    found = []
    for model in models:
        with tempfile.TemporaryDirectory() as scratch:
            model.save(Path(scratch) / "m")
            content = json.loads((Path(scratch) / "m" / CONFIG).read_text())
            found.append((content, (Path(scratch) / "m" / WEIGHTS).read_bytes()))
    return found


def one(rng: random.Random) -> None:
    """A model's folder with something wrong in it; what is loaded must work."""
    content, weights = rng.choice(given())
    kind = content["kind"]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        folder = Path(scratch) / "m"
        folder.mkdir()
        how = rng.randrange(4)
        text = json.dumps(_mutate.tree(rng, content, KEYS) if how < 2 else content, ensure_ascii=rng.random() < 0.5)
        if how == 2:
            text = _mutate.text(rng, text)
        (folder / CONFIG).write_bytes(_mutate.encoded(rng, text) if how == 2 else text.encode("utf-8", "surrogatepass"))
        if rng.random() < 0.98:
            (folder / WEIGHTS).write_bytes(changed_weights(rng, weights) if how == 3 else weights)
        read_config(folder)
        model = (Agent if kind == "agent" else RewardModel).load(folder, random_init=rng.random() < 0.3)
        fingerprint(folder)
        use(model)
        model.save(Path(scratch) / "again")


def use(model: Any) -> None:
    """A model that was loaded sees a frame, or says why not; a network that is not small is let be."""
    config = model.config
    if sum(p.numel() for p in model.parameters()) > 10**7 or config.image_size > 256 or config.context > 4096:
        return
    frames = torch.zeros(1, 2, config.image_size, config.image_size, 3, dtype=torch.uint8)
    vectors = torch.zeros(1, 2, config.vector_size) if config.vector_size else None
    with torch.inference_mode():
        if isinstance(model, Agent):
            shape = model.backbone(frames, vectors).shape
            assert shape == (1, 2, config.width), shape
            model.codec.decode(model.codec.null)
        else:
            shape = model(frames, torch.tensor([2]), vectors).shape
            assert shape == (1, model.heads), shape


def changed_weights(rng: random.Random, weights: bytes) -> bytes:
    """A safetensors file with a header or bytes that are not as they were."""
    length = struct.unpack("<Q", weights[:8])[0]
    header, body = weights[8 : 8 + length], weights[8 + length :]
    how = rng.randrange(4)
    if how == 0:
        return _mutate.data(rng, weights)
    if how == 1:
        length = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**40, 2**63, 2**64 - 1))
        return struct.pack("<Q", length) + header + body
    if how == 2:
        keys = ("dtype", "shape", "data_offsets", "__metadata__")
        header = json.dumps(_mutate.tree(rng, json.loads(header), keys)).encode("utf-8", "surrogatepass")
    else:
        header = _mutate.encoded(rng, _mutate.text(rng, header.decode()))
    return struct.pack("<Q", len(header)) + header + body
