"""How a peer answers the harness: facts first, then the seconds of one run for every line `run`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Does some work and returns its wall seconds and this process's CPU seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def settings() -> dict[str, Any]:
    """What the harness wants raced; torch is held to its threads."""
    import torch

    wanted: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(wanted["threads"])
    torch.manual_seed(wanted["seed"])
    return wanted


def serve(
    work: Callable[[], Any], timer: Callable[[Callable[[], Any]], dict[str, float]] = timed, **facts: Any
) -> None:
    """Answers until standard input closes.

    Args:
        work: One run.
        timer: Does the work and gives the answer; a peer whose work times itself, and tells more, hands its own in.
        **facts: What the harness should know of this peer: versions, parameters.
    """
    # Libraries print; from here on that goes to standard error, and the pipe carries answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        if line.strip() == "run":
            print(json.dumps(timer(work)), file=answers, flush=True)
