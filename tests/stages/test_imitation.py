"""The imitation loss against cross-entropies head by head, and the heads' entropy and KL against torch's own."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical
from torch.distributions import kl_divergence as torch_kl

from lit_align.data.modules import TrajectoryDataModule
from lit_align.data.trajectory import Trajectory
from lit_align.data.windows import Window
from lit_align.errors import UserError
from lit_align.models.agent import Agent, entropy, gather_log_prob, kl_divergence
from lit_align.stages.pretrain import Pretrain, weights_of
from tests.helpers import made_up, record, tiny_agent

LENGTHS = (9, 4, 13)  # longer than the window of 6 frames, and shorter


def by_head(agent: Agent, features: torch.Tensor, temperature: float = 1.0) -> list[Categorical]:
    """Each head's distribution, from the raw logits of its own classes alone."""
    return [Categorical(logits=part / temperature) for part in agent.head(features).split(agent.codec.sizes, dim=-1)]


def brute_force(agent: Agent, episodes: list[Trajectory]) -> tuple[torch.Tensor, float]:
    """Nats a step and the share of steps with every head right, one unpadded episode after another."""
    total, right, steps = torch.zeros(()), 0, 0
    for episode in episodes:
        heads = by_head(agent, agent.backbone(torch.from_numpy(episode.frames[:-1])[None])[0])
        actions = torch.from_numpy(episode.actions).long()
        for t in range(len(episode)):
            hits = 0
            for h, head in enumerate(heads):
                total = total - head.log_prob(actions[:, h])[t]
                hits += int(head.probs[t].argmax() == actions[t, h])
            right += hits == len(heads)
            steps += 1
    return total / steps, right / steps


def batch_of(episodes: list[Trajectory], extra: int = 0, shift: int = 0) -> dict[str, torch.Tensor]:
    """The episodes padded with noise, which must not matter."""
    steps = max(len(e) for e in episodes) + extra
    rng = np.random.default_rng(extra)
    frames = rng.integers(0, 256, (len(episodes), steps, 32, 32, 3), dtype=np.uint8)
    actions = rng.integers(0, 2, (len(episodes), steps, 16), dtype=np.uint8)
    for row, episode in enumerate(episodes):
        frames[row, : len(episode)] = episode.frames[:-1]
        actions[row, : len(episode)] = np.roll(episode.actions, shift, axis=0)
    lengths = torch.tensor([len(e) for e in episodes])
    seen = {"frames": torch.from_numpy(frames), "vectors": torch.zeros(len(episodes), steps, 0), "lengths": lengths}
    return {**seen, "actions": torch.from_numpy(actions)}


@pytest.fixture
def stage():
    stage = Pretrain()
    stage.agent = tiny_agent()
    return stage


@pytest.fixture
def episodes():
    return [made_up(i, steps) for i, steps in enumerate(LENGTHS)]


def gradients(agent: Agent, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(agent.parameters())))


def test_the_loss_is_the_cross_entropy_of_every_head_at_every_step(stage, episodes):
    loss, accuracy = stage.loss_of(batch_of(episodes))
    expected, right = brute_force(stage.agent, episodes)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    assert float(accuracy) == pytest.approx(right)
    for found, wanted in zip(gradients(stage.agent, loss), gradients(stage.agent, expected), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)


def test_a_step_counts_as_right_only_when_every_head_is(stage, episodes):
    with torch.no_grad():
        for episode in episodes:
            best = stage.agent(torch.from_numpy(episode.frames[:-1])[None])[0].argmax(-1)
            episode.actions[:] = best.to(torch.uint8).numpy()
    assert float(stage.loss_of(batch_of(episodes))[1]) == 1.0
    episodes[0].actions[2, 5] ^= 1
    episodes[0].actions[2, 6] ^= 1
    assert float(stage.loss_of(batch_of(episodes))[1]) == pytest.approx(1 - 1 / sum(LENGTHS))


def test_padding_changes_nothing_and_a_shift_by_one_does(stage, episodes):
    loss, _ = stage.loss_of(batch_of(episodes))
    longer, _ = stage.loss_of(batch_of(episodes, extra=7))
    torch.testing.assert_close(loss, longer, atol=1e-5, rtol=1e-6)
    for found, wanted in zip(gradients(stage.agent, longer), gradients(stage.agent, loss), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)
    for shift in (-1, 1):
        assert abs(float((stage.loss_of(batch_of(episodes, shift=shift))[0] - loss).detach())) > 1e-3


