"""The parts of a policy's update: the KL over the joint action space, the controller, the means."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.models.agent import entropy, kl_divergence
from lit_align.models.heads import IndependentHeads
from lit_align.stages.policy_loss import UpdateMeans, adapted, surrogate, value_error
from tests.helpers import tiny_agent

SPACE = spaces.MultiDiscrete([2, 4, 3])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999))
def test_the_kl_is_the_sum_over_every_joint_action(seed):
    torch.manual_seed(seed)
    p, q = IndependentHeads(8, (2, 4, 3)), IndependentHeads(8, (2, 4, 3))
    torch.nn.init.normal_(p.weight, std=0.7)
    features = torch.randn(5, 8)
    with torch.no_grad():
        log_p, log_q = (head.log_probs(features, None, 1.0) for head in (p, q))
        logits = [head(features).double().split([2, 4, 3], dim=-1) for head in (p, q)]
    kl, bits = np.zeros(5), np.zeros(5)
    for classes in itertools.product(range(2), range(4), range(3)):
        joint = [
            sum(torch.log_softmax(part, -1)[:, c].numpy() for part, c in zip(parts, classes, strict=True))
            for parts in logits
        ]
        kl += np.exp(joint[0]) * (joint[0] - joint[1])
        bits -= np.exp(joint[0]) * joint[0]
    np.testing.assert_allclose(kl_divergence(log_p, log_q), kl, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(entropy(log_p), bits, rtol=1e-4, atol=1e-5)


def test_an_agents_kl_is_that_of_its_joint():
    one, other = (tiny_agent(seed, SPACE, image_size=0, vector_size=3) for seed in (0, 1))
    frames, vectors = torch.zeros(1, 4, 0, 0, 3, dtype=torch.uint8), torch.randn(1, 4, 3)
    with torch.no_grad():
        log_p, log_q = one(frames, vectors), other(frames, vectors)
    expected = torch.zeros(4)
    for a, b, c in itertools.product(range(2), range(4), range(3)):
        joint = [logs[0, :, 0, a] + logs[0, :, 1, b] + logs[0, :, 2, c] for logs in (log_p, log_q)]
        expected += joint[0].exp() * (joint[0] - joint[1])
    torch.testing.assert_close(kl_divergence(log_p, log_q)[0], expected, atol=1e-5, rtol=1e-4)


def test_the_coefficient_rises_above_the_target_and_falls_below():
    assert adapted(0.5, 0.11, 0.1) == pytest.approx(0.5 * 1.01)  # a tenth too far: a hundredth more
    assert adapted(0.5, 0.09, 0.1) == pytest.approx(0.5 * 0.99)
    assert adapted(0.5, 9.0, 0.1) == pytest.approx(0.5 * 1.02)  # never by more than 2 %
    assert adapted(0.5, 0.0, 0.1) == pytest.approx(0.5 * 0.98)
    assert adapted(0.5, 0.1, 0.1) == pytest.approx(0.5)


@given(st.floats(0.01, 4), st.floats(-3, 3), st.floats(0.05, 0.5))
def test_the_surrogate_is_a_bound(ratio, advantage, clip):
    change, advantages = torch.tensor([[ratio]]).log(), torch.tensor([[advantage]])
    plain, _ = surrogate(change, advantages, None)
    clipped, found = surrogate(change, advantages, clip)
    assert float(plain) == pytest.approx(ratio * advantage, rel=1e-4, abs=1e-5)
    assert float(clipped) <= float(plain) + 1e-6
    assert float(found) == pytest.approx(ratio, rel=1e-4)
    if abs(ratio - 1) <= clip:
        assert float(clipped) == float(plain)


def test_a_value_that_moved_too_far_is_counted_where_it_stopped():
    values, before, returns = (
        torch.tensor([2.0, 0.0, 1.0]),
        torch.tensor([1.0, 1.0, 1.0]),
        torch.tensor([3.0, -2.0, 0.0]),
    )
    assert value_error(values, before, returns, None).tolist() == [1.0, 4.0, 1.0]
    assert value_error(values, before, returns, 0.5).tolist() == [1.5**2, 2.5**2, 1.0]
    assert value_error(values, before, torch.tensor([0.0, 5.0, 1.0]), 0.5).tolist() == [4.0, 25.0, 0.0]  # the worse one


def test_means_are_over_the_steps_that_count():
    means = UpdateMeans(("a", "b"))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    one, other = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    means.update([one, other], mask, torch.tensor(0.5))
    means.update([one, 3 * other], mask & False)
    means.update([10 * one, 5 * other], torch.tensor([[False, False, False], [True, False, False]]))
    found = {name: float(value) for name, value in means.compute().items()}
    assert found == {"a": pytest.approx((0 + 1 + 3 + 30) / 4), "b": pytest.approx(8 / 4), "policy/log_prob_gap": 0.5}
    means.reset()
    means.update([one, other], mask & False)
    assert [float(v) for v in means.compute().values()] == [0.0, 0.0, 0.0]
