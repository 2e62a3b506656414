"""Stable-Baselines3 PPO: every run trains with the next seed, and says how well the greedy policy plays afterwards."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import catch
import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from serve import serve, settings, timed
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils.flop_counter import FlopCounterMode


class SmallCnn(BaseFeaturesExtractor):
    """Patches of 8x8 pixels, their neighbourhoods, a linear layer: a fraction of NatureCNN's operations."""

    def __init__(self, observation_space: spaces.Space, channels: int = 32, width: int = 64) -> None:
        super().__init__(observation_space, width)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, channels, 8, stride=8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(channels, channels, 2, stride=2),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(channels * 4 * 4, width),
            torch.nn.ReLU(),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] `(B, 3, 64, 64)` to features `(B, width)`."""
        return self.body(observations)


wanted = settings()
seeds = count(wanted["seed"])
pixels = wanted["env"] == catch.ID
extractor: dict[str, Any] = {"features_extractor_class": SmallCnn} if wanted["network"] == "small" else {}


def make() -> gymnasium.Env:
    """One world."""
    return gymnasium.make(wanted["env"], disable_env_checker=True)


def learner(seed: int) -> PPO:
    """PPO before its first step."""
    return PPO(
        "CnnPolicy" if pixels else "MlpPolicy",
        DummyVecEnv([make] * wanted["worlds"]),
        seed=seed,
        device="cpu",
        policy_kwargs=extractor or None,
        **wanted["ppo"],
    )


def played(choose: Callable[[np.ndarray], np.ndarray]) -> float:
    """The mean return of an episode for each evaluation seed, side by side."""
    worlds = [make() for _ in wanted["evaluation"]]
    seen = [world.reset(seed=seed)[0] for world, seed in zip(worlds, wanted["evaluation"], strict=True)]
    returns, going = np.zeros(len(worlds)), [True] * len(worlds)
    while any(going):
        actions = choose(np.stack(seen))
        for i, world in enumerate(worlds):
            if going[i]:
                seen[i], reward, terminated, truncated, _ = world.step(int(actions[i]))
                returns[i] += float(reward)
                going[i] = not (terminated or truncated)
    return float(returns.mean())


def train() -> dict[str, float]:
    """One run: the seconds are those of `learn` alone."""
    model = learner(next(seeds))
    spent = timed(lambda: model.learn(wanted["total"]))
    score = played(lambda seen: model.predict(seen, deterministic=True)[0])
    return {**spent, "steps": float(model.num_timesteps), "return": score}


model = learner(0)
seen = model.policy.obs_to_tensor(model.env.reset())[0][:1]
with FlopCounterMode(display=False) as counter, torch.no_grad():
    model.policy(seen)
serve(
    train,
    timer=lambda work: work(),
    versions={"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__},
    parameters=sum(p.numel() for p in model.policy.parameters()),
    flops=counter.get_total_flops(),
)
