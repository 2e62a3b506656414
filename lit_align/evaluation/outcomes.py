"""Counting how episodes ended, over worlds and over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_align.evaluation.intervals import Interval, wilson

OUTCOMES = ("left", "middle", "right", "none")
REASON_BYTES = 64


class OutcomeMetric(Metric):
    """Counts outcomes and the finer reasons; the counts of all ranks add up.

    Outcomes are a fixed list, reasons whatever the environment says: they are carried between ranks as text in bytes.

    Args:
        outcomes: The names an episode may end with.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    counts: Tensor
    reasons: list[Tensor] | Tensor

    def __init__(self, outcomes: Sequence[str] = OUTCOMES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.outcomes = tuple(outcomes)
        self.add_state("counts", default=torch.zeros(len(self.outcomes), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("reasons", default=[], dist_reduce_fx="cat")

    def update(self, outcomes: Iterable[str], reasons: Iterable[str] | None = None) -> None:
        """Count episodes.

        Args:
            outcomes: How each of N episodes ended.
            reasons: Why, one text an episode (cut at 64 bytes); none are counted when left out.
        """
        ended = [outcomes] if isinstance(outcomes, str) else list(outcomes)
        unknown = sorted(set(ended) - set(self.outcomes))
        if unknown:
            raise ValueError(
                f"found outcomes {unknown}; expected some of {list(self.outcomes)}. "
                "Pass OutcomeMetric(outcomes=...) the names this environment uses."
            )
        for name in ended:
            self.counts[self.outcomes.index(name)] += 1
        if reasons is None:
            return
        why = [reasons] if isinstance(reasons, str) else list(reasons)
        if len(why) != len(ended):
            raise ValueError(f"found {len(why)} reasons for {len(ended)} outcomes; expected one each")
        if why:
            assert isinstance(self.reasons, list)
            self.reasons.append(torch.tensor([_pack(text) for text in why], dtype=torch.uint8, device=self.device))

    def compute(self) -> dict[str, float]:
        """Return `{outcome: rate}`, each in [0, 1]; zeros before the first episode."""
        total = max(1, self.total())
        return {name: int(n) / total for name, n in zip(self.outcomes, self.counts, strict=True)}

    def total(self) -> int:
        """Return the number of episodes counted."""
        return int(self.counts.sum())

    def tally(self) -> dict[str, int]:
        """Return `{outcome: episodes}`."""
        return {name: int(n) for name, n in zip(self.outcomes, self.counts, strict=True)}

    def intervals(self) -> dict[str, Interval]:
        """Return `{outcome: rate with its Wilson 95 % interval}`."""
        total = self.total()
        return {name: wilson(n, total) for name, n in self.tally().items()}

    def reason_counts(self) -> dict[str, int]:
        """Return `{reason: episodes}`, the most frequent first."""
        # Synchronised list states arrive as one tensor, unsynchronised ones as a list.
        rows = [self.reasons] if isinstance(self.reasons, Tensor) else self.reasons
        found: dict[str, int] = {}
        for row in (row for block in rows for row in block.tolist()):
            text = bytes(row).rstrip(b"\0").decode(errors="ignore")
            found[text] = found.get(text, 0) + 1
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _pack(text: str) -> list[int]:
    """Return the text as exactly `REASON_BYTES` bytes, so that rows of all ranks can be stacked."""
    return list(text.encode()[:REASON_BYTES].ljust(REASON_BYTES, b"\0"))
