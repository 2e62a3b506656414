"""A real Slurm of one node on this machine, for tests: Debian's packages unpacked into a folder, nothing installed.

`python -m tools.slurm.local_cluster sinfo` starts one, runs a command in it and stops it again. Programs, key,
sockets, ports, state and logs are its own; the system's configuration is neither read nor written.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "outputs" / "slurm" / "packages"
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge", "slurm-wlm-basic-plugins", "libmunge2", "libhwloc15"]
PROGRAMS = (
    "slurmctld-wlm",
    "slurmd-wlm",
    "slurmstepd-wlm",
    "munged",
    "sbatch",
    "srun",
    "scontrol",
    "scancel",
    "squeue",
)
START_SECONDS = 60.0


class Unavailable(RuntimeError):
    """Slurm cannot be had here; the message says why."""


CONF = """
ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until the credentials of its last start have run out: two minutes by default.
AuthInfo=socket={place}/munge.socket,cred_expire={credentials}
CryptoType=crypto/munge
PluginDir={plugins}
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


class LocalCluster:
    """One controller and one node, which live as long as the `with` block.

    Args:
        cpus: that the node has, as Slurm is told.
        credentials: seconds that a job's credentials are good for, which is what a requeued job waits.

    Attributes:
        environment: what a process needs to speak to it.

    Raises:
        Unavailable: where its programs cannot be had or do not start.
    """

    def __init__(self, cpus: int = 2, credentials: int = 5) -> None:
        self.cpus, self.credentials = cpus, credentials
        self.environment: dict[str, str] = {}
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> LocalCluster:
        root = unpacked()
        # Not under a long path: the name of a socket has room for 107 bytes.
        self.place = Path(tempfile.mkdtemp(prefix="slurm-"))
        try:
            self._start(root)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self, root: Path) -> None:
        library = next((root / "usr" / "lib").glob("*/libmunge.so.2")).parent
        sbin, plugins = root / "usr" / "sbin", library / "slurm-wlm"
        (self.place / "state").mkdir()
        (self.place / "spool").mkdir()
        key = self.place / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        controller_port, node_port = _free_ports(2)
        conf = self.place / "slurm.conf"
        facts = {"host": socket.gethostname().split(".")[0], "user": pwd.getpwuid(os.getuid()).pw_name}
        ports = {"controller_port": controller_port, "node_port": node_port}
        conf.write_text(
            CONF.format(
                place=self.place, plugins=plugins, cpus=self.cpus, credentials=self.credentials, **facts, **ports
            )
        )
        # That of a job around us must not be taken for ours.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
        paths = [str(library), str(plugins), *filter(None, [environment.get("LD_LIBRARY_PATH")])]
        environment |= {"SLURM_CONF": str(conf), "LD_LIBRARY_PATH": ":".join(paths)}
        self.environment = environment | {"PATH": f"{root / 'usr' / 'bin'}:{environment['PATH']}"}
        munged = [str(sbin / "munged"), "--foreground", "--force", f"--socket={self.place}/munge.socket"]
        munged += [f"--{name}-file={self.place}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        self._run("munged", munged)
        self._wait(lambda: (self.place / "munge.socket").exists(), "munged made no socket")
        self._run("slurmctld", [str(sbin / "slurmctld-wlm"), "-D", "-i"])
        slurmd = [str(sbin / "slurmd-wlm"), "-D", "-N", facts["host"], "-d", str(sbin / "slurmstepd-wlm")]
        self._run("slurmd", slurmd)
        self._wait(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%T", check=False), "no node is idle")

    def __exit__(self, *_: object) -> None:
        """Cancels what is left, ends the daemons and what they started, and removes the folder."""
        if self.environment:
            with suppress(OSError, subprocess.SubprocessError):
                self.run("scancel", "--user", str(os.getuid()), check=False)
                self._until(lambda: not self.run("squeue", "--noheader", check=False).strip(), 20)
        steps = _of_this_cluster(self.place)
        for process in reversed(self._processes):
            process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in steps:  # of jobs that did not end
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.place, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """Runs a program of Slurm and returns what it says."""
        done = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}{done.stdout}")
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """What Slurm knows of a job: `JobState`, `Restarts`, `ExitCode` and more."""
        words = self.run("scontrol", "show", "job", number).split()
        return {name: value for name, _, value in (word.partition("=") for word in words)}

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        files = sorted(self.place.glob("*.log"))
        return "\n".join(f"{file.name}:\n{file.read_text(errors='replace')[-2000:]}" for file in files)

    def _run(self, name: str, command: list[str]) -> None:
        with (self.place / f"{name}.out.log").open("wb") as file:
            # A session of its own: Ctrl-C in a terminal must not end it before its jobs.
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdout=file,
                stderr=file,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )
        self._processes.append(process)

    def _wait(self, seen, what: str) -> None:  # type: ignore[no-untyped-def]
        if not self._until(seen, START_SECONDS):
            raise Unavailable(f"{what} within {START_SECONDS:.0f} s.\n{self.logs()}")

    def _until(self, seen, seconds: float) -> bool:  # type: ignore[no-untyped-def]
        deadline = time.monotonic() + seconds
        while not seen():
            if time.monotonic() > deadline or any(process.poll() is not None for process in self._processes):
                return False
            time.sleep(0.2)
        return True


