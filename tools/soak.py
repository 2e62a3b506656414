"""A soak: an `align` run on the island whose engines are killed at random, beside one that nobody disturbs.

    python -m tools.soak --agent AGENT --reward_model MODEL --minutes 40 --json outputs/soak.json

Both runs have the same seed, and an episode whose engine is killed is played again as it was, but in another batch,
where log-probabilities are rounded otherwise: from there on each learns on its own, and both should come out alike. The
exit code is 1 if a process or a file in shared memory is left, if episodes are lost, if the memory grows or if outcomes
differ by more than chance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_align.evaluation.intervals import wilson
from tools._soaked import OUTCOMES, SoakedRun, chance
from tools.bench._machine import commit, hardware, load

SLOPE = 1.0
"""MB in 1,000 episodes that the memory may grow."""
SURE = 0.05
"""Chance, shared out over the outcomes, below which a difference is called one."""
ENOUGH = 2000
"""Episodes after the warm-up that it takes to tell: before, what a process sets aside once passes for growth."""


def options_of(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--agent", required=True, help="folder of the agent to align")
    add("--reward_model", required=True, help="folder of the reward model, or `env`")
    add("--minutes", type=float, default=40.0, help="of each run")
    add("--every", type=float, default=30.0, help="seconds between two kills, on average")
    add("--out", default="outputs/soak", help="folder for both runs; what is in it is overwritten")
    add("--json", default=None, help="file for the report")
    add("--seed", type=int, default=0, help="of the runs and of the kills")
    add("--worlds", type=int, default=16, help="of a run")
    add("--episodes", type=int, default=64, help="of an iteration; a multiple of 4")
    add("--size", type=int, default=64, help="of the frames, as the agent sees them")
    add("--side_by_side", action="store_true", help="both runs at once, each on a core of its own")
    add("--no_control", action="store_true", help="the disturbed run alone")
    add("--isolate", action="store_true", help="each world in a process of its own")
    add("rest", nargs="*", help="more options of `align`, after --")
    return parser.parse_args(argv)


def start(options: argparse.Namespace, name: str, core: int | None) -> SoakedRun:
    """Starts a run, on one core or on all."""
    out = Path(options.out) / name
    minutes = int(options.minutes)
    seconds = round(60 * (options.minutes - minutes))
    argv = ["align", "fit", f"--out={out}", "--overwrite=true", f"--seed={options.seed}"]
    argv += [f"--init_from={options.agent}", f"--model.reward_model={options.reward_model}"]
    argv += ["--config=configs/jumppads/align.yaml", "--model.optimizer.schedule=constant"]  # their ends may differ
    argv += [f"--data.worlds={options.worlds}", f"--data.episodes={options.episodes}"]
    argv += [f"--data.env_args={{size: {options.size}}}", f"--data.isolate={str(options.isolate).lower()}"]
    argv += ["--trainer.max_epochs=1000000", f"--trainer.max_time=00:{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"]
    cores = None if core is None else {core}
    return SoakedRun(name, [*argv, *options.rest], out, cores, len(cores or os.sched_getaffinity(0)))


def watch(runs: list[SoakedRun], struck: SoakedRun | None, every: float, seed: int) -> None:
    """Looks at the runs until they end, and kills engines of one of them."""
    rng = random.Random(seed)
    due = time.monotonic() + rng.expovariate(1 / every)
    while [run for run in runs if run.running]:
        for run in runs:
            run.look()
        if struck is not None and struck.rows and time.monotonic() > due:
            struck.kill_an_engine(rng)
            due = time.monotonic() + rng.expovariate(1 / every)
        time.sleep(0.5)


def report_of(run: SoakedRun, episodes: int, common: int) -> dict[str, Any]:
    """What is told of a run; outcomes are those of the iterations that all runs have."""
    counts = run.counts(common, episodes)
    resident, anonymous = run.growth(False, episodes), run.growth(True, episodes)
    return {
        "exit_code": run.process.returncode,
        "seconds": round(run.seconds, 1),
        "iterations": len(run.rows),
        "episodes": len(run.rows) * episodes,
        "kills": len(run.kills),
        "episodes_dropped": round(sum(float(row["rollout/failures"]) for row in run.rows)),
        "stray_processes": run.stray(),
        "shared_memory_files": run.left_in_shared_memory(),
        "folders_left": run.left_in_temporary(),
        "rss_mb": round(run.largest, 1),
        "rss_slope_mb_per_1000_episodes": _rounded(resident[0]),
        "anonymous_slope_mb_per_1000_episodes": _rounded(anonymous[0]),
        "slope_episodes": anonymous[1],
        "rates": {name: wilson(n, sum(counts.values()))._asdict() for name, n in counts.items()},
    }


def _rounded(slope: float | None) -> float | None:
    return None if slope is None else round(slope, 3)


def wrong_with(run: SoakedRun, report: dict[str, Any]) -> list[str]:
    """What a run should not have done."""
    wrong = []
    if report["exit_code"] != 0 or not run.rows:
        wrong.append(f"{run.name}: exit code {report['exit_code']} after {len(run.rows)} iterations; see {run.log}")
    for what in ("stray_processes", "shared_memory_files", "folders_left"):
        if report[what]:
            wrong.append(f"{run.name}: {what.replace('_', ' ')}: {report[what]}")
    slope = report["anonymous_slope_mb_per_1000_episodes"]
    if slope is not None and report["slope_episodes"] >= ENOUGH and slope >= SLOPE:
        wrong.append(f"{run.name}: the memory grows by {slope:.2f} MB in 1,000 episodes; less than {SLOPE} is allowed")
    # An engine that is killed after the last play is missed by nobody.
    surely = sum(done <= len(run.rows) - 2 for done in run.kills)
    if not surely <= report["episodes_dropped"] <= len(run.kills):
        wrong.append(f"{run.name}: {report['episodes_dropped']} episodes were dropped for {len(run.kills)} kills")
    return wrong


def alike(runs: list[SoakedRun], iterations: int) -> dict[str, float]:
    """How likely chance alone makes the two runs differ so much, for each outcome."""
    one, other = runs
    return {name: round(chance(one.rates(name, iterations), other.rates(name, iterations)), 4) for name in OUTCOMES}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs both and reports; the exit code is 1 if anything is not as it should be."""
    options = options_of(argv)
    names = ["disturbed"] if options.no_control else ["disturbed", "control"]
    runs: list[SoakedRun] = []
    loads = [load()]
    try:
        if options.side_by_side:
            cores = sorted(os.sched_getaffinity(0))
            if len(cores) < len(names):
                raise SystemExit(f"side by side takes {len(names)} cores; this process may use {len(cores)}")
            runs += [start(options, name, core) for name, core in zip(names, cores, strict=False)]
            watch(runs, runs[0], options.every, options.seed)
        else:
            for name in names:
                runs.append(start(options, name, None))
                watch(runs[-1:], runs[0] if name == "disturbed" else None, options.every, options.seed)
    finally:
        for run in runs:
            run.end()
    common = min(len(run.rows) for run in runs)
    told = {run.name: report_of(run, options.episodes, common) for run in runs}
    failures = [line for run in runs for line in wrong_with(run, told[run.name])]
    odds = alike(runs, common) if len(runs) == 2 else {}
    failures += [
        f"{name}: disturbed and undisturbed differ by more than chance (p {p:g})"
        for name, p in odds.items()
        if p < SURE / len(OUTCOMES)
    ]
    content = {
        "name": "soak",
        "command": f"python -m tools.soak {' '.join(sys.argv[1:] if argv is None else argv)}",
        "commit": commit(),
        "hardware": hardware(),
        "load": [*loads, load()],
        "seed": options.seed,
        "minutes": options.minutes,
        "seconds_between_kills": options.every,
        "iterations_compared": common,
        "runs": told,
        "chance_of_such_a_difference": odds,
        "failures": failures,
    }
    text = json.dumps(content, indent=1)
    if options.json:
        Path(options.json).parent.mkdir(parents=True, exist_ok=True)
        Path(options.json).write_text(text + "\n")
    print(text)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
