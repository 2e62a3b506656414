"""`lit_align.load`: an agent or a reward model, ready to act or to score, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lit_align import hub
from lit_align.errors import UserError
from lit_align.models.acting import Precision, check_precision, make_ready
from lit_align.models.folder import read_config

if TYPE_CHECKING:
    from lit_align.models.agent import Agent
    from lit_align.models.reward import RewardModel


def load(
    name: str | Path,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    precision: Precision = "fp32",
    compile: bool = False,
    token: str | None = None,
) -> Agent | RewardModel:
    """An agent or a reward model, whichever it is, for use alone: in evaluation mode, without gradients.

    `Agent.load` and `Agent.from_pretrained` give one that can be trained.

    Args:
        name: A folder that a stage left, or `user/name` on the Hugging Face Hub, or `user/name@revision`.
        revision: A branch, a tag or a commit on the Hub; None takes the newest.
        device: Where it computes: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU if there is one.
        precision: `fp32`; `bf16`; `int8`: 8-bit weights, on a CPU.
        compile: Compile its step with `torch.compile` (the first step of each number of worlds takes up to a minute).
        token: Of the Hub; None takes the one that you are logged in with.

    Raises:
        ValueError: There is no such folder, repository, revision or device; it is neither an agent nor a reward model;
            the precision is not one of that device.
    """
    place = find_device(device)
    check_precision(precision, place)
    folder = hub.fetch(name, revision=revision, token=token)
    kind = read_config(folder).get("kind")
    if kind == "agent":
        from lit_align.models.agent import Agent

        return make_ready(Agent.load(folder, place), precision, compile)
    if kind == "reward_model":
        from lit_align.models.reward import RewardModel

        return make_ready(RewardModel.load(folder, place), precision, compile)
    raise UserError(f"'{name}' is of kind {kind!r}; expected 'agent' or 'reward_model': another version may read it")


def find_device(device: str | torch.device) -> torch.device:
    """A device by its name, which is there.

    Raises:
        ValueError: It is unknown, or this machine has none.
    """
    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device == "auto":
        return gpu or torch.device("cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"device is {device!r}; expected cpu, cuda, cuda:1, mps or auto") from error
    have = torch.accelerator.device_count() if gpu is not None and gpu.type == place.type else 0
    if place.type not in ("cpu", "meta") and (place.index or 0) >= have:
        raise UserError(f"device is '{device}'; torch {torch.__version__} finds {have} of them here: use cpu or auto")
    return place
