"""Runs a fuzzer's cases in a process of its own, which may crash or hang, and tells what came of them."""

from __future__ import annotations

import faulthandler
import importlib
import math
import multiprocessing
import os
import random
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lit_align.errors import UserError

LIMIT = 10.0
"""Seconds of CPU that a case may take, which other work on the machine does not spend; and, where it waits for
something, `PATIENCE` times as many by the clock."""
PATIENCE = 6
START = 600.0
"""Seconds by the clock until the first case begins: imports."""
MEMORY = 4 << 30
"""Bytes that a process may take beyond what it has when its first case begins."""
KINDS = 20
"""Different findings after which a fuzzer stops."""
ACCEPTED, REFUSED, CASE, BEGUN = range(4)
"""What the numbers say that both processes see."""

One = Callable[[random.Random], Any]


@dataclass
class Finding:
    """What went wrong, the first case that showed it, and how many did.

    Attributes:
        what: Its kind: the exception and the place that raised it, or that it hung or died.
        case: Number of the first such case.
        detail: The traceback.
        times: How many cases.
    """

    what: str
    case: int
    detail: str
    times: int = 1


@dataclass
class Report:
    """What came of a fuzzer's cases.

    Attributes:
        target: Its module.
        seconds: How long the cases took in all.
        accepted: Cases that went well.
        refused: Cases that were refused in words.
        findings: What should not have been.
    """

    target: str
    seconds: float = 0.0
    accepted: int = 0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.accepted + self.refused + sum(finding.times for finding in self.findings)

    def add(self, finding: Finding) -> None:
        """Counts a finding; one of its kind may be there already."""
        for known in self.findings:
            if known.what == finding.what:
                known.times += 1
                return
        self.findings.append(finding)

    def text(self, again: str = "case") -> str:
        """For the terminal.

        Args:
            again: The command that runs a case again, without its number.
        """
        lines = [
            f"{self.target.rpartition('.')[2]}: {self.cases} cases in {self.seconds:.0f} s, {self.accepted} accepted, "
            f"{self.refused} refused, {len(self.findings)} findings"
        ]
        for finding in self.findings:
            lines += [f"FOUND {finding.what} ({finding.times} times); {again} {finding.case}"]
            lines += [f"    {line}" for line in finding.detail.splitlines()]
        return "\n".join(lines)


def module_of(target: str) -> str:
    """The import path of a fuzzer."""
    return f"tools.fuzz.{target}"


def loop(
    one: One, first: int, seconds: float, cases: int | None, counts: Any, found: Callable[[Finding], None]
) -> None:
    """Runs cases in this process until the time is over.

    Args:
        one: Runs a case.
        first: Number of the first case, which seeds its generator; the next ones follow.
        seconds: How long.
        cases: At most so many; None for no limit.
        counts: Four integers that are kept up to date, see `ACCEPTED`.
        found: Is told of every finding.
    """
    end, case = time.monotonic() + seconds, first
    while time.monotonic() < end and (cases is None or case < first + cases):
        counts[CASE] = case
        counts[BEGUN] += 1
        try:
            counts[REFUSED if one(random.Random(case)) == "refused" else ACCEPTED] += 1
        except UserError:
            counts[REFUSED] += 1
        except Exception as error:
            found(Finding(_kind(error), case, _shown(error)))
        case += 1


def _kind(error: Exception) -> str:
    """The exception and the innermost place in this repository: two ways into one mistake are one finding."""
    frames = traceback.extract_tb(error.__traceback__)
    root = Path(__file__).parents[2]
    ours = [f for f in frames if Path(f.filename).is_relative_to(root) and "site-packages" not in f.filename]
    place = f" in {Path(ours[-1].filename).relative_to(root)}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}"


def _shown(error: Exception) -> str:
    text = "".join(traceback.format_exception(error))
    return text if len(text) < 6000 else f"{text[:2500]}\n ...\n{text[-3000:]}"


