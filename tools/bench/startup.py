"""How long until `lit-align --help` has answered and until `import lit_align` is done: CPU seconds of a fresh process.

The aims are 0.5 s for the help and 0.2 s for the import. Beside them, in the same turns: a Python that does nothing,
whose start-up is part of every number here, and one that imports torch, which is what the package does without.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tools.bench._bench import Bench, Result
from tools.bench._race import Timing, from_values, interleave

BENCH = Bench("startup", "s", __doc__)
AIMS = {"lit-align --help": 0.5, "import lit_align": 0.2}


def process(*words: str) -> Callable[[], Timing]:
    """A runner of one process; its CPU seconds are the system's own count, those of its children included."""

    def run() -> Timing:
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        return {"wall": wall, "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}

    return run


def measure(options: argparse.Namespace) -> Result:
    """Lets all take turns, several processes each a turn where that is asked for."""
    script = Path(sys.executable).parent / "lit-align"
    help_words = [str(script), "--help"] if script.exists() else [sys.executable, "-m", "lit_align", "--help"]
    runners = {
        "lit-align --help": process(*help_words),
        "import lit_align": process(sys.executable, "-c", "import lit_align"),
        "python": process(sys.executable, "-c", "pass"),
        "import torch": process(sys.executable, "-c", "import torch"),
    }
    timings = interleave(runners, options.repeats)
    cpu = {name: [turn["cpu"] for turn in turns] for name, turns in timings.items()}
    cases = {}
    for name, aim in AIMS.items():
        peers = {"aim": [aim] * options.repeats, "python": cpu["python"], "import torch": cpu["import torch"]}
        facts = {
            "cpu_s": {
                peer: [round(value, 4) for value in values] for peer, values in {name: cpu[name], **peers}.items()
            },
            "wall_s": {each: [round(turn["wall"], 4) for turn in timings[each]] for each in timings},
        }
        cases[name] = from_values(cpu[name], peers, aim={"aim": 1.0}, better="lower", facts=facts)
    return Result(cases)


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark and returns its exit code."""
    return BENCH.main(measure, argv)


if __name__ == "__main__":
    sys.exit(main())
