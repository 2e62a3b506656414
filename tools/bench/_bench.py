"""What every benchmark does: its options, its threads, its JSON."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.bench import _machine
from tools.bench._race import Case

PACKAGES = ("torch", "lightning", "numpy", "gymnasium")


@dataclass
class Result:
    """What a benchmark found.

    Attributes:
        cases: Its comparisons, by name.
        headline: The case that stands at the top of the JSON; by default the one that is furthest from its aims.
        versions: Of the peers.
        facts: Whatever else belongs to the whole.
        failures: What makes the benchmark's numbers void; not empty: nothing is written.
    """

    cases: dict[str, Case]
    headline: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class NotHere(Exception):
    """The benchmark cannot run on this machine, which is no failure."""


@dataclass
class Bench:
    """A benchmark.

    Attributes:
        name: Of its module.
        unit: Of what it reports.
        about: The module's docstring.
        threads: Torch threads, for us and for the peers.
    """

    name: str
    unit: str
    about: str
    threads: int = 1

    def parser(self) -> argparse.ArgumentParser:
        """The options that all benchmarks have."""
        made = argparse.ArgumentParser(
            prog=f"python -m tools.bench.{self.name}",
            description=self.about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.add_argument("--json", type=Path, metavar="FILE", help="where the numbers go; the terminal if not given")
        made.add_argument("--quick", action="store_true", help="few and short runs: shows that it works, not how fast")
        made.add_argument("--repeats", type=int, help="turns that count (default 5; 2 with --quick)")
        made.add_argument("--threads", type=int, default=self.threads, help="torch threads (default %(default)s)")
        made.add_argument("--seed", type=int, default=0)
        return made

    def main(
        self,
        measure: Callable[[argparse.Namespace], Result],
        argv: Sequence[str] | None = None,
        parser: argparse.ArgumentParser | None = None,
    ) -> int:
        """Measures, writes the JSON, prints a line for each case, returns the exit code."""
        options = (parser or self.parser()).parse_args(argv)
        options.repeats = options.repeats or (2 if options.quick else 5)
        self._pin(options)
        load = _machine.load()
        try:
            result = measure(options)
        except NotHere as word:
            print(f"{self.name}: {word}; nothing was measured", file=sys.stderr)
            return 0
        for failure in result.failures:
            print(f"{self.name}: {failure}", file=sys.stderr)
        if result.failures:
            return 1
        content = self.content(result, options, [load, _machine.load()], argv)
        text = json.dumps(content, indent=2) + "\n"
        if options.json is None:
            print(text, end="")
        else:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(text)
        print(lines(self.unit, result.cases), file=sys.stderr)
        return 0

    @staticmethod
    def _pin(options: argparse.Namespace) -> None:
        """Holds torch here, and all that is started from here, to the threads that were asked for."""
        import torch

        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(options.threads)
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)

    def content(
        self, result: Result, options: argparse.Namespace, load: Sequence[str], argv: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """The JSON."""
        name = result.headline or min(result.cases, key=lambda each: result.cases[each].margin)
        top = {"name": self.name, "unit": self.unit, **result.cases[name].to_dict(), "case": name}
        return {
            **top,
            "runs": options.repeats,
            "threads": options.threads,
            "quick": options.quick,
            "versions": {**_machine.versions(PACKAGES), **result.versions},
            "hardware": _machine.hardware(),
            "load": list(load),
            "commit": _machine.commit(),
            "command": _machine.command(self.name, argv),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            **result.facts,
            "cases": {each: case.to_dict() for each, case in result.cases.items()},
        }


def lines(unit: str, cases: Mapping[str, Case]) -> str:
    """One line for each case, for the terminal."""
    told = []
    for name, case in cases.items():
        parts = [f"{case.ours:.4g} {case.unit or unit}"]
        for peer, value in case.theirs.items():
            aim = f", aim {case.aim[peer]:g}" if peer in case.aim else ""
            parts.append(f"{peer} {value:.4g} (ratio {case.ratio[peer]:.3g}{aim})")
        told.append(f"  {name}: " + "; ".join(parts))
    return "\n".join(told)
