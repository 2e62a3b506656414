"""Rewards from every source, alone and together, against what a hand calculates."""

import numpy as np
import pytest
import torch
from torch import nn

from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.reward import RewardModel
from lit_align.rollout.buffer import pad
from lit_align.rollout.rewards import LearnedReward, Rewards, check_source
from tests.helpers import made_up, tiny_agent

HERE = "tests.rollout.test_rewards"
EPISODES = [made_up(i, n) for i, n in enumerate((3, 7, 1, 5))]


def pressed(trajectory: Trajectory) -> list[int]:
    """One for each step at which the first button was pressed."""
    return trajectory.actions[:, 0].tolist()


def twice(trajectory: Trajectory) -> torch.Tensor:
    return 2.0 * torch.arange(len(trajectory))


def one_number(trajectory: Trajectory) -> float:
    return 1.0


def too_short(trajectory: Trajectory) -> np.ndarray:
    return np.zeros(len(trajectory) - 1)


def not_finite(trajectory: Trajectory) -> np.ndarray:
    return np.array([0.0] * (len(trajectory) - 1) + [np.nan])


def words(trajectory: Trajectory) -> list[str]:
    return ["good"] * len(trajectory)


def model(folder, heads: int = 1, readout="last", seed: int = 0):
    """A reward model whose heads differ, and its folder."""
    torch.manual_seed(seed)
    made = RewardModel.from_agent(tiny_agent(seed), heads, readout).eval()
    nn.init.normal_(made.head.weight)
    made.mean.fill_(0.4)
    made.std.fill_(2.0)
    made.save(folder)
    return made, str(folder)


@torch.no_grad()
def by_hand(made: RewardModel, trajectory: Trajectory) -> np.ndarray:
    """Normalised reward of each head `(K,)`, from the scores of an unpadded episode's frames."""
    features = made.backbone(torch.from_numpy(trajectory.frames)[None])[0]
    scores = (features @ made.head.weight.T + made.head.bias).numpy()
    raw = scores[-1] if made.readout == "last" else scores.sum(0)
    return (raw - 0.4) / 2.0


