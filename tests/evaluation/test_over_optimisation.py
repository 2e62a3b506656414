"""Proxy against truth: made-up runs in which it is known whether the reward model was exploited."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lit_align.evaluation import over_optimisation as over
from lit_align.evaluation import over_optimisation_chart as chart
from lit_align.evaluation import style
from lit_align.evaluation.curves import read_metrics
from lit_align.evaluation.report import build_report
from lit_align.stages.metrics_csv import MetricsTable
from tests.evaluation import synthetic
from tests.stages.runs import align, inputs

EPISODES, LENGTH = 64, 80


def log(folder: Path, left: list[float], proxy: list[float], kl: str | None = "policy/kl", **more: float) -> Path:
    """A run's metrics.csv, written by the logger of the stages: rows of speed between the iterations' own."""
    table = MetricsTable(folder / "metrics.csv")
    folder.mkdir(parents=True, exist_ok=True)
    for n, (rate, reward) in enumerate(zip(left, proxy, strict=True)):
        table.log_metrics({"frames": 100.0 * n, "train/frames_per_s": 5.0}, step=2 * n)
        row = {
            "env_steps": (n + 1.0) * EPISODES * LENGTH,
            "rollout/episode_steps": float(LENGTH),
            "reward/mean": reward,
        }
        row |= {"outcome/left": rate, "outcome/none": 1 - rate, **more}
        if kl:
            row[kl] = 0.01 * n
        table.log_metrics(row, step=2 * n + 1)
    return folder


def exact(rates: list[float]) -> list[float]:
    """Rates as whole numbers of episodes give them."""
    return [round(rate * EPISODES) / EPISODES for rate in rates]


RISE = [0.1 * n for n in range(20)]
UP = exact([0.3 + 0.03 * n for n in range(20)])
UP_AND_DOWN = exact([0.3 + 0.06 * min(n, 19 - n) for n in range(20)])
FLAT = exact([0.5 + 0.03 * (-1) ** n for n in range(20)])


def watched(folder: Path, target: str | None = "left") -> over.Watch:
    watch = over.watch_of(read_metrics(folder / "metrics.csv"), target)
    assert watch is not None
    return watch


@pytest.mark.parametrize(
    ("left", "proxy", "verdict"),
    [
        (UP_AND_DOWN, RISE, True),
        (UP, RISE, False),
        (FLAT, RISE, False),  # the highest rate is luck
        (UP_AND_DOWN, [-r for r in RISE], False),  # the proxy fell too: nothing was exploited
    ],
)
def test_a_truth_that_falls_while_the_proxy_rises_is_told(
    tmp_path: Path, left: list[float], proxy: list[float], verdict: bool
) -> None:
    watch = watched(log(tmp_path / "run", left, proxy))
    assert over.over_optimised(watch) is verdict
    assert ("exploited" in over.in_words(watch)) is verdict


def test_peak_and_end_are_pooled_counts_with_their_wilson_intervals(tmp_path: Path) -> None:
    watch = watched(log(tmp_path / "run", UP_AND_DOWN, RISE))
    ends = over.peak_and_last(watch)
    assert ends is not None
    # By hand: pairs of iterations (a tenth of twenty); the highest pair is the ninth and tenth, counted from 0.
    pairs = [(round(EPISODES * a) + round(EPISODES * b)) for a, b in zip(UP_AND_DOWN, UP_AND_DOWN[1:], strict=False)]
    best = pairs.index(max(pairs))
    for found, place in zip(ends, (best, 18), strict=True):
        share = pairs[place] / (2 * EPISODES)
        assert found.env_steps == (place + 2) * EPISODES * LENGTH
        assert found.true == pytest.approx(share)
        assert found.proxy == pytest.approx((RISE[place] + RISE[place + 1]) / 2)
        assert found.kl == pytest.approx(0.01 * (place + 0.5))
        assert found.interval is not None
        for bound in (found.interval.low, found.interval.high):  # where the share is 1.96 standard errors away
            assert abs(share - bound) == pytest.approx(1.95996 * math.sqrt(bound * (1 - bound) / (2 * EPISODES)), 1e-4)
        assert found.interval.low < share < found.interval.high
    assert f"{ends[0].env_steps:,.0f} env steps" in over.in_words(watch)


def test_longer_iterations_weigh_more() -> None:
    """Two iterations of 10 and 30 episodes in one stretch: the rate of all forty."""
    counts = np.array([10.0, 30.0] * 10)
    left = np.array([5.0, 30.0] * 10) / counts
    columns = {
        "env_steps": np.cumsum(counts * 7), "rollout/episode_steps": np.full(20, 7.0), "reward/mean": np.arange(20.0),
        "outcome/left": left,
    }  # fmt: skip
    watch = over.watch_of(columns, "left")
    assert watch is not None
    assert watch.episodes is not None
    assert watch.episodes.tolist() == counts.tolist()
    assert [round(one.true, 6) for one in over.stretches(watch)] == [round(35 / 40, 6)] * 19


def test_numbers_and_picture_are_left_in_the_run_folder(tmp_path: Path) -> None:
    run = log(tmp_path / "run", UP_AND_DOWN, RISE)
    over.leave(run, "left")
    found = json.loads((run / over.NUMBERS).read_text())
    assert found["outcomes"]["left"] == pytest.approx(UP_AND_DOWN)
    assert found["proxy"] == pytest.approx(RISE)
    assert found["kl"] == {"name": "policy/kl", "values": pytest.approx([0.01 * n for n in range(20)])}
    assert found["env_steps"] == [(n + 1) * EPISODES * LENGTH for n in range(20)]
    assert found["episodes"] == [EPISODES] * 20
    assert (found["target"], found["truth"], found["over_optimised"]) == ("left", "left", True)
    assert found["peak"]["env_steps"] < found["last"]["env_steps"]
    assert found["peak"]["true"] > found["last"]["true"]
    picture = Image.open(run / over.PICTURE).convert("RGB")
    assert _shows(picture, style.OUTCOME_COLOURS["left"])
    assert _shows(picture, style.SPARE_COLOURS[4]), "the KL"


def _shows(picture: Image.Image, colour: str) -> bool:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.asarray(picture).astype(int) - wanted).max(-1) <= 2).sum()) > 50


def test_a_run_without_a_reference_has_no_kl_and_one_with_autoregressive_heads_an_estimate(tmp_path: Path) -> None:
    over.leave(log(tmp_path / "none", UP, RISE, kl=None), "left")
    assert json.loads((tmp_path / "none" / over.NUMBERS).read_text())["kl"] is None
    over.leave(log(tmp_path / "estimate", UP, RISE, kl="policy/kl_conditional"), "left")
    assert json.loads((tmp_path / "estimate" / over.NUMBERS).read_text())["kl"]["name"] == "policy/kl_conditional"
    tall = [Image.open(tmp_path / name / over.PICTURE).height for name in ("none", "estimate")]
    assert tall[0] < tall[1], "a panel less"


def test_a_world_without_outcomes_is_judged_by_its_return(tmp_path: Path) -> None:
    table = MetricsTable(tmp_path / "metrics.csv")
    for n in range(10):
        row = {"env_steps": 500.0 * (n + 1), "reward/mean": float(n), "outcome/": 1.0, "reward/env": 5.0 * min(n, 6)}
        table.log_metrics(row, step=n)
    over.leave(tmp_path)
    found = json.loads((tmp_path / over.NUMBERS).read_text())
    assert (found["outcomes"], found["truth"]) == ({}, "return")
    assert found["return"] == [5.0 * min(n, 6) for n in range(10)]
    assert (found["peak"]["env_steps"], found["peak"]["true"]) == (3500.0, 30.0)
    assert found["over_optimised"] is None, "no number of episodes, no interval"
    assert "return was highest at 3,500 env steps" in found["words"]
    assert (tmp_path / over.PICTURE).is_file()


def paying(folder: Path, returns: list[np.ndarray], proxy: list[float], **outcomes: float) -> Path:
    """A run in a world that pays, of so many episodes of 80 steps an iteration."""
    folder.mkdir()
    table, steps = MetricsTable(folder / "metrics.csv"), 0.0
    for n, (own, reward) in enumerate(zip(returns, proxy, strict=True)):
        steps += LENGTH * len(own)
        row = {"env_steps": steps, "rollout/episode_steps": float(LENGTH), "reward/mean": reward, **outcomes}
        told = np.float32([own.mean(), own.std()])  # as Lightning rounds what a stage logs
        table.log_metrics({**row, "rollout/return": told[0], "rollout/return_std": told[1]}, step=n)
    return folder


def test_a_return_is_judged_by_the_t_intervals_of_all_episodes_of_a_stretch(tmp_path: Path) -> None:
    from scipy import stats

    random = np.random.default_rng(0)
    rising = [random.normal(50 + 10 * n, 30, 40 if n % 2 else 25) for n in range(10)]
    returns = rising + [random.normal(140 - 6 * n, 30, 30) for n in range(10)]
    over.leave(paying(tmp_path / "run", returns, RISE))
    found = json.loads((tmp_path / "run" / over.NUMBERS).read_text())
    assert (found["truth"], found["over_optimised"]) == ("return", True)
    assert "the true return fell" in found["words"]
    assert "Where the reward stands for the return" in found["words"]
    assert "exploited" not in found["words"], "no reward model need be there"
    pairs = [np.concatenate(pair) for pair in zip(returns, returns[1:], strict=False)]
    for where, pair in (("peak", max(pairs, key=np.mean)), ("last", pairs[-1])):
        low, high = stats.t.interval(0.95, len(pair) - 1, pair.mean(), stats.sem(pair))
        assert found[where]["true"] == pytest.approx(pair.mean())
        assert found[where]["interval"] == {"low": pytest.approx(low), "high": pytest.approx(high)}
    flat = [random.normal(100, 30, 30) for _ in range(20)]
    over.leave(paying(tmp_path / "flat", flat, RISE))
    assert json.loads((tmp_path / "flat" / over.NUMBERS).read_text())["over_optimised"] is False


def test_a_return_that_says_no_more_than_outcomes_is_left_out(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    reached = [random.integers(0, 2, 30).astype(float) for _ in range(6)]
    outcomes = {"outcome/left": 0.5, "outcome/none": 0.5}

    def seen(name: str, returns: list[np.ndarray], **more: float) -> over.Watch:
        return watched(paying(tmp_path / name, returns, RISE[:6], **more), None)

    assert seen("island", reached, **outcomes).truth is None
    assert seen("coins", reached).truth is not None, "it names no outcome: this is all there is to say"
    assert seen("nothing", [np.zeros(30)] * 6).truth is None
    scores = [3.0 * own for own in reached]
    watch = seen("scores", scores, **outcomes)
    assert watch.truth is not None
    assert watch.truth[0] == "return"
    tall = [
        Image.open(chart.draw(w, tmp_path / "chart.png")).height for w in (watch, watched(tmp_path / "island", None))
    ]
    assert tall[0] > tall[1], "a panel more"


def test_a_run_that_knows_no_target_says_so(tmp_path: Path) -> None:
    watch = watched(log(tmp_path / "run", UP, RISE), None)
    assert over.numbers(watch)["peak"] is None
    assert "not known" in over.in_words(watch)
    assert over.peak_and_last(watched(tmp_path / "run", "speed")) is None, "a rule that is no outcome"


def test_an_outcome_that_came_late_was_not_there_before() -> None:
    nan = math.nan
    columns = {
        "env_steps": np.array([1.0, 2, 3]), "reward/mean": np.array([0.0, 1, 2]),
        "outcome/won": np.array([nan, nan, 0.5]), "outcome/lost": np.array([1.0, 1, 0.5]),
        "policy/kl": np.array([nan, nan, nan]),
    }  # fmt: skip
    watch = over.watch_of(columns, "won")
    assert watch is not None
    assert watch.outcomes["won"].tolist() == [0, 0, 0.5]
    assert (watch.kl, watch.episodes) == (None, None)


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"step": np.arange(3.0), "train/loss": np.arange(3.0)},
        {"env_steps": np.full(2, math.nan), "reward/mean": np.full(2, math.nan)},
    ],
)
def test_what_is_no_alignment_is_left_alone(columns: dict[str, np.ndarray]) -> None:
    assert over.watch_of(columns) is None


def test_a_picture_that_cannot_be_drawn_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = log(tmp_path / "run", UP, RISE)

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr(chart, "draw", broken)
    with pytest.warns(UserWarning, match="RuntimeError: no ink"):
        over.leave(run, "left")
    assert json.loads((run / over.NUMBERS).read_text())["target"] == "left"
    (run / "metrics.csv").write_bytes(b"\xff\xfe,\n")
    with pytest.warns(UserWarning, match="was not drawn"):
        over.leave(run, "left")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        over.leave(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def model(target: str) -> SimpleNamespace:
    return SimpleNamespace(info={"target": target} if target else {})


@pytest.mark.parametrize(
    ("targets", "weights", "wanted"),
    [
        (["left"], [1.0], "left"),
        (["left", "left"], [1.0, 0.5], "left"),
        (["left", "right"], [1.0, 1.0], None),
        (["left"], [-1.0], None),
        ([""], [1.0], None),
        ([], [1.0], None),
    ],
)
def test_the_target_is_what_the_reward_models_agree_on(
    targets: list[str], weights: list[float], wanted: str | None
) -> None:
    rewards = SimpleNamespace(models={str(i): model(name) for i, name in enumerate(targets)}, weights=weights)
    assert over.wanted(rewards) == wanted  # type: ignore[arg-type]


def test_a_reward_is_the_worlds_own_where_it_is_told_as_it_is() -> None:
    def own(*names: str, weight: float = 1.0, **models: SimpleNamespace) -> bool:
        told = SimpleNamespace(names=list(names), weights=[weight] * len(names), models=models)
        return over.is_own(told)  # type: ignore[arg-type]

    assert own("env")
    assert not own("env", weight=2.0), "the return is half of what is told"
    assert not own("env", weight=-1.0)
    assert not own("env", "speed")
    assert not own("env", env=model("left")), "a reward model in a folder of that name"


def test_the_report_shows_every_alignment_with_its_words(tmp_path: Path) -> None:
    log(tmp_path / "align_left", UP_AND_DOWN, RISE)
    log(tmp_path / "align_left_ppo", UP, RISE)
    over.leave(log(tmp_path / "again", UP_AND_DOWN, RISE), "left")  # its name says nothing, its folder does
    synthetic.metrics(tmp_path / "finetune" / "metrics.csv", {"step": np.arange(3.0), "train/loss": np.arange(3.0)})
    page = build_report(tmp_path, tmp_path / "report")
    text = page.read_text()
    for name in ("align_left", "align_left_ppo", "again"):
        assert f"over-optimisation-{name}.png" in text
        assert (page.parent / f"over-optimisation-{name}-dark.png").is_file()
    assert "over-optimisation-finetune" not in text
    assert text.count("exploited") == 2


def test_a_real_run_leaves_both(tmp_path: Path) -> None:
    from lit_align.cli import main

    folder = inputs(tmp_path)
    assert main(align(folder, tmp_path / "out", epochs=2)) in (0, None)
    found = json.loads((tmp_path / "out" / over.NUMBERS).read_text())
    columns = read_metrics(tmp_path / "out" / "metrics.csv")
    rows = ~np.isnan(columns["reward/mean"])
    assert len(found["env_steps"]) == 2
    assert found["proxy"] == columns["reward/mean"][rows].tolist()
    assert found["kl"]["values"] == columns["policy/kl"][rows].tolist()
    assert (tmp_path / "out" / over.PICTURE).is_file()
