"""Two agents on the same episodes: published values, a peer's formula in other words, and coverage by enumeration."""

from __future__ import annotations

import itertools
import json
import math
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_align.cli import main
from lit_align.commands import evaluate
from lit_align.errors import UserError
from lit_align.evaluation.difference import Pairs, compare, difference, mcnemar
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.gather import gather
from lit_align.evaluation.results import ResultsError, agent_result, build, merge, read, validate
from tests.helpers import tiny_agent

LIGHT = "LitAlign-test/Light-v0"
counts = st.integers(0, 60)
tables = st.builds(Pairs, counts, counts, counts, counts)


@pytest.mark.parametrize(
    ("pairs", "low", "high", "digits"),
    [
        # Airway hyper-responsiveness (Bentur et al. 2009), in Fagerland, Lydersen and Laake 2014: -0.507 to -0.026.
        (Pairs(1, 1, 7, 12), -0.507, -0.026, 3),
        # Newcombe 1998, table III, 36, 12, 2, 0 by method 10.
        (Pairs(36, 12, 2, 0), 0.0569, 0.3404, 4),
        # Altman et al. 2000, Statistics with Confidence, table 6.2.
        (Pairs(14, 5, 0, 22), 0.011, 0.226, 3),
    ],
)
def test_published_intervals(pairs: Pairs, low: float, high: float, digits: int) -> None:
    found = difference(pairs)
    assert (round(found.low, digits), round(found.high, digits)) == (low, high)


@pytest.mark.parametrize(("gained", "lost", "p"), [(1, 7, 0.0703), (12, 2, 0.0129), (0, 0, 1.0), (3, 3, 1.0)])
def test_published_p_values(gained: int, lost: int, p: float) -> None:
    assert round(mcnemar(gained, lost), 4) == p


@pytest.mark.parametrize("flips", range(13))
def test_p_is_the_share_of_coins_that_are_as_uneven(flips: int) -> None:
    throws = [sum(coins) for coins in itertools.product((0, 1), repeat=flips)]
    for gained in range(flips + 1):
        apart = abs(2 * gained - flips)
        as_uneven = sum(abs(2 * heads - flips) >= apart for heads in throws)
        assert mcnemar(gained, flips - gained) == float(Fraction(as_uneven, 2**flips))


def test_p_of_a_great_many_episodes_is_no_overflow() -> None:
    assert mcnemar(9000, 1000) == 0.0 or mcnemar(9000, 1000) < 1e-300
    # The normal approximation with a continuity correction, where it is good.
    z = (abs(5150 - 4850) - 1) / math.sqrt(10000)
    assert mcnemar(5150, 4850) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=1e-3)


@given(tables)
def test_swapping_the_agents_mirrors_the_interval(pairs: Pairs) -> None:
    one, other = difference(pairs), difference(pairs._replace(gained=pairs.lost, lost=pairs.gained))
    assert one.value == -other.value
    assert one.low == pytest.approx(-other.high, abs=1e-12)
    assert one.high == pytest.approx(-other.low, abs=1e-12)
    assert one.p == other.p


@given(tables)
def test_the_interval_holds_its_value_and_has_a_width(pairs: Pairs) -> None:
    found = difference(pairs)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high
    if pairs.gained == pairs.lost:
        assert found.low < 0 < found.high


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_more_confidence_is_wider(same: int, gained: int, lost: int) -> None:
    wide, narrow = (difference(Pairs(same, gained, lost, same), level) for level in (0.99, 0.9))
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_without_episodes_nothing_is_known() -> None:
    assert difference(Pairs(0, 0, 0, 0)) == (0.0, -1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="none below 0"):
        difference(Pairs(1, -1, 0, 0))


@pytest.mark.parametrize(
    "shares",
    [
        (0.25, 0.25, 0.25, 0.25),
        (0.6, 0.2, 0.05, 0.15),
        (0.05, 0.3, 0.1, 0.55),
        (0.45, 0.05, 0.05, 0.45),
        (0, 0.9, 0, 0.1),
    ],
)
@pytest.mark.parametrize(("n", "low", "high"), [(16, 0.93, 0.995), (40, 0.945, 0.985)])
def test_coverage_by_enumerating_every_table(shares: tuple[float, ...], n: int, low: float, high: float) -> None:
    """How often the interval holds the truth, exactly: every table of n episodes with its multinomial probability."""
    truth, held, total = shares[1] - shares[2], 0.0, 0.0
    for both, gained, lost in itertools.product(range(n + 1), repeat=3):
        neither = n - both - gained - lost
        if neither < 0:
            continue
        table = (both, gained, lost, neither)
        ways, left = 1, n
        for count in table:
            ways *= math.comb(left, count)
            left -= count
        weight = ways * math.prod(p**k for p, k in zip(shares, table, strict=True))
        total += weight
        if weight > 1e-15:
            found = difference(Pairs(*table))
            held += weight * (found.low <= truth <= found.high)
    assert total == pytest.approx(1)
    assert low <= held <= high