def _work(module: str, first: int, seconds: float, cases: int | None, counts: Any, out: Connection, log: str) -> None:
    """What the process does; its first word is how long a case may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us ends us
    errors = open(log, "w")  # noqa: SIM115  as long as the process lives
    faulthandler.enable(errors)  # a crash of the interpreter says where
    faulthandler.register(signal.SIGUSR1, errors)
    fuzzer = importlib.import_module(module)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    out.send(getattr(fuzzer, "SECONDS", LIMIT))
    loop(fuzzer.one, first, seconds, cases, counts, out.send)


def fuzz(
    module: str,
    first: int = 0,
    seconds: float = 300.0,
    limit: float | None = None,
    cases: int | None = None,
    beside: Sequence[str] = (),
) -> Report:
    """Runs a fuzzer; a case that hangs or kills its process is told, and another process goes on with the next one.

    Args:
        module: Import path of the module with its `one`.
        first: Number of the first case.
        seconds: How long, imports not counted.
        limit: Seconds of CPU that a case may take; by default the module's `SECONDS`, else `LIMIT`.
        cases: At most so many; None for no limit.
        beside: Modules that are run next: the server imports them now.
    """
    report = Report(module)
    # A server that has imported the fuzzer once: a new process after a finding costs no imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([module, *beside])
    end = None if cases is None else first + cases
    with tempfile.NamedTemporaryFile() as log:
        while len(report.findings) < KINDS:
            counts = context.RawArray("q", 4)
            inbox, outbox = context.Pipe(duplex=False)
            arguments = (module, first, seconds, None if end is None else end - first, counts, outbox, log.name)
            process = context.Process(target=_work, args=arguments)
            process.start()
            outbox.close()
            watch = _Watch(process, inbox, counts, limit, Path(log.name))
            try:
                watch.follow(report)
            finally:
                process.kill()
                process.join()
                inbox.close()
            report.accepted += counts[ACCEPTED]
            report.refused += counts[REFUSED]
            report.seconds += watch.took
            seconds -= watch.took
            first = counts[CASE] + 1
            if watch.ended or not counts[BEGUN] or seconds <= 0 or first == end:
                break
    return report


class _Watch:
    """Follows a process until it ends or hangs.

    Args:
        process: It.
        inbox: What it tells.
        counts: What it counts.
        limit: Seconds of CPU that a case may take; None leaves it to the fuzzer.
        log: Where its stack goes.

    Attributes:
        ended: It came to its end by itself.
        took: Seconds since its first case.
    """

    def __init__(self, process: Any, inbox: Connection, counts: Any, limit: float | None, log: Path) -> None:
        self.process, self.inbox, self.counts, self.log = process, inbox, counts, log
        self.limit, self.cpu, self.wall = limit, math.inf, START
        self.ended, self.took, self.begun = False, 0.0, time.monotonic()

    def follow(self, report: Report) -> None:
        """Adds what is found to the report."""
        seen, since, spent = 0, time.monotonic(), 0.0
        while self._listen(report):
            now = time.monotonic()
            self.took = now - self.begun
            if self.counts[BEGUN] != seen:
                seen, since, spent = self.counts[BEGUN], now, _cpu(self.process.pid)
            elif now - since > self.wall or _cpu(self.process.pid) - spent > self.cpu:
                report.add(self._hung())
                return
        self.process.join(5)
        self.ended, self.took = self.process.exitcode == 0, time.monotonic() - self.begun
        if not self.ended:
            told = self.log.read_text()
            what = f"the process died (exit code {self.process.exitcode}){_place(told)}"
            report.add(Finding(what, self.counts[CASE], told))

    def _listen(self, report: Report) -> bool:
        """Takes what has come; False when nothing more can come."""
        try:
            while self.inbox.poll(0.05):
                word = self.inbox.recv()
                if isinstance(word, Finding):
                    report.add(word)
                else:  # it begins
                    self.cpu, self.begun = self.limit or word, time.monotonic()
                    self.wall = PATIENCE * self.cpu
        except (EOFError, OSError):
            return False
        return True

    def _hung(self) -> Finding:
        if self.counts[BEGUN]:
            os.kill(self.process.pid, signal.SIGUSR1)  # it writes its stack into its log
            time.sleep(0.3)
        told = self.log.read_text()
        return Finding(f"no answer within {self.cpu:g} s of CPU{_place(told)}", self.counts[CASE], told)


def _cpu(process: int) -> float:
    """Seconds of CPU that a process has taken, its threads included; none where it has ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _place(stack: str) -> str:
    """The innermost place in this repository that a stack of `faulthandler` names."""
    root = str(Path(__file__).parents[2])
    for line in stack.splitlines():
        if root in line and "site-packages" not in line:
            return " in " + line.strip().removeprefix("File ").replace(root + "/", "").replace('"', "")
    return ""
