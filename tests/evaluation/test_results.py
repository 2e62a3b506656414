"""results.json: what is written is read again, and what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_align.evaluation import results
from lit_align.evaluation.results import ResultsError, agent_result, build, merge, read, validate, write

# As the design shows it, extra fields left out.
DESIGN: dict[str, Any] = {
    "schema": 1,
    "environment": "LitAlign/Jumppads-v0",
    "agents": {
        "pretrain": {
            "episodes": 200, "seed": 1000, "outcomes": {"left": 24, "middle": 74, "right": 15, "none": 87},
            "rates": {
                "left": {"value": 0.12, "low": 0.08, "high": 0.17}, "middle": {"value": 0.37, "low": 0.3, "high": 0.44},
                "right": {"value": 0.075, "low": 0.05, "high": 0.12},
                "none": {"value": 0.435, "low": 0.37, "high": 0.5},
            },
            "train_frames": 1200000, "train_seconds": 310.0, "parameters": 1458998,
        }
    },
    "reward_models": {"left": {"agent": {"50": {"accuracy": 0.91, "pairs": 300}}, "random": {}}},
}  # fmt: skip


def entry(**outcomes: int) -> results.AgentResult:
    return agent_result({"left": 0, "middle": 0, "right": 0, "none": 0, **outcomes}, seed=0)


def test_the_documented_file_is_valid() -> None:
    assert validate(DESIGN) is DESIGN


def test_written_file_is_read_again(tmp_path: Path) -> None:
    made = build("World-v0", {"pretrain": agent_result({"a": 3, "b": 1}, seed=7, episode_seeds=[5, 6, 7, 8])})
    write(made, tmp_path / "deep" / "results.json")
    assert read(tmp_path / "deep" / "results.json") == made
    assert '"episode_seeds": [5, 6, 7, 8]' in (tmp_path / "deep" / "results.json").read_text()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


def test_rates_follow_from_counts() -> None:
    made = entry(left=187, none=13)
    assert made["episodes"] == 200
    assert made["rates"]["left"]["value"] == pytest.approx(0.935)
    assert made["rates"]["left"]["low"] < 0.935 < made["rates"]["left"]["high"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(schema=2), "schema is 2, expected 1"),
        (lambda r: r.pop("environment"), "environment is None"),
        (lambda r: r.update(agents=[]), "agents is list"),
        (lambda r: r["agents"]["pretrain"].update(episodes=100), "add up to 200"),
        (lambda r: r["agents"]["pretrain"]["rates"]["none"].update(value=0.1), "87 of 200 is 0.435"),
        (lambda r: r["agents"]["pretrain"]["rates"].pop("none"), "does not name the outcomes"),
        (lambda r: r["agents"]["pretrain"]["outcomes"].update(left=-1), "whole numbers"),
        (lambda r: r["reward_models"]["left"]["agent"]["50"].update(accuracy=91), "accuracy is 91, expected"),
        (lambda r: r["reward_models"]["left"]["agent"]["50"].update(ece=2), "agent.50.ece is 2, expected"),
        (lambda r: r["reward_models"]["left"]["agent"]["50"].update(best_accuracy="all"), "best_accuracy is 'all'"),
        (lambda r: r["reward_models"]["left"]["agent"]["50"].update(by_gap={"1": {"pairs": 3}}), "gap.1.accuracy is"),
        (lambda r: r["reward_models"]["left"]["agent"].update(fifty={"accuracy": 0.5}), "'fifty' is not a number"),
    ],
)  # fmt: skip
def test_every_fault_is_named(change: Any, says: str) -> None:
    broken = json.loads(json.dumps(DESIGN))
    change(broken)
    with pytest.raises(ResultsError, match=says):
        validate(broken)


def test_all_faults_at_once() -> None:
    broken = {**json.loads(json.dumps(DESIGN)), "schema": 0, "environment": None}
    with pytest.raises(ResultsError, match="schema.*environment"):
        validate(broken)


def test_merge_adds_agents_and_reward_models() -> None:
    one = build("W", {"a": entry(left=1)}, {"left": {"agent": {"50": {"accuracy": 0.9, "pairs": 3}}}})
    two = build("W", {"b": entry(none=1)}, {"left": {"agent": {"100": {"accuracy": 1, "pairs": 3}}}, "right": {}})
    both = merge([one, two, one])
    assert set(both["agents"]) == {"a", "b"}
    assert set(both["reward_models"]["left"]["agent"]) == {"50", "100"}
    assert set(one["reward_models"]["left"]["agent"]) == {"50"}, "merging must not change its parts"


def test_merge_changes_none_of_its_parts() -> None:
    parts = [build("W", {}, {"left": {"agent": {size: {"accuracy": 0.5, "pairs": 4}}}}) for size in ("50", "100")]
    before = json.dumps(parts)
    assert set(merge([build("W"), *parts])["reward_models"]["left"]["agent"]) == {"50", "100"}
    assert json.dumps(parts) == before


def test_merge_refuses_to_mix() -> None:
    with pytest.raises(ResultsError, match=r"agents\.a was found twice"):
        merge([build("W", {"a": entry(left=1)}), build("W", {"a": entry(none=1)})])
    with pytest.raises(ResultsError, match="one environment"):
        merge([build("W"), build("V")])
    with pytest.raises(ResultsError, match="at least one"):
        merge([])


def test_missing_and_truncated_files(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="found no file"):
        read(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"schema": 1, ')
    with pytest.raises(ResultsError, match="not whole JSON"):
        read(tmp_path / "half.json")
