"""Comparisons: drawn without leaks, stored, and served with every labelled pair that a batch's trajectories give."""

import hashlib
import math
import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lit_align.data.pairs as pairs_module
from lit_align.commands import compare
from lit_align.data.loader import Batch
from lit_align.data.pairs import PairIndex, PreferenceDataModule
from lit_align.data.preferences import PreferenceMeta, Preferences, read_preferences, write_preferences
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from tests.helpers import made_up, record

OUTCOMES = ("left", "middle", "right", "none")
RANKINGS = ([["left"]], [["left"], ["middle", "right"]], [["right"], ["left"], ["middle"]])


@settings(max_examples=60, deadline=None)
@given(
    outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=4, max_size=40),
    ranking=st.sampled_from(RANKINGS),
    wanted=st.integers(1, 60),
    fraction=st.floats(0.05, 0.9),
    ties=st.booleans(),
    seed=st.integers(0, 99),
)
def test_training_and_test_pairs_share_no_episode_and_the_rule_holds(outcomes, ranking, wanted, fraction, ties, seed):
    ids = np.arange(len(outcomes)) * 7 + 3  # ids are not places
    known = dict(zip(ids.tolist(), outcomes, strict=True))
    episodes = {"id": ids, "outcome": np.array(outcomes)}
    fake = SimpleNamespace(episodes=episodes, meta=SimpleNamespace(outcomes=Counter(outcomes)), digest=str)

    def rank(episode: int) -> int:
        return next((i for i, group in enumerate(ranking) if known[episode] in group), len(ranking))

    def draw(out: Path) -> dict[str, Preferences]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "TrajectoryDataset", lambda _: fake)
            compare.run("play", str(out), compare.Rule("rule", ranking), wanted, wanted, fraction, ties, seed)
        return read_preferences(out)[1]

    expected = as_ever(ids, np.array([rank(int(e)) for e in ids]), wanted, fraction, ties, seed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            splits = draw(Path(folder) / "a")
        except UserError:
            assert not (Path(folder) / "a").exists()
            return
        again = draw(Path(folder) / "b")
    seen = {}
    for split, pairs in splits.items():
        assert list(zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)) == expected[split]
        assert np.array_equal(pairs.chosen, again[split].chosen)
        assert np.array_equal(pairs.rejected, again[split].rejected)
        seen[split] = {int(i) for i in (*pairs.chosen, *pairs.rejected)}
        assert seen[split] <= known.keys()
        couples = [frozenset(pair) for pair in zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)]
        assert all(len(couple) == 2 for couple in couples)
        assert len(set(couples)) == len(couples) <= wanted
        for chosen, rejected, tie, margin in zip(pairs.chosen, pairs.rejected, pairs.tie, pairs.margin, strict=True):
            assert margin == rank(int(rejected)) - rank(int(chosen)) >= 0
            assert tie == (margin == 0)
            assert ties or not tie
    assert len(splits["train"]) == wanted
    assert seen["train"].isdisjoint(seen["test"])
    assert len(seen["test"]) <= max(2, round(fraction * len(outcomes)))


def as_ever(
    ids: np.ndarray, ranks: np.ndarray, wanted: int, fraction: float, ties: bool, seed: int
) -> dict[str, list[tuple[int, int]]]:
    """The pairs that every version drew, (better, worse) of an oracle: all of them listed, then permuted."""
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(ids))
    held_out = max(2, round(fraction * len(ids)))
    found = {}
    for split, part in (("train", order[held_out:]), ("test", order[:held_out])):
        i, j = np.triu_indices(len(part), k=1)
        pairs = [(a, b) for a, b in zip(part[i], part[j], strict=True) if ties or ranks[a] != ranks[b]]
        picked = [pairs[k] for k in rng.permutation(len(pairs))[:wanted]]
        found[split] = [
            (int(ids[b]), int(ids[a])) if ranks[a] > ranks[b] else (int(ids[a]), int(ids[b])) for a, b in picked
        ]
    return found


