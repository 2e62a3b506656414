"""The harness of the benchmarks: its arithmetic by hand, its JSON, its peers; no test here looks at a clock."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import tools.bench
from tools.bench import _imitation, _peer
from tools.bench._bench import Bench, NotHere, Result
from tools.bench._race import Case, from_timings, from_values, interleave

FOLDER = Path(tools.bench.__file__).parent
NAMES = sorted(path.stem for path in FOLDER.glob("[a-z]*.py"))
SCHEMA = {"name", "unit", "ours", "theirs", "ratio", "runs", "threads", "versions"}
SHOWN_WITH = {"hardware", "load", "commit", "command"}


def turns(*walls):
    return [{"wall": wall, "cpu": 2 * wall} for wall in walls]


def test_the_ratio_is_the_median_of_the_turns_and_not_the_ratio_of_the_medians():
    case = from_timings({"ours": turns(1, 4, 10), "peer": turns(3, 2, 40)}, amount=120)
    assert case.ours == 30  # of 120, 30 and 12 a second
    assert case.theirs == {"peer": 40}
    assert case.ratio == {"peer": 3}  # of 3, 1/2 and 4; the medians alone would say 3/4
    assert case.facts["ratio_cpu"] == {"peer": 3}
    assert case.facts["cpu_s"]["peer"] == [6, 4, 80]


def test_seconds_are_compared_the_other_way_round():
    case = from_timings({"ours": turns(1, 2, 3), "peer": turns(2, 2, 2)}, 10, scale=1000, better="lower")
    assert case.ours == pytest.approx(200)  # ms for each of ten
    assert case.ratio == {"peer": pytest.approx(1)}


@pytest.mark.parametrize(
    ("better", "ratio", "margin"),
    [("higher", {"a": 3.0, "b": 1.0}, 0.5), ("lower", {"a": 1.0, "b": 4.0}, 0.5), ("higher", {"c": 9.0}, float("inf"))],
)
def test_the_margin_is_that_of_the_peer_that_is_furthest_from_its_aim(better, ratio, margin):
    assert Case(1.0, {}, ratio, {"a": 1.5, "b": 2.0}, better).margin == pytest.approx(margin)


def test_runs_take_turns_and_the_warm_up_does_not_count():
    order = []

    def runner(name):
        return lambda: order.append(name) or {"wall": float(len(order)), "cpu": 0.0}

    timings = interleave({"a": runner("a"), "b": runner("b")}, repeats=3)
    assert order == ["a", "b"] * 4
    assert [turn["wall"] for turn in timings["a"]] == [3, 5, 7]
    assert [turn["wall"] for turn in timings["b"]] == [4, 6, 8]


def test_the_json_has_what_others_rely_on_and_the_worst_case_at_the_top(tmp_path):
    cases = {
        "good": from_values([4.0, 6.0, 5.0], {"peer": [2.0, 2.0, 2.0]}, aim={"peer": 2.0}),
        "bad": from_values([3.0, 3.0, 3.0], {"peer": [3.0, 2.0, 1.0]}, aim={"peer": 2.0}, facts={"largest_gap": 0.0}),
    }
    file = tmp_path / "made" / "fake.json"
    argv = ["--json", str(file), "--threads", "1", "--repeats", "3"]
    assert Bench("fake", "frames/s", "About.").main(lambda _: Result(cases, versions={"peer": "1.0"}), argv) == 0
    content = json.loads(file.read_text())
    assert set(content) >= SCHEMA | SHOWN_WITH
    assert (content["name"], content["unit"], content["runs"], content["threads"]) == ("fake", "frames/s", 3, 1)
    assert (content["case"], content["ours"], content["theirs"]) == ("bad", 3.0, {"peer": 2.0})
    assert content["ratio"] == {"peer": 1.5}
    assert content["reached"] is False
    assert content["cases"]["good"]["ratio"] == {"peer": 2.5}
    assert content["cases"]["good"]["reached"] is True
    assert content["versions"]["peer"] == "1.0"
    assert content["versions"]["python"].startswith(f"{sys.version_info.major}.")
    assert content["command"] == f"python -m tools.bench.fake {' '.join(argv)}"


def not_here(_):
    raise NotHere("needs another machine")


@pytest.mark.parametrize(
    ("measure", "code", "word"),
    [(lambda _: Result({}, failures=["they differ by 1"]), 1, "differ by 1"), (not_here, 0, "another machine")],
)
def test_void_numbers_are_not_written(tmp_path, capsys, measure, code, word):
    file = tmp_path / "fake.json"
    assert Bench("fake", "s", "About.").main(measure, ["--json", str(file)]) == code
    assert not file.exists()
    assert word in capsys.readouterr().err


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_stopwatch_of_the_loader_spans_its_steps_whether_the_loop_fetches_ahead_or_not(monkeypatch, ahead):
    done = []
    clock = SimpleNamespace(perf_counter=lambda: len(done), process_time=lambda: 2 * len(done))
    monkeypatch.setattr(_imitation, "time", clock)
    laps = _imitation.Laps([{"number": 0}, {"number": 1}], warm_up=3, steps=5)
    batches = iter(laps)
    fetched = [next(batches) for _ in range(ahead)]
    for batch in batches:
        fetched.append(batch)
        done.append(fetched.pop(0))
    done += fetched
    assert len(done) == len(laps) == 9
    assert [batch["number"] for batch in done[:3]] == [0, 1, 0]
    assert _imitation.Laps.last == {"wall": 5, "cpu": 10}


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_it_does(name, capsys):
    module = importlib.import_module(f"tools.bench.{name}")
    assert module.BENCH.name == name
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    told = capsys.readouterr().out
    assert all(option in told for option in ("--json", "--quick", "--threads"))
    assert module.__doc__.split("\n")[0] in told


PEER = f"""
import os, sys
sys.path.insert(0, {str(FOLDER / "_peers")!r})
from serve import serve
runs = []
def work():
    os.system("echo noise")
    print("more noise")
    runs.append(1)
    if len(runs) == 3:
        raise RuntimeError("out of breath")
serve(work, versions={{"peer": "2.0"}})
"""


def test_a_peer_answers_one_run_at_a_time_whatever_its_libraries_print(tmp_path, monkeypatch):
    monkeypatch.setattr(_peer, "SCRIPTS", tmp_path)
    (tmp_path / "noisy.py").write_text(PEER)
    with _peer.Peer("noisy", sys.executable, threads=1, seed=0) as peer:
        assert peer.facts == {"versions": {"peer": "2.0"}}
        for _ in range(2):
            timing = peer()
            assert set(timing) == {"wall", "cpu"}
            assert timing["wall"] > 0
        with pytest.raises(RuntimeError, match="out of breath"):
            peer()


@pytest.mark.slow
def test_cached_and_recomputed_rollouts_agree(tmp_path):
    from tools.bench import cached_rollout

    file = tmp_path / "cached_rollout.json"
    assert cached_rollout.main(["--quick", "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert set(content) >= SCHEMA | SHOWN_WITH | {"largest_gap"}
    assert 0 <= content["largest_gap"] <= 1e-5
    assert set(content["cases"]) == {"embeddings, 16 steps", "frames, 16 steps"}
    assert set(content["cases"]["frames, 16 steps"]["theirs"]) == {"recompute", "recompute_encoded_once"}
    assert content["quick"] is True
