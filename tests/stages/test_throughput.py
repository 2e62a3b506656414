"""FLOPs against formulas written by hand, the meter on a clock of its own, and what real runs log."""

import itertools
import time

import lightning.pytorch as pl
import pytest
import torch

from lit_align.cli import main
from lit_align.data.modules import TrajectoryDataModule
from lit_align.models.config import BackboneConfig
from lit_align.stages import flops
from lit_align.stages.flops import ModelFlops, count_flops, peak_flops
from lit_align.stages.pretrain import Pretrain
from lit_align.stages.throughput import Throughput, resident
from lit_align.stages.training import TrainConfig
from tests.helpers import made_up, record
from tests.stages.runs import inputs, pretrain, rows

SPEEDS = ("train/frames_per_s", "train/data_wait", "train/tflops", "train/mfu", "train/memory_mb")
V, D, LAYERS, CONTEXT, CLASSES = 7, 16, 3, 4, 12 * 2 + 4 * 11


def counted(tmp_path, train: TrainConfig | None = None) -> tuple[ModelFlops, bool]:
    """The FLOPs of a small transformer on vectors, and whether counting left the random state alone."""
    config = BackboneConfig(image_size=0, vector_size=V, width=D, layers=LAYERS, heads=2, context=CONTEXT)
    play = tmp_path / "play"
    if not play.exists():
        record(play, [made_up(i, 9 + i, size=0, vector=V) for i in range(8)])
    data = TrajectoryDataModule([str(play)], window=8, batch_size=3)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    stage = Pretrain(config, train=train)
    trainer.fit(stage, data)
    state = torch.get_rng_state()
    found = count_flops(trainer, stage, next(iter(data.train_dataloader())))
    assert all(not p.is_meta and type(p) is torch.nn.Parameter for p in stage.parameters())
    return found, torch.equal(state, torch.get_rng_state())


def test_flops_are_those_of_the_formula(tmp_path):
    found, untouched = counted(tmp_path)
    encoder, layer, heads = 2 * V * D + 2 * D * D, 24 * D * D, 2 * D * CLASSES
    # Nobody asks for the gradient of what was seen: the first matrix has one product in its backward pass, others two.
    assert found.frame == 3 * (encoder + LAYERS * layer + heads) - 2 * V * D
    assert found.pair == 3 * LAYERS * 4 * D
    assert found.context == CONTEXT
    assert untouched


def test_what_is_frozen_costs_its_forward_pass_and_what_is_recomputed_is_free(tmp_path):
    every, _ = counted(tmp_path)
    assert counted(tmp_path, TrainConfig(gradient_checkpointing=True))[0] == every
    heads, _ = counted(tmp_path, TrainConfig(parameters="heads"))
    forward = 2 * V * D + 2 * D * D + LAYERS * 24 * D * D + 2 * D * CLASSES
    assert heads.frame == forward + 2 * D * CLASSES  # the gradient of the heads' weights
    assert heads.pair == LAYERS * 4 * D
    last, _ = counted(tmp_path, TrainConfig(parameters="last_layers", layers=1))
    assert last.pair == (LAYERS - 1 + 3) * 4 * D


def test_only_what_lies_in_the_window_is_attended_to():
    for length, context in itertools.product(range(1, 12), range(1, 6)):
        pairs = sum(0 <= t - s < context for t in range(length) for s in range(length))
        assert ModelFlops(0.0, 1.0, context).of(torch.tensor([length])) == pairs
    together = ModelFlops(2.0, 3.0, 4).of(torch.tensor([5, 9]))
    assert together == sum(ModelFlops(2.0, 3.0, 4).of(torch.tensor([n])) for n in (5, 9))


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_meter_on_a_clock_of_its_own():
    clock = Clock()
    meter = Throughput(clock)
    meter.flops, meter.peak, meter.processes = ModelFlops(1e9, 0.0, 8), 1e11, 2
    assert meter.line() == {}
    meter.start()
    for wait, work in ((1.0, 3.0), (0.5, 1.5)):
        clock.now += wait
        meter.begin(torch.tensor([10, 20]))
        with meter.aside():
            clock.now += 1000.0
        clock.now += work
        assert meter.end() == wait + work
    assert meter.frames == 2 * 2 * 30
    assert meter.line() == {
        "train/frames_per_s": 120 / 6,
        "train/data_wait": 1.5 / 6,
        "train/tflops": 120e9 / 6 / 1e12,
        "train/mfu": pytest.approx(120e9 / 6 / (2 * 1e11)),
    }
    clock.now += 50.0  # validation
    meter.start()
    clock.now += 2.0  # play, at the start of an iteration: time, but no wait for the loader
    meter.wait()
    clock.now += 1.0
    meter.begin(torch.tensor([6]))
    clock.now += 1.0
    meter.end()
    line = meter.line()
    assert (line["train/frames_per_s"], line["train/data_wait"]) == (12 / 4, 1 / 4)
    assert meter.line() == {}
    meter.peak = None
    meter.begin(torch.tensor([6]))
    clock.now += 1.0
    meter.end()
    assert "train/mfu" not in meter.line()


