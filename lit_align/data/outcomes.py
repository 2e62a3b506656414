"""Outcomes that an option names, against those that episodes have."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError, did_you_mean

_log = logging.getLogger(__name__)


def check_outcomes(option: str, named: Iterable[str], dataset: TrajectoryDataset, folder: object, then: str) -> None:
    """Says which outcomes that are named no episode has, and which there may be meant.

    Args:
        option: What names them.
        named: The outcomes.
        dataset: The episodes.
        folder: Where these lie.
        then: What becomes of episodes whose outcome is not named.

    Raises:
        UserError: One of them differs from an outcome that there is, and that is not named, in capitals alone.
    """
    wanted = set(named)
    there = set(dataset.episodes["outcome"].astype(str).tolist())
    unnamed = sorted(there - wanted)
    alike = {other.casefold(): other for other in unnamed}
    for outcome in sorted(wanted - there):
        if other := alike.get(outcome.casefold()):
            raise UserError(
                f"{option} names {outcome!r}, and episodes of '{folder}' end {other!r}; expected the same word"
            )
        _log.warning(
            "no episode of '%s' ends %r, which %s names%s (outcomes %s); %s",
            *(folder, outcome, option, did_you_mean(outcome, unnamed), dataset.meta.outcomes, then),
        )