def test_a_comparison_counts_every_episode_once() -> None:
    rng = random.Random(0)
    first, second = ({i: rng.choice(["left", "right", "none"]) for i in range(50)} for _ in range(2))
    found = compare(first, second)
    assert found["episodes"] == 50
    for name, row in found["outcomes"].items():
        assert row["both"] == sum(first[i] == second[i] == name for i in range(50))
        assert row["both"] + row["lost"] == list(first.values()).count(name)
        assert row["both"] + row["gained"] == list(second.values()).count(name)
        assert row["neither"] == sum(name not in (first[i], second[i]) for i in range(50))
    with pytest.raises(ValueError, match="the same in both"):
        compare(first, {0: "left"})


def test_evaluate_compares_agents_on_the_same_episodes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate("abc"):
        tiny_agent(seed).save(tmp_path / name / "agent")
    folders = [str(tmp_path / name / "agent") for name in "abc"]
    rest = ["--env", LIGHT, "--episodes", "30", "--worlds", "8", "--videos", "0", "--json", str(tmp_path / "r.json")]
    assert main(["evaluate", *folders, *rest, "--paired", "true", "--out", str(tmp_path / "run" / "all")]) == 0
    said = capsys.readouterr().out
    found = read(tmp_path / "r.json")
    assert set(found["paired"]) == {"b", "c"}
    # Independent of the counting: from the episodes that each agent's own file tells.
    played = {name: Episodes.load(tmp_path / "run" / "all" / f"eval_{name}" / "episodes.npz") for name in "abc"}
    assert list(played["a"].seeds) == list(played["b"].seeds)
    for name in "bc":
        entry = found["paired"][name]["a"]
        assert entry["episodes"] == 30
        for outcome, row in entry["outcomes"].items():
            was = [one == outcome for one in played["a"].outcomes]
            now = [one == outcome for one in played[name].outcomes]
            assert row["gained"] == sum(n and not w for w, n in zip(was, now, strict=True))
            assert row["lost"] == sum(w and not n for w, n in zip(was, now, strict=True))
            rates = [found["agents"][agent]["rates"].get(outcome, {"value": 0})["value"] for agent in ("a", name)]
            assert row["value"] == pytest.approx(rates[1] - rates[0])
            assert f"{100 * row['value']:+.1f} (" in said
        own = read(tmp_path / "run" / "all" / f"eval_{name}" / "results.json")
        assert own["paired"] == {name: {"a": entry}}
    assert "against a, episode by episode" in said
    # A report of the run reads them, all of them once.
    gathered = gather(tmp_path / "run")
    assert not gathered.notes
    assert gathered.results["paired"] == found["paired"]


def test_an_agent_against_itself_differs_in_nothing(tmp_path: Path) -> None:
    tiny_agent().save(tmp_path / "a" / "agent")
    agent, file = str(tmp_path / "a" / "agent"), tmp_path / "r.json"
    evaluate.run([agent, agent], env=LIGHT, episodes=6, names=["one", "two"], paired=True, json=str(file))
    for row in read(file)["paired"]["two"]["one"]["outcomes"].values():
        assert (row["gained"], row["lost"], row["value"], row["p"]) == (0, 0, 0, 1)
        assert row["low"] < 0 < row["high"]


def test_one_agent_cannot_be_compared() -> None:
    with pytest.raises(UserError, match="give two or more"):
        evaluate.run(["/nowhere"], paired=True)


def test_names_of_agents_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "finetune" / "agent").mkdir(parents=True)
    assert evaluate._names(["somebody/agent", "run/finetune/agent"], None) == ["agent", "finetune"]
    assert evaluate._names(["somebody/runner@v2", "somebody/runner"], None) == ["runner@v2", "runner"]
    # A folder that is there is a folder.
    (tmp_path / "somebody" / "agent").mkdir(parents=True)
    assert evaluate._names(["somebody/agent"], None) == ["somebody"]


def test_a_results_file_whose_pairs_do_not_add_up_is_refused() -> None:
    entry = agent_result({"left": 3, "none": 1}, seed=0)
    compared = compare(dict(enumerate("abca")), dict(enumerate("abab")))
    whole = build("X-v0", {"one": entry, "two": entry}, paired={"two": {"one": compared}})
    assert validate(json.loads(json.dumps(whole))) == whole
    assert merge([whole, whole]) == whole
    damaged = json.loads(json.dumps(whole))
    damaged["paired"]["two"]["one"]["outcomes"]["a"]["both"] += 1
    with pytest.raises(ResultsError, match=r"paired\.two\.one\.a counts .*, expected 4 episodes"):
        validate(damaged)
    with pytest.raises(ResultsError, match="paired is no mapping"):
        validate({**whole, "paired": {"two": 3}})
