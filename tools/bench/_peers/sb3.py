"""Stable-Baselines3 PPO with its CnnPolicy, collecting rollouts in the null world."""

from __future__ import annotations

import stable_baselines3
import torch
from gymnasium import spaces
from null_world import NullWorld
from serve import serve, settings
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.utils.flop_counter import FlopCounterMode


class OneConvolution(BaseFeaturesExtractor):
    """8x8 patches and a linear layer: about a fourteenth of NatureCNN's operations."""

    def __init__(self, observation_space: spaces.Space) -> None:
        super().__init__(observation_space, 64)
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 8, stride=8),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(16 * 8 * 8, 64),
            torch.nn.ReLU(),
        )

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Pixels in [0, 1] `(B, 3, 64, 64)` to features `(B, 64)`."""
        return self.body(observations)


wanted = settings()
worlds, steps = wanted["worlds"], wanted["steps"]
env = DummyVecEnv([lambda: NullWorld(steps)] * worlds)
small = {"features_extractor_class": OneConvolution}
model = PPO(
    "CnnPolicy",
    env,
    n_steps=steps,
    batch_size=worlds * steps,
    device="cpu",
    seed=wanted["seed"],
    policy_kwargs=None if wanted["network"] == "NatureCNN" else small,
)
assert model.env is not None
# What `learn` does before its first rollout.
_, callback = model._setup_learn(total_timesteps=10**9)
callback.on_training_start({}, {})


def collect() -> None:
    """One rollout of `steps` steps in every world."""
    assert model.env is not None
    model.collect_rollouts(model.env, callback, model.rollout_buffer, n_rollout_steps=steps)


seen = model.policy.obs_to_tensor(model.env.reset())[0]


@torch.no_grad()
def forward() -> None:
    """The policy alone, on one and the same picture of every world."""
    for _ in range(steps):
        model.policy(seen)


with FlopCounterMode(display=False) as counter, torch.no_grad():
    model.policy(seen)
serve(
    collect if wanted["what"] == "collect" else forward,
    versions={"stable-baselines3": stable_baselines3.__version__, "torch": torch.__version__},
    flops=counter.get_total_flops() / worlds,
)
