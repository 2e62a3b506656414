"""Videos of a run: encoded beside it, bounded, and never in its way."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.evaluation.video import read_mp4
from lit_align.stages import filming
from lit_align.stages.filming import WAITING, Encoder, Film, Filming, Videos, films_in
from tests.helpers import made_up
from tests.stages.runs import align, assert_same_weights, inputs, rows


def film(folder: Path, number: int = 0) -> Film:
    return Film(folder / f"iteration-{number:05d}-episode-0000001-left.mp4", "iteration", number, "")


def frames(count: int = 5) -> Any:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


class Slow:
    """Writes nothing until it may, and says that it was asked."""

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), threading.Event()
        self.seen: list[Any] = []

    def __call__(self, path: Path, frames: Any, fps: float, crf: int) -> None:
        self.asked.set()
        assert self.go.wait(30)
        self.seen.append(frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


class Listener:
    """A logger that takes videos."""

    def __init__(self) -> None:
        self.films: list[Film] = []

    def log_films(self, films: list[Film]) -> None:
        assert all(each.path.is_file() for each in films)
        self.films += films


def trainer(epoch: int = 0, checkpoint: str | None = None, loggers: tuple[Any, ...] = ()) -> Any:
    return SimpleNamespace(
        is_global_zero=True,
        current_epoch=epoch,
        ckpt_path=checkpoint,
        loggers=loggers,
        datamodule=SimpleNamespace(fps=7.0),
    )


@pytest.fixture(autouse=True)
def _time_for_the_last_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filming, "LAST_SECONDS", 600.0)  # of a machine that is busy


def test_what_is_shown_is_what_was_seen(tmp_path: Path) -> None:
    callback, logger = Filming(tmp_path, Videos(episodes=2), every=3), Listener()
    callback.on_train_start(trainer(), None)  # type: ignore[arg-type]
    played = [made_up(9, 6), made_up(4, 7, outcome="no pad/at all"), made_up(7, 5)]
    for epoch in range(4):
        callback.on_play(trainer(epoch, loggers=(logger,)), played[epoch:], "iteration")
    callback.on_play(trainer(2, loggers=(logger,)), played, "validation")
    callback.on_train_end(trainer(loggers=(logger,)), None)  # type: ignore[arg-type]
    names = [path.name for path in films_in(tmp_path / "videos")]
    assert names == [
        "iteration-00000-episode-0000004-no_pad_at_all.mp4",
        "iteration-00000-episode-0000007-left.mp4",
        "validation-00002-episode-0000004-no_pad_at_all.mp4",
        "validation-00002-episode-0000007-left.mp4",
    ]
    assert sorted(each.path.name for each in logger.films) == names
    shown, fps = read_mp4(tmp_path / "videos" / names[1])
    assert (len(shown), fps) == (6, 7.0)
    small = shown.reshape(6, 32, 10, 32, 10, 3).mean(axis=(2, 4))  # 32 pixels, ten times as large
    assert np.abs(small - played[2].frames).mean() < 12  # noise, compressed; another episode's is 85 away
    assert np.abs(small - played[0].frames[:6]).mean() > 60


def test_training_waits_for_no_video(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write = Slow()
    encoder = Encoder(tmp_path, 10.0, 99, write)
    seen = frames()
    assert encoder.submit(film(tmp_path), seen)
    assert write.asked.wait(30)
    taken = [encoder.submit(film(tmp_path, n), seen) for n in range(1, WAITING + 4)]
    assert taken == [True] * WAITING + [False] * 3
    assert sum("left out" in text for text in caplog.messages) == 1
    before = seen.copy()
    seen[:] = 0  # what was handed over is not what the run goes on with
    write.go.set()
    encoder.close(30)
    assert len(encoder.ready()) == WAITING + 1
    assert all((each == before).all() for each in write.seen)
    assert encoder.left_out == 3
    assert "3 videos were left out" in caplog.text


def test_the_end_waits_a_little_and_leaves_out_the_rest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write = Slow()
    encoder = Encoder(tmp_path, 10.0, 99, write)
    for n in range(3):
        encoder.submit(film(tmp_path, n), frames())
    assert write.asked.wait(30)
    thread = encoder._thread
    assert thread is not None
    assert thread.daemon  # it dies with the process
    encoder.close(0.05)
    assert "3 videos were left out" in caplog.text
    write.go.set()
    thread.join(30)
    assert not thread.is_alive()
    assert len(films_in(tmp_path)) <= 1


def test_a_video_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(path: Path, *_: object, **__: object) -> None:
        path.with_name(path.name + ".part").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    encoder = Encoder(tmp_path, 10.0, 99, full)
    for n in range(3):
        encoder.submit(film(tmp_path, n), frames())
    encoder.close(30)
    assert (encoder.failed, encoder.ready()) == (3, [])
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warned) == 1
    assert "No space left" in warned[0].getMessage()
    assert list(tmp_path.iterdir()) == []


def test_the_newest_are_kept_and_a_long_one_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filming, "MAX_BYTES", 32 * 32 * 3 * 4)
    callback = Filming(tmp_path, Videos(episodes=1, keep=2), every=1)
    callback.on_train_start(trainer(), None)  # type: ignore[arg-type]
    logger = Listener()
    logger.log_films = lambda films: captions.extend(each.caption for each in films)  # type: ignore[method-assign]
    captions: list[str] = []
    for epoch in range(3):
        callback.on_play(trainer(epoch, loggers=(logger,)), [made_up(epoch, 9)], "iteration")
    (tmp_path / "videos").mkdir(exist_ok=True)
    (tmp_path / "videos" / "mine.mp4").write_bytes(b"a file that no run made")
    callback.on_train_end(trainer(loggers=(logger,)), None)  # type: ignore[arg-type]
    assert [path.name[:15] for path in films_in(tmp_path / "videos")] == ["iteration-00001", "iteration-00002"]
    assert len(read_mp4(films_in(tmp_path / "videos")[0])[0]) == 4
    assert captions[0] == "iteration 0, episode 0: left after 9 steps, the first 3 are shown"
    (tmp_path / "videos" / "iteration-00002-episode-0000002-left.mp4.part").write_bytes(b"of a killed run")
    callback.on_train_start(trainer(checkpoint="last.ckpt"), None)  # type: ignore[arg-type]
    assert len(list((tmp_path / "videos").iterdir())) == 3
    callback.on_train_start(trainer(), None)  # type: ignore[arg-type]
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["mine.mp4"]


def test_off_unless_asked_for_or_logged_to_wandb(tmp_path: Path) -> None:
    found = [
        [each.every for each in filming.filming(tmp_path, Videos(every), wandb)]
        for every, wandb in ((None, False), (0, True), (None, True), (4, False))
    ]
    assert found == [[], [], [10], [4]]
    with pytest.raises(UserError, match=r"videos\.keep 0"):
        Videos(keep=0)


def test_a_run_trains_as_it_would_without_videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = inputs(tmp_path)
    assert main(align(folder, folder / "plain")) == 0
    told = [*align(folder, folder / "told"), "--videos.every=1", "--videos.episodes=1", "--trainer.limit_val_batches=1"]
    told.append("--data.validation_episodes=2")
    assert main([*told, "--trainer.max_epochs=1"]) == 0
    first = films_in(folder / "told" / "videos")
    assert main([*told, "--resume=last"]) == 0
    assert set(first) < set(films_in(folder / "told" / "videos"))
    assert_same_weights(folder / "plain" / "agent", folder / "told" / "agent")
    assert rows(folder / "plain", "reward/mean") == [
        {name: value for name, value in row.items() if not str(name).startswith("val/")}
        for row in rows(folder / "told", "reward/mean")
    ]
    kinds = [path.name[:16] for path in films_in(folder / "told" / "videos")]
    assert kinds == ["iteration-00000-", "iteration-00001-", "validation-00000", "validation-00001"]

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no encoder")

    monkeypatch.setattr("lit_align.evaluation.video.write_mp4", broken)
    assert main([*align(folder, folder / "hurt"), "--videos.every=1"]) == 0
    assert_same_weights(folder / "plain" / "agent", folder / "hurt" / "agent")
    assert "no encoder" in (folder / "hurt" / "log.txt").read_text()
