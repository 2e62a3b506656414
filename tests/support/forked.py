"""Runs of `lit-align` in processes that are forked from one that imported torch, and can be killed and signalled."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

PRELOAD = ["lit_align.commands.stage", "lit_align.stages.align", "lit_align.stages.prefer", "tests.helpers"]
PRELOAD += ["lit_align.stages.finetune", "lit_align.stages.reward", "lit_align.data.policy_pairs", "kill_here"]
SECONDS = 900
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOAD)


class Forked:
    """One run of one or more processes, a process group of its own.

    Args:
        argv: of `lit-align`.
        log: file that takes what all of them say.
        processes: how many, as torchrun would start them.
    """

    def __init__(self, argv: list[str], log: Path, processes: int = 1) -> None:
        self.log, port = log, _free_port()
        self._leader = _context.Value("i", 0)  # kept: without it the processes could not open it
        arguments = [(argv, log, rank, processes, port, self._leader) for rank in range(processes)]
        self.processes = [_context.Process(target=_run, args=each) for each in arguments]
        for process in self.processes:
            process.start()

    def end(self) -> list[int | None]:
        """Waits for the end, and gives the exit codes."""
        deadline = time.monotonic() + SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        if any(process.is_alive() for process in self.processes):
            self.kill()
            raise AssertionError(f"the run did not end:\n{self.said()}")
        return [process.exitcode for process in self.processes]

    def finish(self) -> None:
        """Waits for the end, which must be a good one."""
        codes = self.end()
        assert codes == [0] * len(codes), f"{codes}\n{self.said()}"

    def wait_for(self, seen: Callable[[], bool]) -> bool:
        """Waits until something is there; False if the run ends before."""
        deadline = time.monotonic() + SECONDS
        while not seen():
            if wait([process.sentinel for process in self.processes], 0.005):
                return bool(seen())
            assert time.monotonic() < deadline, f"what the test waits for never came:\n{self.said()}"
        return True

    def signal(self, number: int, everyone: bool = False) -> None:
        """Sends a signal to the first process, or to all."""
        for process in self.processes if everyone else self.processes[:1]:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def kill(self) -> None:
        """SIGKILL to all."""
        self.signal(signal.SIGKILL, everyone=True)
        for process in self.processes:
            process.join()

    def said(self) -> str:
        """The end of the log."""
        return self.log.read_text()[-4000:] if self.log.exists() else ""


def _run(argv: list[str], log: Path, rank: int, processes: int, port: int, leader: object) -> None:
    if rank == 0:
        os.setpgid(0, 0)
        leader.value = os.getpid()  # type: ignore[attr-defined]
    while not leader.value:  # type: ignore[attr-defined]
        time.sleep(0.001)
    os.setpgid(0, leader.value)  # type: ignore[attr-defined]
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
    sys.argv = ["lit-align", *argv]
    import torch

    torch.set_num_threads(1)
    if processes > 1:
        from lightning.fabric.utilities.rank_zero import rank_zero_only

        rank_zero_only.rank = rank  # as an import under torchrun would have found it
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "GROUP_RANK": "0"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(processes)}
    from lit_align.cli import main

    code = main(argv)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
