"""Hugging Face's GPT2Model on embeddings, with eager or SDPA attention."""

from __future__ import annotations

import torch
import transformers
from serve import serve, settings
from training import Training
from transformers import GPT2Config, GPT2Model

wanted = settings()
batch, frames, width = wanted["shape"]
# A vocabulary of one token: the table of words has no part in the race.
config = GPT2Config(
    vocab_size=1,
    n_positions=frames,
    n_embd=width,
    n_layer=wanted["layers"],
    n_head=wanted["heads"],
    embd_pdrop=0.0,
    resid_pdrop=0.0,
    attn_pdrop=0.0,
    use_cache=False,
    bos_token_id=0,
    eos_token_id=0,
    attn_implementation=wanted["attention"],
)
model = GPT2Model(config).train()
train = Training(
    lambda x: model(inputs_embeds=x).last_hidden_state,
    model.parameters(),
    (batch, frames, width),
    wanted["steps"],
    wanted["seed"],
    wanted["bf16"],
)
serve(
    train,
    versions={"transformers": transformers.__version__, "torch": torch.__version__},
    parameters=sum(p.numel() for p in model.h.parameters()) + sum(p.numel() for p in model.ln_f.parameters()),
)
