"""Alignment: its gradient against estimators written as loops, PPO's clip, the exact KL, and that it learns."""

import copy
from types import SimpleNamespace

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
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import Rollout, RolloutDataModule
from lit_align.rollout.sampler import Sampler
from lit_align.seeds import episode_seeds
from lit_align.stages.align import Align
from tests.helpers import LightWorld, made_up, tiny_agent
from tests.stages.runs import CPU, WORLD, align, inputs, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = inputs(tmp_path_factory.mktemp("align"))
    tiny_agent(7).save(folder / "other" / "agent")
    judge = RewardModel.from_agent(tiny_agent(1), heads=2)
    torch.nn.init.normal_(judge.head.weight)
    judge.mean.fill_(0.3)
    judge.std.fill_(2.5)
    judge.save(folder / "judge" / "reward_model")
    return folder


class Iteration:
    """One iteration's play and its update, without a Trainer."""

    def __init__(self, folder, minibatches: int = 1, **options) -> None:
        self.data = RolloutDataModule(WORLD, worlds=3, episodes=6, minibatches=minibatches, epochs=1)
        judge = str(folder / "judge" / "reward_model")
        self.stage = Align(reward_model=judge, init_from=str(folder / "base" / "agent"), **options)
        trainer = SimpleNamespace(datamodule=self.data, world_size=1, global_step=0)
        self.stage.trainer = trainer  # type: ignore[assignment]
        self.trainer = trainer  # Lightning holds it weakly
        self.stage.configure_model()
        self.agent = self.stage.model
        with Sampler(copy.deepcopy(self.agent), LightWorld, 3, self.stage.temperature) as sampler:
            self.played = sorted(sampler.play(self.data.deal(0)), key=lambda t: t.id)
        self.data.fill(0, self.stage.judge(self.played))
        self.judge = RewardModel.load(judge)

    def wander(self, size: float = 0.02) -> None:
        """Moves the agent away from the policy that played, as earlier updates would."""
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.agent.parameters():
                parameter.add_(size * torch.randn_like(parameter))

    def loss(self) -> torch.Tensor:
        losses = [self.stage.training_step(batch, i) for i, batch in enumerate(self.data.train_dataloader())]
        return torch.stack(losses).sum()

    def advantages(self) -> list[float]:
        """Reward of each episode alone, normalised by hand, minus the mean of all."""
        with torch.no_grad():
            raw = [self.judge.head(self.judge.backbone(frames_of(t, 0)))[0, -1].mean().item() for t in self.played]
        scaled = [(value - 0.3) / 2.5 for value in raw]
        return [value - sum(scaled) / len(scaled) for value in scaled]

    def heads(self, agent: Agent, trajectory: Trajectory) -> list[Categorical]:
        """Each head's distributions over an unpadded episode, from its own logits."""
        logits = agent.head(agent.backbone(frames_of(trajectory, 1)))[0] / self.stage.temperature
        return [Categorical(logits=part) for part in logits.split(agent.codec.sizes, dim=-1)]

    def log_prob(self, agent: Agent, trajectory: Trajectory) -> torch.Tensor:
        actions = torch.from_numpy(trajectory.actions).long()
        return torch.stack([h.log_prob(actions[:, i]) for i, h in enumerate(self.heads(agent, trajectory))]).sum(0)

    @property
    def steps(self) -> int:
        return sum(len(t) for t in self.played)


def frames_of(trajectory: Trajectory, without: int) -> torch.Tensor:
    return torch.from_numpy(trajectory.frames[: len(trajectory.frames) - without])[None]


def played_log_probs(trajectory: Trajectory) -> torch.Tensor:
    """What the sampler recorded; a change of it is a change of the trajectory."""
    assert trajectory.log_probs is not None
    return torch.from_numpy(trajectory.log_probs)


def assert_same_gradient(agent: Agent, found: torch.Tensor, expected: torch.Tensor) -> None:
    parameters = list(agent.parameters())
    a, b = torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters)
    assert max(float(g.abs().max()) for g in b) > 1e-4, "nothing to compare"
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-3)


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
    assert float(it.stage.mean_of("clip_fraction").compute()) == pytest.approx(cut / it.steps)


