"""Fills the table of `docs/speed.md` from the results of the benchmarks in `docs/results/bench/`.

`python -m tools.bench_table` writes it, `--check` says whether it is up to date.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, RESULTS = ROOT / "docs" / "speed.md", ROOT / "docs" / "results" / "bench"
BEGIN, END = "<!-- bench -->", "<!-- /bench -->"


def number(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rows(result: dict[str, Any]) -> list[str]:
    """A line for each case and peer of one benchmark."""
    made = []
    for name, case in result["cases"].items():
        unit = case.get("unit", result["unit"])
        for peer, theirs in case["theirs"].items():
            aim = case["aim"].get(peer)
            sign = "<=" if case["better"] == "lower" else ">="
            told = "" if aim is None else f"{sign} {aim:g}: {'reached' if reached(case, peer) else '**missed**'}"
            about = peer.replace("_", " ")
            made.append(
                f"| {name} | {number(case['ours'])} {unit} | {about}: {number(theirs)} | "
                f"**{case['ratio'][peer]:.2f}** | {told} |"
            )
    return made


def reached(case: dict[str, Any], peer: str) -> bool:
    """Whether a ratio reaches its aim."""
    ratio, aim = case["ratio"][peer], case["aim"][peer]
    return bool(ratio <= aim if case["better"] == "lower" else ratio >= aim)


def table(results: list[dict[str, Any]]) -> str:
    """All benchmarks, each under its name, with what it ran on."""
    parts = []
    for result in results:
        hardware = result["hardware"]
        machine = f"{hardware['cores']} cores of {hardware['cpu']}, torch {result['versions']['torch']}"
        threads = f"{result['threads']} thread{'s' if result['threads'] > 1 else ''}"
        parts += [
            f"**{result['name']}**, {machine}, {threads}, {result['runs']} turns, commit {result['commit'][:10]}, "
            f"{result['date']}: `{result['command']}`",
            "",
            "| case | ours | peer | ratio | aim |",
            "|---|---:|---|---:|---|",
            *rows(result),
            "",
        ]
    return "\n".join(parts)


def filled(page: str, results: list[dict[str, Any]]) -> str:
    """The page with its table."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n\n{table(results)}\n{END}{after}"


def main(argv: list[str] | None = None) -> int:
    """Writes or checks; 1 where the page is not what the results say."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="say whether the page is up to date, write nothing")
    options = parser.parse_args(argv)
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    found = PAGE.read_text()
    wanted = filled(found, results)
    if options.check:
        print("up to date" if found == wanted else f"{PAGE.name} is not what {RESULTS.name}/ says")
        return int(found != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
