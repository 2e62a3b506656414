"""Alignment: its gradient against estimators written as loops, PPO's clip, the exact KL, and that it learns."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from lit_align.cli import main
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.rollout.buffer import RolloutDataModule
from lit_align.rollout.sampler import Sampler
from lit_align.rollout.steps import Rollout
from lit_align.seeds import episode_seeds
from lit_align.stages.align import Align
from tests.helpers import LightWorld, made_up, tiny_agent
from tests.stages.iteration import Iteration, align_inputs, assert_same_gradient, played_log_probs
from tests.stages.runs import CPU, WORLD, align, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return align_inputs(tmp_path_factory.mktemp("align"))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_one_pass_without_clipping_is_reinforce_with_a_batch_baseline(folder, temperature):
    it = Iteration(folder, clip=None, kl=0.0, temperature=temperature)
    expected = torch.zeros(())
    for trajectory, advantage in zip(it.played, it.advantages(), strict=True):
        log_probs = it.log_prob(it.agent, trajectory)
        for t in range(len(trajectory)):  # the whole episode's reward, undiscounted, for each of its actions
            expected = expected - advantage * log_probs[t]
    assert_same_gradient(it.agent, it.loss(), expected / it.steps)


def test_minibatches_add_up_to_the_whole_batch(folder):
    """Each is divided by the mean number of steps in one, so long episodes are not watered down."""
    whole, parts = Iteration(folder, clip=None, kl=0.1), Iteration(folder, minibatches=3, clip=None, kl=0.1)
    assert_same_gradient(parts.agent, parts.loss() / 3, parts_loss_in_one(parts))
    torch.testing.assert_close(parts.loss() / 3, whole.loss(), atol=1e-5, rtol=1e-4)


def parts_loss_in_one(it: Iteration) -> torch.Tensor:
    it.data.minibatches = 1
    loss = it.loss()
    it.data.minibatches = 3
    return loss


@pytest.mark.parametrize("clip", [0.2, 0.02])
def test_the_clip_is_ppos(folder, clip):
    it = Iteration(folder, clip=clip, kl=0.0)
    it.wander()
    total, cut, both = torch.zeros(()), 0, set()
    for trajectory, advantage in zip(it.played, it.advantages(), strict=True):
        new = it.log_prob(it.agent, trajectory)
        for t in range(len(trajectory)):
            ratio = torch.exp(new[t] - played_log_probs(trajectory)[t])
            if ratio > 1 + clip:
                bounded = torch.tensor(1 + clip)
            elif ratio < 1 - clip:
                bounded = torch.tensor(1 - clip)
            else:
                bounded = ratio
            cut += bounded is not ratio
            both.add((advantage > 0, bool(ratio > 1)))
            total = total - torch.min(ratio * advantage, bounded * advantage)
    assert len(both) == 4, "every sign of the advantage should meet every side of the ratio"
    assert cut > 0
    loss = it.loss()
    torch.testing.assert_close(loss, total / it.steps, atol=1e-5, rtol=1e-4)
    assert_same_gradient(it.agent, loss, total / it.steps)
    assert it.mean("policy/clip_fraction") == pytest.approx(cut / it.steps)


def test_the_kl_is_exact_and_the_one_that_is_logged(folder):
    it = Iteration(folder, clip=None, kl=1.0, reference=str(folder / "other" / "agent"), temperature=0.8)
    it.forget_advantages()
    reference = tiny_agent(7)
    total = torch.zeros(())
    for trajectory in it.played:
        for ours, theirs in zip(it.heads(it.agent, trajectory), it.heads(reference, trajectory), strict=True):
            total = total + kl_divergence(ours, Categorical(logits=theirs.logits.detach())).sum()
    loss = it.loss()
    torch.testing.assert_close(loss, total / it.steps, atol=1e-4, rtol=1e-4)
    assert_same_gradient(it.agent, loss, total / it.steps)
    assert it.mean("policy/kl") == pytest.approx(float(total.detach()) / it.steps, rel=1e-4)
    entropies = [float(h.entropy().sum().detach()) for t in it.played for h in it.heads(it.agent, t)]
    assert it.mean("policy/entropy") == pytest.approx(sum(entropies) / it.steps, rel=1e-4)


def test_the_entropy_bonus_is_the_heads_own(folder):
    it = Iteration(folder, clip=None, kl=0.0, entropy=1.0)
    it.forget_advantages()
    parts = [h.entropy().sum() for t in it.played for h in it.heads(it.agent, t)]
    assert_same_gradient(it.agent, it.loss(), -torch.stack(parts).sum() / it.steps)


def test_without_a_reference_nothing_is_computed_for_it(folder):
    it = Iteration(folder, clip=None, kl=0.0, reference="none")
    with_one = Iteration(folder, clip=None, kl=0.0)
    (batch,) = it.data.train_dataloader()
    assert "reference" not in batch
    loss = it.loss()
    torch.testing.assert_close(loss, with_one.loss(), atol=1e-6, rtol=1e-5)
    assert "policy/kl" not in it.stage.means.compute()
    assert "policy/kl" in with_one.stage.means.compute()


def test_advantages_can_be_scaled_to_one(folder):
    it = Iteration(folder, scale_advantages=True)
    expected = np.array(it.advantages())
    for rollout in it.rollouts:
        assert rollout.advantages.shape == (len(rollout.trajectory),)
        assert len(set(rollout.advantages.tolist())) == 1
    found = np.array([float(rollout.advantages[0]) for rollout in it.rollouts])
    np.testing.assert_allclose(found, expected / expected.std(), rtol=1e-4, atol=1e-5)


def test_the_gap_shows_log_probs_that_are_not_the_samplers(folder):
    it = Iteration(folder)
    it.loss()
    assert it.mean("policy/log_prob_gap") < 1e-4
    it.stage.means.reset()
    played_log_probs(it.played[2])[1] += 0.25
    it.data.fill(0, it.rollouts)
    it.loss()
    assert it.mean("policy/log_prob_gap") == pytest.approx(0.25, abs=1e-4)


def test_before_the_first_update_of_every_iteration_the_log_probs_agree(folder):
    argv = [*align(folder, folder / "gap", epochs=3), "--model.optimizer.lr=0.01", "--model.temperature=0.7"]
    assert main(argv) == 0
    logged = rows(folder / "gap", "policy/log_prob_gap")
    assert len(logged) == 3
    assert all(float(row["policy/log_prob_gap"]) < 1e-4 for row in logged)
    assert float(logged[-1]["policy/kl"]) > 1e-4, "the policy moved, so the later gaps mean something"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_a_pass_over_the_buffer_meets_every_episode_once(size, minibatches, epochs, iteration):
    episodes = size * minibatches
    data = RolloutDataModule(WORLD, worlds=1, episodes=episodes, minibatches=minibatches, epochs=epochs)
    widest = torch.zeros(1, 16, 11)
    rollouts = [Rollout(made_up(i, 1), torch.tensor([float(i)]), widest) for i in range(episodes)]
    data.fill(iteration, rollouts[::-1])
    batches = [batch["advantages"][:, 0].tolist() for batch in data.train_dataloader()]
    assert len(batches) == minibatches * epochs
    for n in range(epochs):
        met = [number for batch in batches[n * minibatches : (n + 1) * minibatches] for number in batch]
        assert sorted(met) == [float(i) for i in range(episodes)]
    data.fill(iteration, rollouts)
    assert [
        batch["advantages"][:, 0].tolist() for batch in data.train_dataloader()
    ] == batches  # whoever finished first


def test_dealt_episodes_never_repeat_and_wrong_numbers_are_named():
    data = RolloutDataModule(WORLD, episodes=6, minibatches=2)
    dealt = [pair for iteration in range(4) for pair in data.deal(iteration)]
    assert [i for i, _ in dealt] == list(range(24))
    assert [seed for _, seed in dealt] == episode_seeds("train", 0, 24)
    with pytest.raises(UserError, match="episodes a multiple of minibatches"):
        RolloutDataModule(WORLD, episodes=5, minibatches=2)


def lefts(agent: Agent) -> float:
    """How often an agent ends left in 200 fresh episodes."""
    seeds = episode_seeds("evaluation", 0, 200)
    with Sampler(agent, lambda: LightWorld(0, vector=2), 50) as sampler:
        return float(np.mean([t.outcome == "left" for t in sampler.play(list(enumerate(seeds)))]))


def one_for_left(trajectory: Trajectory) -> list[float]:
    """The reward of a person who likes it left, at the end."""
    return [0.0] * (len(trajectory) - 1) + [float(trajectory.outcome == "left")]


@pytest.mark.parametrize(
    "estimator", ["reinforce", "ppo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rloo", "grpo"))]
)
def test_it_learns_what_a_hand_made_reward_asks_for(folder, estimator):
    start = str(folder / "numbers" / "agent")
    argv = ["align", "fit", f"--out={folder / estimator}", f"--init_from={start}", *CPU]
    argv += ["--model.reward_model=tests.stages.test_align:one_for_left", "--trainer.limit_val_batches=0"]
    argv += [f"--data.env={WORLD}", "--data.env_args={size: 0, vector: 2}", "--data.worlds=32", "--data.episodes=64"]
    argv += [f"--model.estimator={estimator}", "--data.group=4", "--trainer.max_epochs=8", "--model.kl=0.001"]
    argv += ["--model.optimizer.lr=0.01", "--model.optimizer.warmup_steps=0"]
    assert main(argv) == 0
    rates = [float(row["outcome/left"] or 0) for row in rows(folder / estimator, "iteration")]
    assert rates[0] < 0.6
    assert rates[-1] > 0.9
    before, after = lefts(Agent.load(start)), lefts(Agent.load(folder / estimator / "agent"))
    assert before < 0.6
    assert after > 0.9


def test_returns_are_those_of_all_processes_together(monkeypatch):
    """In the light world every episode pays 1, which runs on two processes cannot tell from each other."""
    frames, actions = np.zeros((4, 0, 0, 3), np.uint8), np.zeros((3, 1), np.uint8)
    paid = [np.array(rewards, np.float32) for rewards in ([1, 0.5, -2], [0, 0, 4])]
    here = [Trajectory(frames=frames, actions=actions, id=i, rewards=own) for i, own in enumerate(paid)]
    monkeypatch.setattr("lit_align.stages.align.gathered", lambda _, mine: [mine, [7.25]])
    stage: Any = SimpleNamespace(trainer=None)
    assert Align._returns(stage, here) == pytest.approx((np.mean([-0.5, 4, 7.25]), np.std([-0.5, 4, 7.25])))
