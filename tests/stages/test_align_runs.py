"""Whole runs of `align`: what a spent KL budget leaves, the steered KL, resuming, options that do not fit."""

import re
from typing import ClassVar

import lightning.pytorch as pl
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel
from tests.helpers import tiny_agent
from tests.stages.iteration import align_inputs
from tests.stages.runs import CPU, WORLD, Process, align, assert_same_weights, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return align_inputs(tmp_path_factory.mktemp("runs"))


def numbers(folder, out, epochs: int = 4, start: str = "numbers") -> list[str]:
    """A run in a world of numbers, which is quick."""
    argv = ["align", "fit", f"--out={folder / out}", f"--init_from={folder / start / 'agent'}", *CPU]
    argv += [f"--data.env={WORLD}", "--data.env_args={size: 0, vector: 2}", "--data.worlds=8", "--data.episodes=8"]
    argv += ["--data.minibatches=2", "--data.epochs=2", "--model.reward_model=tests.stages.test_align:one_for_left"]
    argv += ["--model.optimizer.lr=0.01", "--model.optimizer.warmup_steps=0", "--model.optimizer.schedule=constant"]
    return [*argv, f"--trainer.max_epochs={epochs}", "--trainer.limit_val_batches=0"]


class Recorder(pl.Callback):
    """Keeps the weights that play each iteration."""

    played: ClassVar[list[dict[str, torch.Tensor]]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.played.append({name: value.clone() for name, value in pl_module.agent.state_dict().items()})


RECORD = "--trainer.callbacks+=tests.stages.test_align_runs.Recorder"


def assert_left(folder, out: str, weights: dict[str, torch.Tensor]) -> None:
    found = load_file(folder / out / "agent" / "model.safetensors")
    for name, value in found.items():
        assert torch.equal(value, weights[name]), name


def column(folder, out: str, name: str) -> list[float]:
    return [float(row[name]) for row in rows(folder / out, "iteration")]


def test_a_spent_budget_leaves_the_weights_that_played_the_best_iteration(folder):
    assert main([*numbers(folder, "free", 7)]) == 0
    kl, rewards = column(folder, "free", "policy/kl"), column(folder, "free", "reward/mean")
    budget = sorted(kl)[-2] + 1e-4  # spent by the iteration that goes furthest
    end = next(i for i, value in enumerate(kl) if value > budget)
    assert end > 1, kl
    Recorder.played.clear()
    assert main([*numbers(folder, "tight", 7), f"--model.max_kl={budget}", RECORD]) == 0
    assert column(folder, "tight", "policy/kl") == kl[: end + 1]  # the same run, until it stops
    best = max(range(end), key=lambda i: rewards[i])
    assert best > 0
    assert_left(folder, "tight", Recorder.played[best])
    assert Agent.load(folder / "tight" / "agent").info["best_iteration"] == best

    # Gone on with after its end, and nothing is left to train: what is left is the same.
    assert main([*numbers(folder, "tight", 7), f"--model.max_kl={budget}", "--resume=last"]) == 0
    assert_left(folder, "tight", Recorder.played[best])


def test_the_best_can_be_asked_for_and_the_last_is_left_where_the_budget_lasts(folder):
    Recorder.played.clear()
    wandering = ["--model.optimizer.lr=0.05", "--model.clip=null"]
    assert (
        main([*numbers(folder, "best", 6), "--model.leave=best", "--model.train.parameters=heads", RECORD, *wandering])
        == 0
    )
    rewards = column(folder, "best", "reward/mean")
    best = max(range(6), key=lambda i: rewards[i])
    assert_left(folder, "best", Recorder.played[best])

    assert main([*numbers(folder, "last", 3), "--model.max_kl=99"]) == 0
    assert main([*numbers(folder, "plain", 3)]) == 0
    assert_same_weights(folder / "last" / "agent", folder / "plain" / "agent")


def test_where_nothing_was_within_the_budget_the_start_is_left(folder):
    far = [f"--model.reference={folder / 'other_numbers' / 'agent'}", "--model.max_kl=1e-9"]
    tiny_agent(5, image_size=0, vector_size=2).save(folder / "other_numbers" / "agent")
    assert main([*numbers(folder, "none", 3), *far]) == 0
    assert len(rows(folder / "none", "iteration")) == 1
    assert_same_weights(folder / "none" / "agent", folder / "numbers" / "agent")


def test_the_coefficient_follows_the_kl(folder):
    assert main([*numbers(folder, "steered", 5), "--model.kl=0.3", "--model.kl_target=0.02"]) == 0
    kl, coefficient = column(folder, "steered", "policy/kl"), column(folder, "steered", "policy/kl_coefficient")
    assert coefficient[0] == pytest.approx(0.3)
    rises = 0
    for measured, now, then in zip(kl, coefficient, coefficient[1:], strict=False):
        error = min(max((measured - 0.02) / 0.02, -0.2), 0.2)
        assert then == pytest.approx(now * (1 + 0.1 * error), rel=1e-5)
        rises += then > now
    assert rises > 0
    assert main([*numbers(folder, "loose", 3), "--model.kl=0.3", "--model.kl_target=99"]) == 0
    found = column(folder, "loose", "policy/kl_coefficient")
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1]


