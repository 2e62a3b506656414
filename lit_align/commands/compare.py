"""`lit-align compare`: synthetic preferences between trajectories, from a rule."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_align import __version__
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError


@dataclass
class Rule:
    """A ranking of outcomes.

    Attributes:
        name: What the rule wants, such as `left`; reports name the reward model by it.
        ranking: Groups of outcomes, the best first; two episodes of one group tie. Outcomes that are not named rank
            below all groups.
    """

    name: str
    ranking: list[list[str]] = field(default_factory=list)

    def ranks(self, outcomes: NDArray[np.str_]) -> NDArray[np.int64]:
        """The rank of each outcome, 0 the best."""
        ranks = np.full(len(outcomes), len(self.ranking))
        for rank, group in enumerate(self.ranking):
            ranks[np.isin(outcomes, group)] = rank
        return ranks


def run(
    trajectories: str,
    out: str,
    rule: Rule,
    comparisons: int = 1000,
    test_comparisons: int = 1000,
    test_fraction: float = 0.3,
    ties: bool = False,
    seed: int = 0,
) -> None:
    """Draws pairs of episodes and says which is preferred.

    Training and test pairs share no episode. Pairs are drawn without repetition.

    Args:
        trajectories: Folder of the trajectories to compare.
        out: Folder to write; it must not exist or be empty.
        rule: What is preferred.
        comparisons: Pairs for training.
        test_comparisons: Pairs to test on; fewer where the test episodes do not give as many.
        test_fraction: Fraction of the episodes that only test pairs come from.
        ties: Keep pairs that the rule does not decide, labelled `tie`; else only decided pairs are drawn.
        seed: Decides the split and the pairs.
    """
    if not 0 < test_fraction < 1 or comparisons < 1 or test_comparisons < 1:
        raise UserError(
            f"test_fraction {test_fraction}, comparisons {comparisons}, test_comparisons {test_comparisons}; "
            "expected a fraction between 0 and 1, and 1 or more"
        )
    dataset = TrajectoryDataset(trajectories)
    ids, ranks = dataset.episodes["id"], rule.ranks(dataset.episodes["outcome"].astype(str))
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(ids))
    held_out = max(2, round(test_fraction * len(ids)))
    splits = {}
    for split, episodes, wanted in (
        ("train", order[held_out:], comparisons),
        ("test", order[:held_out], test_comparisons),
    ):
        first, second = _draw(ranks, episodes, wanted, ties, rng)
        if not len(first) or (split == "train" and len(first) < wanted):
            raise UserError(
                f"'{trajectories}' gives {len(first)} {split} pairs that the rule '{rule.name}' decides, "
                f"{wanted} were asked for "
                f"(outcomes {dataset.meta.outcomes}); record more episodes or ask for fewer"
            )
        swap = ranks[first] > ranks[second]
        chosen, rejected = np.where(swap, second, first), np.where(swap, first, second)
        margin = (ranks[rejected] - ranks[chosen]).astype(np.float32)
        splits[split] = Preferences(ids[chosen], ids[rejected], margin == 0, margin, annotator=f"rule:{rule.name}")
    meta = PreferenceMeta(trajectories, asdict(rule), provenance={"version": __version__, "seed": seed, "ties": ties})
    write_preferences(out, splits, meta, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    line = ", ".join(f"{len(pairs)} {split} comparisons" for split, pairs in splits.items())
    print(line)  # noqa: T201  what the command found
    (Path(out) / "headline.txt").write_text(line + "\n")


def _draw(
    ranks: NDArray[np.int64], episodes: NDArray[np.int64], wanted: int, ties: bool, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Distinct unordered pairs of episodes, as two arrays of indices, in random order."""
    i, j = np.triu_indices(len(episodes), k=1)
    first, second = episodes[i], episodes[j]
    if not ties:
        decided = ranks[first] != ranks[second]
        first, second = first[decided], second[decided]
    picked = rng.permutation(len(first))[:wanted]
    return first[picked], second[picked]
