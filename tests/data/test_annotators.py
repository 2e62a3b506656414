"""Synthetic annotators: how often they say what, against closed forms, and what their preferences tell of them."""

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_align.cli import main
from lit_align.data.annotators import Annotator, Rule, load_function
from lit_align.data.preferences import read_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError
from tests.helpers import made_up, record

MANY = 40_000


def share_of_first(annotator: Annotator, u1: float, u2: float, perceived: tuple[float, float] | None = None) -> float:
    """How often the first of two episodes is preferred."""
    worth, seen = np.array([u1, u2]), np.array(perceived or (u1, u2))
    zero, one = np.zeros(MANY, np.int64), np.ones(MANY, np.int64)
    noise = np.random.default_rng(0).random((MANY, 2))
    return float(annotator.judge(worth, seen, zero, one, noise).first.mean())


def near(p: float) -> object:
    """Within 4.5 standard errors of a share of MANY."""
    return pytest.approx(p, abs=4.5 * math.sqrt(max(p * (1 - p), 1e-12) / MANY))


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0, 50.0])
@pytest.mark.parametrize("gap", [-1.5, -0.1, 0.4, 3.0])
def test_a_boltzmann_annotator_chooses_by_the_sigmoid_of_the_gap(beta, gap):
    p = 1 / (1 + math.exp(-beta * gap))
    assert share_of_first(Annotator("boltzmann", beta=beta), 1 + gap, 1) == near(p)


@pytest.mark.parametrize("mistake", [0.0, 0.1, 0.5, 1.0])
def test_a_mistaken_annotator_turns_round_so_many_labels(mistake):
    annotator = Annotator("mistaken", mistake=mistake)
    assert share_of_first(annotator, 2, 1) == near(1 - mistake)
    assert share_of_first(annotator, 1, 2) == near(mistake)


def test_parameters_of_other_kinds_apply_as_well():
    both = Annotator("boltzmann", beta=1.5, mistake=0.2)
    p = 1 / (1 + math.exp(-1.5 * 0.8))
    assert share_of_first(both, 0.8, 0) == near(0.8 * p + 0.2 * (1 - p))
    assert share_of_first(Annotator("mistaken", beta=1.5, mistake=0.2), 0.8, 0) == share_of_first(both, 0.8, 0)
    assert share_of_first(Annotator("boltzmann", tie_within=1.0), 0.8, 0) == 1  # a tie, which is in no order


def test_what_is_perceived_decides_and_a_coin_where_nothing_is():
    assert share_of_first(Annotator("myopic"), 2, 1, perceived=(0.5, 1)) == 0
    assert share_of_first(Annotator("myopic"), 2, 1, perceived=(1, 1)) == near(0.5)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=2), st.floats(0, 3))
def test_a_tie_is_what_differs_by_so_much_or_less(worth, within):
    found = Annotator("tied", tie_within=within).judge(
        np.array(worth), np.array(worth), np.array([0]), np.array([1]), np.full((1, 2), 0.9)
    )
    assert bool(found.tie[0]) == (abs(worth[0] - worth[1]) <= within)
    assert bool(found.first[0]) == (worth[0] > worth[1] or bool(found.tie[0]))


def test_the_usual_values_are_those_of_b_pref_and_an_oracle_has_none():
    assert Annotator().parameters() == {"beta": math.inf, "gamma": 1, "mistake": 0, "tie_within": 0}
    assert Annotator("boltzmann").describe() == {"kind": "boltzmann", "beta": 1}
    assert Annotator("myopic").describe() == {"kind": "myopic", "gamma": 0.9}
    assert Annotator("mistaken").describe() == {"kind": "mistaken", "mistake": 0.1}
    assert Annotator("tied", tie_within=2, beta=3).describe() == {"kind": "tied", "tie_within": 2, "beta": 3}
    for wrong, says in (
        (Annotator("tied"), "say how near: give annotator.tie_within"),
        (Annotator("mistaken", mistake=1.5), "annotator.mistake is 1.5; expected 0 to 1"),
        (Annotator("boltzmann", beta=math.nan), "annotator.beta is nan; expected 0 to inf"),
        (Annotator(beta=2.0), "annotator.kind oracle, who has none: set annotator.kind to boltzmann"),
    ):
        with pytest.raises(UserError, match=says):
            wrong.parameters()


RULES = """
import numpy as np

def total(trajectory):
    return float(trajectory.rewards.sum())

def each(trajectory):
    return trajectory.rewards

def short(trajectory):
    return trajectory.rewards[1:]

def words(trajectory):
    return "good"

def nothing(trajectory):
    return float("nan")

def fails(trajectory):
    return 1 / (trajectory.id - 14)
"""