def test_a_learned_reward_comes_at_the_end_where_it_is_read_there(tmp_path):
    made, folder = model(tmp_path / "left" / "reward_model", heads=3)
    judged = Rewards({folder: 1.0})(EPISODES)
    for one, rewards, doubt in zip(EPISODES, judged.rewards, judged.facts["reward/heads_std"], strict=True):
        heads = by_hand(made, one)
        assert rewards.shape == (len(one),)
        assert rewards[-1] == pytest.approx(heads.mean(), abs=1e-5)
        assert not rewards[:-1].any()
        assert float(doubt) == pytest.approx(heads.std(ddof=1), abs=1e-5)
    with torch.no_grad():  # and it is the one that `score` tells
        told = made.normalise(made(*pad(EPISODES, last=True))).mean(1)
    torch.testing.assert_close(torch.stack([r.sum() for r in judged.rewards]), told, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pessimism", [0.0, 1.5])
def test_a_summed_reward_is_spread_and_its_total_stays(tmp_path, pessimism):
    made, folder = model(tmp_path / "left" / "reward_model", heads=2, readout="sum")
    judged = Rewards({folder: 1.0}, pessimism)(EPISODES)
    for one, rewards in zip(EPISODES, judged.rewards, strict=True):
        heads = by_hand(made, one)
        assert float(rewards.sum()) == pytest.approx(heads.mean() - pessimism * heads.std(ddof=1), abs=1e-4)
        # Two steps differ as the scores of the frames that they led to do.
        with torch.no_grad():
            features = made.backbone(torch.from_numpy(one.frames)[None])[0]
            scores = made.head(features).mean(1)[1:] / 2.0
        torch.testing.assert_close(rewards - rewards[0], scores - scores[0], atol=1e-4, rtol=0)


def test_pessimism_takes_standard_deviations_off_the_mean(tmp_path):
    made, folder = model(tmp_path / "left" / "reward_model", heads=4)
    plain, wary = (Rewards({folder: 1.0}, p)(EPISODES).rewards for p in (0.0, 2.0))
    for one, before, after in zip(EPISODES, plain, wary, strict=True):
        heads = by_hand(made, one)
        assert float(before[-1] - after[-1]) == pytest.approx(2.0 * heads.std(ddof=1), abs=1e-4)
    # A reward to be avoided is taken to be larger where heads disagree: the weighted sum is smaller, too.
    plain, wary = (Rewards({folder: -0.5, "env": 0.0}, p)(EPISODES).rewards for p in (0.0, 2.0))
    for one, before, after in zip(EPISODES, plain, wary, strict=True):
        assert float(before[-1] - after[-1]) == pytest.approx(0.5 * 2.0 * by_hand(made, one).std(ddof=1), abs=1e-4)
    _, single = model(tmp_path / "one" / "reward_model")
    with pytest.raises(UserError, match=r"pessimism is 2\.0; .*one head cannot disagree.*--model.heads 2"):
        Rewards({folder: 1.0, single: 1.0}, 2.0)
    with pytest.raises(UserError, match="pessimism is 2.0, and there is no reward model"):
        Rewards({"env": 1.0}, 2.0)


def test_a_model_that_diverged_is_named_before_anything_learns_from_it(tmp_path):
    made, folder = model(tmp_path / "left" / "reward_model")
    made.head.weight.data[0, 3] = float("nan")
    made.save(folder)
    with pytest.raises(UserError, match=r"left/reward_model' gave episode 0 a reward that is not finite"):
        Rewards({folder: 1.0})(EPISODES)


def test_the_worlds_reward_and_functions_are_taken_step_by_step():
    judged = Rewards({"env": 1.0})(EPISODES)
    assert all(np.array_equal(r, t.rewards) for r, t in zip(judged.rewards, EPISODES, strict=True))
    assert judged.facts == {}
    judged = Rewards({f"{HERE}:pressed": 1.0})(EPISODES)
    for one, rewards in zip(EPISODES, judged.rewards, strict=True):
        assert rewards.dtype == torch.float32
        assert rewards.tolist() == one.actions[:, 0].tolist()


def test_several_sources_add_up_with_their_weights(tmp_path):
    made, folder = model(tmp_path / "left" / "reward_model")
    rewards = Rewards({folder: 0.5, "env": -2.0, f"{HERE}:twice": 3.0})
    assert rewards.names == ["left", "env", "twice"]
    judged = rewards(EPISODES)
    for n, one in enumerate(EPISODES):
        expected = -2.0 * one.rewards + 3.0 * 2.0 * np.arange(len(one))
        expected[-1] += 0.5 * by_hand(made, one)[0]
        np.testing.assert_allclose(judged.rewards[n], expected, atol=1e-4)
        assert float(judged.facts["reward/left"][n]) == pytest.approx(by_hand(made, one)[0], abs=1e-5)
        assert float(judged.facts["reward/env"][n]) == pytest.approx(one.rewards.sum(), abs=1e-5)
        assert float(judged.facts["reward/twice"][n]) == sum(2 * t for t in range(len(one)))


def test_names_differ_and_an_end_is_one_only_for_what_is_learned(tmp_path):
    folders = [model(tmp_path / n / "left" / "reward_model", seed=i)[1] for i, n in enumerate("ab")]
    both = Rewards(dict.fromkeys(folders, 1.0))
    assert both.names == ["left", "left_2"]
    assert list(both.models) == both.names
    assert both.ends
    assert not Rewards({"env": 1.0}).ends
    assert Rewards({folders[0]: 1.0, "env": 1.0}).ends, "values would pay the learned part a second time"
    assert not Rewards({folders[0]: 0.0, "env": 1.0}).ends, "of what is only watched they tell nothing"


@pytest.mark.parametrize(
    ("function", "word"),
    [
        ("one_number", r"an array of shape \(\); expected one number a step"),
        ("too_short", r"an array of shape \(2,\); expected one number a step"),
        ("not_finite", r"a reward that is nan at step 2; expected finite numbers"),
        ("words", r"a list; expected an array of one number a step"),
    ],
)
def test_a_function_that_gives_something_else_is_named(function, word):
    with pytest.raises(UserError, match=f"the reward {HERE}:{function} gave episode 0 of 3 steps {word}"):
        Rewards({f"{HERE}:{function}": 1.0})(EPISODES)


def fails(trajectory):
    return [1 / trajectory.id] * len(trajectory)


def test_a_function_that_fails_tells_at_which_episode():
    with pytest.raises(ZeroDivisionError) as failed:
        Rewards({f"{HERE}:fails": 1.0})(EPISODES)
    assert failed.value.__notes__ == [f"the reward {HERE}:fails was at episode 0 of 3 steps, seed 0"]


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("nowhere.at_all:reward", "model.reward_model: cannot import 'nowhere.at_all'"),
        (f"{HERE}:nothing", "model.reward_model: there is no function 'nothing'"),
        ("no/such/folder", r"model.reward_model: there is no folder 'no/such/folder'.*or `env`, or `package.module"),
        ("envs", "model.reward_model: there is no folder 'envs'"),
    ],
)
def test_sources_that_are_not_there_are_named(source, word):
    with pytest.raises(UserError, match=word):
        check_source(source, "model.reward_model")


def test_an_agent_is_no_reward_model_and_what_is_there_is_taken(tmp_path):
    tiny_agent().save(tmp_path / "agent")
    with pytest.raises(UserError, match="of kind 'agent'; expected 'reward_model'"):
        check_source(str(tmp_path / "agent"), "model.rewards")
    for source in ("env", f"{HERE}:pressed", model(tmp_path / "reward_model")[1]):
        check_source(source, "model.rewards")
    with pytest.raises(UserError, match="expected a finite weight"):
        Rewards({"env": float("nan")})
    assert not any(p.requires_grad for p in LearnedReward(str(tmp_path / "reward_model")).model.parameters())
