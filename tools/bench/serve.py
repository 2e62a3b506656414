"""Serving the `tiny` agent to 1, 8 and 32 clients over a WebSocket on loopback, beside the bare batched step.

The server is `lit-align serve` in a process of its own, the clients are in another, each sends its next raw 64x64 frame
when it has its action. `bare_step` is `Agent.choose` in a loop over as many worlds as there are clients, on ready-made
frames, with as many torch threads. The two take turns, each for as long; the aim is 0.7 of the bare step at 32 clients.
Then 24 clients are served beside 8 that vanish, send noise or stall in the middle of a frame, and without them in turn.
Frame to action (p50, p95, p99, in milliseconds) is the clients' time, from before a frame is sent to its answer.

The last core is the clients', the others are the server's, and the bare step's in its turns: games run on another
machine than the agent, or keep to cores of their own. `--shared` lets the server and the bare step have all cores, as
processes that nobody placed have: then the clients' work is the server's loss, and it is moved from core to core.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_align.models.agent import Agent
from lit_align.spaces import ActionCodec, gamepad_space
from tools.bench._bench import Bench, Result
from tools.bench._machine import ROOT
from tools.bench._peer import SCRIPTS, Peer
from tools.bench._race import Case, Timing, from_values, interleave
from tools.bench._sizes import load_size

BENCH = Bench("serve", "frames/s", __doc__)
CLIENTS, SECONDS, AIM = (1, 8, 32), 60.0, {32: 0.7}
GOOD, BAD = 24, 8


def places(shared: bool) -> tuple[set[int], set[int]]:
    """The server's cores and the clients'."""
    cores = os.sched_getaffinity(0)
    last = {max(cores)}
    return (cores if shared or cores == last else cores - last), last


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Keeps this thread, and the processes that it starts, to some cores; threads that run already keep theirs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextmanager
def server(folder: Path, threads: int, cores: set[int]) -> Iterator[int]:
    """`lit-align serve` in a process of its own; gives its port."""
    words = ["serve", str(folder), "--port", "0", "--threads", str(threads)]
    command = [sys.executable, "-m", "lit_align", *words]
    with on(cores):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            found = re.search(r"ws://127\.0\.0\.1:(\d+)", process.stdout.readline())
            if found is None:
                raise RuntimeError("the server did not start")
            yield int(found[1])
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate()


@contextmanager
def vandals(port: int, count: int, cores: set[int]) -> Iterator[None]:
    """So many clients that misbehave."""
    with on(cores):
        process = subprocess.Popen([sys.executable, str(SCRIPTS / "vandals.py"), str(port), str(count)])
    with process:
        try:
            yield
            if process.poll() is not None:
                raise RuntimeError("the clients that were to misbehave have ended")
        finally:
            process.kill()


@torch.inference_mode()
def bare(agent: Agent, worlds: int, seconds: float, cores: set[int]) -> Timing:
    """The batched step in a loop: how many frames in how many seconds."""
    size = agent.config.image_size
    cache = agent.new_cache(worlds)
    frames = torch.randint(256, (worlds, size, size, 3), dtype=torch.uint8)
    uniform = torch.rand(worlds, len(agent.codec.heads))
    with on(cores):
        begun, cpu, steps = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() < begun + seconds:
            agent.choose(frames, cache, None, uniform)
            steps += 1
        return {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu, "frames": worlds * steps}


def measure(options: argparse.Namespace) -> Result:
    """Lets the server and the bare step take turns, for each number of clients."""
    # A whole measurement is SECONDS of each; its turns are parts of it.
    seconds = 1.0 if options.quick else SECONDS / options.repeats
    agent = Agent(load_size("tiny"), ActionCodec(gamepad_space())).eval()
    size = agent.config.image_size
    mine, theirs = places(options.shared)
    result = Result({}, headline=f"{CLIENTS[-1]} clients")
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        with server(Path(folder) / "agent", options.threads, mine) as port:

            def games(clients: int) -> Peer:
                shape = {"clients": clients, "size": size, "seconds": seconds, "core": max(theirs)}
                return Peer("games", sys.executable, port=port, threads=1, seed=options.seed, **shape)

            for clients in CLIENTS:
                with games(clients) as served:
                    step = partial(bare, agent, clients, seconds, mine)
                    turns = interleave({"ours": served, "bare_step": step}, options.repeats)
                facts = latency(turns["ours"]) | {
                    "client_cpu_s": [round(turn["cpu"], 3) for turn in turns["ours"]],
                    "seconds": seconds,
                    "shared": options.shared,
                }
                aim = {"bare_step": AIM[clients]} if clients in AIM else {}
                result.cases[f"{clients} clients"] = rates(turns, aim=aim, facts=facts)
            with games(GOOD) as served:

                def disturbed() -> Timing:
                    with vandals(port, BAD, theirs):
                        return served()

                turns = interleave({"ours": disturbed, "undisturbed": served}, options.repeats)
            facts = latency(turns["ours"]) | {"alone": latency(turns["undisturbed"]), "seconds": seconds}
            result.cases[f"{GOOD} clients, {BAD} that misbehave"] = rates(turns, facts=facts)
    return result


def rates(turns: dict[str, list[Timing]], **rest: Any) -> Case:
    """Frames a second, ours beside another's."""
    values = {who: [turn["frames"] / turn["wall"] for turn in each] for who, each in turns.items()}
    return from_values(values.pop("ours"), values, **rest)


def latency(turns: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Milliseconds from frame to action over all turns, and how evenly the clients were served."""
    taken = 1000 * np.concatenate([turn["taken"] for turn in turns])
    p50, p95, p99 = (round(float(np.percentile(taken, q)), 3) for q in (50, 95, 99))
    even = min(turn["steps"][0] / turn["steps"][-1] for turn in turns)
    return {"p50": p50, "p95": p95, "p99": p99, "frames": len(taken), "fewest_over_most": round(even, 3)}


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    parser = BENCH.parser()
    parser.add_argument("--shared", action="store_true", help="the server and the bare step have all cores")
    return BENCH.main(measure, argv, parser)


if __name__ == "__main__":
    sys.exit(main())
