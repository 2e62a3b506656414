"""What a process has to know of the Slurm job that it runs in, and how the job goes back into the queue."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from contextlib import suppress

from lit_align.errors import Preempted

PREEMPTED = 75
"""Exit code of a run that stopped to go on later: `EX_TEMPFAIL` of BSD's sysexits, "try again"."""
SCONTROL_SECONDS = 60.0

_log = logging.getLogger("lit_align.slurm")


def is_job() -> bool:
    """Whether this process belongs to a Slurm job that nobody sits in front of."""
    # The names are those by which Lightning knows an interactive job.
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def restarts() -> int:
    """How often the job was put back into the queue, for whatever reason, and started again."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return int(count) if is_job() and count.isdigit() else 0


def job_id() -> str:
    """The job's id, `JOB_TASK` for a task of a job array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def requeue() -> bool:
    """Puts the job back into the queue, which ends all its processes; says so and returns False where that fails."""
    command = ["scontrol", "requeue", job_id()]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SCONTROL_SECONDS, check=False)
        wrong = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        wrong = str(error)
    if wrong:
        text = f"job {job_id()} was not requeued ({wrong}); submit it again, and it goes on from its last checkpoint"
        _log.warning(text)
        sys.stderr.write(f"warning: {text}\n")
    return not wrong


def leave(stop: Preempted) -> int:
    """What a preempted run does last: tells W&B, requeues the job where it is to, and returns the exit code.

    Ranks other than zero end with 0, so that no launcher takes one that is first to end for one that broke.
    """
    if stop.rank:
        return 0
    # Not before the run is closed: it would be cut off in the middle of sending.
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        with suppress(Exception):  # its server may be gone; the run's id is in the checkpoint
            wandb.run.mark_preempting()
            wandb.finish(exit_code=PREEMPTED)
    sys.stderr.write(f"preempted: {stop}\n")
    sys.stderr.flush()
    if stop.requeue and is_job():
        requeue()
    return PREEMPTED
