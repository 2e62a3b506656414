"""Contracts 2 and 4: what the sampler recorded is what the trainer finds, whoever played it and in whatever company."""

import numpy as np
import pytest
import torch

from lit_align.envs import WorldFailed
from lit_align.errors import UserError
from lit_align.models.agent import gather_log_prob
from lit_align.rollout.sampler import Sampler
from lit_align.spaces import gamepad_space
from tests.helpers import SIZE, LightWorld, tiny_agent

EPISODES = [(i, 100 + i) for i in range(11)]


def play(worlds=3, episodes=EPISODES, temperature=1.0, make=LightWorld, seed=0, agent=None, **more):
    with Sampler(agent or tiny_agent(), make, worlds, temperature, seed, **more) as sampler:
        return {t.id: t for t in sampler.play(episodes)}, sampler.failures


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probs_are_those_of_one_forward_over_the_whole_episode(temperature):
    played, _ = play(temperature=temperature)
    agent = tiny_agent()
    assert max(len(t) for t in played.values()) > agent.config.context  # beyond the window
    for trajectory in played.values():
        with torch.no_grad():
            log_probs = agent(torch.from_numpy(trajectory.frames[:-1])[None], temperature=temperature)[0]
        found = gather_log_prob(log_probs, torch.from_numpy(trajectory.actions))
        np.testing.assert_allclose(trajectory.log_probs, found.numpy(), atol=1e-4)
        by_head = log_probs.exp().sum(-1)
        torch.testing.assert_close(by_head, torch.ones_like(by_head))


def test_an_episode_does_not_depend_on_how_many_worlds_play_or_in_which_order():
    one, _ = play(worlds=1)
    for worlds, order in ((3, EPISODES), (11, EPISODES), (4, EPISODES[::-1])):
        many, _ = play(worlds=worlds, episodes=order)
        assert many.keys() == one.keys()
        for i, trajectory in many.items():
            assert np.array_equal(trajectory.actions, one[i].actions)
            assert np.array_equal(trajectory.frames, one[i].frames)
    other, _ = play(seed=1)
    assert any(not np.array_equal(other[i].actions, one[i].actions) for i in one)


def test_choices_follow_the_distribution():
    """Chi-square against the agent's own probabilities for the first step of many episodes that show the same frame."""

    class Same(LightWorld):
        def reset(self, *, seed=None, options=None):
            start = super().reset(seed=7)
            self.left = 1  # one step is all that is looked at
            return start

    played, _ = play(worlds=16, episodes=[(i, 0) for i in range(600)], make=Same)
    first = np.stack([t.actions[0] for t in played.values()])
    with torch.no_grad():
        p = tiny_agent()(torch.from_numpy(played[0].frames[:1])[None])[0, 0].exp().numpy()
    statistic = degrees = 0
    for head, size in enumerate(tiny_agent().codec.sizes):
        expected = 600 * p[head, :size]
        seen = np.bincount(first[:, head], minlength=size)
        statistic += ((seen - expected) ** 2 / expected).sum()
        degrees += size - 1
    assert statistic < degrees + 4 * np.sqrt(2 * degrees)


def test_temperature_zero_takes_the_likeliest_class():
    played, _ = play(temperature=0.0)
    with torch.no_grad():
        best = tiny_agent()(torch.from_numpy(played[3].frames[:-1])[None])[0].argmax(-1)
    assert np.array_equal(played[3].actions, best.numpy())


