"""Augmentation: formulas written again in NumPy, one draw a window, and the same numbers after a resume."""

import colorsys

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lit_align.data.modules as modules
from lit_align.data.augment import Augment, _recolour, augment
from lit_align.data.modules import TrajectoryDataModule
from lit_align.errors import UserError
from tests.helpers import SIZE, made_up, record

STRONG = Augment(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.2, shift=3)
GREY = np.array([0.299, 0.587, 0.114])
amounts = st.floats(-1, 1, width=32)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def by_numpy(frame, brightness, contrast, saturation, hue):
    """One frame `(H, W, 3)` changed by factors and a turn of the colour circle, pixel by pixel."""
    x = np.clip(frame.astype(np.float64) * brightness, 0, 255)
    mean = (x @ GREY).mean()
    x = np.clip(mean + (x - mean) * contrast, 0, 255)
    grey = (x @ GREY)[..., None]
    x = np.clip(grey + (x - grey) * saturation, 0, 255)
    out = np.empty_like(x)
    for place in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*(x[place] / 255))
        out[place] = np.array(colorsys.hsv_to_rgb((h + hue) % 1, s, v)) * 255
    return out


@settings(max_examples=25, deadline=None)
@given(st.lists(amounts, min_size=8, max_size=8), st.integers(0, 99))
def test_colours_change_as_the_formulas_say(drawn, seed):
    frames = noise(2, 3, 5, 4, seed=seed)
    frames[0, 0, 0] = torch.tensor([[0, 0, 0], [255, 255, 255], [9, 9, 9], [255, 0, 0]])
    how = Augment(brightness=0.5, contrast=0.3, saturation=0.9, hue=0.5)
    found = _recolour(frames, how, torch.tensor(drawn).reshape(2, 4)).numpy()
    for window, (b, c, s, h) in enumerate(np.reshape(drawn, (2, 4))):
        for step in range(3):
            want = by_numpy(frames[window, step].numpy(), 1 + 0.5 * b, 1 + 0.3 * c, 1 + 0.9 * s, 0.5 * h)
            assert np.abs(found[window, step] - want).max() <= 0.5 + 1e-2  # rounded once, at the end


def test_each_colour_change_is_switched_on_alone():
    frames, drawn = noise(1, 1, 6, 6), torch.tensor([[-0.7, 0.4, -0.9, 0.3]])
    for name, factors in {
        "brightness": (1 - 0.14, 1, 1, 0),
        "contrast": (1, 1 + 0.08, 1, 0),
        "saturation": (1, 1, 1 - 0.18, 0),
        "hue": (1, 1, 1, 0.06),
    }.items():
        how = Augment()
        setattr(how, name, 0.2)
        found = _recolour(frames, how, drawn)
        want = by_numpy(frames[0, 0].numpy(), *factors)
        assert np.abs(found[0, 0].numpy() - want).max() <= 0.51, name
        assert not torch.equal(found, frames), name


def test_a_shift_is_a_crop_of_the_frame_with_its_edge_repeated():
    frames, most = noise(300, 2, 8, 8), 2
    moved = augment(frames, Augment(shift=most), seeded(0)).numpy()
    seen = set()
    for before, after in zip(frames.numpy(), moved, strict=True):
        padded = np.pad(before, ((0, 0), (most, most), (most, most), (0, 0)), mode="edge")
        places = [
            (y, x)
            for y in range(2 * most + 1)
            for x in range(2 * most + 1)
            if np.array_equal(padded[:, y : y + 8, x : x + 8], after)
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == (2 * most + 1) ** 2  # all shifts come, the furthest too


def test_factors_reach_from_one_minus_to_one_plus_the_amount():
    grey = torch.full((2000, 1, 2, 2, 3), 100, dtype=torch.uint8)
    found = augment(grey, Augment(brightness=0.2), seeded(1))[:, 0, 0, 0, 0].float() / 100
    assert 0.8 <= found.min() < 0.81
    assert 1.19 < found.max() <= 1.2
    assert abs(float(found.mean()) - 1) < 0.01
    red = torch.zeros(2000, 1, 1, 1, 3, dtype=torch.uint8)
    red[..., 0] = 255
    turned = augment(red, Augment(hue=0.1), seeded(1))[:, 0, 0, 0].numpy() / 255
    hues = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in turned])
    hues = np.where(hues > 0.5, hues - 1, hues)
    assert -0.1 - 1e-3 <= hues.min() < -0.095
    assert 0.095 < hues.max() <= 0.1 + 1e-3


@pytest.mark.parametrize("how", [STRONG, Augment(hue=0.5), Augment(contrast=0.9), Augment(shift=5)])
def test_frames_of_a_window_change_alike_and_windows_differently(how):
    frame = noise(1, 1, 16, 16)
    found = augment(frame.expand(8, 6, -1, -1, -1), how, seeded(3))
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert len({window.numpy().tobytes() for window in found[:, 0]}) > 5


