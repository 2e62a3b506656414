"""The speeds that are shown are those that were measured."""

import json
import statistics
from typing import Any

import pytest

from tools import bench_table

KEPT = sorted(bench_table.RESULTS.glob("*.json"))


def test_the_page_says_what_the_results_say():
    assert len(KEPT) >= 6
    assert {path.stem for path in bench_table.PLAYED.glob("*.json")} == {"fp32", "bf16", "int8"}
    assert bench_table.main(["--check"]) == 0, "python -m tools.bench_table mends this"


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_a_kept_result_is_a_whole_measurement(path):
    result: dict[str, Any] = json.loads(path.read_text())
    assert path.stem == result["name"]
    assert not result["quick"]
    assert result["runs"] >= 5
    assert "-dirty" not in result["commit"]
    for name, case in result["cases"].items():
        for peer, turns in case.get("wall_s", {}).items():
            if peer not in case["ratio"]:  # ours, or a part of which a peer's number was made
                continue
            # Seconds of the same work: the other way round than a rate.
            ratios = [theirs / ours for ours, theirs in zip(case["wall_s"]["ours"], turns, strict=True)]
            expected = statistics.median(ratios if case["better"] == "higher" else [1 / r for r in ratios])
            assert case["ratio"][peer] == pytest.approx(expected, rel=1e-3), (name, peer)


def test_a_missed_aim_is_shown_as_missed():
    case = {
        "ours": 10.0,
        "theirs": {"a_peer": 10.0},
        "ratio": {"a_peer": 1.0},
        "aim": {"a_peer": 1.2},
        "better": "higher",
    }
    shown = bench_table.rows({"unit": "frames/s", "cases": {"one": case, "two": {**case, "better": "lower"}}})
    assert shown[0] == "| one | 10 frames/s | a peer: 10 | **1.00** | >= 1.2: **missed** |"
    assert shown[1].endswith("| <= 1.2: reached |")