@pytest.mark.parametrize("size", [0, SIZE])
def test_vectors_are_seen_and_recorded_alone_and_beside_pixels(size):
    agent = tiny_agent(image_size=size, vector_size=3)
    played, _ = play(make=lambda: LightWorld(size, vector=3), agent=agent)
    for trajectory in played.values():
        assert trajectory.frames.shape == (len(trajectory) + 1, size, size, 3)
        assert trajectory.vectors.shape == (len(trajectory) + 1, 3)
        seen = [torch.from_numpy(part[:-1])[None] for part in (trajectory.frames, trajectory.vectors)]
        with torch.no_grad():
            log_probs = agent(*seen)[0]
        found = gather_log_prob(log_probs, torch.from_numpy(trajectory.actions))
        np.testing.assert_allclose(trajectory.log_probs, found.numpy(), atol=1e-4)
    # What was recorded is what the world showed.
    world, one = LightWorld(size, vector=3), played[4]
    shown = [world.reset(seed=one.seed)[0], *(world.step(agent.codec.decode(action))[0] for action in one.actions)]
    for step, observation in enumerate(shown):
        vector = observation["vector"] if size else observation
        assert np.array_equal(one.vectors[step], vector.astype(np.float32))
        assert not size or np.array_equal(one.frames[step], observation["pixels"])


def test_a_world_that_draws_into_one_array_is_recorded_frame_by_frame():
    class Reuses(LightWorld):
        canvas = None

        def _frame(self, action):
            frame = super()._frame(action)
            self.canvas = frame if self.canvas is None else self.canvas
            self.canvas[:] = frame
            return self.canvas

    fresh, reused = play()[0], play(make=Reuses)[0]
    for i, trajectory in fresh.items():
        assert np.array_equal(trajectory.frames, reused[i].frames)


def test_a_world_that_gives_none_where_it_does_not_tell_is_recorded_as_one_that_says_nothing():
    class Silent(LightWorld):
        def _info(self, outcome, reason):
            return {"position": None, "outcome": None, "reason": None}

    for episode in play(make=Silent)[0].values():
        assert not episode.positions.any()
        assert (episode.outcome, episode.reason) == ("ended", "")


def test_a_small_top_p_takes_the_likeliest_class():
    greedy, few = play(temperature=0.0)[0], play(top_p=1e-6)[0]
    for i, trajectory in greedy.items():
        assert np.array_equal(trajectory.actions, few[i].actions)
    for wrong in (0.0, 1.5, float("nan")):
        with pytest.raises(UserError, match="expected .* a top_p above 0 and up to 1"):
            play(top_p=wrong)


def test_an_episode_whose_world_dies_is_played_again_as_if_nothing_had_happened():
    whole, _ = play(worlds=1)
    hurt, failures = play(worlds=1, make=lambda: LightWorld(dies_at=(4, 40)))
    assert failures == 2
    for i in whole:
        assert np.array_equal(hurt[i].frames, whole[i].frames)
        assert np.array_equal(hurt[i].log_probs, whole[i].log_probs)


def test_a_world_that_always_dies_stops_the_run_with_a_word():
    with pytest.raises(
        WorldFailed,
        match="failed 5 times over episode 0; last: world 0 .LightWorld., seed 100, at step 1: the lamp went out",
    ):
        play(worlds=1, make=lambda: LightWorld(dies_at=tuple(range(1, 100))), backoff=0.01)


def test_an_agent_that_does_not_fit_the_world_is_named_before_play():
    with pytest.raises(UserError, match=r"\(32, 32, 3\).*\(48, 48, 3\)"):
        play(make=lambda: LightWorld(size=48))

    with pytest.raises(UserError, match=r"\(32, 32, 3\).* shows .*\(32, 32, 3\), uint8 and a vector of 2 numbers"):
        play(make=lambda: LightWorld(vector=2))
    with pytest.raises(UserError, match=r"sees a vector of 4 numbers; the environment shows a vector of 2 numbers"):
        play(make=lambda: LightWorld(0, vector=2), agent=tiny_agent(image_size=0, vector_size=4))

    class Other(LightWorld):
        def __init__(self):
            super().__init__()
            self.action_space = gamepad_space()["left_stick"]

    with pytest.raises(UserError, match=r"acts on .*12 x 2.* takes .*2 x 11"):
        play(make=Other)
