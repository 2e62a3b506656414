"""Over-optimisation: what an alignment was told it did, beside what it really did, over the steps it played.

The learned reward is a proxy. Pushed far enough it goes on rising while what it stands for falls (Gao et al. 2023,
arXiv 2210.10760), the more so the farther the policy is from the one whose play was compared. So every alignment shows
its proxy, its true outcomes and its KL on one clock, and says in words when the truth fell while the proxy rose.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lit_align.data.trajectory import ENDED
from lit_align.evaluation.curves import Columns, find, read_metrics
from lit_align.evaluation.intervals import Interval, wilson
from lit_align.evaluation.returns import in_words as return_in_words
from lit_align.evaluation.returns import interval_of, zero_or_one
from lit_align.files import mapping_of, write_whole

if TYPE_CHECKING:
    from lit_align.rollout.rewards import Rewards

PICTURE, NUMBERS = "over_optimisation.png", "over_optimisation.json"
PROXY, CLOCK = "reward/mean", "env_steps"
KL = (r"^policy/kl$", r"^policy/kl_conditional$")
RETURN = (r"^rollout/return$", r"^reward/env$")
SPREAD, OWN_SPREAD = "rollout/return_std", "reward/std"
STRETCH = 0.1  # share of the run's iterations that are pooled: one iteration has few episodes

Series = NDArray[np.float64]


@dataclass(frozen=True)
class Watch:
    """One alignment, an entry an iteration: N in all.

    Attributes:
        env_steps: Steps played so far `(N,)`.
        proxy: Mean reward that the agent was told `(N,)`.
        outcomes: Share of the iteration's episodes that ended so, by outcome `(N,)` each.
        kl: Nats a step `(N,)`; None where there was no reference.
        kl_name: The metric it is from.
        returns: The world's own return `(N,)`; None where it was not logged, pays nothing, or is 0 or 1 in a world that
            names outcomes, and so says no more than these.
        spreads: Its standard deviation over the iteration's episodes `(N,)`; None where it was not logged.
        episodes: Episodes of the iteration `(N,)`; None where it cannot be told.
        target: The wanted outcome; None where the run does not know one.
    """

    env_steps: Series
    proxy: Series
    outcomes: Mapping[str, Series] = field(default_factory=dict)
    kl: Series | None = None
    kl_name: str = ""
    returns: Series | None = None
    spreads: Series | None = None
    episodes: Series | None = None
    target: str | None = None

    @property
    def truth(self) -> tuple[str, Series] | None:
        """What the run was really for, as far as it is known: the wanted outcome, else the world's own return."""
        if self.target is not None and self.target in self.outcomes:
            return self.target, self.outcomes[self.target]
        return None if self.returns is None else ("return", self.returns)


@dataclass(frozen=True)
class Stretch:
    """Some iterations in a row, taken together.

    Attributes:
        env_steps: Steps played at their end.
        true: The true rate (or the world's return).
        proxy: The proxy reward.
        kl: Nats a step; None where it is not known.
        interval: The 95 % interval, a rate's Wilson's, a return's t; None where the number of episodes is not known.
    """

    env_steps: float
    true: float
    proxy: float
    kl: float | None
    interval: Interval | None = None


def watch_of(columns: Columns, target: str | None = None, own: bool = False) -> Watch | None:
    """Takes an alignment's curves out of the columns of its `metrics.csv`.

    Args:
        columns: Name -> values, one for each row; NaN where a row has none.
        target: The wanted outcome, if the run knows one.
        own: Whether the agent was told the world's own reward and nothing else: then that is the return.

    Returns:
        None if these are not the metrics of an alignment, or no iteration was finished.
    """
    if PROXY not in columns or CLOCK not in columns:
        return None
    rows = ~np.isnan(columns[PROXY]) & ~np.isnan(columns[CLOCK])
    if not rows.any():
        return None

    def take(name: str | None) -> Series | None:
        values = columns[name][rows] if name is not None and name in columns else None
        return None if values is None or np.isnan(values).all() else values

    outcomes = {name.partition("/")[2]: take(name) for name in columns if name.startswith("outcome/")}
    # An outcome that first came late has empty rows before: it did not come there.
    known = {name: np.nan_to_num(values) for name, values in outcomes.items() if name and values is not None}
    if set(known) == {ENDED}:
        known = {}  # the world names none
    kl_name = find(columns, *KL)
    steps, length = columns[CLOCK][rows], take("rollout/episode_steps")
    returns, spreads = take(PROXY if own else find(columns, *RETURN)), take(OWN_SPREAD if own else SPREAD)
    if returns is not None and not own and not _tells(returns, spreads, bool(known)):
        returns = spreads = None
    return Watch(
        steps, columns[PROXY][rows], known, take(kl_name), kl_name or "", returns, spreads,
        None if length is None else np.round(np.diff(steps, prepend=0.0) / length), target,
    )  # fmt: skip


