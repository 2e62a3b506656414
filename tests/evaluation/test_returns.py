"""The world's own return: tabled and computed values, what evaluate tells of it, and files without it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from lit_align.commands import evaluate
from lit_align.evaluation import returns
from lit_align.evaluation.gather import gather
from lit_align.evaluation.report import build_report
from lit_align.evaluation.results import ResultsError, agent_result, build, merge, read, validate, write
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec

PAYING = "LitAlign-test/Paying-v0"


class Paying(gymnasium.Env[Any, Any]):
    """Names no outcome and pays for each of three steps what the seed says: 1 to 5, and `bonus` beside."""

    def __init__(self, bonus: float = 0.0) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.bonus = bonus

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.pay, self.steps = pay(seed or 0) + self.bonus, 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.zeros(2, np.float32), self.pay, self.steps == 3, False, {}


def pay(seed: int) -> float:
    return 1.0 + seed % 5


gymnasium.register(PAYING, entry_point=Paying)


@pytest.fixture
def agent(tmp_path: Path) -> str:
    config = BackboneConfig(image_size=0, vector_size=2, width=16, layers=1, heads=1)
    Agent(config, ActionCodec(spaces.Discrete(2))).save(tmp_path / "finetune" / "agent")
    return str(tmp_path / "finetune" / "agent")


@pytest.mark.parametrize(
    ("degrees", "confidence", "t"),
    [
        # A table of Student's distribution, two-sided.
        (1, 0.95, 12.7062), (2, 0.95, 4.3027), (3, 0.95, 3.1824), (4, 0.95, 2.7764), (9, 0.95, 2.2622),
        (30, 0.95, 2.0423), (199, 0.95, 1.9720), (1000, 0.95, 1.9623), (5, 0.9, 2.0150), (10, 0.99, 3.1693),
    ],
)  # fmt: skip
def test_tabled_quantiles(degrees: int, confidence: float, t: float) -> None:
    assert returns.t_quantile(degrees, confidence) == pytest.approx(t, abs=6e-5)


@pytest.mark.parametrize("degrees", [1, 2, 3, 17, 200, 4321])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_are_those_of_scipy(degrees: int, confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    assert returns.t_quantile(degrees, confidence) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, degrees))


def test_mean_and_interval_by_hand() -> None:
    # Deviations -1.5, -0.5, 0.5, 1.5: variance 5 / 3; t of 3 degrees is 3.182446.
    half = 3.182446 * math.sqrt(5 / 3) / 2
    found = returns.summary([4.0, 2.0, 1.0, 3.0])
    assert found == pytest.approx({"mean": 2.5, "std": 1.290994, "low": 2.5 - half, "high": 2.5 + half})
    assert returns.summary([7.0]) == {"mean": 7.0, "std": None, "low": None, "high": None}
    assert returns.summary([7.0, 7.0]) == {"mean": 7.0, "std": 0.0, "low": 7.0, "high": 7.0}
    with pytest.raises(ValueError, match="one or more"):
        returns.summary([])


def test_a_difference_is_of_pairs() -> None:
    first, second = {0: 10.0, 1: 100.0, 2: 1000.0}, {2: 1003.0, 1: 102.0, 0: 11.0}
    # Differences 1, 2, 3: standard deviation 1, t of 2 degrees 4.302653; far narrower than of two groups.
    half = 4.302653 / math.sqrt(3)
    want = {"mean": 2.0, "std": 1.0, "low": 2 - half, "high": 2 + half}
    assert returns.difference(first, second) == pytest.approx(want)
    with pytest.raises(ValueError, match="the same in both"):
        returns.difference(first, {0: 1.0})


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.floats(-100, 100))
def test_the_interval_holds_the_mean_and_moves_with_it(numbers: list[float], more: float) -> None:
    found, moved = returns.summary(numbers), returns.summary([number + more for number in numbers])
    assert returns.faults("here", found) == []
    for end in ("mean", "low", "high"):
        assert moved[end] == pytest.approx(found[end] + more, rel=1e-6, abs=1e-3)  # type: ignore[literal-required]


def test_what_a_table_shows() -> None:
    told: returns.Return = {"mean": 195.31, "std": 1.0, "low": -0.5, "high": 12345.6}
    assert returns.in_words(told) == "195.3 (-0.5 to 12,346)"
    assert returns.in_words(told, "+") == "+195.3 (-0.5 to +12,346)"
    assert returns.in_words({"mean": 3.0, "std": None, "low": None, "high": None}) == "3"


def test_evaluate_tells_what_the_world_paid(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.run([agent], env=PAYING, episodes=10, worlds=4, seed=2, out=str(tmp_path / "out"), videos=0)
    paid = [3 * pay(seed) for seed in episode_seeds("evaluation", 2, 10)]
    mean, std = float(np.mean(paid)), float(np.std(paid, ddof=1))
    half = 2.262157 * std / math.sqrt(10)
    found = read(tmp_path / "out" / "results.json")["agents"]["finetune"]["return"]
    assert found == pytest.approx({"mean": mean, "std": std, "low": mean - half, "high": mean + half})
    shown = f"{mean:.4g} ({mean - half:.4g} to {mean + half:.4g})"
    said = capsys.readouterr().out
    assert "return (t 95 %)" in said
    assert shown in said
    assert (tmp_path / "out" / "headline.txt").read_text().endswith(f", return {shown}\n")


def test_paired_agents_differ_by_what_each_episode_paid(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bonus = iter([0.0] * 3 + [0.5] * 3)  # the second agent is paid half a point more for each of three steps
    made = Paying.reset

    def reset(world: Paying, **args: Any) -> Any:
        world.bonus = next(bonus)
        return made(world, **args)

    monkeypatch.setattr(Paying, "reset", reset)
    evaluate.run(
        [agent, agent], env=PAYING, episodes=3, worlds=1, names=["a", "b"], paired=True, json=str(tmp_path / "r.json")
    )
    found = read(tmp_path / "r.json")
    assert found["paired"]["b"]["a"]["return"] == {"mean": 1.5, "std": 0.0, "low": 1.5, "high": 1.5}
    said = capsys.readouterr().out
    assert "return against a, episode by episode" in said
    assert "+1.5 (+1.5 to +1.5)" in said


def test_a_world_that_pays_nothing_prints_as_it_did(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(f"{__name__}.pay", lambda seed: 0.0)
    out = tmp_path / "run"
    evaluate.run([agent, agent], env=PAYING, episodes=3, names=["a", "b"], paired=True, out=str(out), videos=0)
    evaluate.run([agent], env=PAYING, episodes=3, out=str(tmp_path / "one"), videos=0)
    nothing = {"mean": 0.0, "std": 0.0, "low": 0.0, "high": 0.0}
    assert read(out / "eval_b" / "results.json")["agents"]["b"]["return"] == nothing
    assert "return" not in capsys.readouterr().out
    assert "return" not in (tmp_path / "one" / "headline.txt").read_text()
    assert "<th>return</th>" not in build_report(out, tmp_path / "report").read_text()


@pytest.mark.parametrize(
    ("outcomes", "paid", "shown"),
    [
        ({"left": 3, "none": 1}, [1.0, 1.0, 0.0, 1.0], False),  # the island: 1 for any pad
        ({"left": 4}, [1.0] * 4, False),
        ({"none": 1}, [1.0], False),
        ({"left": 4}, [0.0] * 4, False),
        ({"ended": 4}, [1.0, 0.0, 0.0, 1.0], True),  # nothing else tells who was better
        ({"left": 3, "none": 1}, [1.0, 0.5, 0.0, 1.0], True),
        ({"left": 3, "none": 1}, [1.0, -1.0, 0.0, 1.0], True),
        ({"left": 2}, [200.0, 200.0], True),
    ],
)
def test_a_return_is_shown_where_outcomes_do_not_say_it(
    outcomes: dict[str, int], paid: list[float], shown: bool
) -> None:
    entry = agent_result(outcomes, seed=0, **{"return": returns.summary(paid)})
    assert returns.pays(entry) is shown
    assert not returns.pays(agent_result(outcomes, seed=0)), "of an earlier version"


def test_a_report_shows_returns_beside_entries_without(tmp_path: Path) -> None:
    paid = {"mean": 12.5, "std": 1.0, "low": 12.0, "high": 13.0}
    entries = {
        "pretrain": agent_result({"ended": 20}, seed=0),  # of an earlier version
        "finetune": agent_result({"ended": 20}, seed=0, **{"return": paid}),
        "dark": agent_result({"ended": 20}, seed=0, blank=True, **{"return": {**paid, "mean": 12.25}}),
    }
    for name, entry in entries.items():
        write(build("My/World-v0", {name: entry}), tmp_path / f"eval_{name}" / "results.json")
    assert not gather(tmp_path).notes
    text = build_report(tmp_path, tmp_path / "report").read_text()
    assert text.count("<th>return</th>") == 2
    assert "<td>-</td><td>20</td>" in text
    assert "<td>12.5 (12 to 13)</td><td>20</td>" in text
    assert "<td>12.25 (12 to 13)</td><td>20</td>" in text
    assert "without discount" in text


def test_files_with_and_without_returns_are_checked_and_merged() -> None:
    paid = {"mean": 1.0, "std": None, "low": None, "high": None}
    old, new = agent_result({"ended": 1}, seed=0), agent_result({"ended": 1}, seed=0, **{"return": paid})
    both = merge([build("W", {"old": old}), build("W", {"new": new})])
    assert validate(json.loads(json.dumps(both)))["agents"] == {"old": old, "new": new}
    for wrong in (
        3.0,
        {},
        {**paid, "mean": math.nan},
        {**paid, "std": 1.0},
        {"mean": 1, "std": 1, "low": 2, "high": 3},
    ):
        with pytest.raises(ResultsError, match=r"agents\.new\.return is .*, expected mean, std, low and high"):
            build("W", {"new": {**new, "return": wrong}})  # type: ignore[typeddict-item]
    pair: Any = {"episodes": 0, "outcomes": {}, "return": {**paid, "mean": "much"}}
    with pytest.raises(ResultsError, match=r"paired\.new\.old\.return is "):
        build("W", {"old": old, "new": new}, paired={"new": {"old": pair}})
