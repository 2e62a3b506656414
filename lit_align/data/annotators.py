"""Synthetic annotators: a rule says what an episode is worth, an annotator judges pairs by it, well or badly.

After B-Pref (Lee et al. 2021, arXiv 2111.03026), without its teacher that skips questions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_align.data.trajectories import TrajectoryDataset
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.imports import import_named

Floats = NDArray[np.float64]


@dataclass
class Rule:
    """What an episode is worth: a ranking of outcomes, or a function. One of the two is given.

    Attributes:
        name: What the rule wants, such as `left`; reports name the reward model by it.
        ranking: Groups of outcomes, the best first; two episodes of one group tie. Outcomes that are not named rank
            below all groups. An episode is worth minus its rank.
        score: `package.module:function`, which gets a `Trajectory` and returns what it is worth, a number for the
            whole episode or one for each of its T steps.
    """

    name: str
    ranking: list[list[str]] = field(default_factory=list)
    score: str | None = None

    def ranks(self, outcomes: NDArray[np.str_]) -> NDArray[np.int64]:
        """The rank of each outcome, 0 the best."""
        ranks = np.full(len(outcomes), len(self.ranking))
        for rank, group in enumerate(self.ranking):
            ranks[np.isin(outcomes, group)] = rank
        return ranks

    def utilities(self, dataset: TrajectoryDataset, gamma: float = 1.0) -> tuple[Floats, Floats]:
        """What each episode of a folder is worth, and what a myopic annotator takes it to be worth.

        Args:
            dataset: N episodes of T steps each.
            gamma: A step k steps before the last counts `gamma**k`; a number for a whole episode, and so its outcome,
                is that of its last step.

        Returns:
            Two arrays `(N,)`, float64; the same where gamma is 1.

        Raises:
            UserError: Both or neither of ranking and score are given, or the function does not do what it should.
        """
        if bool(self.ranking) == bool(self.score):
            given = "both rule.ranking and rule.score" if self.score else "neither rule.ranking nor rule.score"
            raise UserError(f"the rule '{self.name}' has {given}; expected one of them")
        if not self.score and gamma != 1:
            raise UserError(
                f"annotator.gamma is {gamma}, and the rule '{self.name}' ranks outcomes, which only the last step "
                "has: a myopic annotator needs rule.score, a function that gives a number for each step"
            )
        if not self.score:
            worth = -self.ranks(dataset.episodes["outcome"].astype(str)).astype(np.float64)
            return worth, worth
        function = load_function(self.score, "rule.score")
        scores = [_scores(self.score, function, dataset[i]) for i in range(len(dataset))]
        worth = np.array([steps.sum() for steps in scores])
        if gamma == 1:
            return worth, worth
        return worth, np.array([(steps * gamma ** np.arange(len(steps))[::-1]).sum() for steps in scores])


def _scores(name: str, function: Callable[..., Any], trajectory: Trajectory) -> Floats:
    """What the function says of one episode: one number, or one for each step."""
    returned = call_on(trajectory, function, f"rule.score {name}")
    try:
        scores = np.asarray(returned, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"rule.score: {name} returned a {type(returned).__name__} for episode {trajectory.id}; expected numbers"
        ) from error
    if scores.shape not in ((), (len(trajectory),)) or not np.isfinite(scores).all():
        what = f"an array of shape {scores.shape}" if np.isfinite(scores).all() else f"{scores}, which is not finite"
        raise UserError(
            f"rule.score: {name} returned {what} for episode {trajectory.id}; expected one finite number, or one for "
            f"each of its {len(trajectory)} steps"
        )
    return np.atleast_1d(scores)


def call_on(trajectory: Trajectory, function: Callable[[Trajectory], Any], told: str) -> Any:
    """What a user's function says of an episode; the traceback of one that fails tells which episode it was.

    Args:
        trajectory: The episode.
        function: The function.
        told: What it is, and its name.
    """
    try:
        return function(trajectory)
    except Exception as error:
        error.add_note(f"{told} was at episode {trajectory.id} of {len(trajectory)} steps, seed {trajectory.seed}")
        raise


def load_function(name: str, option: str) -> Callable[..., Any]:
    """The function `package.module:function`; modules of the working directory are found as well.

    Args:
        name: Where it is.
        option: Which option named it, for errors.

    Raises:
        UserError: The name has another form, or there is no such module or function.
    """
    module, _, function = name.partition(":")
    if not module or not function:
        raise UserError(f"{option} is {name!r}; expected package.module:function")
    try:
        found = getattr(import_named(module), function, None)
    except Exception as error:  # whatever the module does when it is imported
        raise UserError(
            f"{option}: cannot import {module!r} ({type(error).__name__}: {error}); is it installed, or in this "
            "folder, and can Python import it?"
        ) from error
    if not callable(found):
        raise UserError(f"{option}: there is no function {function!r} in {module!r}")
    return found


Kind = Literal["oracle", "boltzmann", "myopic", "mistaken", "tied"]

# Which parameter a kind cannot do without, and its value in B-Pref's experiments.
_OWN: dict[str, tuple[str, float | None]] = {
    "boltzmann": ("beta", 1.0),
    "myopic": ("gamma", 0.9),
    "mistaken": ("mistake", 0.1),
    "tied": ("tie_within", None),
}
_NEUTRAL = {"beta": float("inf"), "gamma": 1.0, "mistake": 0.0, "tie_within": 0.0}
_RANGES = {"beta": (0.0, float("inf")), "gamma": (0.0, 1.0), "mistake": (0.0, 1.0), "tie_within": (0.0, float("inf"))}


@dataclass
class Annotator:
    """Who judges. A kind has one parameter of its own; those of others that are given apply as well.

    Attributes:
        kind: `oracle` always says what the rule says. `boltzmann` prefers the first of two episodes of worth u1 and u2
            with probability sigmoid(beta (u1 - u2)). `myopic` cares more for the last steps. `mistaken` says the
            opposite now and then. `tied` sees no difference where it is small.
        beta: How rational a choice is: 0 tosses a coin, infinity (`.inf`) is never wrong. 1 for `boltzmann`.
        gamma: A step k steps before an episode's last counts `gamma**k`. 0.9 for `myopic`.
        mistake: Probability that a label is turned round. 0.1 for `mistaken`.
        tie_within: Episodes whose worth differs by this much or less tie. `tied` needs it.
    """

    kind: Kind = "oracle"
    beta: float | None = None
    gamma: float | None = None
    mistake: float | None = None
    tie_within: float | None = None

    def parameters(self) -> dict[str, float]:
        """The four parameters as they apply.

        Raises:
            UserError: A parameter is out of its range, is given for an oracle, or is missing.
        """
        own, usual = _OWN.get(self.kind, ("", None))
        values: dict[str, float] = {}
        for name, neutral in _NEUTRAL.items():
            given: float | None = getattr(self, name)
            if given is None and name == own and usual is None:
                raise UserError(f"annotator.kind is {self.kind}; say how near: give annotator.{own}")
            values[name] = given if given is not None else (usual if name == own and usual is not None else neutral)
            low, high = _RANGES[name]
            if not low <= values[name] <= high:
                raise UserError(f"annotator.{name} is {given}; expected {low:g} to {high:g}")
            if self.kind == "oracle" and values[name] != neutral:
                kind = next(k for k, (parameter, _) in _OWN.items() if parameter == name)
                raise UserError(
                    f"annotator.{name} is {given} and annotator.kind oracle, who has none: set annotator.kind to {kind}"
                )
        return values

    def describe(self) -> dict[str, Any]:
        """The kind and the parameters that make a difference, for JSON."""
        return {"kind": self.kind, **{k: v for k, v in self.parameters().items() if v != _NEUTRAL[k]}}

    def judge(
        self, worth: Floats, perceived: Floats, first: NDArray[np.int64], second: NDArray[np.int64], noise: Floats
    ) -> Judgement:
        """Judges pairs of episodes.

        As in B-Pref a tie is a matter of the worth itself, the choice one of what the annotator perceives, and a
        mistake turns round what was chosen.

        Args:
            worth: What each of N episodes is worth `(N,)`.
            perceived: What the annotator takes it to be worth `(N,)`.
            first: One episode of each pair `(pairs,)`, places in these.
            second: The other one `(pairs,)`.
            noise: Numbers in [0, 1) `(pairs, 2)`; a label depends on those of its own row alone.
        """
        values = self.parameters()
        gap = perceived[first] - perceived[second]
        # Half of 1 + tanh(x / 2) is the sigmoid and cannot overflow; an infinite beta times no gap would be no number.
        with np.errstate(invalid="ignore"):
            likely = 0.5 * (1 + np.tanh(np.where(gap == 0, 0.0, values["beta"] * gap) / 2))
        wins = (noise[:, 0] < likely) ^ (noise[:, 1] < values["mistake"])
        tie = np.abs(worth[first] - worth[second]) <= values["tie_within"]
        return Judgement(wins | tie, tie)


class Judgement(NamedTuple):
    """What was said of pairs of episodes.

    Attributes:
        first: The first one is preferred `(pairs,)`, bool; true for a tie.
        tie: Neither is better `(pairs,)`, bool.
    """

    first: NDArray[np.bool_]
    tie: NDArray[np.bool_]
