"""PPO's critic and fragments: the loss and its gradient against loops over single episodes."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lit_align.models.agent import gather_log_prob
from lit_align.rollout.rewards import Rewards
from tests.stages.iteration import Iteration, align_inputs, assert_same_gradient, frames_of, played_log_probs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return align_inputs(tmp_path_factory.mktemp("values"))


def with_values(folder, **options) -> Iteration:
    """An iteration of ppo whose value head tells something, and of whose episodes every second one ran out of time."""
    it = Iteration(folder, estimator="ppo", **options)
    torch.manual_seed(5)
    assert it.stage.value_head is not None
    it.stage.value_head.rescale(1.0)
    nn.init.normal_(it.stage.value_head.weight, std=0.3)
    it.played = [replace(t, terminated=i % 2 == 0, truncated=i % 2 == 1) for i, t in enumerate(it.played)]
    it.judge_again()
    return it


def values_of(it: Iteration, trajectory) -> torch.Tensor:
    """At every frame of an unpadded episode, the last one included."""
    head = it.stage.value_head
    assert head is not None
    features = it.agent.backbone(frames_of(trajectory, 0))[0]
    return (features @ head.weight[0] + head.bias[0]) * head.scale


@pytest.mark.parametrize(("gamma", "lam"), [(0.9, 0.8), (1.0, 1.0)])
@pytest.mark.parametrize("value_clip", [None, 0.05])
def test_the_loss_is_ppos(folder, gamma, lam, value_clip):
    options = {"gamma": gamma, "gae_lambda": lam, "value_clip": value_clip, "value_coefficient": 0.7}
    it = with_values(folder, reward_model="env", kl=0.0, clip=0.1, **options)
    with torch.no_grad():
        before = [values_of(it, t) for t in it.played]
    it.wander()
    total, errors, goals = torch.zeros(()), [], []
    for trajectory, old in zip(it.played, before, strict=True):
        v = old.clone()
        if trajectory.terminated:
            v[-1] = 0.0  # after a time limit there would have been more
        new, values = it.log_prob(it.agent, trajectory), values_of(it, trajectory)
        rewards = trajectory.rewards
        for t in range(len(trajectory)):
            advantage = sum(
                (gamma * lam) ** (k - t) * (rewards[k] + gamma * v[k + 1] - v[k]) for k in range(t, len(trajectory))
            )
            goal = advantage + v[t]
            ratio = torch.exp(new[t] - played_log_probs(trajectory)[t])
            total = total - torch.min(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
            goals.append((float(goal), float(old[t])))
            errors.append((values[t], old[t], goal))
    # The unit: how far returns are apart, or values from them.
    returns, known = np.array(goals).T
    unit = float(max(returns.std(), np.sqrt(np.mean((returns - known) ** 2))))
    squares = torch.zeros(())
    for value, was, goal in errors:
        error = ((value - goal) / unit) ** 2
        if value_clip is not None:
            moved = (value - was).clamp(-value_clip * unit, value_clip * unit)
            error = torch.max(error, ((was + moved - goal) / unit) ** 2)
        squares = squares + error
    loss = it.loss()
    expected = (total + 0.7 * squares) / it.steps
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-4)
    assert_same_gradient(it.stage.trained, loss, expected)
    assert it.mean("value/loss") == pytest.approx(float(squares.detach()) / it.steps, rel=1e-3)


def test_what_a_reward_model_judges_ends_with_the_episode(folder):
    """A learned reward is of the episode as it is: nothing is added for what would have come after a time limit."""
    it = with_values(folder, gae_lambda=1.0)
    for rollout, reward in zip(it.rollouts, Rewards(it.stage.sources)(it.played).rewards, strict=True):
        assert rollout.returns is not None
        np.testing.assert_allclose(rollout.returns, np.full(len(reward), float(reward.sum())), atol=1e-5)


def presses(trajectory) -> list[float]:
    """A reward for each step in which the first button is down."""
    return trajectory.actions[:, 0].tolist()


def test_what_the_values_explain_is_told_and_advantages_can_be_scaled(folder):
    options = {"reward_model": "tests.stages.test_align_values:presses", "gamma": 0.9}
    it = with_values(folder, **options)
    parts = [(r.returns, r.values, r.advantages) for r in it.rollouts]
    returns, values, advantages = (torch.cat(column).double().numpy() for column in zip(*parts, strict=True))
    expected = 1 - np.var(returns - values) / np.var(returns)
    assert it.stage._frozen["judge"].facts["value/explained_variance"] == pytest.approx(expected, rel=1e-4)
    scaled = with_values(folder, **options, scale_advantages=True)
    found = torch.cat([r.advantages for r in scaled.rollouts])
    alone = (advantages - advantages.mean()) / advantages.std()
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-4)
    # A floor is held against the returns of episodes, undiscounted.
    spread = np.std([sum(presses(t)) for t in it.played])
    for floor, shrunk in ((spread / 2, 1.0), (4 * spread, 0.25)):
        damped = with_values(folder, **options, scale_advantages=True, min_std=float(floor))
        found = torch.cat([r.advantages for r in damped.rollouts])
        np.testing.assert_allclose(found, alone * shrunk, rtol=1e-3, atol=1e-4)


def test_values_in_other_units_of_reward_are_learnt_alike(folder):
    """Rewards of 1000 times the size: the same loss and gradient, and the values that were known stay."""
    small, large = (
        with_values(folder, reward_model=None, rewards={"env": weight}, gamma=0.9) for weight in (1.0, 1000.0)
    )
    head, other = small.stage.value_head, large.stage.value_head
    assert head is not None
    assert other is not None
    for iteration, size in ((small, 1.0), (large, 1000.0)):
        known = values_of(iteration, iteration.played[0])
        iteration.judge_again()
        torch.testing.assert_close(values_of(iteration, iteration.played[0]), known, rtol=1e-5, atol=1e-5 * size)
    other.rescale(1000.0 * float(head.scale))
    for one, same in ((head.weight, other.weight), (head.bias, other.bias)):
        same.data.copy_(one.data)
    large.judge_again()
    assert float(other.scale) == pytest.approx(1000 * float(head.scale), rel=1e-4)
    advantages = [torch.cat([r.advantages for r in it.rollouts]) for it in (small, large)]
    torch.testing.assert_close(advantages[0] * 1000, advantages[1], rtol=1e-3, atol=1e-1)
    for it in (small, large):
        it.forget_advantages()
    torch.testing.assert_close(small.loss(), large.loss(), rtol=1e-4, atol=1e-6)
    for a, b in zip(small.gradients(), large.gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("estimator", ["reinforce", "ppo"])
@pytest.mark.parametrize("fragment", [1, 3, 50])
def test_fragments_change_nothing_but_which_steps_share_a_batch(folder, estimator, fragment):
    """The loss and its gradient are those of whole episodes, and so is each step's log-probability."""
    other = str(folder / "other" / "agent")
    options: dict[str, Any] = {"estimator": estimator, "reference": other, "kl": 0.1, "entropy": 0.01}
    whole, cut = (Iteration(folder, fragment=size, **options) for size in (None, fragment))
    assert whole.agent.config.receptive_field < max(len(t) for t in whole.played)
    for it in (whole, cut):
        it.wander()
    for a, b in zip(whole.gradients(), cut.gradients(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)
    for name, value in whole.stage.means.compute().items():
        assert cut.mean(name) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name

    (batch,) = cut.data.train_dataloader()
    with torch.no_grad():
        found = gather_log_prob(cut.agent(batch["frames"], batch["vectors"], batch["actions"]), batch["actions"])
        alone = torch.cat([cut.log_prob(cut.agent, t) for t in cut.played])
    at = torch.arange(found.shape[1])
    trained = (at < batch["lengths"][:, None]) & (at >= batch["skip"][:, None])
    assert int(trained.sum()) == cut.steps
    # A step is known by the log-probability that was recorded for it.
    recorded = torch.cat([played_log_probs(t) for t in cut.played])
    order, same = batch["log_probs"][trained].argsort(), recorded.argsort()
    assert torch.equal(batch["log_probs"][trained][order], recorded[same])
    torch.testing.assert_close(found[trained][order], alone[same], atol=1e-5, rtol=0)


def test_minibatches_share_out_fragments_and_add_up(folder):
    options: dict[str, Any] = {"fragment": 4, "kl": 0.1, "reference": str(folder / "other" / "agent")}
    whole = Iteration(folder, **options)
    for minibatches in (4, 100):  # more than there are pieces: some hold one of which nothing is trained on
        parts = Iteration(folder, minibatches=2, **options)
        parts.data.minibatches = minibatches
        for a, b in zip(whole.gradients(), parts.gradients(), strict=True):
            torch.testing.assert_close(a, b / minibatches, atol=1e-5, rtol=1e-3)
        assert parts.mean("policy/kl") == pytest.approx(whole.mean("policy/kl"), rel=1e-4)


def test_values_train_with_the_heads_alone_and_no_one_else_has_any(folder):
    it = Iteration(folder, estimator="ppo", train=train_heads())
    assert sum(p.requires_grad for p in it.stage.parameters()) == 4  # weights and biases of the two
    names = [name for name, p in it.stage.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(it.loss(), [p for p in it.stage.parameters() if p.requires_grad])
    assert all(float(g.abs().max()) > 0 for g in gradients), names
    assert {"value_head.weight", "value_head.bias"} <= set(names)
    for estimator in ("reinforce", "rloo", "grpo"):
        other = Iteration(folder, estimator=estimator)
        assert other.stage.value_head is None
        assert not {"values", "returns"} & set(next(iter(other.data.train_dataloader())))


def train_heads():
    from lit_align.stages.training import TrainConfig

    return TrainConfig(parameters="heads")
