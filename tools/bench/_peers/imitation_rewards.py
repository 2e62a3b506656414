"""imitation's BasicRewardTrainer: an epoch over the first pairs of a file in every run.

Before it trains, its reward net goes to a file and its loss on a few pairs into the facts, so that another trainer can
start from the same weights and be held to the same loss.
"""

from __future__ import annotations

from collections import OrderedDict
from importlib.metadata import version

import numpy as np
import torch
from gymnasium import spaces
from imitation.algorithms.preference_comparisons import (
    BasicRewardTrainer,
    CrossEntropyRewardLoss,
    PreferenceDataset,
    PreferenceModel,
)
from imitation.data.types import Trajectory
from imitation.rewards.reward_nets import BasicRewardNet, CnnRewardNet
from serve import serve, settings

wanted = settings()
data = np.load(wanted["data"])
seen, chosen, rejected, tie = (data[name] for name in ("seen", "chosen", "rejected", "tie"))
steps, shape = seen.shape[1], seen.shape[2:]
pixels = seen.dtype == np.uint8
space = spaces.Box(0, 255, shape, np.uint8) if pixels else spaces.Box(-np.inf, np.inf, shape, np.float32)
net = (CnnRewardNet if pixels else BasicRewardNet)(space, spaces.Discrete(2), use_action=False, **wanted["network"])


def fragment(row: int) -> Trajectory:
    """A fragment whose states are scored, one for each action: what comes after the last action is not looked at.

    Without true rewards: it would score these too, for a comparison that is no part of training.
    """
    return Trajectory(
        obs=np.concatenate((seen[row], seen[row, -1:])), acts=np.zeros(steps, np.int64), infos=None, terminal=False
    )


first = slice(0, wanted["pairs"])
fragments = {int(row): fragment(row) for row in np.union1d(chosen[first], rejected[first])}
pairs = [(fragments[int(a)], fragments[int(b)]) for a, b in zip(chosen[first], rejected[first], strict=True)]
preferences = np.where(tie[first], 0.5, 1.0).astype(np.float32)
dataset = PreferenceDataset()
dataset.push(pairs, preferences)
model, loss = PreferenceModel(net), CrossEntropyRewardLoss()
trainer = BasicRewardTrainer(
    model, loss, np.random.default_rng(wanted["seed"]), batch_size=wanted["batch"], epochs=1, lr=wanted["lr"]
)

# Parts of torch alone, so that they can be read where imitation is not installed; what is left out only drops an axis.
body = net.cnn if pixels else net.mlp
parts = OrderedDict((name, part) for name, part in body.named_children() if type(part).__module__.startswith("torch."))
torch.save(parts, wanted["weights"])
probe = slice(0, wanted["probe"])
with torch.no_grad():
    value = loss.forward(pairs[probe], preferences[probe], model).loss.item()
serve(
    lambda: trainer.train(dataset),
    versions={"imitation": version("imitation"), "torch": torch.__version__},
    parameters=sum(p.numel() for p in net.parameters()),
    loss=value,
)
