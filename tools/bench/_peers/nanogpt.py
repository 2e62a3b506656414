"""nanoGPT's blocks on embeddings; `model.py` is read from a folder that the user names."""

from __future__ import annotations

import importlib.util
import sys

import torch
from serve import serve, settings
from training import Training

wanted = settings()
batch, frames, width = wanted["shape"]
spec = importlib.util.spec_from_file_location("nanogpt_model", wanted["file"])
assert spec is not None
assert spec.loader is not None
nanogpt = importlib.util.module_from_spec(spec)
sys.modules["nanogpt_model"] = nanogpt  # dataclasses look their module up
spec.loader.exec_module(nanogpt)
config = nanogpt.GPTConfig(
    block_size=frames,
    vocab_size=1,
    n_layer=wanted["layers"],
    n_head=wanted["heads"],
    n_embd=width,
    dropout=0.0,
    bias=True,
)
body = nanogpt.GPT(config).train().transformer
positions = torch.arange(frames)


def forward(x: torch.Tensor) -> torch.Tensor:
    """What nanoGPT's own forward does between its word table and its output layer."""
    x = body.drop(x + body.wpe(positions))
    for block in body.h:
        x = block(x)
    return body.ln_f(x)


serve(
    Training(forward, body.parameters(), (batch, frames, width), wanted["steps"], wanted["seed"], wanted["bf16"]),
    versions={"torch": torch.__version__},
    parameters=sum(p.numel() for p in body.h.parameters()) + sum(p.numel() for p in body.ln_f.parameters()),
)
