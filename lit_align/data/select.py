"""Choosing episodes: by score, outcome or length."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info  # type: ignore[attr-defined]
from numpy.typing import NDArray

from lit_align.data.outcomes import check_outcomes
from lit_align.data.preferences import Preferences, ids_of, read_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError, shortly


@dataclass
class Select:
    """Which episodes of the trajectories to train on. All conditions given must hold.

    Attributes:
        scores: A file that `lit-align score` left, for `top` and `at_least`.
        top: Keep this fraction of the episodes, the best scored (the paper's preference fine-tuning keeps 0.2). They
            are counted against all episodes of the folder, or all `compared`, but picked from those alone that the
            other conditions leave: with `outcomes`, 0.2 of 100 episodes is up to 20 of these outcomes, however well
            others score.
        at_least: Keep episodes with this score or more; ReST raises it from round to round (Gulcehre et al. 2023, arXiv
            2308.08998).
        compared: A folder of preferences: keep the episodes of its training comparisons, so that those it is tested on
            are trained on by nobody. `top` is a fraction of these then.
        outcomes: Keep episodes with one of these outcomes.
        max_steps: Keep episodes of at most this many env steps.
        limit: Keep at most this many episodes: the best scored, or the first where there are no scores.
    """

    scores: str | None = None
    top: float | None = None
    at_least: float | None = None
    compared: str | None = None
    outcomes: list[str] | None = None
    max_steps: int | None = None
    limit: int | None = None

    def check(self) -> None:
        """Raises ValueError where fields contradict each other or are out of range."""
        if self.scores is None and (self.top is not None or self.at_least is not None):
            raise UserError(
                "data.select.top and data.select.at_least need data.select.scores, a file made by 'lit-align score'"
            )
        if self.top is not None and not 0 < self.top <= 1:
            raise UserError(f"data.select.top is {self.top}; expected a fraction above 0 and up to 1, such as 0.2")

    def apply(self, dataset: TrajectoryDataset, say: bool = False) -> NDArray[np.int64]:
        """Indices of the episodes kept, ascending.

        Args:
            dataset: The episodes to choose from.
            say: Tell how many are kept, and warn of outcomes that none of them has.

        Raises:
            ValueError: Nothing is left, the scores are of other trajectories, or an outcome is spelt with other
                capitals.
        """
        self.check()
        if say and self.outcomes is not None:
            check_outcomes("data.select.outcomes", self.outcomes, dataset, dataset.folder, "unnamed ones are left out")
        kept = self._kept(dataset)
        if say and self != Select():
            rank_zero_info(f"data.select keeps {len(kept)} of the {len(dataset)} episodes of '{dataset.folder}'")
        return kept

    def _kept(self, dataset: TrajectoryDataset) -> NDArray[np.int64]:
        """See `apply`."""
        episodes = dataset.episodes
        keep = np.ones(len(dataset), bool)
        if self.outcomes is not None:
            keep &= np.isin(episodes["outcome"].astype(str), self.outcomes)
        if self.max_steps is not None:
            keep &= episodes["length"] <= self.max_steps
        if self.compared is not None:
            compared = np.isin(episodes["id"], train_episodes(self.compared))
            keep &= compared
        kept, whole = np.flatnonzero(keep), len(dataset) if self.compared is None else int(compared.sum())
        if self.scores is not None:
            scores = read_scores(self.scores, dataset)
            if self.at_least is not None:
                kept = kept[scores[kept] >= self.at_least]
            kept = kept[np.argsort(-scores[kept], kind="stable")]
            if self.top is not None:
                kept = kept[: max(1, round(self.top * whole))]
        if self.limit is not None:
            kept = kept[: self.limit]
        if not len(kept):
            raise UserError(
                f"data.select leaves no episode of '{dataset.folder}' ({len(dataset)} episodes, "
                f"outcomes {dataset.meta.outcomes})"
            )
        return np.sort(kept)


def train_episodes(preferences: str | Path) -> NDArray[np.int64]:
    """Ids of the episodes in the training comparisons of a folder of preferences, ascending."""
    pairs = read_preferences(preferences)[1].get("train", Preferences(np.zeros(0, np.int64), np.zeros(0, np.int64)))
    return ids_of(pairs)


def read_scores(path: str | Path, dataset: TrajectoryDataset) -> NDArray[np.float64]:
    """The score of every episode of a dataset `(episodes,)`, from a file of `lit-align score`.

    Raises:
        ValueError: The file is missing or not of these trajectories.
    """
    if not Path(path).is_file():
        raise UserError(f"data.select.scores names '{path}', which does not exist; make it by 'lit-align score'")
    content = json.loads(Path(path).read_text())
    scores = content.get("scores", {})
    missing = [int(e) for e in dataset.episodes["id"] if str(int(e)) not in scores]
    if missing:
        raise UserError(
            f"'{path}' has no score for {len(missing)} of the {len(dataset)} episodes of '{dataset.folder}' "
            f"(first: {missing[0]})"
        )
    scored = content.get("episodes", {})
    if not isinstance(scored, dict):
        raise UserError(
            f"'{path}' holds {shortly(scored)} as episodes; expected an object of episode id -> digits: make it again "
            "by 'lit-align score'"
        )
    others = [e for e, digits in dataset.digests().items() if scored.get(e, digits) != digits]
    if others:
        raise UserError(
            f"'{path}' scores other episodes than {len(others)} of the {len(dataset)} of '{dataset.folder}', under the "
            f"same ids (seeds, lengths or outcomes differ; first: {others[0]}); expected the trajectories that were "
            "scored, or some of them: score these by 'lit-align score'"
        )
    found = np.array([scores[str(int(e))] for e in dataset.episodes["id"]], np.float64)
    if not np.isfinite(found).all():
        episode = int(dataset.episodes["id"][~np.isfinite(found)][0])
        raise UserError(
            f"'{path}' holds {int((~np.isfinite(found)).sum())} scores that are not finite (first: of episode "
            f"{episode}); expected numbers: make it again by 'lit-align score'"
        )
    return found