def unpacked() -> Path:
    """The folder with Slurm's programs, fetched and unpacked the first time.

    Raises:
        Unavailable: without `apt-get` and `dpkg`, a network, or a library that the programs need.
    """
    if CACHE.is_dir():
        return CACHE
    missing = [name for name in ("apt-get", "dpkg") if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"there is no {missing[0]} here: only Debian's packages of Slurm are known")
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".slurm-", dir=CACHE.parent) as folder:
        place = Path(folder)
        said = _download(place)
        files = sorted(place.glob("*.deb"))
        if len(files) < len(PACKAGES):
            raise Unavailable(f"apt-get could not fetch {' '.join(PACKAGES)}: {said}")
        aside = place / "root"
        for file in files:
            subprocess.run(["dpkg", "-x", str(file), str(aside)], check=True, capture_output=True)
        _check(aside)
        with suppress(OSError):  # another one was quicker
            os.replace(aside, CACHE)
    return CACHE


def _download(place: Path) -> str:
    # As this user, with lists of its own where the system's are empty, as they are in a fresh container.
    options = ["-o", "APT::Sandbox::User=", "-o", f"Dir::Cache={place}/cache", "-o", "Debug::NoLocking=1"]
    own = [*options, "-o", f"Dir::State::lists={place}/lists"]
    (place / "lists" / "partial").mkdir(parents=True)
    (place / "cache" / "archives" / "partial").mkdir(parents=True)
    steps = [[*options, "download", *PACKAGES], [*own, "update"], [*own, "download", *PACKAGES]]
    said = ""
    for step in steps:
        done = subprocess.run(
            ["apt-get", "-q", *step], cwd=place, capture_output=True, text=True, timeout=300, check=False
        )
        said = (done.stderr.strip().splitlines() or [""])[-1]
        if done.returncode == 0 and len(list(place.glob("*.deb"))) >= len(PACKAGES):
            break
    return said


def _check(root: Path) -> None:
    library = next((root / "usr" / "lib").glob("*/libmunge.so.2"), None)
    found = {path.name: path for folder in ("sbin", "bin") for path in (root / "usr" / folder).glob("*")}
    absent = [name for name in PROGRAMS if name not in found]
    if library is None or absent:
        raise Unavailable(f"Debian's packages of Slurm hold no {(absent or ['libmunge'])[0]} here")
    paths = f"{library.parent}:{library.parent / 'slurm-wlm'}"
    for name in PROGRAMS:
        done = subprocess.run(
            ["ldd", str(found[name])], env={**os.environ, "LD_LIBRARY_PATH": paths}, capture_output=True, text=True
        )
        lost = [line.split()[0] for line in done.stdout.splitlines() if "not found" in line]
        if lost:
            raise Unavailable(f"{name} needs {', '.join(lost)}, which is not installed here")


def _end_with_parent() -> None:
    """Has the kernel end this process when the one that started it is killed (`PR_SET_PDEATHSIG`)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _of_this_cluster(place: Path) -> list[int]:
    """Processes that carry this cluster's configuration in their environment: jobs and their steps, but not us."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"SLURM_CONF={place}/slurm.conf".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if pid != os.getpid()]


def main() -> int:
    """Runs a command in a cluster."""
    command = sys.argv[1:]
    if not command:
        sys.stderr.write("usage: python -m tools.slurm.local_cluster COMMAND ...\n")
        return 2
    try:
        with LocalCluster() as cluster:
            return subprocess.run(command, env=cluster.environment, check=False).returncode
    except Unavailable as error:
        sys.stderr.write(f"Slurm cannot be had here: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