def test_frames_are_added_up_though_nobody_asks():
    meter = Throughput()
    for _ in range(2500):
        meter.begin(torch.tensor([1, 2]))
        meter.end()
    assert len(meter._arrived) < 1000
    assert meter.frames == 7500


def test_what_a_device_can_do(monkeypatch):
    speed = peak_flops(torch.device("cpu"), "32-true")
    assert speed is not None
    assert 1e8 < speed < 1e14
    assert peak_flops(torch.device("cpu"), "32-true") == speed  # measured once
    assert peak_flops(torch.device("mps"), "32-true") is None
    asked = []

    def of_maker(device, dtype):
        asked.append(dtype)
        return 5

    monkeypatch.setattr(flops, "get_available_flops", of_maker)
    for precision in ("32-true", "16-mixed", "bf16-true", "64-true", "transformer-engine"):
        assert peak_flops(torch.device("cuda"), precision) == 5
    assert asked == [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bfloat16]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops(torch.device("cuda"), "bf16-mixed") == 989e12  # Lightning's table has twice as many: sparse ones
    assert peak_flops(torch.device("cuda"), "32-true") == 5

    def unheard_of(device, dtype):
        raise IndexError("a card that nobody knows")

    monkeypatch.setattr(flops, "get_available_flops", unheard_of)
    assert peak_flops(torch.device("cuda"), "32-true") is None


@pytest.fixture
def folder(tmp_path):
    return inputs(tmp_path)


def lines(out, column="train/frames_per_s") -> list[int]:
    return [int(row["step"]) for row in rows(out, column)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_line_comes_at_the_first_step(folder, accumulate):
    more = ["--trainer.log_every_n_steps=3", f"--trainer.accumulate_grad_batches={accumulate}"]
    assert main([*pretrain(folder, folder / "p", epochs=accumulate), *more, "--trainer.max_steps=8"]) == 0
    assert lines(folder / "p") == [0, 2, 5]  # rows count steps from 0
    for column in SPEEDS:
        assert lines(folder / "p", column) == [0, 2, 5], column
    # A resumed run has had its first step.
    again = [*pretrain(folder, folder / "p", epochs=3 * accumulate), *more, "--trainer.max_steps=13", "--resume=last"]
    assert main(again) == 0
    assert lines(folder / "p") == [0, 2, 5, 8, 11]
    frames = [float(row["frames"]) for row in rows(folder / "p", "frames")]
    assert frames == sorted(frames)
    assert frames[0] <= 4 * 8 * accumulate


def values(out, column) -> list[float]:
    import csv

    with (out / "metrics.csv").open(newline="") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def test_a_slow_loader_shows(folder, monkeypatch):
    assert main(pretrain(folder, folder / "quick")) == 0
    make = TrajectoryDataModule._make

    def slow(self, *args):
        time.sleep(0.2)
        return make(self, *args)

    monkeypatch.setattr(TrajectoryDataModule, "_make", slow)
    assert main(pretrain(folder, folder / "slow", epochs=1)) == 0
    quick, slow_ = (values(folder / name, "train/data_wait") for name in ("quick", "slow"))
    assert all(0 <= wait <= 1 for wait in [*quick, *slow_])
    assert sorted(slow_)[len(slow_) // 2] > 0.6 > sorted(quick)[len(quick) // 2]
    speeds = values(folder / "slow", "train/frames_per_s")
    assert max(speeds) <= 4 * 8 / 0.2
    for out in ("quick", "slow"):
        assert all(0 < share < 2 for share in values(folder / out, "train/mfu"))
    assert values(folder / "slow", "train/memory_mb")[-1] * 1e6 <= resident(peak=True)
    assert values(folder / "slow", "train/memory_mb")[0] > 100


def test_a_network_that_cannot_be_counted_trains_all_the_same(folder, monkeypatch):
    def fails(*args):
        raise RuntimeError("no such operation in imitation")

    monkeypatch.setattr("lit_align.stages.base.count_flops", fails)
    with pytest.warns(UserWarning, match="left out: RuntimeError: no such operation"):
        assert main(pretrain(folder, folder / "p", epochs=1)) == 0
    assert lines(folder / "p") == list(range(len(lines(folder / "p"))))
    assert not rows(folder / "p", "train/mfu")
