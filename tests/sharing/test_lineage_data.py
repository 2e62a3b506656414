"""Lineage of data: comparisons name trajectories of the Hub by their id, others by where they lie."""

import json

from lit_align.sharing.lineage import _Tracer
from lit_align.sharing.measured import Evaluation


def compared(folder, trajectories: str):
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"schema": 1, "trajectories": trajectories, "counts": {"train": 1}}))
    (parent,) = _Tracer().data("learned from", str(folder), None).parents
    return parent


def test_comparisons_of_the_hub_are_of_the_hub(tmp_path):
    parent = compared(tmp_path / "pairs", "alice/play@0123456")
    assert (parent.repository, parent.revision) == ("alice/play", "0123456")
    assert "its own card" in parent.unknown


def test_comparisons_beside_their_trajectories_find_them(tmp_path):
    (tmp_path / "alice" / "play").mkdir(parents=True)
    (tmp_path / "alice" / "play" / "meta.json").write_text(json.dumps({"schema": 1, "episodes": 3}))
    for name, where in (("pairs", "../alice/play"), ("alice/play/pairs", "..")):
        parent = compared(tmp_path / name, where)
        assert parent.repository is None
        assert parent.meta == {"schema": 1, "episodes": 3}


def test_an_outcome_that_never_came_has_an_interval(tmp_path):
    rate = Evaluation("a", "World-v0", {"episodes": 100, "outcomes": {"done": 100}}, tmp_path).rate("failed")
    assert rate.value == 0
    assert rate.low == 0
    assert abs(rate.high - 0.0370) < 1e-3  # z^2 / (n + z^2)
