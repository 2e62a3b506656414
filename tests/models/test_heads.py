"""Action heads against sums over every action that there is."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.errors import UserError
from lit_align.models.agent import gather_log_prob
from lit_align.models.heads import PolicyConfig, draw, make_heads

SIZES = (2, 3, 2)
EVERY = torch.tensor(list(itertools.product(*(range(n) for n in SIZES))))


def heads(kind, seed=0):
    torch.manual_seed(seed)
    made = make_heads(PolicyConfig(kind, width=16), 8, SIZES)
    for parameter in made.parameters():  # far from uniform
        parameter.data += 0.7 * torch.randn_like(parameter)
    return made


@torch.no_grad()
@pytest.mark.parametrize("kind", ["independent", "autoregressive"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_all_actions_together_have_probability_one(kind, temperature):
    made, features = heads(kind), torch.randn(1, 8)
    log_probs = made.log_probs(features.expand(len(EVERY), -1), EVERY, temperature)
    assert float(gather_log_prob(log_probs, EVERY).exp().sum()) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(log_probs.exp().sum(-1), torch.ones(len(EVERY), 3), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(5,), (3, 3), (2, 5, 3)])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_logits_of_each_head_stand_in_its_row(sizes, temperature):
    made = make_heads(PolicyConfig("independent"), 8, sizes)
    logits = torch.randn(4, 6, sum(sizes))
    log_probs = made.spread(logits, temperature)
    assert log_probs.shape == (4, 6, len(sizes), max(sizes))
    for h, part in enumerate(logits.split(sizes, -1)):
        torch.testing.assert_close(log_probs[..., h, : sizes[h]], (part / temperature).log_softmax(-1))
        assert (log_probs[..., h, sizes[h] :].exp() == 0).all()


@torch.no_grad()
def test_later_heads_depend_on_earlier_classes_only():
    made, features = heads("autoregressive"), torch.randn(8)
    for a in EVERY:
        for h in range(3):
            other = a.clone()
            other[h] = (a[h] + 1) % SIZES[h]
            one, two = (made.log_probs(features[None], x[None], 1.0)[0] for x in (a, other))
            assert torch.equal(one[: h + 1], two[: h + 1])
            if h < 2:
                assert not torch.allclose(one[h + 1 :], two[h + 1 :])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["independent", "autoregressive"])
def test_actions_come_as_often_as_the_joint_says_and_tell_their_log_prob(kind):
    made, features, n = heads(kind), torch.randn(1, 8), 40_000
    noise = torch.rand(n, 3, generator=torch.Generator().manual_seed(1))
    actions, log_prob = made.sample(features.expand(n, -1), noise, 1.0, 1.0)
    log_probs = made.log_probs(features.expand(n, -1), actions, 1.0)
    torch.testing.assert_close(log_prob, gather_log_prob(log_probs, actions), atol=1e-5, rtol=1e-5)
    expected = gather_log_prob(made.log_probs(features.expand(len(EVERY), -1), EVERY, 1.0), EVERY).exp()
    counts = torch.stack([(actions == action).all(-1).sum() for action in EVERY])
    spread = (n * expected * (1 - expected)).sqrt()
    assert ((counts - n * expected).abs() < 5 * spread + 1).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=7), st.floats(0.05, 0.999), st.integers(0, 9))
def test_top_p_keeps_the_smallest_set_that_holds_p(logits, top_p, seed):
    p = np.exp(np.array(logits) - max(logits))
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    held = int(np.searchsorted(np.cumsum(p[order]), top_p - 1e-6)) + 1
    kept = set(order[:held].tolist()) | {i for i in range(len(p)) if math.isclose(p[i], p[order[held - 1]])}
    log_probs = torch.tensor(np.log(p), dtype=torch.float32).expand(200, 1, -1)
    noise = torch.rand(200, 1, generator=torch.Generator().manual_seed(seed))
    actions, told = draw(log_probs, noise, 1.0, top_p)
    assert set(actions.flatten().tolist()) <= kept
    # What is told is the probability among those that were kept: between p / (all of it) and p / (what had to be held).
    found = p[actions.flatten()]
    assert (told.flatten().exp().numpy() > found - 1e-4).all()
    assert (told.flatten().exp().numpy() < found / (top_p - 1e-3) + 1e-4).all()


def test_greedy_takes_the_likeliest_and_a_class_that_is_not_there_never_comes():
    log_probs = torch.log_softmax(torch.tensor([[[0.1, 2.0, -1e9], [3.0, 0.0, 1.0]]]), dim=-1)
    actions, told = draw(log_probs, torch.tensor([[0.999999, 0.5]]), 0.0, 1.0)
    assert actions.tolist() == [[1, 0]]
    assert told.tolist()[0] == pytest.approx([float(log_probs[0, 0, 1]), float(log_probs[0, 1, 0])])
    almost_one = torch.full((1, 2), float(np.nextafter(np.float32(1), np.float32(0))))
    assert draw(log_probs, almost_one, 1.0, 1.0)[0].tolist() == [[1, 2]]


def test_a_policy_that_cannot_be_is_refused():
    with pytest.raises(UserError, match="expected independent or autoregressive"):
        PolicyConfig.from_dict({"heads": "both"})
    with pytest.raises(UserError, match="expected the keys heads and width"):
        PolicyConfig.from_dict({"depth": 3})
    with pytest.raises(UserError, match="whole number"):
        PolicyConfig.from_dict({"width": 0})
