"""Weak scaling on two cores: two processes of one thread, with twice the work, against one.

Each process and its engines are held to one core. `pretrain`: the quickstart's training step on batches that lie in
memory, DDP over gloo. `align sampling`: each process plays its own islands with the `tiny` agent, as between two
updates. One process runs alone on each of the two cores in turn. The ratio is rate(2) / (2 * rate(1)), turn by turn:
the efficiency. Two cores that share memory, caches and a power budget are slower together also where nothing is
exchanged, so the case `align sampling` tells what of the loss is theirs.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tools.bench._bench import Bench, NotHere, Result
from tools.bench._peer import Peer
from tools.bench._race import Case, Timing, from_values, interleave

BENCH = Bench("weak_scaling", "frames/s", __doc__)
AIM = 0.85


def cores() -> list[int]:
    """Two cores that this process may use, of different physical cores where the system tells.

    Raises:
        NotHere: There is one, or none can be chosen.
    """
    if not hasattr(os, "sched_getaffinity"):
        raise NotHere("this system does not let a process choose its core")
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        raise NotHere("two cores are needed, there is one")
    return [mine[0], next((core for core in mine[1:] if core not in siblings(mine[0])), mine[1])]


def siblings(core: int) -> set[int]:
    """The hardware threads of a core's own physical core; none where the system does not tell."""
    found: set[int] = set()
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return found
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def both(peers: list[Peer]) -> Timing:
    """Lets peers run at the same time; the slowest one's seconds, and what they did together."""
    with ThreadPoolExecutor(len(peers)) as pool:
        answers = list(pool.map(lambda peer: peer(), peers))
    amounts = {"amount": sum(answer["amount"] for answer in answers)} if "amount" in answers[0] else {}
    return {clock: max(answer[clock] for answer in answers) for clock in ("wall", "cpu")} | amounts


def race(what: str, chosen: list[int], options: argparse.Namespace, unit: str, **settings: Any) -> Case:
    """Lets one process (on either core) and two take turns.

    Args:
        what: `pretrain` or `align`.
        chosen: The two cores.
        options: Of the command line.
        unit: Of the rate.
        **settings: Of the worker.
    """
    same = {"what": what, "threads": 1, "seed": options.seed, **settings}
    frames = settings.get("windows", 0) * settings.get("frames", 0) * settings["steps"]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(4))

        def started(**more: Any) -> Any:
            return pool.submit(Peer, "scaling", sys.executable, **same, **more)

        port = free_port()
        alone = [started(rank=0, ranks=1, core=core) for core in chosen]
        pair = [started(rank=rank, ranks=2, core=core, port=port) for rank, core in enumerate(chosen)]
        one = [stack.enter_context(each.result()) for each in alone]
        two = [stack.enter_context(each.result()) for each in pair]
        timings = interleave(
            {"one a": one[0], "two": lambda: both(two), "one b": one[1]}, options.repeats, warm_up=int(what == "align")
        )

    def rates(name: str, ranks: int) -> list[float]:
        return [turn.get("amount", frames * ranks) / turn["wall"] for turn in timings[name]]

    ones = [(a + b) / 2 for a, b in zip(rates("one a", 1), rates("one b", 1), strict=True)]
    facts = {
        "one_process": sorted(ones)[len(ones) // 2],
        "wall_s": {name: [round(turn["wall"], 6) for turn in turns] for name, turns in timings.items()},
        "cpu_s": {name: [round(turn["cpu"], 6) for turn in turns] for name, turns in timings.items()},
        **settings,
    }
    twice = {"twice_one_process": [2 * rate for rate in ones]}
    return from_values(rates("two", 2), twice, aim={"twice_one_process": AIM}, unit=unit, facts=facts)


def measure(options: argparse.Namespace) -> Result:
    """Training, then play."""
    chosen, quick = cores(), options.quick
    batch = {"windows": 4 if quick else 32, "frames": 80, "warm_up": 1 if quick else 3, "steps": 2 if quick else 10}
    cases = {
        "pretrain": race("pretrain", chosen, options, "frames/s", **batch),
        "align sampling": race("align", chosen, options, "env steps/s", worlds=8, steps=10 if quick else 120),
    }
    shared = chosen[1] in siblings(chosen[0])
    return Result(cases, headline="pretrain", facts={"cores": chosen, "one_physical_core": shared})


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