@pytest.fixture
def play(tmp_path, monkeypatch):
    """Sixty episodes, and a module `worth` of rules in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "worth", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "worth.py").write_text(RULES)
    words = ("left", "right", "none")
    return record(tmp_path / "play", [made_up(7 * i, 2 + i % 9, outcome=words[i * i % 7 % 3]) for i in range(60)])


@settings(max_examples=30, deadline=None)
@given(gamma=st.floats(0, 1))
def test_a_myopic_annotator_discounts_what_is_long_past(gamma):
    episodes = [made_up(i, 3 + i) for i in range(5)]

    class Folder:
        def __len__(self) -> int:
            return len(episodes)

        def __getitem__(self, i: int) -> object:
            return episodes[i]

    rule = Rule("worth", score="tests.data.test_annotators:rewards_of")
    worth, perceived = rule.utilities(Folder(), gamma)  # type: ignore[arg-type]
    for i, episode in enumerate(episodes):
        steps = len(episode)
        rewards = [float(r) for r in episode.rewards]
        assert worth[i] == pytest.approx(sum(rewards))
        # The sum over t of gamma^(T - t) r_t, t from 1 to T.
        assert perceived[i] == pytest.approx(sum(gamma ** (steps - t - 1) * r for t, r in enumerate(rewards)))


def rewards_of(trajectory):
    return trajectory.rewards


def test_one_number_counts_at_the_last_step_and_a_ranking_has_no_steps_to_be_myopic_about(play):
    dataset = TrajectoryDataset(play)
    rule = Rule("left", [["left"], ["right"]])
    rank = {"left": 0, "right": -1, "none": -2}
    for worth in rule.utilities(dataset):
        assert worth.tolist() == [rank[outcome] for outcome in dataset.episodes["outcome"]]
    with pytest.raises(UserError, match=r"needs rule.score, a function that gives a number for each step"):
        rule.utilities(dataset, 0.5)
    whole, perceived = Rule("rewards", score="worth:total").utilities(dataset, 0.5)
    assert whole.tolist() == perceived.tolist() == [float(dataset[i].rewards.sum()) for i in range(len(dataset))]


@pytest.mark.parametrize(
    ("score", "says"),
    [
        ("worth", r"rule.score is 'worth'; expected package.module:function"),
        ("wroth:total", "cannot import 'wroth'"),
        ("worth:totl", "there is no function 'totl' in 'worth'"),
        (
            "worth:short",
            r"returned an array of shape \(1,\) for episode 0; expected one finite number, or one for each",
        ),
        ("worth:words", "returned a str for episode 0; expected numbers"),
        ("worth:nothing", "returned nan, which is not finite for episode 0"),
    ],
)
def test_a_rule_that_does_not_do_is_named(play, score, says):
    with pytest.raises(UserError, match=says):
        Rule("x", score=score).utilities(TrajectoryDataset(play))


def test_a_rule_that_fails_tells_at_which_episode(play):
    with pytest.raises(ZeroDivisionError) as failed:
        Rule("x", score="worth:fails").utilities(TrajectoryDataset(play))
    assert failed.value.__notes__ == ["rule.score worth:fails was at episode 14 of 4 steps, seed 0"]
    assert failed.traceback[-1].name == "fails"


def test_a_rule_is_one_of_two_things(play):
    for rule in (Rule("x"), Rule("x", [["left"]], "worth:total")):
        with pytest.raises(UserError, match="rule.ranking.* rule.score; expected one of them"):
            rule.utilities(TrajectoryDataset(play))
    assert load_function("math:sqrt", "rule.score")(4) == 2


def compare(play: str, name: str, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Preferences of the command line: provenance, and rows of (chosen, rejected, tie, margin) for each split."""
    out = Path(play).parent / name
    assert main(["compare", f"--trajectories={play}", f"--out={out}", "--rule.name=worth", *more]) == 0
    meta, splits = read_preferences(out)
    rows = {
        split: list(zip(p.chosen.tolist(), p.rejected.tolist(), p.tie.tolist(), p.margin.tolist(), strict=True))
        for split, p in splits.items()
    }
    return meta.provenance, rows


SCORE = "--rule.score=worth:each"


