"""Charts from metrics.csv and from results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lit_align.evaluation import charts, curves, style
from lit_align.evaluation.results import agent_result


def test_clock_is_filled_forward_and_gaps_are_left_out(tmp_path: Path) -> None:
    """Lightning writes what is logged at different moments into different rows."""
    (tmp_path / "m.csv").write_text("step,env_steps,kl,reward/mean\n0,100,0.1,\n0,,,1.5\n1,200,0.2,\n1,,,2.5\n2,300")
    columns = curves.read_metrics(tmp_path / "m.csv")
    line = curves.line(columns, "reward/mean", "r", "k")
    assert line is not None
    assert line.x.tolist() == [100, 200]
    assert line.y.tolist() == [1.5, 2.5]
    assert curves.clock(columns) == ("env_steps", "steps in the world")
    assert curves.line(columns, "absent", "", "k") is None


def test_align_panels_tell_proxy_from_truth() -> None:
    logged = (
        "val/reward",
        "outcome/left",
        "outcome/right",
        "policy/kl",
        "env_steps",
        "reward/mean",
        "rollout/failures",
    )
    columns = {name: np.array([1.0, 2.0]) * (place + 1) for place, name in enumerate(logged)}
    proxy, truth, kl = curves.align_panels({"right": columns})
    assert proxy.lines[0].y[0] == 6, "reward/mean of the training episodes, not the validation's"
    assert truth.lines[0].y[0] == 3, "the target's own outcome"
    assert kl.lines[0].y[0] == 4
    assert truth.percent


def test_smoothing_is_a_mean() -> None:
    values = np.arange(100.0)
    assert curves.smooth(values, 0.1)[50] == pytest.approx(50)
    assert curves.smooth(np.full(100, 3.0)).tolist() == [3.0] * 100


def test_empty_panels_say_so(tmp_path: Path) -> None:
    path = curves.curves([curves.loss_panel("Base", {"step": np.arange(3.0)})], tmp_path / "c.png")
    assert Image.open(path).size[0] > 100


def _area(path: Path, colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - wanted).max(-1) <= 2).sum())


def test_bars_are_as_high_as_their_rates(tmp_path: Path) -> None:
    """Pixels of each colour are counted: twice the rate is twice the area."""
    counts = {"left": 80, "middle": 40, "right": 20, "none": 60}
    path = charts.success_bars({"other": agent_result(counts, seed=0)}, tmp_path / "bars.png")
    areas = {name: _area(path, style.OUTCOME_COLOURS[name]) for name in counts}
    for name, n in counts.items():
        # Whiskers cover some of each bar, hence the tolerance.
        assert areas[name] / areas["left"] == pytest.approx(n / 80, rel=0.1)


@pytest.mark.parametrize("sizes", [("50",), ("50", "1000", "500000")])
def test_reward_chart_takes_any_number_of_sizes(tmp_path: Path, sizes: tuple[str, ...]) -> None:
    models = {"left": {"agent": {n: {"accuracy": 0.9, "pairs": 30} for n in sizes}, "random": {}}}
    for with_paper in (True, False):
        path = charts.reward_accuracy(models, tmp_path / "r.png", with_paper=with_paper)
        assert _area(path, "#3d8bfd") > 50
