"""`python -m tools.fuzz`: runs fuzzers for a while; exit code 1 if one of them found something.

All of them, each for five minutes: `--target all --seconds 300`. One case again, as a finding names it:
`--target actions --case 1234`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tools.fuzz import TARGETS
from tools.fuzz._harness import fuzz, module_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=[*TARGETS, "all"], default="all", help="which fuzzer")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long each runs (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case (default %(default)s)")
    parser.add_argument("--case", type=int, help="run this case alone")
    parser.add_argument("--limit", type=float, help="seconds of CPU that a case may take before it counts as hung")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the fuzzers that are asked for, one after the other, and returns the exit code."""
    options = parser().parse_args(argv)
    if options.case is not None and options.target == "all":
        parser().error("--case needs --target NAME: the same number is another case of each fuzzer")
    found = False
    names = TARGETS if options.target == "all" else (options.target,)
    for name in names:
        alone = options.case is not None
        first = options.case if alone else options.seed
        beside = [module_of(each) for each in names]
        report = fuzz(module_of(name), first, options.seconds, options.limit, 1 if alone else None, beside)
        print(report.text(f"python -m tools.fuzz --target {name} --case"), flush=True)
        found |= bool(report.findings)
    return int(found)


if __name__ == "__main__":
    sys.exit(main())
