"""Videos are decoded again and looked at."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import av
import numpy as np
import pytest
from PIL import Image

from lit_align.evaluation.video import factor_for, film_strip, read_mp4, upscale, write_mp4
from tests.evaluation import synthetic


@pytest.mark.parametrize("fps", [10.0, 8.75])
def test_frames_size_rate_and_colours_survive(tmp_path: Path, fps: float) -> None:
    frames = synthetic.frames(12, 64)
    again, rate = read_mp4(write_mp4(tmp_path / "a.mp4", frames, fps))
    assert again.shape == (12, 320, 320, 3)
    assert rate == pytest.approx(fps)
    error = np.abs(again.astype(int) - upscale(frames, 5).astype(int))
    assert error.mean() < 3, "colours as they were, not those of another matrix"
    # Frame by frame the bar is where it was: none is missing, doubled or out of order.
    for t in range(12):
        columns = again[t, 80:150, :, 0].astype(int).mean(0)
        assert abs(int(columns.argmax()) // 5 - (t * 64) // 12) <= 4


@pytest.mark.parametrize("colour", [(230, 30, 30), (30, 200, 40), (40, 60, 220), (250, 250, 250)])
def test_plain_colours(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    frames = np.full((3, 48, 48, 3), colour, np.uint8)
    again, _ = read_mp4(write_mp4(tmp_path / "c.mp4", frames, 10))
    assert np.abs(again.astype(int) - colour).max() <= 6


def test_browsers_can_play_it(tmp_path: Path) -> None:
    path = write_mp4(tmp_path / "deep" / "odd.mp4", np.zeros((4, 401, 333, 3), np.uint8), 10)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (334, 402), "odd sizes are padded to even ones"
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat"), "the index comes first, so that it starts at once"
    assert [p.name for p in path.parent.iterdir()] == ["odd.mp4"]


def test_upscaling_repeats_pixels() -> None:
    assert (
        upscale(np.array([[[[1, 2, 3], [4, 5, 6]]]], np.uint8), 2)[0, :, :, 0] == [[1, 1, 4, 4], [1, 1, 4, 4]]
    ).all()
    assert factor_for(64) == 5
    assert factor_for(1000) == 1


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_what_is_no_video_is_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \(T, H, W, 3\) uint8"):
        write_mp4(tmp_path / "x.mp4", frames, 10)
    with pytest.raises(ValueError, match="more than 0"):
        write_mp4(tmp_path / "x.mp4", synthetic.frames(2), 0)
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_finished_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("lit_align.evaluation.video.os.replace", Mock(side_effect=OSError(28, "No space left")))
        with pytest.raises(OSError, match="No space left"):
            write_mp4(tmp_path / "x.mp4", synthetic.frames(2), 5)
    assert not list(tmp_path.iterdir())


def test_film_strip_goes_from_first_to_last(tmp_path: Path) -> None:
    frames = np.stack([np.full((32, 32, 3), 20 * t, np.uint8) for t in range(11)])
    path = film_strip(tmp_path / "strip.png", [frames, frames[:3]], count=5, height=64, gap=4)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (2 * 68 - 4, 5 * 68 - 4, 4)
    assert [int(sheet[10, 68 * i + 10, 0]) for i in range(5)] == [0, 40, 100, 160, 200]
    assert sheet[10, 66, 3] == 0, "the gap is transparent"
