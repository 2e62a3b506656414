"""What a process has to know of the Slurm job that it runs in, and how the job goes back into the queue."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time

from lit_align.errors import Preempted

PREEMPTED = 75
"""Exit code of a run that stopped to go on later: `EX_TEMPFAIL` of BSD's sysexits, "try again"."""
NOT_REQUEUED = 76
"""Exit code of such a run that could not have its job requeued, as in a container: whoever started it may."""
SCONTROL_SECONDS, SQUEUE_SECONDS = 60.0, 10.0
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING", "CONFIGURING")
"""Words of `squeue` for a job whose processes are there, or may be."""

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


def facts() -> dict[str, str] | None:
    """What tells this process's job from any other, None outside of one."""
    if not is_job():
        return None
    found = {"job": job_id(), "cluster": os.environ.get("SLURM_CLUSTER_NAME"), "restarts": str(restarts())}
    return {name: value for name, value in found.items() if value is not None}


def seconds_left() -> float:
    """Seconds to the end of the job as it was planned when it started; infinite where that is not known."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return int(end) - time.time() if is_job() and end.isdigit() else float("inf")


def is_over(job: str, cluster: str | None = None) -> bool | None:
    """Whether the processes of a job are gone, as `squeue` has it; None where it does not say.

    Args:
        job: its id.
        cluster: that it is of, if it told.
    """
    command = ["squeue", "--noheader", "--states=all", "--format=%T", f"--jobs={job}"]
    # Without accounting, `squeue` knows no clusters, and there is one.
    for more in ([f"--clusters={cluster}"], []) if cluster else ([],):
        try:
            done = subprocess.run(
                [*command, *more], capture_output=True, text=True, timeout=SQUEUE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode == 0:  # below a line that names the cluster, if one was asked for
            return not any(line.strip() in RUNNING for line in done.stdout.splitlines())
        if "Invalid job id" in done.stderr:  # a controller forgets jobs some minutes after their end
            return True
    return None


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
    """What a preempted run does last, its loggers closed: requeues the job where it is to, returns the exit code.

    Ranks other than zero end with 0, so that no launcher takes one that is first to end for one that broke.
    """
    if stop.rank:
        return 0
    sys.stderr.write(f"preempted: {stop}\n")
    sys.stderr.flush()
    wanted = stop.requeue and is_job()
    return NOT_REQUEUED if wanted and not requeue() else PREEMPTED
