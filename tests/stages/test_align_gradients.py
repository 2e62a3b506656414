"""Worlds so small that the policy gradient can be summed up: each estimator's mean gradient is what it should be.

A bandit of three arms, and a world of two steps in which the first choice decides what the second is worth. The
gradient is that of the last layer, weights and biases.
"""

import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lit_align.rollout.buffer import RolloutDataModule
from lit_align.rollout.sampler import Sampler
from lit_align.stages.align import Align
from tests.helpers import tiny_agent

GROUP, EPISODES, SAMPLES = 4, 40, 60  # episodes that are compared; of a sample of the gradient; samples
FIRST = np.array([1.0, 0.0, -0.5])
SECOND = np.array([[0.5, -1.0, 0.0], [3.0, 0.0, 1.0]])  # after arm 0 or 1, after arm 2


class Arms(gymnasium.Env):
    """Shows which of three states it is in."""

    observation_space = spaces.Box(0.0, 1.0, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, steps: int):
        self.steps = steps

    def reset(self, *, seed=None, options=None):
        self.done = 0
        return np.eye(3)[0], {}

    def step(self, action):
        self.done += 1
        if self.done == 1:
            self.row = int(action == 2)
            reward = FIRST[action]
        else:
            reward = SECOND[self.row, action]
        return np.eye(3)[1 + self.row], float(reward), self.done == self.steps, False, {}


gymnasium.register("LitAlign-test/Arms-v0", entry_point=lambda **args: Arms(**args))


class Truth:
    """Everything that can happen in an episode: how likely it is, what it gives, how its log-probability changes.

    Attributes:
        p: Of each way in which an episode can go `(ways,)`.
        returns: `(ways,)`.
        scores: Gradients of the log-probability by the last layer, flat `(ways, parameters)`.
    """

    def __init__(self, agent, steps: int) -> None:
        p, returns, scores = [], [], []
        for arms in itertools.product(range(3), repeat=steps):
            seen = torch.eye(3)[[0] if steps == 1 else [0, 1 + int(arms[0] == 2)]]
            with torch.no_grad():
                features = agent.backbone(torch.zeros(1, steps, 0, 0, 3, dtype=torch.uint8), seen[None])[0].double()
                logits = features @ agent.head.weight.double().T + agent.head.bias.double()
            policy = logits.softmax(-1).numpy()
            score = np.eye(3)[list(arms)] - policy  # by the logits, at each step
            p.append(np.prod(policy[np.arange(steps), list(arms)]))
            returns.append(FIRST[arms[0]] + (SECOND[int(arms[0] == 2), arms[1]] if steps == 2 else 0.0))
            scores.append(np.concatenate(((score.T @ features.numpy()).ravel(), score.sum(0))))
        self.p, self.returns, self.scores = np.array(p), np.array(returns), np.array(scores)
        assert self.p.sum() == pytest.approx(1)

    @property
    def gradient(self) -> np.ndarray:
        """Of the expected return."""
        return (self.p * self.returns) @ self.scores

    def of_groups(self) -> np.ndarray:
        """What GRPO's gradient is on average, over every group that there can be."""
        ways = np.array(list(itertools.product(range(len(self.p)), repeat=GROUP)))
        returns = self.returns[ways]
        advantages = (returns - returns.mean(1, keepdims=True)) / (returns.std(1, keepdims=True) + 1e-6)
        each = (advantages[..., None] * self.scores[ways]).mean(1)
        return self.p[ways].prod(1) @ each


def make_agent():
    return tiny_agent(3, spaces.Discrete(3), image_size=0, vector_size=3, width=8, layers=1, heads=2, context=3)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arms") / "agent"
    make_agent().save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def played():
    """The same play for every estimator, by number of steps."""
    found = {}
    for steps in (1, 2):
        with Sampler(make_agent(), partial(Arms, steps), 50) as sampler:
            episodes = sampler.play([(i, i) for i in range(EPISODES * SAMPLES)])
            found[steps] = sorted(episodes, key=lambda t: t.id)
    return found