@pytest.mark.parametrize(("ties", "digest"), [(False, "d2888d5126e635d7"), (True, "1fc31c4a9e044fd1")])
def test_what_a_seed_draws_stays_what_it_was(tmp_path, monkeypatch, ties, digest):
    ids = np.arange(120) * 7 + 3
    outcomes = np.array([("left", "middle", "right", "none", "none")[(i * i + i // 3) % 5] for i in range(120)])
    fake = SimpleNamespace(episodes={"id": ids, "outcome": outcomes}, meta=SimpleNamespace(outcomes={}), digest=str)
    monkeypatch.setattr(compare, "TrajectoryDataset", lambda _: fake)
    rule = compare.Rule("left", [["left"], ["middle", "right"], ["none"]])
    compare.run("play", str(tmp_path / "pairs"), rule, 1000, 300, 0.3, ties, 5)
    sha = hashlib.sha256()
    for split, pairs in read_preferences(tmp_path / "pairs")[1].items():
        assert len(pairs) == {"train": 1000, "test": 300}[split]
        for column in (pairs.chosen, pairs.rejected, pairs.tie, pairs.margin):
            sha.update(np.ascontiguousarray(column).tobytes())
    assert sha.hexdigest()[:16] == digest


def test_comparisons_that_leak_are_refused(tmp_path):
    play = record(tmp_path / "play", [made_up(i, 3) for i in range(4)])
    splits = {"train": pairs_of([(0, 1)]), "test": pairs_of([(1, 2)])}
    write_preferences(tmp_path / "pairs", splits, PreferenceMeta(play), "today")
    with pytest.raises(UserError, match=r"1 episodes of .* in training and in test comparisons \(first: 1\)"):
        PreferenceDataModule(str(tmp_path / "pairs")).setup()


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            [(0, 1), (2, 9), (8, 1)],
            r"2 episodes of the training comparisons .* not among the 4 .*first: 8.*trajectories",
        ),
        ([(0, 1), (2, 2)], r"1 training comparisons .* of an episode with itself \(first: 2\)"),
    ],
)
def test_comparisons_of_what_is_not_there_are_refused_before_training(tmp_path, pairs, said):
    play = record(tmp_path / "play", [made_up(i, 3) for i in range(4)])
    write_preferences(tmp_path / "pairs", {"train": pairs_of(pairs)}, PreferenceMeta(play), "today")
    with pytest.raises(UserError, match=said):
        PreferenceDataModule(str(tmp_path / "pairs")).setup()


@pytest.mark.parametrize("change", [{"outcome": "none"}, {"seed": 77}, {"steps": 4}])
def test_other_episodes_under_the_same_ids_are_refused(tmp_path, change):
    def episodes(**changed) -> list[Trajectory]:
        each: list[dict[str, Any]] = [
            {"episode": i, "steps": 3, "seed": i, "outcome": OUTCOMES[i % 4]} for i in range(12)
        ]
        each[5] |= changed
        return [made_up(**facts) for facts in each]

    def data(play: str) -> PreferenceDataModule:
        return PreferenceDataModule(str(tmp_path / "pairs"), play)

    play = record(tmp_path / "play", episodes())
    compare.run(play, str(tmp_path / "pairs"), compare.Rule("left", [["left"], ["middle", "right"], ["none"]]), None)
    data(play).setup()
    # Neither the folder nor what else is in it, nor the order, is what tells episodes apart.
    more = record(tmp_path / "more", [made_up(40, 3), *episodes()[::-1]])
    data(more).setup()
    other = record(tmp_path / "other", episodes(**change))
    with pytest.raises(UserError, match=r"other' holds other episodes than those that .*pairs' compares"):
        data(other).prepare_data()
    with pytest.raises(UserError, match="under the same ids"):
        data(other).setup()


def test_an_outcome_in_a_ranking_that_never_came_is_told(tmp_path, caplog):
    play = record(tmp_path / "play", [made_up(i, 3, outcome=("left", "none")[i % 2]) for i in range(12)])
    with pytest.raises(UserError, match=r"names 'LEFT', and episodes of .* end 'left'; expected the same word"):
        compare.run(play, str(tmp_path / "pairs"), compare.Rule("left", [["LEFT"], ["none"]]), 5, 2)
    compare.run(play, str(tmp_path / "a"), compare.Rule("left", [["left"], ["right"], ["none"]]), 5, 2)
    assert "ends 'right', which rule.ranking names (outcomes" in caplog.text
    compare.run(play, str(tmp_path / "b"), compare.Rule("left", [["lefft"], ["none"]]), 5, 2)
    assert "ends 'lefft', which rule.ranking names; did you mean left? (outcomes" in caplog.text


def pairs_of(pairs: list[tuple[int, int]], ties: Collection[int] = ()) -> Preferences:
    chosen, rejected = (np.array(side, np.int64) for side in zip(*pairs, strict=True))
    tie = np.array([i in ties for i in range(len(pairs))])
    return Preferences(chosen, rejected, tie, np.where(tie, 0, 1).astype(np.float32))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Thirty comparisons of twelve episodes, some of them ties, and a way to tell an episode by its pixels."""
    folder = tmp_path_factory.mktemp("served")
    episodes = [made_up(10 * i, 2 + i % 5) for i in range(14)]
    play = record(folder / "play", episodes)
    rng = np.random.default_rng(0)
    couples = [(10 * a, 10 * b) for a in range(12) for b in range(a)]
    pairs = [couples[i] for i in rng.permutation(len(couples))[:30]]
    splits = {"train": pairs_of(pairs, ties={3, 8, 20}), "test": pairs_of([(120, 130)])}
    write_preferences(folder / "pairs", splits, PreferenceMeta(play), "today")
    return str(folder / "pairs"), {e.frames[0].tobytes(): e for e in episodes}, splits["train"]


def loader(folder, seed=0, pairs=4, **more):
    data = PreferenceDataModule(folder, pairs=pairs, seed=seed, **more)
    data.setup()
    return data.train_dataloader()


def told_apart(batch, known) -> list[Trajectory]:
    return [known[frames[0].numpy().tobytes()] for frames in batch["frames"]]


def labelled(batch, known) -> list[tuple[int, int, bool]]:
    ids = [episode.id for episode in told_apart(batch, known)]
    rows = zip(batch["chosen"].tolist(), batch["rejected"].tolist(), batch["tie"].tolist(), strict=True)
    return [(ids[c], ids[r], t) for c, r, t in rows]


@pytest.mark.parametrize("size", [1, 4, 7])
def test_a_batch_holds_each_trajectory_once_and_every_labelled_pair_among_them(served, size):
    folder, known, train = served
    everything = list(zip(train.chosen.tolist(), train.rejected.tolist(), train.tie.tolist(), strict=True))
    count, covered = 0, set()
    for batch in loader(folder, pairs=size):
        episodes = told_apart(batch, known)
        ids = [episode.id for episode in episodes]
        assert len(set(ids)) == len(ids) <= 2 * size
        for row, episode in enumerate(episodes):  # whole, up to the frame after the last action
            assert int(batch["lengths"][row]) == len(episode) + 1
            assert np.array_equal(batch["frames"][row, : len(episode) + 1].numpy(), episode.frames)
        among = [pair for pair in everything if pair[0] in ids and pair[1] in ids]
        assert Counter(labelled(batch, known)) == Counter(among)
        assert {i for pair in among for i in pair[:2]} == set(ids)  # none is encoded for nothing
        assert batch["margin"].tolist() == [float(not tie) for tie in batch["tie"].tolist()]
        covered |= set(among)
        count += 1
    assert count == len(everything) // size
    assert len(everything) % size or covered == set(everything)


def test_the_order_is_a_function_of_seed_epoch_and_rank(served, monkeypatch):
    folder, known, _ = served

    def order(seed=0, epochs=1, pairs=5):
        batches = loader(folder, seed, pairs)
        return [[labelled(batch, known) for batch in batches] for _ in range(epochs)]

    first, second = order(epochs=2)
    assert order(epochs=2) == [first, second]
    assert first != second
    assert order(seed=1) != [first]
    ranks = []
    for rank in range(2):
        monkeypatch.setattr(pairs_module, "world_of", lambda _, rank=rank: (rank, 2))
        ranks += order()
    # Two processes make the batches of one, dealt out in turn.
    assert [batch for both in zip(*ranks, strict=True) for batch in both] == first


def test_it_trains_on_the_first_comparisons_only_when_told_to(served):
    folder, known, train = served
    wanted = set(zip(train.chosen.tolist()[:6], train.rejected.tolist()[:6], strict=True))
    found = {pair[:2] for batch in loader(folder, pairs=2, comparisons=6) for pair in labelled(batch, known)}
    assert found == wanted
    with pytest.raises(UserError, match="data.comparisons is 31, .* holds 30"):
        loader(folder, comparisons=31)


def test_batches_around_pairs_are_those_of_every_version(served):
    folder, _, train = served
    both = [set(pair) for pair in zip(train.chosen.tolist(), train.rejected.tolist(), strict=True)]
    order = np.random.default_rng(np.random.SeedSequence([3, 0])).permutation(30)
    for at, batch in zip(range(0, 30, 5), loader(folder, seed=3, pairs=5), strict=True):
        inside = set().union(*(both[i] for i in order[at : at + 5]))
        wanted = [i for i in range(30) if both[i] <= inside]
        ids = sorted(inside)
        assert batch["chosen"].tolist() == [ids.index(train.chosen[i]) for i in wanted]
        assert batch["rejected"].tolist() == [ids.index(train.rejected[i]) for i in wanted]
        assert batch["tie"].tolist() == train.tie[wanted].tolist()


couples = st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)).filter(lambda p: p[0] != p[1]), min_size=1)


@given(couples, st.sets(st.integers(0, 15)), st.integers(0, 9))
def test_pairs_among_trajectories_are_found(drawn, some, seed):
    pairs = pairs_of([(7 * a, 7 * b) for a, b in drawn])
    index = PairIndex(pairs)
    compared = {i for pair in drawn for i in pair}
    assert index.ids.tolist() == sorted(7 * i for i in compared)
    found = index.among(np.array([7 * i for i in some & compared], np.int64))
    assert found.tolist() == [k for k, pair in enumerate(drawn) if set(pair) <= some]
    for i in compared:
        (one,) = index.one_of(7 * i, np.random.default_rng(seed))
        assert i in drawn[one]


def around(folder, size: int, epochs: int = 1, **more) -> list[list[Batch]]:
    batches = loader(folder, batch="trajectories", trajectories_in_batch=size, **more)
    assert len(batches) == len(list(batches))
    data = loader(folder, batch="trajectories", trajectories_in_batch=size, **more)
    return [list(data) for _ in range(epochs)]


@pytest.mark.parametrize("size", [2, 3, 5, 12, 40])
def test_an_epoch_of_trajectories_costs_what_they_do(served, size):
    folder, known, train = served
    everything = list(zip(train.chosen.tolist(), train.rejected.tolist(), train.tie.tolist(), strict=True))
    (epoch,) = around(folder, size)
    assert len(epoch) == math.ceil(12 / size)
    for batch in epoch:
        ids = [episode.id for episode in told_apart(batch, known)]
        assert 2 <= len(set(ids)) == len(ids) <= size
        among = [pair for pair in everything if pair[0] in ids and pair[1] in ids]
        assert Counter(labelled(batch, known)) == Counter(among)
        assert {i for pair in among for i in pair[:2]} == set(ids)
    if size >= 12:
        assert Counter(labelled(epoch[0], known)) == Counter(everything)


def test_many_comparisons_meet_in_every_batch(tmp_path):
    play = record(tmp_path / "play", [made_up(i, 2) for i in range(30)])
    train = pairs_of([(a, b) for a in range(30) for b in range(a)])
    write_preferences(tmp_path / "pairs", {"train": train}, PreferenceMeta(play), "today")
    first, second = around(str(tmp_path / "pairs"), 8, epochs=2)
    for epoch in (first, second):
        sizes = [len(batch["lengths"]) for batch in epoch]
        assert sum(sizes) == 30  # each is encoded once
        assert max(sizes) - min(sizes) <= 1
        assert [len(batch["chosen"]) for batch in epoch] == [n * (n - 1) // 2 for n in sizes]
    assert not np.array_equal(first[0]["frames"], second[0]["frames"])  # others meet in the next epoch


@pytest.mark.parametrize(("size", "ranks"), [(3, 2), (32, 4), (2, 5)])
def test_every_process_gets_as_many_batches_of_trajectories(served, monkeypatch, size, ranks):
    folder, known, _ = served
    parts = []
    for rank in range(ranks):
        monkeypatch.setattr(pairs_module, "world_of", lambda _, rank=rank: (rank, ranks))
        parts.append(around(folder, size)[0])
    assert {len(part) for part in parts} == {math.ceil(12 / (size * ranks))}
    for batch in (batch for part in parts for batch in part):
        assert len(batch["chosen"]) >= 1
    again = around(folder, size)[0]
    assert [labelled(batch, known) for batch in again] == [labelled(batch, known) for batch in parts[-1]]


def test_what_was_done_comes_with_the_trajectories(served):
    folder, known, _ = served
    data = PreferenceDataModule(folder)
    data.setup()
    episodes = sorted(known.values(), key=lambda e: e.id)[:3]
    actions = data.actions_of([e.id for e in episodes])
    frames, lengths = data.frames_of([e.id for e in episodes])
    assert actions.shape[:2] == (3, frames.shape[1] - 1)
    for row, episode in enumerate(episodes):
        assert np.array_equal(actions[row, : lengths[row] - 1].numpy(), episode.actions)
        assert not actions[row, lengths[row] - 1 :].any()


def test_a_way_of_batching_that_is_none_is_refused(served):
    folder, _, _ = served
    with pytest.raises(UserError, match="data.trajectories_in_batch 1; expected pairs or trajectories, and 2 or more"):
        PreferenceDataModule(folder, batch="trajectories", trajectories_in_batch=1)