OPTIONS = {
    "ppo": [
        "--model.estimator=ppo",
        "--model.gamma=0.95",
        "--model.reward_model=env",
        "--model.kl_target=0.01",
        "--data.steps=60",
        "--data.fragment=4",
        "--model.scale_advantages=true",
    ],
    "rloo": ["--model.estimator=rloo", "--data.group=4", "--model.max_kl=9", "--model.leave=best", "--data.steps=90"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_run_resumes_exactly_with_everything_on(folder, name):
    options = OPTIONS[name]
    assert main([*numbers(folder, f"{name}-whole"), *options]) == 0
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", "--trainer.callbacks.step=10"]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        main([*numbers(folder, f"{name}-hurt"), *options, *crash])
    assert len(rows(folder / f"{name}-hurt", "iteration")) == 2
    assert main([*numbers(folder, f"{name}-hurt"), *options, "--resume=auto"]) == 0
    assert_same_weights(folder / f"{name}-whole" / "agent", folder / f"{name}-hurt" / "agent")
    for what in ("iteration", "frames"):
        assert rows(folder / f"{name}-whole", what) == rows(folder / f"{name}-hurt", what)
    ends = [
        torch.load(folder / f"{name}-{how}" / "checkpoints" / "last.ckpt", weights_only=True)
        for how in ("whole", "hurt")
    ]
    assert ends[0]["RolloutDataModule"] == ends[1]["RolloutDataModule"]
    for one, other in zip(*(end["state_dict"].values() for end in ends), strict=True):
        assert torch.equal(one, other)


def test_an_iteration_holds_the_fewest_groups_with_as_many_steps_as_are_asked_for(folder):
    assert main([*numbers(folder, "steps", 4), "--data.steps=300", "--data.group=2"]) == 0
    played = column(folder, "steps", "env_steps")
    lengths = column(folder, "steps", "rollout/episode_steps")
    for now, before, mean in zip(played, [0, *played], lengths, strict=False):
        assert round((now - before) / mean) % 2 == 0
        assert 300 <= now - before < 300 + 2 * 13  # of the longest episodes
    assert all(unused >= 0 for unused in column(folder, "steps", "rollout/unused_steps"))


def test_ppo_trains_the_value_head_beside_frozen_parts_and_leaves_a_plain_agent(folder):
    run = [
        *numbers(folder, "heads", 2),
        "--model.estimator=ppo",
        "--model.train.parameters=lora",
        "--model.reward_model=env",
    ]
    assert main(run) == 0
    state = torch.load(folder / "heads" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert float(state["value_head.weight"].abs().max()) > 0
    start, end = (load_file(folder / n / "agent" / "model.safetensors") for n in ("numbers", "heads"))
    assert start.keys() == end.keys()
    assert torch.equal(start["backbone.vector.body.0.weight"], end["backbone.vector.body.0.weight"])
    assert not torch.equal(start["head.weight"], end["head.weight"])


def test_ppo_in_cart_pole_on_single_steps(folder):
    tiny_agent(space=spaces.Discrete(2), image_size=0, vector_size=4, context=1).save(folder / "cart" / "agent")
    run = ["align", "fit", f"--out={folder / 'balance'}", f"--init_from={folder / 'cart' / 'agent'}", *CPU]
    run += ["--data.env=CartPole-v1", "--data.worlds=4", "--data.episodes=4", "--data.steps=200", "--data.fragment=1"]
    run += ["--data.minibatches=8", "--data.epochs=2", "--model.estimator=ppo", "--model.gamma=0.98", "--model.kl=0"]
    run += ["--model.reward_model=env", "--model.reference=none", "--trainer.max_epochs=3"]
    assert main([*run, "--trainer.limit_val_batches=0"]) == 0
    logged = rows(folder / "balance", "iteration")
    assert len(logged) == 3
    for row in logged:
        assert float(row["reward/mean"]) == pytest.approx(float(row["rollout/episode_steps"]))  # one for each step
        assert float(row["rollout/return"]) == pytest.approx(float(row["reward/mean"]))
        assert float(row["rollout/return_std"]) == pytest.approx(float(row["reward/std"]), rel=1e-4)
        assert float(row["policy/log_prob_gap"]) < 1e-4
        assert "policy/kl" not in row
    assert float(logged[-1]["value/explained_variance"]) > float(logged[0]["value/explained_variance"]) == 0
    assert float(logged[1]["env_steps"]) - float(logged[0]["env_steps"]) > 120


def test_several_rewards_and_an_ensembles_doubt_are_logged(folder):
    judge = RewardModel.from_agent(Agent.load(folder / "numbers" / "agent"), heads=3)
    judge.save(folder / "taste" / "reward_model")
    several = f"{{{folder / 'taste' / 'reward_model'}: 0.5, env: 2.0}}"
    run = [word for word in numbers(folder, "several", 2) if not word.startswith("--model.reward_model")]
    assert main([*run, f"--model.rewards={several}", "--model.pessimism=0"]) == 0
    for row in rows(folder / "several", "iteration"):
        assert float(row["rollout/return"]) == pytest.approx(float(row["reward/env"]), rel=1e-5)
        total = 0.5 * float(row["reward/taste"]) + 2.0 * float(row["reward/env"])
        assert float(row["reward/mean"]) == pytest.approx(total, abs=1e-4)
        assert float(row["reward/env"]) == pytest.approx(1.0)
        assert float(row["reward/heads_std"]) > 0
    assert Agent.load(folder / "several" / "agent").info["reward_model"] == "taste, env"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--model.rewards={env: 1.0}"], "expected exactly one of them"),
        (["--model.reward_model=null"], "expected exactly one of them"),
        (["--model.reference=none"], r"model.reference is none, and model.kl 0.02.*expected model.kl 0 and the others"),
        (["--model.reference=none", "--model.kl=0", "--model.max_kl=1"], "without a reference there is no KL"),
        (["--model.kl=0", "--model.kl_target=0.1"], "a coefficient that is steered starts above 0"),
        (["--model.gamma=0.9"], "reinforce does not discount"),
        (["--model.estimator=ppo", "--model.gamma=1.5"], "model.gamma is 1.5"),
        (["--model.estimator=ppo", "--model.value_coefficient=0"], "model.value_coefficient is 0"),
        (["--model.value_clip=0.2"], "reinforce has no value head"),
        (["--model.min_std=0.5"], "model.min_std is 0.5 and model.scale_advantages False"),
        (["--model.kl=-1"], "expected a coefficient of 0 or more"),
        (["--model.pessimism=1"], "pessimism is 1.0, and there is no reward model"),
        (
            ["--model.estimator=rloo", "--data.episodes=1", "--data.minibatches=1"],
            "rloo with data.episodes 1; expected two",
        ),
        (["--data.group=3"], "data.group 3.*expected .*episodes a multiple of .*group"),
        (["--data.episodes=9", "--data.group=3"], "episodes a multiple of minibatches"),
        (["--data.steps=0"], "data.steps 0"),
        (["--data.fragment=-1"], "data.fragment -1"),
        (
            ["--model.reward_model=tests.stages.nowhere:good"],
            "model.reward_model: cannot import 'tests.stages.nowhere'",
        ),
        (["--model.reward_model=tests.helpers:good"], "model.reward_model: there is no function 'good'"),
        (
            ["--model.reward_model=./nowhere/reward_model"],
            "model.reward_model: there is no folder './nowhere/reward_model'",
        ),
        (
            ["--model.reward_model=tests.rollout.test_rewards:too_short"],
            "an array of shape .*expected one number a step",
        ),
        (["--model.reward_model=tests.rollout.test_rewards:not_finite"], "a reward that is nan at step"),
    ],
)
def test_options_that_do_not_fit_are_one_line(folder, capsys, options, word):
    capsys.readouterr()
    assert main([*numbers(folder, "refused"), "--overwrite=true", *options]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.search(word, said[0]), said[0]


def test_folders_that_are_missing_are_all_named(folder, capsys):
    run = [word for word in numbers(folder, "nothing") if not word.startswith("--model.reward_model")]
    assert main([*run, "--model.rewards={./no/one: 1.0, env: 1.0, ./no/two: 1.0}"]) == 2
    said = capsys.readouterr().err
    assert "2 things to mend" in said
    assert "model.rewards: there is no folder './no/one'" in said
    assert "model.rewards: there is no folder './no/two'" in said
    assert not (folder / "nothing").exists()


def test_a_dry_run_tells_the_memory_of_every_kind(folder, capsys):
    import gymnasium

    from tests.helpers import LightWorld

    if "LitAlign-test/Brief-v0" not in gymnasium.registry:
        gymnasium.register(
            "LitAlign-test/Brief-v0", entry_point=lambda **args: LightWorld(**args), max_episode_steps=20
        )
    found = {}
    base = [*align(folder, folder / "dry"), "--data.env=tests.helpers:LitAlign-test/Brief-v0", "--dry_run"]
    for name, more in {
        "whole": [],
        "ppo": ["--model.estimator=ppo"],
        "cut": ["--data.fragment=4", "--data.minibatches=8"],
        "alone": ["--model.reference=none", "--model.kl=0"],
        "best": ["--model.leave=best"],
    }.items():
        capsys.readouterr()
        assert main([*base, *more]) == 0
        lines = [line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines() if "(MB)" in line]
        found[name] = {key.strip(): float(value) for key, value in lines if re.fullmatch(r"[\d.]+", value.strip())}
    frame = 32 * 32 * 3
    # Eight episodes of 20 frames in two minibatches, and the buffer, which holds two of them.
    assert found["whole"]["batch (MB)"] == pytest.approx(3 * 4 * 20 * (frame + 16 * 11 * 4) / 1e6, rel=0.1)
    assert found["alone"]["batch (MB)"] == pytest.approx(3 * 4 * 20 * frame / 1e6, rel=0.1)
    # Forty pieces of 4 steps, with up to 10 frames before them.
    assert found["cut"]["batch (MB)"] == pytest.approx(9 * 5 * 14 * (frame + 16 * 11 * 4) / 1e6, rel=0.1)
    assert found["ppo"]["gradients (MB)"] >= found["whole"]["gradients (MB)"]
    assert found["best"]["weights (MB)"] > found["whole"]["weights (MB)"]
    assert not (folder / "dry").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--model.estimator=ppo", "--data.fragment=4"], ["--model.estimator=grpo"]])
def test_two_processes_do_what_one_does(folder, options):
    """The same episodes, baselines over all of them, and the same weight for each step."""
    same = [*options, "--data.minibatches=1", "--data.epochs=1", "--model.scale_advantages=true"]
    name = options[0].split("=")[1]
    one, two = numbers(folder, f"{name}-one", 3), numbers(folder, f"{name}-two", 3)
    processes = [
        Process([*one, *same], folder / f"{name}-one.log"),
        Process([*two, *same, "--trainer.devices=2", "--trainer.strategy=ddp"], folder / f"{name}-two.log"),
    ]
    for process in processes:
        process.finish()
    for row, other in zip(*(rows(folder / f"{name}-{n}", "iteration") for n in ("one", "two")), strict=True):
        for key in (
            "env_steps",
            "reward/mean",
            "policy/kl",
            "policy/entropy",
            "value/loss",
            "value/explained_variance",
        ):
            if row.get(key):
                assert float(other[key]) == pytest.approx(float(row[key]), rel=1e-3, abs=1e-5), key
    a, b = (load_file(folder / f"{name}-{n}" / "agent" / "model.safetensors") for n in ("one", "two"))
    apart = torch.cat([(a[k] - b[k]).abs().flatten() for k in a])
    moved = torch.cat(
        [(a[k] - v).abs().flatten() for k, v in load_file(folder / "numbers" / "agent" / "model.safetensors").items()]
    )
    assert float(apart.mean()) < 0.01 * float(moved.mean())
