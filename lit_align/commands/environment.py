"""Where and with what a run runs: `environment.json`, and the process that a run's state is about."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_align import __version__, slurm

PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "gymnasium", "vizdoom", "numpy")
GIT_SECONDS = 10.0


def environment(argv: list[str], began: str) -> dict[str, Any]:
    """What `environment.json` tells of one start of a run; names neither the machine nor its user.

    Args:
        argv: the command's arguments.
        began: when, in UTC.
    """
    return {
        "began": began,
        "command": ["lit-align", *(without_home(word) for word in argv)],
        "versions": versions(),
        "git": git_state(Path(__file__).parent) or git_state(Path.cwd()),
        "hardware": hardware(),
        "processes": processes(),
        "slurm": slurm.facts(),
    }


def processes() -> int:
    """How many processes the run has: torch's word if they have found each other, else what started them says."""
    distributed: Any = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    names = ["WORLD_SIZE", *(("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS") if slurm.is_job() else ())]
    return int(next((os.environ[name] for name in names if name in os.environ), "1"))


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"lit_align": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """The commit of the working tree around a folder, and whether tracked files differ from it; None without one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def hardware() -> dict[str, Any]:
    """The CPU's model, how many cores this process may use, memory in bytes, and the GPUs' names and memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = None
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpus = []
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        gpus = [{"name": each.name, "memory": each.total_memory} for each in found]
    return {"cpu": cpu_model(), "cores": cores, "memory": memory, "gpus": gpus, "system": platform.system()}


def cpu_model() -> str:
    """What the CPU calls itself."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def without_home(word: str) -> str:
    """A word of a command without the path of the working folder or of the user's home, which others do not have."""
    for folder, short in ((Path.cwd(), "."), (Path.home(), "~")):
        if str(folder) != folder.anchor:
            word = word.replace(str(folder), short)
    return word


def this_process() -> dict[str, Any]:
    """What tells this process from any other: its id, its start, the machine's boot that this counts from, its job."""
    pid = os.getpid()
    return {"pid": pid, "started": _started(pid), "boot": _boot(), "machine": _machine(), "slurm": slurm.facts()}


def is_gone(process: dict[str, Any]) -> bool | None:
    """Whether the process that `this_process` told of has ended; None where that cannot be known from here.

    Of a process of another machine, Slurm is asked about its job, where it had one.
    """
    if not isinstance(process.get("pid"), int):
        return None
    if process.get("boot") != _boot():
        if process.get("machine") == _machine():
            return True  # this machine was started again
        job = process.get("slurm") or {}
        return slurm.is_over(job["job"], job.get("cluster")) if job.get("job") else None
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return _started(process["pid"]) != process.get("started")  # an id is used again after a while


def _started(pid: int) -> str | None:
    """When a process started, in clock ticks since the boot; None for one that ended and was not waited for."""
    with suppress(OSError, IndexError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None


def _boot() -> str:
    found = []
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def _machine() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:12]