def test_the_data_module_serves_what_the_loss_expects(tmp_path, stage, episodes):
    """The loss of served windows is the brute-force loss of the recorded steps: no frame beside a later action."""
    data = TrajectoryDataModule([record(tmp_path / "play", episodes)], window=64, batch_size=3, val_fraction=0.0)
    data.setup()
    (batch,) = data.train_dataloader()
    torch.testing.assert_close(stage.loss_of(batch)[0], brute_force(stage.agent, episodes)[0], atol=1e-4, rtol=1e-5)
    cut = data._make(np.array([[0, 2]]), [Window(0, 5, 6)])  # a window from the middle of the longest episode
    assert np.array_equal(cut["frames"][0].numpy(), episodes[2].frames[5:11])
    assert np.array_equal(cut["actions"][0].numpy(), episodes[2].actions[5:11])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 40.0), st.sampled_from([0.5, 1.0, 3.0]))
def test_entropy_and_kl_are_those_of_the_heads_own_distributions(seed, scale, temperature):
    torch.manual_seed(seed)
    agent = tiny_agent()
    features, others = scale * torch.randn(2, 3, 4, 32)
    p, q = (agent.log_probs_of(x, temperature=temperature) for x in (features, others))
    agent = agent.double()  # torch's own KL is infinite where a float32 probability underflows
    ps, qs = by_head(agent, features.double(), temperature), by_head(agent, others.double(), temperature)

    def assert_near(found: torch.Tensor, parts: list[torch.Tensor]) -> None:
        torch.testing.assert_close(found.double(), torch.stack(parts).sum(0), atol=1e-3, rtol=1e-4)

    assert_near(entropy(p), [head.entropy() for head in ps])
    assert_near(kl_divergence(p, q), [torch_kl(a, b) for a, b in zip(ps, qs, strict=True)])
    assert (kl_divergence(p, p) == 0).all()
    actions = torch.stack([head.sample() for head in ps], -1)
    joint = [head.log_prob(actions[..., h]) for h, head in enumerate(ps)]
    assert_near(gather_log_prob(p, actions.to(torch.uint8)), joint)


def test_classes_that_a_head_lacks_have_no_probability_and_no_gradient():
    agent = tiny_agent()
    features = torch.randn(5, 32, requires_grad=True)
    log_probs = agent.log_probs_of(features)
    assert log_probs.shape == (5, 16, 11)
    assert (log_probs[:, :12, 2:].exp() == 0).all()  # a button has two classes, an axis eleven
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(5, 16))
    # Whatever the impossible logit is, nothing flows through it: entropy and KL stay finite, and so do gradients.
    value = (entropy(log_probs) + kl_divergence(log_probs, log_probs.detach().roll(1, 0))).sum()
    (gradient,) = torch.autograd.grad(value, features)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


def test_heads_weigh_what_they_are_told_to(stage):
    episodes = [made_up(i, n) for i, n in enumerate(LENGTHS)]
    batch, codec = batch_of(episodes), stage.agent.codec
    only = dict.fromkeys(("buttons", "left_stick", "right_stick"), 0.0)
    parts = [
        float(stage.loss_of(batch, weights_of({**only, name: 1.0}, codec))[0].detach()) for name in only
    ]  # the parts of the action space, each alone
    assert sum(parts) == pytest.approx(float(stage.loss_of(batch)[0].detach()), rel=1e-5)
    mixed = stage.loss_of(batch, weights_of({"buttons": 0.5, "right_stick": 2, "right_stick.1": 2}, codec))[0]
    assert float(mixed.detach()) == pytest.approx(0.5 * parts[0] + parts[1] + 2 * parts[2], rel=1e-5)
    with pytest.raises(UserError, match=r"holds button: 1; expected 0 or more for one of buttons.0"):
        weights_of({"button": 1}, codec)
    with pytest.raises(UserError, match="holds buttons: -1"):
        weights_of({"buttons": -1}, codec)


def test_masked_steps_are_context_and_no_targets(stage):
    episodes = [made_up(i, n) for i, n in enumerate(LENGTHS)]
    batch = batch_of(episodes)
    batch["mask"] = torch.rand(batch["frames"].shape[:2], generator=torch.Generator().manual_seed(0)) < 0.5
    loss, accuracy = stage.loss_of(batch)
    log_probs = stage.agent(batch["frames"])
    total, steps = 0.0, 0
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            if batch["mask"][row, t]:
                total -= float(gather_log_prob(log_probs, batch["actions"])[row, t].detach())
                steps += 1
    assert float(loss.detach()) == pytest.approx(total / steps, rel=1e-5)
    batch["mask"][:] = False
    assert float(stage.loss_of(batch)[0].detach()) == 0
