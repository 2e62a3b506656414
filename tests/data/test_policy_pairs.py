"""Comparisons for a policy: what was done beside what was seen, and a reference's log-probabilities, kept on disk."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lit_align.data import policy_pairs
from lit_align.data.loader import Batch
from lit_align.data.policy_pairs import PolicyPairsDataModule, read_rows, write_rows
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.files import write_whole
from tests.helpers import SIZE, made_up, record

FACTS = {"weights": "abc", "temperature": 1.0}


def episodes(seed: int = 0) -> dict[int, Trajectory]:
    """Their ids are not their places, and none is as long as another."""
    return {7 * i + 3: made_up(7 * i + 3, 2 + (5 * i) % 11, seed=seed, vector=3) for i in range(11)}


def some_pairs(count: int = 40) -> dict[str, Preferences]:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, (2, 2 * count))
    a, b = a[a != b][:count], b[a != b][:count]
    test = Preferences(np.array([8, 9]) * 7 + 3, np.array([9, 10]) * 7 + 3)
    return {"train": Preferences(7 * a + 3, 7 * b + 3, rng.random(len(a)) < 0.2), "test": test}


@pytest.fixture
def folder(tmp_path):
    play = record(tmp_path / "play", episodes().values())
    write_preferences(tmp_path / "pairs", some_pairs(), PreferenceMeta(play), "today")
    return tmp_path


def opened(folder: Path, **options: Any) -> PolicyPairsDataModule:
    data = PolicyPairsDataModule(str(folder / "pairs"), **options)
    data.prepare_data()
    data.setup()
    return data


class Judge:
    """Stands in for a reference: a number for each step that only its action, frame and vector decide."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale, self.seen, self.loads = scale, 0, 0

    def __call__(self) -> Callable[[Batch], torch.Tensor]:
        self.loads += 1
        return self.of_batch

    def of_batch(self, batch: Batch) -> torch.Tensor:
        self.seen += len(batch["lengths"])
        pixels = batch["frames"].float().mean((2, 3, 4))
        return -self.scale * (batch["actions"].float().sum(-1) + pixels / 256 + batch["vectors"].sum(-1).abs())

    def of(self, episode: Trajectory) -> np.ndarray:
        """The same of one episode `(T,)`, by hand."""
        steps = range(len(episode))
        pixels = [float(episode.frames[t].astype(np.float64).mean()) / 256 for t in steps]
        rest = [float(episode.actions[t].sum()) + abs(float(episode.vectors[t].sum())) for t in steps]
        return -self.scale * (np.array(pixels) + np.array(rest))


def no_load() -> Callable[[Batch], torch.Tensor]:
    pytest.fail("they were there already")


def holds(data: PolicyPairsDataModule, judge: Judge, seed: int = 0) -> bool:
    """Whether the batches of an epoch and of validation hold what the judge says of each step."""
    known = episodes(seed)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        for batch in loader:
            for row, length in enumerate(batch["lengths"].tolist()):
                frames = batch["frames"][row, :length].numpy()
                one = next(e for e in known.values() if np.array_equal(e.frames[:-1], frames))
                found = batch["reference"][row].numpy()
                if not (np.allclose(found[:length], judge.of(one), atol=1e-4) and not found[length:].any()):
                    return False
    return True


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "play" / ".cache").glob("reference-*"))


def test_a_batch_holds_each_trajectory_once_with_what_was_done_in_it(folder):
    data, known, pairs = opened(folder, pairs=3, seed=4), episodes(), some_pairs()["train"]
    labelled = list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), pairs.tie.tolist(), strict=True))
    for batch in data.train_dataloader():
        found = []
        for row, length in enumerate(batch["lengths"].tolist()):
            (episode,) = (
                i
                for i, e in known.items()
                if len(e) == length
                and np.array_equal(e.frames[:-1], batch["frames"][row, :length].numpy())
                and np.array_equal(e.actions, batch["actions"][row, :length].numpy())
                and np.array_equal(e.vectors[:-1], batch["vectors"][row, :length].numpy())
            )
            found.append(episode)
            for name in ("frames", "actions", "vectors", "reference"):
                assert not batch[name][row, length:].any()
        assert len(set(found)) == len(found)
        widest = max(len(known[i]) for i in found)
        assert batch["frames"].shape == (len(found), widest, SIZE, SIZE, 3)
        assert (batch["actions"].dtype, batch["reference"].dtype) == (torch.uint8, torch.float32)
        rows = zip(*(batch[name].tolist() for name in ("chosen", "rejected", "tie")), strict=True)
        drawn = [(found[c], found[r], tie) for c, r, tie in rows]
        # Every labelled pair among them, as often as it was labelled.
        assert sorted(drawn) == sorted(one for one in labelled if one[0] in found and one[1] in found)