def test_nothing_changes_when_all_is_off_and_the_input_never():
    frames = noise(3, 2, 8, 8)
    assert augment(frames, Augment()) is frames
    before = frames.clone()
    augment(frames, STRONG)
    assert torch.equal(frames, before)
    empty = torch.zeros(2, 3, 0, 0, 3, dtype=torch.uint8)
    assert augment(empty, STRONG).shape == empty.shape


def test_the_generator_decides_all():
    frames = noise(4, 3, 8, 8)
    torch.manual_seed(7)
    first, second = augment(frames, STRONG), augment(frames, STRONG)
    torch.manual_seed(7)
    assert torch.equal(augment(frames, STRONG), first)
    assert not torch.equal(first, second)
    assert torch.equal(augment(frames, STRONG, seeded(5)), augment(frames, STRONG, seeded(5)))
    # What else is on does not change a window's draws.
    flat = torch.full_like(frames, 100)  # of one colour, so that a shift does not show
    alone = augment(flat, Augment(brightness=0.2), seeded(5))
    assert torch.equal(augment(flat, Augment(brightness=0.2, shift=1), seeded(5)), alone)


def test_chunks_do_not_show(monkeypatch):
    frames = noise(3, 5, 8, 8)
    whole = augment(frames, STRONG, seeded(0))
    monkeypatch.setattr("lit_align.data.augment._CPU_CHUNK", 130)  # two frames
    assert torch.equal(augment(frames, STRONG, seeded(0)), whole)


@pytest.fixture
def folder(tmp_path):
    return record(tmp_path / "play", [made_up(i, 6 + i % 3) for i in range(20)])


def served(folder, epochs=2, at=None, how=STRONG, batch_size=2):
    """Augmented frames of the batches of some epochs; `at` starts at a place in them."""
    data = TrajectoryDataModule([folder], window=5, batch_size=batch_size, val_fraction=0.0, augment=how)
    data.setup()
    loader = data.train_dataloader()
    if at is not None:
        loader.load_state_dict(at)
    torch.manual_seed(0 if at is None else 99)  # the global generator does not count
    batches = [data.on_after_batch_transfer(batch, 0) for _ in range(epochs) for batch in loader]
    assert all("augment" not in batch for batch in batches)
    return [batch["frames"] for batch in batches], len(loader)


def test_a_resumed_run_sees_the_same_frames(folder):
    whole, count = served(folder)
    assert not torch.equal(whole[0], served(folder, how=None)[0][0])
    rest, _ = served(folder, at={"epoch": 0, "position": 3})
    assert count > 5
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a, b)


def test_two_processes_share_out_the_batches_of_one_and_change_them_each_in_its_own_way(folder, monkeypatch):
    whole, count = served(folder, epochs=1, how=None, batch_size=4)
    plain, strong = [], []
    for rank in range(2):
        monkeypatch.setattr(modules, "world_of", lambda _, rank=rank: (rank, 2))
        plain.append(served(folder, epochs=1, how=None)[0])
        strong.append(served(folder, epochs=1)[0])
    assert [len(part) for part in plain] == [count, count]
    for step, both in enumerate(whole):
        for rank in range(2):
            mine = plain[rank][step]
            assert torch.equal(both[rank::2, : mine.shape[1]], mine)
            assert not both[rank::2, mine.shape[1] :].any()  # padding, where the other has a longer window
            assert not torch.equal(strong[rank][step], mine)


class Keeps(pl.LightningModule):
    """Keeps the frames that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.trained.append(batch["frames"])
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch["frames"])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_the_trainer_augments_in_training_only(folder):
    def run(how):
        data = TrajectoryDataModule([folder], window=5, batch_size=2, val_fraction=0.3, augment=how)
        module = Keeps()
        pl.Trainer(
            max_epochs=1,
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(module, data)
        return module

    plain, changed = run(None), run(STRONG)
    assert plain.validated
    assert all(torch.equal(a, b) for a, b in zip(plain.validated, changed.validated, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(plain.trained, changed.trained, strict=True))


@pytest.mark.parametrize(
    ("how", "word"),
    [
        (Augment(brightness=1.5), r"brightness is 1\.5; expected 0 to 1"),
        (Augment(hue=0.6), r"hue is 0\.6; expected 0 to 0\.5"),
        (Augment(saturation=float("nan")), "saturation is nan"),
        (Augment(shift=SIZE), f"shift is {SIZE}; expected .* less than the {SIZE} pixels"),
        (Augment(shift=-1), "shift is -1"),
    ],
)
def test_amounts_out_of_range_are_named(folder, how, word):
    with pytest.raises(UserError, match=word):
        TrajectoryDataModule([folder], augment=how)


def test_augmenting_what_has_no_pixels_is_refused(tmp_path):
    folder = record(tmp_path / "play", [made_up(0, 5, size=0, vector=2)])
    with pytest.raises(UserError, match="changes pixels, and the data holds none"):
        TrajectoryDataModule([folder], augment=Augment(brightness=0.2))