def _tells(returns: Series, spreads: Series | None, outcomes: bool) -> bool:
    """Whether returns say more than how episodes end."""
    if not np.nan_to_num(returns).any() and (spreads is None or not np.nan_to_num(spreads).any()):
        return False
    logged = np.isfinite(returns) if spreads is None else np.isfinite(returns) & np.isfinite(spreads)
    if not outcomes or spreads is None or not logged.any():
        return True
    pairs = zip(returns[logged], spreads[logged], strict=True)
    return not all(zero_or_one(float(mean), float(std)) for mean, std in pairs)


def stretches(watch: Watch) -> list[Stretch]:
    """Every run of consecutive iterations of a `STRETCH` of the whole, in order; none where no truth is known.

    The rate (or the return) of a stretch is that of all its episodes together, where their number is known.
    """
    if watch.truth is None:
        return []
    name, true = watch.truth
    size = max(1, round(STRETCH * len(true)))
    made = []
    for end in range(size, len(true) + 1):
        part = slice(end - size, end)
        weights = np.ones(size) if watch.episodes is None else np.maximum(watch.episodes[part], 1)
        rate = float(np.average(true[part], weights=weights))
        kl = None if watch.kl is None else _number(watch.kl[part].mean())
        interval = None
        if watch.episodes is not None and math.isfinite(rate):
            total = int(weights.sum())
            if name != "return":
                interval = wilson(round(rate * total), total)
            elif watch.spreads is not None:
                variance = float(np.average(watch.spreads[part] ** 2 + (true[part] - rate) ** 2, weights=weights))
                interval = interval_of(rate, variance**0.5, total)
        made.append(Stretch(float(watch.env_steps[end - 1]), rate, float(watch.proxy[part].mean()), kl, interval))
    return made


def peak_and_last(watch: Watch) -> tuple[Stretch, Stretch] | None:
    """Where the truth was highest (the first time), and the end of the run; None where no truth is known."""
    made = [one for one in stretches(watch) if math.isfinite(one.true)]
    return (max(made, key=lambda one: one.true), made[-1]) if made else None


def over_optimised(watch: Watch) -> bool | None:
    """Whether the true rate (or return) fell, from its peak to the end, while the proxy rose.

    It fell where the 95 % intervals of the two stretches do not overlap. None where that cannot be told.
    """
    ends = peak_and_last(watch)
    if ends is None or ends[0].interval is None or ends[1].interval is None:
        return None
    peak, last = ends
    return bool(ends[1].interval.high < ends[0].interval.low and last.proxy > peak.proxy)


def in_words(watch: Watch) -> str:
    """One or two sentences on what happened."""
    ends = peak_and_last(watch)
    if ends is None or watch.truth is None:
        return "What this run is really for is not known, so its reward cannot be checked against it."
    (name, _), (peak, last) = watch.truth, ends

    def said(one: Stretch) -> str:
        if name == "return":
            low, high = (None, None) if one.interval is None else (one.interval.low, one.interval.high)
            return return_in_words({"mean": one.true, "std": None, "low": low, "high": high})
        return f"{100 * one.true:.1f} %" if one.interval is None else one.interval.percent()

    what = "The world's own return" if name == "return" else f"The share of episodes that end {name}"
    at = f"{what} was highest at {peak.env_steps:,.0f} env steps, {said(peak)}"
    if peak.env_steps == last.env_steps:
        return f"{at}, which is the end of the run."
    ended = f"{at}; at the end, {last.env_steps:,.0f} env steps, it is {said(last)}"
    if watch.returns is not None and np.array_equal(watch.returns, watch.proxy):
        return f"{ended}. That is what the agent was told: no reward model stands between."
    moved = f"the reward went from {peak.proxy:.3g} to {last.proxy:.3g}"
    if over_optimised(watch):
        fell = (
            f"{ended}, while {moved}: the true {'return' if name == 'return' else 'rate'} fell "
            "(the two 95 % intervals do not overlap) as the reward rose."
        )
        if name == "return":  # which nobody said the agent is for
            return f"{fell} Where the reward stands for the return, it no longer does: stop earlier or raise model.kl."
        return f"{fell} The reward model is being exploited: stop earlier, raise model.kl, or compare newer play."
    return f"{ended}; {moved}."