def test_preferences_tell_who_judged_and_how_good_a_model_can_get(play):
    noisy = ["--annotator.kind=boltzmann", "--annotator.beta=0.5", "--annotator.mistake=0.1", "--comparisons=300"]
    provenance, rows = compare(play, "noisy", SCORE, *noisy)
    assert provenance["annotator"] == {"kind": "boltzmann", "beta": 0.5, "mistake": 0.1}
    dataset = TrajectoryDataset(play)
    worth = {int(e): float(dataset[i].rewards.sum(dtype=np.float64)) for i, e in enumerate(dataset.episodes["id"])}
    for split, found in rows.items():
        right = [worth[chosen] > worth[rejected] for chosen, rejected, _, _ in found]
        assert 0.55 < np.mean(right) < 0.95
        assert provenance["best_accuracy"][split] == pytest.approx(np.mean(right))
        assert provenance["flips"][split] == len(right) - sum(right)
        for chosen, rejected, tie, margin in found:
            assert not tie
            assert margin == pytest.approx(worth[chosen] - worth[rejected], abs=1e-5)
    provenance, rows = compare(play, "oracle", SCORE, "--comparisons=300")
    assert (provenance["annotator"], provenance["best_accuracy"]) == ({"kind": "oracle"}, {"train": 1, "test": 1})
    assert all(margin > 0 for found in rows.values() for *_, margin in found)


def test_annotators_of_one_seed_judge_the_same_pairs_and_more_come_after(play):
    def judged(name: str, *more: str) -> list[Any]:
        return compare(play, name, SCORE, *more)[1]["train"]

    def couples(rows: list[Any]) -> list[Any]:
        return [frozenset(row[:2]) for row in rows]

    noisy = ["--annotator.kind=boltzmann", "--annotator.beta=0.3"]
    few, many = judged("few", *noisy, "--comparisons=40"), judged("many", *noisy, "--comparisons=200")
    assert few == many[:40]  # no label depends on how many come after it
    assert judged("again", *noisy, "--comparisons=40") == few
    oracle = judged("oracle", "--comparisons=200")
    assert couples(oracle) == couples(many)
    assert oracle != many
    assert couples(judged("other", *noisy, "--comparisons=200", "--seed=1")) != couples(many)


def test_a_tie_prone_annotator_labels_pairs_that_the_rule_decides(play):
    ranking = "--rule.ranking=[[left],[right]]"
    _, rows = compare(play, "tied", ranking, "--annotator.kind=tied", "--annotator.tie_within=1", "--comparisons=null")
    outcome = dict(zip(*(TrajectoryDataset(play).episodes[c].tolist() for c in ("id", "outcome")), strict=True))
    rank = {"left": 0, "right": 1, "none": 2}
    gaps = [abs(rank[outcome[a]] - rank[outcome[b]]) for a, b, *_ in rows["train"]]
    assert set(gaps) == {1, 2}
    assert [tie for *_, tie, _ in rows["train"]] == [gap == 1 for gap in gaps]
    assert [margin for *_, margin in rows["train"]] == [0 if gap == 1 else 2 for gap in gaps]


def test_no_number_takes_every_pair_that_the_rule_decides(play):
    _, rows = compare(play, "all", "--rule.ranking=[[left]]", "--comparisons=null", "--test_comparisons=10000")
    outcome = dict(zip(*(TrajectoryDataset(play).episodes[c].tolist() for c in ("id", "outcome")), strict=True))
    held_out = {i for row in rows["test"] for i in row[:2]}
    for split, episodes in (("test", held_out), ("train", set(outcome) - held_out)):
        good = [e for e in episodes if outcome[e] == "left"]
        expected = {(g, e) for g in good for e in episodes if outcome[e] != "left"}
        assert {row[:2] for row in rows[split]} == expected
        assert len(rows[split]) == len(expected)
    assert len(held_out) == 18


@pytest.mark.slow
def test_all_pairs_of_two_thousand_episodes_fit_into_500_mb(tmp_path):
    code = f"""
import re
from types import SimpleNamespace
import numpy as np
from lit_align.commands import compare
from lit_align.data.annotators import Annotator, Rule
ids, rng = np.arange(2000), np.random.default_rng(0)
fake = SimpleNamespace(episodes={{"id": ids, "outcome": rng.choice(["left", "right"], 2000)}}, meta=None, digest=str)
compare.TrajectoryDataset = lambda _: fake
options = dict(comparisons=None, test_fraction=0.001, ties=True, annotator=Annotator("boltzmann"))
compare.run("play", {str(tmp_path / "pairs")!r}, Rule("left", [["left"]]), **options)
# Of this program alone: what getrusage tells counts the process that started it.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout.splitlines()[-1]) * 1024 < 500e6
    splits = read_preferences(tmp_path / "pairs")[1]
    assert len(splits["train"]) == 1998 * 1997 // 2
    assert len(np.unique(splits["train"].chosen * 2000 + splits["train"].rejected)) == len(splits["train"])


def test_the_help_of_compare_names_every_option_of_an_annotator(capsys):
    from lit_align.cli import main

    assert main(["compare", "--help"]) == 0
    told = capsys.readouterr().out
    for name in ("kind", "beta", "gamma", "mistake", "tie_within"):
        assert f"--annotator.{name}" in told
    assert main(["compare", "--annotator.help"]) == 0
    assert "Probability that a label is turned round" in " ".join(capsys.readouterr().out.split())
