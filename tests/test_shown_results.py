"""The figures that the README shows: counts that add up, intervals that hold, and what the recipe promises."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

RESULTS = sorted((Path(__file__).parent.parent / "docs" / "results").glob("quickstart-seed*.json"))
RUNS = [json.loads(path.read_text()) for path in RESULTS]
Z = 1.959963984540054


def pooled(agent: str) -> tuple[Counter[str], int]:
    """Outcomes of an agent over all seeds, and the episodes played."""
    counts: Counter[str] = Counter()
    for run in RUNS:
        counts.update(run["agents"][agent]["outcomes"])
    return counts, counts.total()


def test_there_are_results_each_with_its_own_seed_command_and_hardware():
    assert RESULTS
    assert len({run["run"]["seed"] for run in RUNS}) == len(RUNS)
    for run in RUNS:
        assert run["run"]["command"]
        assert run["run"]["commit"]
        assert run["run"]["hardware"]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_rates_follow_from_counts_and_bounds_solve_the_score_equation(path):
    for entry in json.loads(path.read_text())["agents"].values():
        n = entry["episodes"]
        assert n >= 200
        assert sum(entry["outcomes"].values()) == n == len(set(entry["episode_seeds"]))
        for outcome, rate in entry["rates"].items():
            share = entry["outcomes"][outcome] / n
            assert rate["value"] == pytest.approx(share, abs=1e-3)
            for bound in (rate["low"], rate["high"]):
                if 0 < bound < 1:
                    assert abs(share - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / n), abs=2e-3)


def test_fine_tuning_makes_the_base_agent_reliable():
    base, n = pooled("pretrain")
    tuned, m = pooled("finetune")
    assert tuned["none"] / m <= 0.20
    assert tuned["none"] / m <= base["none"] / n - 0.20


@pytest.mark.parametrize("target", ["left", "right"])
def test_alignment_reaches_the_pad_that_is_preferred(target):
    aligned, n = pooled(f"align_{target}")
    assert aligned[target] / n >= 0.90


@pytest.mark.parametrize("target", ["left", "right"])
def test_an_aligned_agent_that_sees_nothing_fails(target):
    entries = [run.get("ablations", {}).get(f"align_{target}_blank") for run in RUNS]
    blind = [entry for entry in entries if entry]
    assert blind
    for entry in blind:
        assert entry["outcomes"].get(target, 0) / entry["episodes"] < 0.20


@pytest.mark.parametrize("target", ["left", "right"])
def test_fifty_comparisons_are_enough_for_a_reward_model_that_starts_from_the_agent(target):
    found = [run["reward_models"][target]["agent"]["50"]["accuracy"] for run in RUNS]
    # One draw of 50 comparisons may miss 0.90: of the paper's 20 models, 91.5 % on average, the lowest has 84.2 %.
    assert sum(found) / len(found) >= 0.90
    assert min(found) >= 0.84