def numbers(watch: Watch) -> dict[str, Any]:
    """What `over_optimisation.json` holds: the curves, the peak, the end and the verdict, as plain types."""
    ends = peak_and_last(watch)
    return {
        "schema": 1,
        "target": watch.target,
        "truth": None if watch.truth is None else watch.truth[0],
        "env_steps": _plain(watch.env_steps),
        "proxy": _plain(watch.proxy),
        "outcomes": {name: _plain(values) for name, values in watch.outcomes.items()},
        "kl": None if watch.kl is None else {"name": watch.kl_name, "values": _plain(watch.kl)},
        "return": None if watch.returns is None else _plain(watch.returns),
        "episodes": None if watch.episodes is None else _plain(watch.episodes),
        "peak": None if ends is None else _stretch(ends[0]),
        "last": None if ends is None else _stretch(ends[1]),
        "over_optimised": over_optimised(watch),
        "words": in_words(watch),
    }


def _stretch(one: Stretch) -> dict[str, Any]:
    interval = None if one.interval is None else {"low": one.interval.low, "high": one.interval.high}
    return {
        "env_steps": one.env_steps,
        "true": one.true,
        "interval": interval,
        "proxy": _number(one.proxy),
        "kl": one.kl,
    }


def _plain(values: Series) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None


def wanted(rewards: Rewards) -> str | None:
    """The outcome that the reward models of a run were made for; None where they, or their signs, do not agree."""
    told = {str(model.info.get("target") or "") for model in rewards.models.values()}
    agree = len(told) == 1 and min(rewards.weights) > 0
    return (told.pop() or None) if agree else None


def is_own(rewards: Rewards) -> bool:
    """Whether a run is told the world's own reward as it is, and nothing else."""
    return rewards.names == ["env"] and rewards.weights == [1.0] and not rewards.models


def leave(folder: str | os.PathLike[str], target: str | None = None, own: bool = False) -> None:
    """Writes the picture and the numbers into an alignment's run folder, from its `metrics.csv`.

    A run that is finished is not ended by its picture: whatever goes wrong is a warning.

    Args:
        folder: The run folder; one without metrics of an alignment is left as it is.
        target: The wanted outcome, if the run knows one.
        own: See `watch_of`.
    """
    run = Path(folder)
    try:
        if not (run / "metrics.csv").is_file():
            return
        watch = watch_of(read_metrics(run / "metrics.csv"), target, own)
        if watch is None:
            return
        write_whole(run / NUMBERS, json.dumps(numbers(watch), indent=2) + "\n")
        from lit_align.evaluation.over_optimisation_chart import draw

        draw(watch, run / PICTURE)
    except Exception as error:
        warnings.warn(f"{run / PICTURE} was not drawn: {type(error).__name__}: {error}", stacklevel=2)


def watch_in(folder: Path, columns: Columns) -> Watch | None:
    """The curves of a run that is there, by its metrics and by what it left of itself."""
    told = mapping_of(folder / NUMBERS)
    same = told.get("return") is not None and told.get("return") == told.get("proxy")
    return watch_of(columns, _target(told, folder, columns), own=same)


def _target(told: Mapping[str, Any], folder: Path, columns: Columns) -> str | None:
    """The wanted outcome of a run that is there: as it says itself, else by its folder's name (`align_left`)."""
    if told.get("target"):
        return str(told["target"])
    return next((word for word in folder.name.split("_")[1:] if f"outcome/{word}" in columns), None)
