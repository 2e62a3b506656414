"""What went wrong on the user's side, said in a way that can be mended."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what was asked for: the command line prints the message alone, without a traceback.

    The message says what was found, what was expected, and how to mend it.
    """


MAX_ATTEMPTS = 5
"""Times that an episode is played before a world that keeps dying stops the run."""


class WorldFailed(RuntimeError):
    """A world died under the player: the episode is lost, and the next `reset` starts a fresh engine."""


class FailedElsewhere(WorldFailed):
    """The worlds of another process failed for good: process 0 says so, and its exit code tells."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `; did you mean X?` for the nearest known word, or an empty string when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def shortly(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut to `most` characters, for a message about a file that may hold anything."""
    try:
        text = repr(value)
    except ValueError:  # whole numbers of thousands of digits, which Python does not write
        return f"a {type(value).__name__} with a number too long to write"
    except RecursionError:
        return f"a {type(value).__name__}"
    return text if len(text) <= most else f"{text[: most - 4]} ..."


def raise_all(errors: list[str]) -> None:
    """Raises one UserError that lists every message, so that all can be mended at once; none raises nothing."""
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError(f"{len(errors)} things to mend:\n" + "\n".join(f"  - {error}" for error in errors))


class Terminated(BaseException):
    """The process was asked to end (SIGTERM); like KeyboardInterrupt, it is no error that anything may handle."""


class Preempted(BaseException):
    """The run stopped at a place from which it goes on later; like KeyboardInterrupt, it is no error.

    Args:
        message: what was saved.
        requeue: whether the Slurm job is to be put back into the queue.
        rank: of this process; rank 0 does it.
    """

    def __init__(self, message: str, requeue: bool = False, rank: int = 0) -> None:
        super().__init__(message)
        self.requeue, self.rank = requeue, rank
