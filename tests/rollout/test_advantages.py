"""Advantages against loops that say what they are, and their gradients against sums over all that can happen."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.rollout.advantages import Estimator, Moments, explained_variance, gae, of_episodes, totals
from lit_align.rollout.judge import Judge
from lit_align.rollout.rewards import Rewards

NUMBERS = st.floats(-10, 10, width=32)


def moments(values) -> Moments:
    return Moments(len(values), float(np.mean(values)), float(np.std(values)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_gae_is_its_double_sum(lengths, gamma, lam, seed):
    rng = np.random.default_rng(seed)
    rewards = [rng.normal(size=n).astype(np.float32) for n in lengths]
    values = [rng.normal(size=n + 1).astype(np.float32) for n in lengths]
    found = gae([torch.from_numpy(r) for r in rewards], [torch.from_numpy(v) for v in values], gamma, lam)
    for r, v, advantages in zip(rewards, values, found, strict=True):
        expected = []
        for t in range(len(r)):
            total = 0.0
            for k in range(t, len(r)):
                total += (gamma * lam) ** (k - t) * (r[k] + gamma * v[k + 1] - v[k])
            expected.append(total)
        np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-4, atol=1e-5)
        assert advantages.dtype == torch.float32


@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=9), st.integers(0, 99))
def test_at_lambda_and_gamma_one_it_is_the_return_minus_the_value(rewards, seed):
    values = np.random.default_rng(seed).normal(size=len(rewards) + 1).astype(np.float32)
    (found,) = gae([torch.tensor(rewards)], [torch.from_numpy(values)], 1.0, 1.0)
    returns = [sum(rewards[t:]) + values[-1] for t in range(len(rewards))]
    np.testing.assert_allclose(found.numpy(), np.array(returns) - values[:-1], rtol=1e-4, atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(NUMBERS, min_size=6, max_size=6), st.sampled_from([1, 2, 3, 6]))
def test_groups_are_compared_as_their_papers_say(returns, group):
    given_returns = torch.tensor(returns)
    whole = moments(returns)
    size = 6 if group == 1 else group
    loo = of_episodes(given_returns, "rloo", group, whole).numpy()
    grpo = of_episodes(given_returns, "grpo", group, whole).numpy()
    for i, own in enumerate(returns):
        start = i - i % size
        rows = [returns[j] for j in range(start, start + size)]
        others = [returns[j] for j in range(start, start + size) if j != i]
        assert loo[i] == pytest.approx(own - sum(others) / len(others), abs=1e-4)
        mean = sum(rows) / size
        std = (sum((x - mean) ** 2 for x in rows) / size) ** 0.5
        assert grpo[i] == pytest.approx((own - mean) / (std + 1e-6), abs=1e-3)
    mean = sum(returns) / 6
    assert of_episodes(given_returns, "reinforce", group, whole).tolist() == pytest.approx(
        [r - mean for r in returns], abs=1e-5
    )


def test_scaled_advantages_of_groups_shrink_where_a_group_differs_by_less_than_the_floor():
    returns = torch.tensor([1.0, 1.001, 5.0, 3.0, 2.0, 2.0])
    stds = np.array([0.0005, 1.0, 0.0]).repeat(2)
    signs = np.array([-1, 1, 1, -1, 0, 0])
    spread = np.sqrt((signs**2).mean())  # of what they are without a floor: one standard deviation each, or none
    for floor in (0.0, 0.5, 4.0):
        judge = Judge(Rewards({"env": 1.0}), None, "grpo", group=2, scale=True, min_std=floor)
        found = judge._shared(returns, lambda values, about=0.0: moments(values.tolist()))
        damped = stds / np.maximum(stds, floor).clip(1e-12)
        np.testing.assert_allclose(found, signs * damped / spread, rtol=5e-3, atol=1e-6)


class Bandit:
    """Three arms, a softmax policy over them, and what its gradient should be."""

    rewards = np.array([1.0, -0.5, 3.0])
    p = np.array([0.5, 0.3, 0.2])

    def score(self, arm: int) -> np.ndarray:
        """The gradient of log p(arm) by the logits."""
        return np.eye(3)[arm] - self.p

    @property
    def gradient(self) -> np.ndarray:
        return self.p * (self.rewards - self.p @ self.rewards)

    def expected(self, weigh, n: int) -> np.ndarray:
        """The mean of sum A_i grad log p(a_i) / n over every way in which n draws can fall out."""
        total = np.zeros(3)
        for arms in itertools.product(range(3), repeat=n):
            advantages = weigh(self.rewards[list(arms)])
            parts = [a * self.score(arm) for a, arm in zip(advantages, arms, strict=True)]
            total += np.prod(self.p[list(arms)]) * np.sum(parts, axis=0) / n
        return total


def estimate(estimator: Estimator):
    return lambda rewards: of_episodes(torch.tensor(rewards), estimator, 1, moments(rewards)).numpy()


@pytest.mark.parametrize("n", [2, 4])
def test_on_a_bandit_the_expected_gradient_is_the_policy_gradient(n):
    bandit = Bandit()
    assert np.abs(bandit.gradient).max() > 0.3
    np.testing.assert_allclose(bandit.expected(estimate("rloo"), n), bandit.gradient, atol=1e-6)
    # A mean that counts the episode itself takes a part of it away.
    np.testing.assert_allclose(bandit.expected(estimate("reinforce"), n), (n - 1) / n * bandit.gradient, atol=1e-6)

    def by_hand(rewards):
        return (rewards - rewards.mean()) / (rewards.std() + 1e-6)

    np.testing.assert_allclose(bandit.expected(estimate("grpo"), n), bandit.expected(by_hand, n), atol=1e-5)
    if n == 2:
        # Of two, one is a standard deviation above the mean, the other one below: A = sign of the difference.
        pairs = [(a, b) for a in range(3) for b in range(3)]
        signs = [
            bandit.p[a] * bandit.p[b] * np.sign(bandit.rewards[a] - bandit.rewards[b]) * bandit.score(a)
            for a, b in pairs
        ]
        np.testing.assert_allclose(bandit.expected(estimate("grpo"), n), np.sum(signs, axis=0), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=20), NUMBERS, st.integers(1, 19))
def test_moments_of_parts_add_up(values, about, at):
    parts = [np.array(values[:at]) - about, np.array(values[at:]) - about]
    total, squares = (sum(float((p**n).sum()) for p in parts) for n in (1, 2))
    found = Moments.of(sum(len(p) for p in parts), total, squares, about)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert found.std == pytest.approx(np.std(values), abs=1e-5)
    assert found.count == len(values)


def test_returns_are_undiscounted_sums_and_values_explain_what_they_explain():
    assert totals([torch.tensor([1.0, 2.0]), torch.tensor([-4.0])]).tolist() == [3.0, -4.0]
    returns, values = np.array([1.0, 2.0, 3.0, 6.0]), np.array([1.0, 2.0, 2.0, 5.0])
    expected = 1 - np.var(returns - values) / np.var(returns)
    assert explained_variance(moments(returns), moments(returns - values)) == pytest.approx(expected)
    assert explained_variance(moments([2.0, 2.0]), moments([1.0, 0.0])) == 0.0
