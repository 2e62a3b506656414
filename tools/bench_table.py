"""Fills the tables of `docs/speed.md`: the benchmarks in `docs/results/bench/`, the play in `docs/results/precision/`.

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
PLAYED = ROOT / "docs" / "results" / "precision"


def number(value: float) -> str:
    """Three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def count(n: int, what: str) -> str:
    """`1 core`, `2 cores`."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def rows(result: dict[str, Any]) -> list[str]:
    """A line for each case and peer of one benchmark."""
    made = []
    for name, case in result["cases"].items():
        unit = case.get("unit", result["unit"])
        for peer, theirs in case["theirs"].items():
            aim = case["aim"].get(peer)
            sign = "<=" if case["better"] == "lower" else ">="
            told = "" if aim is None else f"{sign} {aim:g}: {verdict(reached(case, peer))}"
            if "intervals" in case:
                told = f"not below: {verdict(case['intervals']['ours'][1] >= case['intervals'][peer][0])}"
            about = peer.replace("_", " ")
            made.append(
                f"| {name} | {number(case['ours'])}{around(case, 'ours')} {unit} | "
                f"{about}: {number(theirs)}{around(case, peer)} | **{case['ratio'][peer]:.2f}** | {told} |"
            )
    return made


def verdict(good: bool) -> str:
    """What became of an aim; a miss stands out."""
    return "reached" if good else "**missed**"


def around(case: dict[str, Any], who: str) -> str:
    """The 95 % interval of one side, where the case has them."""
    return " ({} to {})".format(*map(number, case["intervals"][who])) if "intervals" in case else ""


def reached(case: dict[str, Any], peer: str) -> bool:
    """Whether a ratio reaches its aim."""
    ratio, aim = case["ratio"][peer], case["aim"][peer]
    return bool(ratio <= aim if case["better"] == "lower" else ratio >= aim)


def table(results: list[dict[str, Any]]) -> str:
    """All benchmarks, each under its name, with what it ran on."""
    parts = []
    for result in results:
        cores, threads = result["hardware"]["cores"], result["threads"]
        on = f"{count(cores, 'core')} of {result['hardware']['cpu']}, torch {result['versions']['torch']}"
        parts += [
            f"**{result['name']}**, {on}, {count(threads, 'thread')}, {result['runs']} turns, "
            f"commit {result['commit'][:10]}, {result['date']}: `{result['command']}`",
            "",
            "| case | ours | peer | ratio | aim |",
            "|---|---:|---|---:|---|",
            *rows(result),
            "",
        ]
    return "\n".join(parts)


def play(results: dict[str, dict[str, Any]]) -> str:
    """What evaluations of one agent in several precisions gave: `results.json` by precision."""
    lines = ["| precision | left | middle | right | none | episodes | steps |", "|---|---:|---:|---:|---:|---:|---:|"]
    for precision in sorted(results, key=["fp32", "bf16", "int8"].index):
        (entry,) = results[precision]["agents"].values()
        told = [entry["rates"][outcome] for outcome in ("left", "middle", "right", "none")]
        cells = [f"**{100 * r['value']:.1f}** ({100 * r['low']:.0f}-{100 * r['high']:.0f})" for r in told]
        lines.append(f"| {precision} | {' | '.join(cells)} | {entry['episodes']} | {entry['mean_steps']:.1f} |")
    return "\n".join(lines) + "\n"


def between(page: str, name: str, content: str) -> str:
    """The page with other content between its marks."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, rest = page.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n\n{content}\n{end}{after}"


def main(argv: list[str] | None = None) -> int:
    """Writes or checks; 1 where the page is not what the results say."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench_table", description=__doc__)
    parser.add_argument("--check", action="store_true", help="say whether the page is up to date, write nothing")
    options = parser.parse_args(argv)
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    found = PAGE.read_text()
    played = {path.stem: json.loads(path.read_text()) for path in PLAYED.glob("*.json")}
    wanted = between(between(found, "bench", table(results)), "precision", play(played))
    if options.check:
        print("up to date" if found == wanted else f"{PAGE.name} is not what {RESULTS.name}/ says")
        return int(found != wanted)
    PAGE.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
