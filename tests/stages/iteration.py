"""One iteration of `align` without a Trainer, and what its updates should be, from distributions of one episode."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.distributions import Categorical

from lit_align.data.trajectory import Trajectory
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import RolloutDataModule
from lit_align.rollout.sampler import Sampler
from lit_align.stages.align import Align
from tests.helpers import LightWorld, tiny_agent
from tests.stages.runs import WORLD, inputs


def align_inputs(folder: Path) -> Path:
    """What `inputs` leaves, a second agent, one that sees numbers and seldom goes left, a judge of two heads."""
    inputs(folder)
    tiny_agent(7).save(folder / "other" / "agent")
    numbers = tiny_agent(image_size=0, vector_size=2)
    numbers.head.bias.data[0] += 1.2  # the class of not pressing the first button
    numbers.save(folder / "numbers" / "agent")
    judge = RewardModel.from_agent(tiny_agent(1), heads=2)
    torch.nn.init.normal_(judge.head.weight)
    judge.mean.fill_(0.3)
    judge.std.fill_(2.5)
    judge.save(folder / "judge" / "reward_model")
    return folder


class Iteration:
    """One iteration's play and its update, without a Trainer."""

    def __init__(self, folder: Path, minibatches: int = 1, fragment: int | None = None, **options: Any) -> None:
        self.data = RolloutDataModule(WORLD, worlds=3, episodes=6, minibatches=minibatches, epochs=1, fragment=fragment)
        judge = str(folder / "judge" / "reward_model")
        self.stage = Align(**{"reward_model": judge, "init_from": str(folder / "base" / "agent"), **options})
        trainer = SimpleNamespace(datamodule=self.data, world_size=1, global_step=0)
        self.stage.trainer = trainer  # type: ignore[assignment]
        self.trainer = trainer  # Lightning holds it weakly
        self.stage.configure_model()
        self.agent = self.stage.model
        with Sampler(copy.deepcopy(self.agent), LightWorld, 3, self.stage.temperature) as sampler:
            self.played = sorted(sampler.play(self.data.deal(0)), key=lambda t: t.id)
        self.judge_again()
        self.judge = RewardModel.load(judge)

    def judge_again(self) -> None:
        self.rollouts = self.stage.judge(self.played)
        self.data.fill(0, self.rollouts)

    def wander(self, size: float = 0.02) -> None:
        """Moves the agent away from the policy that played, as earlier updates would."""
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in self.stage.trained.parameters():
                parameter.add_(size * torch.randn_like(parameter))

    def forget_advantages(self) -> None:
        for rollout in self.rollouts:
            rollout.advantages = torch.zeros(len(rollout.trajectory))
        self.data.fill(0, self.rollouts)

    def mean(self, name: str) -> float:
        """A mean over the updates, as it is logged."""
        return float(self.stage.means.compute()[name])

    def loss(self) -> torch.Tensor:
        losses = [self.stage.training_step(batch, i) for i, batch in enumerate(self.data.train_dataloader())]
        return torch.stack(losses).sum()

    def gradients(self) -> list[torch.Tensor]:
        return list(torch.autograd.grad(self.loss(), list(self.stage.trained.parameters())))

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


def assert_same_gradient(network: nn.Module, found: torch.Tensor, expected: torch.Tensor) -> None:
    parameters = list(network.parameters())
    a, b = torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters)
    assert max(float(g.abs().max()) for g in b) > 1e-4, "nothing to compare"
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-3)
