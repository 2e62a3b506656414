"""A reward model as a small API: whole episodes, the running line, frame by frame."""

import numpy as np
import pytest
import torch

from lit_align.data.cache import FrameCache
from lit_align.errors import UserError
from lit_align.models.config import BackboneConfig
from lit_align.models.reward import RewardModel
from tests.helpers import SIZE, TINY, made_up, record


def judge(readout="last", heads=1, **changes):
    torch.manual_seed(0)
    model = RewardModel(BackboneConfig.from_dict({**TINY.to_dict(), **changes}), heads, readout).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.mean += torch.randn(model.mean.shape)
    model.std *= 0.5 + torch.rand(model.std.shape)
    return model


@torch.no_grad()
def by_hand(model, trajectory):
    """The read-out of every beginning of an episode, each by a pass of its own."""
    frames, vectors = torch.from_numpy(trajectory.frames)[None], torch.from_numpy(trajectory.vectors)[None]
    seen = None if model.config.vector_size == 0 else vectors
    rewards = []
    for t in range(1, frames.shape[1] + 1):
        raw = model(frames[:, :t], torch.tensor([t]), None if seen is None else seen[:, :t])
        rewards.append(float(((raw - model.mean) / model.std).mean()))
    return np.array(rewards)


@pytest.mark.parametrize("readout", ["last", "sum"])
@pytest.mark.parametrize("heads", [1, 3])
def test_running_and_step_by_step_are_the_readout_of_every_beginning(readout, heads):
    """Of episodes of 23 frames, far beyond the window of 6."""
    model, episodes = judge(readout, heads), [made_up(n, 22) for n in range(2)]
    expected = np.stack([by_hand(model, one) for one in episodes])
    assert np.ptp(expected) > 0.1
    found = np.stack([model.running(one) for one in episodes])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert found.dtype == np.float32
    assert model.score(episodes[0]) == pytest.approx(expected[0, -1], abs=1e-5, rel=1e-5)
    scorer = model.scorer()
    together = [scorer.step(np.stack(frames)) for frames in zip(*(one.frames for one in episodes), strict=True)]
    np.testing.assert_allclose(np.stack(together, axis=1), expected, atol=1e-5, rtol=1e-5)
    scorer.reset()
    alone = [scorer.step(frame) for frame in episodes[1].frames]
    assert all(type(one) is float for one in alone)
    np.testing.assert_allclose(alone, expected[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("readout", ["last", "sum"])
def test_one_of_two_worlds_begins_anew(readout):
    model, episode = judge(readout), made_up(0, 15).frames
    scorer = model.scorer()
    for frame in episode[:9]:
        scorer.step(np.stack((frame, frame)))
    scorer.reset([1])
    for frame in episode[9:]:
        both = scorer.step(np.stack((frame, frame)))
    np.testing.assert_allclose(both, [model.score(episode), model.score(episode[9:])], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="step was given one world after a batch of 2"):
        scorer.step(episode[0])


def test_a_vector_beside_pixels_and_frames_of_another_size(tmp_path):
    model, episode = judge("sum", vector_size=3), made_up(0, 9, vector=3)
    expected = by_hand(model, episode)
    np.testing.assert_allclose(model.running(episode), expected, atol=1e-5, rtol=1e-5)
    named = {"pixels": torch.from_numpy(episode.frames), "vector": episode.vectors}
    np.testing.assert_allclose(model.running(named), expected, atol=1e-5, rtol=1e-5)
    large = made_up(0, 9, size=2 * SIZE)
    trained_on = FrameCache(record(tmp_path / "play", [large]), SIZE).frames
    assert judge().score(large) == judge().score(trained_on)


def test_more_frames_than_the_encoder_takes_at_once():
    model, frames = judge(context=3), np.random.default_rng(0).integers(0, 256, (300, SIZE, SIZE, 3), np.uint8)
    with torch.no_grad():
        raw = model.scores(torch.from_numpy(frames)[None])[0, :, 0]
    np.testing.assert_allclose(model.running(frames), (raw - model.mean) / model.std, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_scored_is_named():
    model, episode = judge(), made_up(0, 3)
    with pytest.raises(UserError, match="a single frame was given; expected the frames of an episode"):
        model.running(episode.frames[0])
    with pytest.raises(UserError, match="the reward model sees uint8 RGB"):
        model.score(episode.frames / 255)
    with pytest.raises(UserError, match=r"holds \['pixels', 'vector'\]; the reward model sees \['pixels'\]"):
        model.score(made_up(0, 3, vector=2))
    with pytest.raises(UserError, match="int8 is for scoring only"):
        model.prepare("int8").save("nowhere")


def test_fewer_bits_score_almost_alike():
    model, episode = judge(heads=2), made_up(0, 20)
    line = model.running(episode)
    for precision in ("bf16", "int8"):
        small = model.prepare(precision)
        apart = np.abs(small.running(episode) - line)
        assert 0 < apart.mean() < 0.3 * line.std()
        scorer = small.scorer()
        stepped = np.array([scorer.step(frame) for frame in episode.frames])
        assert np.abs(stepped - line).mean() < 0.3 * line.std()
    assert next(model.parameters()).requires_grad, "the model that was copied was changed"