def exact_values(stage: Align, steps: int) -> None:
    """Has the value head tell the expected return from each state."""
    agent = stage.model
    histories = [[0]] if steps == 1 else [[0], [0, 1], [0, 2]]
    rows, worth = [], []
    with torch.no_grad():
        for seen in histories:
            frames = torch.zeros(1, len(seen), 0, 0, 3, dtype=torch.uint8)
            features = agent.backbone(frames, torch.eye(3)[seen][None])[0, -1]
            policy = agent.head(features).softmax(-1).double().numpy()
            rows.append(np.append(features.double().numpy(), 1.0))
            worth.append(policy @ (FIRST if len(seen) == 1 else SECOND[seen[1] - 1]))
            if len(seen) == 1:
                first = policy
    if steps == 2:
        worth[0] += (first[0] + first[1]) * worth[1] + first[2] * worth[2]
    solved = np.linalg.lstsq(np.array(rows), np.array(worth), rcond=None)[0]
    assert stage.value_head is not None
    stage.value_head.weight.data[0] = torch.from_numpy(solved[:-1]).float()
    stage.value_head.bias.data[0] = float(solved[-1])


def wrong_values(stage: Align, steps: int) -> None:
    assert stage.value_head is not None
    torch.manual_seed(1)
    torch.nn.init.normal_(stage.value_head.weight, std=0.3)


CASES: dict[str, tuple[dict[str, Any], Callable[[Align, int], None] | None, Callable[[Truth], np.ndarray]]] = {
    "reinforce": ({}, None, lambda truth: (GROUP - 1) / GROUP * truth.gradient),  # a mean with oneself in it
    "rloo": ({"estimator": "rloo"}, None, lambda truth: truth.gradient),
    "grpo": ({"estimator": "grpo"}, None, Truth.of_groups),
    "ppo without bias": ({"estimator": "ppo", "gae_lambda": 1.0}, wrong_values, lambda truth: truth.gradient),
    "ppo that knows": ({"estimator": "ppo", "gae_lambda": 0.3}, exact_values, lambda truth: truth.gradient),
}


@pytest.mark.parametrize("steps", [1, 2], ids=["bandit", "two steps"])
@pytest.mark.parametrize("case", CASES)
def test_the_mean_gradient_is_the_right_one_within_its_standard_error(start, played, case, steps):
    options, prepare, expect = CASES[case]
    # The mean of `reinforce` is over the iteration: it is judged in iterations of one group.
    judged_together = GROUP if case == "reinforce" else EPISODES
    data = RolloutDataModule("LitAlign-test/Arms-v0", {"steps": steps}, episodes=EPISODES, minibatches=1, epochs=1)
    data.group = GROUP
    stage = Align(reward_model="env", reference="none", kl=0.0, init_from=start, **options)
    trainer = SimpleNamespace(datamodule=data, world_size=1)
    stage.trainer = trainer  # type: ignore[assignment]
    stage.configure_model()
    if prepare is not None:
        prepare(stage, steps)
    found = []
    for n in range(SAMPLES):
        episodes = played[steps][n * EPISODES : (n + 1) * EPISODES]
        parts = [stage.judge(episodes[at : at + judged_together]) for at in range(0, EPISODES, judged_together)]
        data.fill(n, [rollout for part in parts for rollout in part])
        stage.counts = (steps * EPISODES, EPISODES)
        (batch,) = data.train_dataloader()
        loss = stage.training_step(batch, 0)
        gradient = torch.autograd.grad(loss, list(stage.model.head.parameters()))
        # The loss is a mean over env steps, to be made smaller.
        found.append(-steps * torch.cat([g.flatten() for g in gradient]).double().numpy())
    expected = expect(Truth(make_agent(), steps))
    mean, error = np.mean(found, axis=0), standard_error(found)
    assert np.abs((mean - expected) / error).max() < 4
    # Along the gradient it is known well enough to tell a wrong factor.
    ahead = expected / np.linalg.norm(expected)
    assert standard_error(found @ ahead) < 0.06 * np.linalg.norm(expected)
    assert abs(mean @ ahead - np.linalg.norm(expected)) < 3 * standard_error(found @ ahead)


def standard_error(samples) -> np.ndarray:
    return np.std(samples, axis=0, ddof=1) / len(samples) ** 0.5