def test_what_the_reference_says_is_computed_once_and_kept(folder):
    judge = Judge()
    data = opened(folder)
    assert not data.reference.any()
    data.store_reference(FACTS, judge)
    assert (judge.loads, judge.seen) == (1, 11)  # every trajectory of the folder, once
    assert holds(data, judge)
    data.store_reference(dict(FACTS), no_load)  # before each validation
    again = opened(folder, seed=9)
    again.store_reference(FACTS, no_load)
    assert holds(again, judge)
    values, place = kept(folder)
    assert (values.suffix, place.suffix) == (".f32", ".json")
    told = json.loads(place.read_text())
    assert told["rows"] * 4 == values.stat().st_size == 4 * sum(len(e) + 1 for e in episodes().values())
    assert {name: told[name] for name in FACTS} == FACTS
    assert isinstance(again.reference, np.memmap)
    assert not again.reference.flags.writeable


def test_what_decides_it_decides_whether_it_is_computed_anew(folder):
    first, other = Judge(), Judge(2.0)
    data = opened(folder)
    data.store_reference(FACTS, first)
    for changed in ({**FACTS, "weights": "abd"}, {**FACTS, "temperature": 0.5}):
        judge = Judge(float(len(kept(folder))))
        data.store_reference(changed, judge)
        assert judge.loads == 1
        assert holds(data, judge)
    data.store_reference(FACTS, no_load)  # what was computed for the first is still there
    assert holds(data, first)
    # The same frames in another size are seen otherwise.
    smaller = opened(folder, image_size=SIZE // 2)
    smaller.store_reference(FACTS, other)
    assert other.loads == 1


def test_another_recording_in_the_same_place_is_not_taken_for_the_first(folder):
    opened(folder).store_reference(FACTS, Judge())
    other = record(folder / "other", episodes(seed=1).values())
    (folder / "play" / ".cache").rename(folder / "other" / ".cache")
    (folder / "play").rename(folder / "old")
    Path(other).rename(folder / "play")
    data, judge = opened(folder), Judge(3.0)
    data.store_reference(FACTS, judge)
    assert judge.loads == 1
    assert holds(data, judge, seed=1)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def change(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def say(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


@pytest.mark.parametrize("suffix", [".f32", ".json"])
@pytest.mark.parametrize("harm", [cut, change, Path.unlink, say(""), say('{"sha256": 5}'), say("[]")])
def test_half_of_a_file_is_not_used(folder, suffix, harm):
    judge, data = Judge(), opened(folder)
    data.store_reference(FACTS, judge)
    harm(next(path for path in kept(folder) if path.suffix == suffix))
    if harm is change and suffix == ".json":  # unless the bit was in a fact, which nothing is read from
        (place,) = (path for path in kept(folder) if path.suffix == ".json")
        place.write_text(place.read_text().replace('"sha256": "', '"sha256": "0'))
    again, second = opened(folder), Judge()
    again.store_reference(FACTS, second)
    assert second.loads == 1
    assert holds(again, second)
    third = opened(folder)
    third.store_reference(FACTS, no_load)
    assert holds(third, judge)


def test_a_crash_while_writing_leaves_nothing_that_is_used(folder, monkeypatch):
    def dies(path: Path, content: str | bytes) -> None:
        if isinstance(content, str):
            raise OSError(28, "No space left on device")
        write_whole(path, content)

    monkeypatch.setattr(policy_pairs, "write_whole", dies)
    with pytest.raises(OSError, match="No space"):
        opened(folder).store_reference(FACTS, Judge())
    monkeypatch.undo()
    judge, data = Judge(), opened(folder)
    data.store_reference(FACTS, judge)
    assert judge.loads == 1
    assert holds(data, judge)


def test_two_that_write_at_a_time_do_not_harm_each_other(tmp_path):
    place = tmp_path / "reference-x.json"
    one, other = (np.full(6, value, np.float32) for value in (1.0, 2.0))
    write_rows(place, one, FACTS)
    mapped, told = read_rows(place, 6), place.read_text()
    write_rows(place, other, FACTS)
    assert mapped is not None
    assert np.array_equal(mapped, one)
    found = read_rows(place, 6)
    assert found is not None
    assert np.array_equal(found, other)
    place.write_text(told)  # the first comes last with its second file
    found = read_rows(place, 6)
    assert found is not None
    assert np.array_equal(found, one)
    assert read_rows(place, 7) is None


def test_a_reference_that_gives_no_numbers_is_refused_and_not_kept(folder):
    def broken() -> Callable[[Batch], torch.Tensor]:
        return lambda batch: torch.full(batch["reference"].shape, float("nan"))

    with pytest.raises(UserError, match="not finite"):
        opened(folder).store_reference(FACTS, broken)
    assert not kept(folder)
