"""Comparisons: drawn without leaks, stored, and served with every labelled pair that a batch's trajectories give."""

import tempfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lit_align.data.modules as modules
from lit_align.commands import compare
from lit_align.data.modules import PreferenceDataModule
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
    fake = SimpleNamespace(episodes=episodes, meta=SimpleNamespace(outcomes=Counter(outcomes)))

    def rank(episode: int) -> int:
        return next((i for i, group in enumerate(ranking) if known[episode] in group), len(ranking))

    def draw(out: Path) -> dict[str, Preferences]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compare, "TrajectoryDataset", lambda _: fake)
            compare.run("play", str(out), compare.Rule("rule", ranking), wanted, wanted, fraction, ties, seed)
        return read_preferences(out)[1]

    with tempfile.TemporaryDirectory() as folder:
        try:
            splits = draw(Path(folder) / "a")
        except UserError:
            assert not (Path(folder) / "a").exists()
            return
        again = draw(Path(folder) / "b")
    seen = {}
    for split, pairs in splits.items():
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


def test_comparisons_that_leak_are_refused(tmp_path):
    play = record(tmp_path / "play", [made_up(i, 3) for i in range(4)])
    splits = {"train": pairs_of([(0, 1)]), "test": pairs_of([(1, 2)])}
    write_preferences(tmp_path / "pairs", splits, PreferenceMeta(play), "today")
    with pytest.raises(UserError, match=r"1 episodes of .* in training and in test comparisons \(first: 1\)"):
        PreferenceDataModule(str(tmp_path / "pairs")).setup()


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
        monkeypatch.setattr(modules, "world_of", lambda _, rank=rank: (rank, 2))
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