def test_the_kl_is_exact_and_the_one_that_is_logged(folder):
    it = Iteration(folder, clip=None, kl=1.0, reference=str(folder / "other" / "agent"), temperature=0.8)
    for rollout in it.data.buffer:
        rollout.advantage = 0.0
    reference = tiny_agent(7)
    total = torch.zeros(())
    for trajectory in it.played:
        for ours, theirs in zip(it.heads(it.agent, trajectory), it.heads(reference, trajectory), strict=True):
            total = total + kl_divergence(ours, Categorical(logits=theirs.logits.detach())).sum()
    loss = it.loss()
    torch.testing.assert_close(loss, total / it.steps, atol=1e-4, rtol=1e-4)
    assert_same_gradient(it.agent, loss, total / it.steps)
    assert float(it.stage.mean_of("kl").compute()) == pytest.approx(float(total.detach()) / it.steps, rel=1e-4)
    entropies = [float(h.entropy().sum().detach()) for t in it.played for h in it.heads(it.agent, t)]
    assert float(it.stage.mean_of("entropy").compute()) == pytest.approx(sum(entropies) / it.steps, rel=1e-4)


def test_the_entropy_bonus_is_the_heads_own(folder):
    it = Iteration(folder, clip=None, kl=0.0, entropy=1.0)
    for rollout in it.data.buffer:
        rollout.advantage = 0.0
    parts = [h.entropy().sum() for t in it.played for h in it.heads(it.agent, t)]
    assert_same_gradient(it.agent, it.loss(), -torch.stack(parts).sum() / it.steps)


def test_advantages_can_be_scaled_to_one(folder):
    it = Iteration(folder, scale_advantages=True)
    expected = np.array(it.advantages())
    found = np.array([rollout.advantage for rollout in it.data.buffer])
    np.testing.assert_allclose(found, expected / expected.std(), rtol=1e-4, atol=1e-5)


def test_the_gap_shows_log_probs_that_are_not_the_samplers(folder):
    it = Iteration(folder)
    it.loss()
    assert float(it.stage.mean_of("log_prob_gap").compute()) < 1e-4
    it.stage.mean_of("log_prob_gap").reset()
    played_log_probs(it.played[2])[1] += 0.25
    it.loss()
    assert float(it.stage.mean_of("log_prob_gap").compute()) == pytest.approx(0.25, abs=1e-4)


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
    rollouts = [Rollout(made_up(i, 1), advantage=float(i), reference=widest) for i in range(episodes)]
    data.fill(iteration, rollouts[::-1])
    batches = [batch["advantages"].tolist() for batch in data.train_dataloader()]
    assert len(batches) == minibatches * epochs
    for n in range(epochs):
        met = [number for batch in batches[n * minibatches : (n + 1) * minibatches] for number in batch]
        assert sorted(met) == [float(i) for i in range(episodes)]
    data.fill(iteration, rollouts)
    assert [batch["advantages"].tolist() for batch in data.train_dataloader()] == batches  # whoever finished first


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
    with Sampler(agent, LightWorld, 50) as sampler:
        return float(np.mean([t.outcome == "left" for t in sampler.play(list(enumerate(seeds)))]))


def test_it_learns_what_a_hand_made_reward_asks_for(folder, monkeypatch):
    def one_for_left(self: Align, played: list[Trajectory]) -> torch.Tensor:
        return torch.tensor([float(t.outcome == "left") for t in played])

    monkeypatch.setattr(Align, "rewards_of", one_for_left)
    argv = ["align", "fit", f"--out={folder / 'learn'}", f"--init_from={folder / 'base' / 'agent'}", *CPU]
    argv += [f"--model.reward_model={folder / 'judge' / 'reward_model'}", "--trainer.limit_val_batches=0"]
    argv += [f"--data.env={WORLD}", "--data.worlds=32", "--data.episodes=64", "--trainer.max_epochs=8"]
    argv += ["--model.kl=0.001", "--model.optimizer.lr=0.01", "--model.optimizer.warmup_steps=0"]
    assert main(argv) == 0
    rates = [float(row["outcome/left"]) for row in rows(folder / "learn", "iteration")]
    assert rates[0] < 0.6
    assert rates[-1] > 0.9
    before, after = lefts(tiny_agent()), lefts(Agent.load(folder / "learn" / "agent"))
    assert before < 0.6
    assert after > 0.9
