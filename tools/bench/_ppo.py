"""`lit-align align` for a number of env steps, timed, and how well what it leaves plays."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml

from lit_align.commands.stage import run_stage
from lit_align.envs.gym import make
from lit_align.models.agent import Agent
from lit_align.rollout.sampler import Sampler
from lit_align.stages.align import Align
from tools.bench._quiet import silence


class RacedAlign(Align):
    """Stops at the end of the iteration in which enough env steps were played, and times the training.

    Args:
        total: Env steps.
        **rest: Of `Align`.
    """

    last: ClassVar[dict[str, float]] = {}
    """`wall` and `cpu` seconds, env `steps` and trained `parameters` of the last run."""

    def __init__(self, total: int = 0, **rest: Any) -> None:
        super().__init__(**rest)
        self.total = total

    def on_train_start(self) -> None:
        """Starts the watch."""
        self._begun = time.perf_counter(), time.process_time()
        super().on_train_start()

    def on_train_epoch_end(self) -> None:
        """Stops the run when it has played enough."""
        super().on_train_epoch_end()
        if self.env_steps >= self.total:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Stops the watch."""
        wall, cpu = self._begun
        RacedAlign.last = {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            "steps": float(self.env_steps),
            "parameters": float(sum(p.numel() for p in self.parameters() if p.requires_grad)),
        }
        super().on_train_end()


@dataclass
class PPO:
    """A run of PPO in the terms that both sides share; the defaults are Stable-Baselines3's.

    Attributes:
        n_steps: Env steps that each world plays in an iteration.
        batch_size: Env steps of a minibatch.
        n_epochs: Passes over an iteration.
        gamma: Discount.
        gae_lambda: Of generalised advantage estimation.
        clip_range: Of the ratios.
        learning_rate: Of Adam, constant.
        ent_coef: Of the entropy bonus.
        vf_coef: Of the value loss, the mean squared error; ours is in units of the returns' variance.
        max_grad_norm: Gradients are clipped to this norm.
    """

    n_steps: int = 2048
    batch_size: int = 64
    n_epochs: int = 10
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    learning_rate: float = 3e-4
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5

    def config(self, worlds: int, fragment: int) -> dict[str, Any]:
        """The same for `lit-align align`.

        Args:
            worlds: Stepped together.
            fragment: Env steps of a piece of an episode; minibatches are made of whole pieces.
        """
        optimizer = {"lr": self.learning_rate, "beta2": 0.999, "weight_decay": 0.0, "warmup_steps": 0}
        model = {
            "estimator": "ppo",
            "reward_model": "env",
            "reference": "none",
            "gamma": self.gamma,
            "gae_lambda": self.gae_lambda,
            "clip": self.clip_range,
            "kl": 0.0,
            "entropy": self.ent_coef,
            "value_coefficient": self.vf_coef,
            "scale_advantages": True,
            "optimizer": {**optimizer, "schedule": "constant"},
        }
        steps = self.n_steps * worlds
        data = {
            "worlds": worlds,
            "steps": steps,
            "fragment": fragment,
            "minibatches": steps // self.batch_size,
            "epochs": self.n_epochs,
        }
        trainer = {"accelerator": "cpu", "devices": 1, "precision": "32-true", "gradient_clip_val": self.max_grad_norm}
        quiet = {"max_epochs": 10**6, "enable_progress_bar": False, "enable_model_summary": False}
        return {
            "model": model,
            "data": data,
            "trainer": {**trainer, **quiet, "check_val_every_n_epoch": 10**6, "log_every_n_steps": 20},
        }


def align(config: dict[str, Any], agent: Path, env: str, total: int, seed: int, evaluation: Sequence[int]) -> Any:
    """Trains a new agent of a given architecture for `total` env steps, then plays greedily.

    Args:
        config: What a YAML file would hold.
        agent: Folder of the agent that gives the architecture; its weights are drawn anew.
        env: Gymnasium id of the world.
        total: Env steps to train for; the iteration in which they are reached is finished.
        seed: Of the run.
        evaluation: The world's seed of each episode that is played afterwards.

    Returns:
        `RacedAlign.last`, and the mean `return` of these episodes.
    """
    RacedAlign.last = {}
    content = {**config, "model": {**config["model"], "total": total}, "data": {**config["data"], "env": env}}
    with tempfile.TemporaryDirectory() as folder, silence():
        path, out = Path(folder) / "config.yaml", Path(folder) / "run"
        path.write_text(yaml.safe_dump(content))
        classes = ("tools.bench._ppo:RacedAlign", "lit_align.rollout.buffer:RolloutDataModule")
        argv = ["fit", f"--config={path}", f"--init_from={agent}", "--random_init=true", f"--out={out}"]
        run_stage("align", [*argv, f"--seed={seed}"], classes)
        assert RacedAlign.last, "the run ended before it was timed"
        return {**RacedAlign.last, "return": score(Agent.load(out / "agent"), env, evaluation)}


def score(agent: Agent, env: str, seeds: Sequence[int]) -> float:
    """The mean return of an episode for each seed, likeliest actions."""
    with Sampler(agent, lambda: make(env), len(seeds), temperature=0.0) as sampler:
        returns = [float(played.rewards.sum()) for played in sampler.play(enumerate(seeds))]
    return float(torch.tensor(returns).mean())
