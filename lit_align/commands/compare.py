"""`lit-align compare`: synthetic preferences between trajectories, from a rule and an annotator."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lit_align import __version__
from lit_align.data.annotators import Annotator, Floats, Rule
from lit_align.data.outcomes import check_outcomes
from lit_align.data.preferences import SPLITS, PreferenceMeta, Preferences, ids_of, write_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError
from lit_align.hub import pin

__all__ = ["Annotator", "Rule", "run"]

Places = NDArray[np.int64]


def run(
    trajectories: str,
    out: str,
    rule: Rule,
    comparisons: int | None = 1000,
    test_comparisons: int = 1000,
    test_fraction: float = 0.3,
    ties: bool = False,
    seed: int = 0,
    annotator: Annotator | None = None,
) -> None:
    """Draws pairs of episodes and says which is preferred.

    Training and test pairs share no episode. Pairs are drawn without repetition, by the rule and the seed alone:
    annotators of one seed judge the same pairs, and fewer comparisons are the first of more.

    Args:
        trajectories: Folder of the trajectories to compare, or `user/name` on the Hub.
        out: Folder to write; it must not exist or be empty.
        rule: What is preferred.
        comparisons: Pairs for training; None takes all that the training episodes give.
        test_comparisons: Pairs to test on; fewer where the test episodes do not give as many.
        test_fraction: Fraction of the episodes that only test pairs come from.
        ties: Keep pairs that the rule does not decide, labelled `tie`; else only decided pairs are drawn.
        seed: Decides the split, the pairs and the labels.
        annotator: Who judges; None is an oracle. `--annotator.kind` is oracle, boltzmann, myopic, mistaken or tied;
            `--annotator.beta`, `--annotator.gamma`, `--annotator.mistake` (a probability) and `--annotator.tie_within`
            are their parameters. `lit-align compare --annotator.help` tells what each does.
    """
    if not 0 < test_fraction < 1 or min(test_comparisons, 1 if comparisons is None else comparisons) < 1:
        raise UserError(
            f"test_fraction {test_fraction}, comparisons {comparisons}, test_comparisons {test_comparisons}; "
            "expected a fraction between 0 and 1, and 1 or more"
        )
    annotator = annotator or Annotator()
    gamma = annotator.parameters()["gamma"]
    trajectories = pin(trajectories, "dataset")  # a branch may move before the comparisons are written
    dataset = TrajectoryDataset(trajectories)
    ranked = [outcome for group in rule.ranking for outcome in group]
    check_outcomes("rule.ranking", ranked, dataset, trajectories, "unnamed ones rank last")
    ids = dataset.episodes["id"]
    worth, perceived = rule.utilities(dataset, gamma)
    rng = np.random.default_rng([seed, 1])
    order = rng.permutation(len(ids))
    held_out = max(2, round(test_fraction * len(ids)))
    parts = {"train": (order[held_out:], comparisons), "test": (order[:held_out], test_comparisons)}
    splits: dict[str, Preferences] = {}
    for split, (episodes, wanted) in parts.items():
        first, second = draw(worth, episodes, wanted, ties, rng)
        if not len(first) or (split == "train" and len(first) < (wanted or 1)):
            raise UserError(
                f"'{trajectories}' gives {len(first)} {split} pairs that the rule '{rule.name}' decides, "
                f"{wanted or 1} were asked for "
                f"(outcomes {dataset.meta.outcomes}); record more episodes or ask for fewer"
            )
        # A stream of its own, a row a pair: no label depends on how many pairs there are.
        noise = np.random.default_rng([seed, 2, SPLITS.index(split)]).random((len(first), 2))
        wins, tie = annotator.judge(worth, perceived, first, second, noise)
        chosen, rejected = np.where(wins, first, second), np.where(wins, second, first)
        margin = np.where(tie, 0, worth[chosen] - worth[rejected]).astype(np.float32)
        who = f"{'rule' if annotator.kind == 'oracle' else annotator.kind}:{rule.name}"
        splits[split] = Preferences(ids[chosen], ids[rejected], tie, margin, who)
    facts = {split: agreement(pairs) for split, pairs in splits.items()}
    provenance = {
        "version": __version__,
        "seed": seed,
        "ties": ties,
        "annotator": annotator.describe(),
        "best_accuracy": {split: best for split, (best, _) in facts.items()},
        "flips": {split: flips for split, (_, flips) in facts.items()},
        "episodes": dataset.digest(ids_of(*splits.values())),
    }
    meta = PreferenceMeta(trajectories, asdict(rule), provenance=provenance)
    write_preferences(out, splits, meta, datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    line = ", ".join(f"{len(pairs)} {split} comparisons" for split, pairs in splits.items())
    if annotator.kind != "oracle":
        shares = [f"{100 * best:.1f} % ({split})" for split, (best, _) in facts.items() if best is not None]
        told = f"on {' and '.join(shares)} of the untied ones" if shares else "on none: all are ties"
        line += f"; the rule agrees with the {annotator.kind} annotator {told}"
    print(line)  # noqa: T201  what the command found
    (Path(out) / "headline.txt").write_text(line + "\n")


def agreement(pairs: Preferences) -> tuple[float | None, int]:
    """How far labels follow the rule.

    Returns:
        The best accuracy that the labels allow: the share of untied ones that the rule itself would get right, None
        where all are ties; and how many untied ones say the opposite of the rule.
    """
    margins = pairs.margin[~pairs.tie]
    return (float((margins > 0).mean()) if len(margins) else None), int((margins < 0).sum())


def draw(
    worth: Floats, episodes: Places, wanted: int | None, ties: bool, rng: np.random.Generator
) -> tuple[Places, Places]:
    """Distinct unordered pairs of episodes in random order.

    Pairs are numbered row by row, (0, 1), (0, 2), ..., (1, 2), ..., so that millions take a byte each until they are
    drawn.

    Args:
        worth: What each of N episodes is worth `(N,)`.
        episodes: Those to draw from, places in `worth`.
        wanted: How many pairs; None for all.
        ties: Draw pairs of equal worth as well.
        rng: Draws.

    Returns:
        The two sides, places in `worth`.
    """
    values, count = worth[episodes], len(episodes)
    if ties:
        candidates = np.arange(count * (count - 1) // 2)
    else:
        rows = [values[i + 1 :] != values[i] for i in range(count - 1)]
        candidates = np.flatnonzero(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
    picked = candidates[rng.permutation(len(candidates))[:wanted]]
    begins = np.concatenate([[0], np.cumsum(np.arange(count - 1, 0, -1))])  # of each row
    i = np.searchsorted(begins, picked, side="right") - 1
    return episodes[i], episodes[picked - begins[i] + i + 1]
