"""Numbers in the documentation: the README's results from `docs/results/*.json`, the recipe's settings from `configs/`.

python -m tools.results_table                        fills README.md and docs/recipe.md
python -m tools.results_table --check                says whether they are up to date, changes nothing
python -m tools.results_table keep RUN --name NAME   writes docs/results/NAME.json from a finished run
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_align.errors import UserError
from lit_align.evaluation import paper, results
from lit_align.evaluation.intervals import wilson
from lit_align.evaluation.outcomes import OUTCOMES
from lit_align.evaluation.page import duration
from lit_align.evaluation.style import agent_order, agent_title

ROOT = Path(__file__).parents[1]
RESULTS, README, RECIPE = Path("docs") / "results", Path("README.md"), Path("docs") / "recipe.md"
START, END = "<!-- results -->", "<!-- /results -->"
NAMES = "quickstart-seed*.json"
ABSENT = "not measured yet"


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Runs the tool and returns its exit code.

    Args:
        argv: the arguments; those of the process if not given.
        root: the repository.
    """
    options = parser().parse_args(argv)

    def keeps() -> list[Path]:
        return [keep(Path(options.run), options.name, options.command, root)]

    return run_tool({"keep": keeps}, options, fill, root)


def run_tool(
    writers: Mapping[str, Callable[[], list[Path]]],
    options: argparse.Namespace,
    fill: Callable[[Path, bool], int],
    root: Path,
) -> int:
    """Does what the options of a tool say and returns its exit code: 2 for a mistake, which it prints.

    Args:
        writers: what writes files, by the options' `what`; the files' names are printed.
        options: `what`, and `check` for `fill`.
        fill: fills the pages of `root`, where there is no `what`.
        root: the repository.
    """
    try:
        if options.what is None:
            return fill(root, options.check)
        for path in writers[options.what]():
            print(path.relative_to(root))
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def tool_parser(name: str, description: str) -> tuple[argparse.ArgumentParser, Any]:
    """The command line of a tool that fills tables, and where its other uses are added."""
    made = argparse.ArgumentParser(prog=f"python -m tools.{name}", description=description)
    made.add_argument("--check", action="store_true", help="change nothing; exit code 1 if something is out of date")
    return made, made.add_subparsers(dest="what")


def parser() -> argparse.ArgumentParser:
    """The tool's command line."""
    made, what = tool_parser("results_table", "Fills tables of the pages.")
    one = what.add_parser("keep", help="make docs/results/NAME.json from a finished run")
    one.add_argument("run", help="a pipeline's folder, such as outputs/quickstart")
    one.add_argument("--name", required=True, help="such as quickstart-seed0")
    one.add_argument("--command", help="what was typed; by default the pipeline's command with the run's seed")
    return made


def keep(run: Path, name: str, command: str | None, root: Path) -> Path:
    """Writes `docs/results/NAME.json`: the report's numbers and how they were made. Call it where the run was made.

    Args:
        run: a pipeline's folder, with a report.
        name: of the file, without `.json`.
        command: what was typed.
        root: the repository.
    """
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"--name is {name!r}; expected letters, digits, dots, _ and - only: it becomes a file's name")
    source = run / "report" / "results.json"
    found: dict[str, Any] = dict(results.read(source))
    seeds = sorted({int(entry["seed"]) for entry in found["agents"].values()})
    if len(seeds) != 1:
        raise UserError(f"{source} holds agents evaluated with the seeds {seeds}; expected one run, with one seed")
    check_worlds(found["agents"], str(source))
    try:
        stages = json.loads((run / "timings.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{run / 'timings.json'} cannot be read ({error}); expected what a pipeline leaves") from error
    made = datetime.datetime.fromtimestamp(source.stat().st_mtime, datetime.UTC)
    pipeline = "lit-align pipeline --config configs/jumppads/quickstart.yaml"
    found["run"] = {
        "command": command or f"{pipeline} --seed {seeds[0]}",
        "commit": commit(root),
        "hardware": hardware(run),
        "seed": seeds[0],
        "stage_seconds": stages,
        "date": made.date().isoformat(),
    }
    target = root / RESULTS / f"{name}.json"
    results.write(found, target)  # type: ignore[arg-type]
    return target


def check_worlds(agents: Mapping[str, Any], where: str) -> None:
    """Raises a UserError if an agent's headline is of a world made with other arguments than the island's own."""
    other = [f"{name} ({entry['env_args']})" for name, entry in agents.items() if entry.get("env_args")]
    if other:
        raise UserError(
            f"{where} holds headlines of other worlds than the island as it is: {', '.join(other)}; tables are of that"
        )


def commit(root: Path) -> str:
    """The commit, with `-dirty` if tracked files other than documentation differ from it."""
    head = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs", f":!{README}")
    return f"{head}-dirty" if changed else head


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"git {words[0]} failed in {root}: {done.stderr.strip()}; results are kept with their commit")
    return done.stdout.strip()


def hardware(run: Path) -> dict[str, Any]:
    """This machine's processor, cores that may be used and GPUs; versions as the run's own stages noted them."""
    noted: dict[str, str] = {}
    for path in sorted(run.glob("*/run.json")):
        noted = noted or json.loads(path.read_text()).get("versions", {})
    facts: dict[str, Any] = {"cpu": _processor(), "cores": _cores()}
    if gpus := _gpus():
        facts["gpus"] = gpus
    return {**facts, "torch": noted.get("torch", version("torch")), "python": noted.get("python", _python())}


def _python() -> str:
    return platform.python_version()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        if model := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return model[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def fill(root: Path, check: bool) -> int:
    """Writes README.md and docs/recipe.md with the numbers of today; with `check` only says which are out of date."""
    wanted = {README: with_results((root / README).read_text(), root)}
    if (root / RECIPE).is_file():
        wanted[RECIPE] = with_settings((root / RECIPE).read_text(), root)
    stale = [path for path, text in wanted.items() if text != (root / path).read_text()]
    for path in stale:
        if check:
            print(f"{path} is out of date: python -m tools.results_table")
        else:
            (root / path).write_text(wanted[path])
    return int(check and bool(stale))


def with_results(text: str, root: Path) -> str:
    """The README with the tables between its markers made anew."""
    if text.count(START) != 1 or text.count(END) != 1:
        raise UserError(
            f"{README} holds {text.count(START)} x {START} and {text.count(END)} x {END}; expected one each"
        )
    before, rest = text.split(START)
    return f"{before}{START}\n\n{tables(root)}\n{END}{rest.split(END)[1]}"


def with_settings(text: str, root: Path) -> str:
    """The recipe with the second column of each table after `<!-- defaults: FILE -->` read from that YAML file."""

    def table(found: re.Match[str]) -> str:
        content = yaml.safe_load((root / found["file"]).read_text())
        return found["head"] + ROW.sub(
            lambda row: f"| `{row['key']}` | {_setting(content, row['key'])} |", found["rows"]
        )

    return DEFAULTS.sub(table, text)


DEFAULTS = re.compile(r"(?P<head><!-- defaults: (?P<file>\S+) -->\s+)(?P<rows>(?:\|.*\n)+)")
ROW = re.compile(r"^\| `(?P<key>[\w.]+)` \|[^|]*\|", re.MULTILINE)


def _setting(content: Any, key: str) -> str:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            raise UserError(f"{RECIPE} names the setting {key}, which its file does not hold; remove the row")
        content = content[part]
    text: str = yaml.safe_dump(content, default_flow_style=True, width=1000)
    return text.removesuffix("...\n").strip()


def tables(root: Path) -> str:
    """All that stands between the markers, as Markdown."""
    paths = sorted((root / RESULTS).glob(NAMES), key=lambda path: (len(path.name), path.name))
    files: list[dict[str, Any]] = [dict(results.read(path)) for path in paths]
    parts = [_legend(len(files)), outcome_table(files), _REWARD, reward_table(files)]
    runs = "".join(_run_line(path, file) for path, file in zip(paths, files, strict=True))
    return "\n".join([*parts, runs]).rstrip() + "\n"


def _legend(runs: int) -> str:
    lines = ["How episodes end, in percent of the evaluation episodes, with the Wilson 95 % interval in brackets."]
    if runs > 1:
        lines.append(f"Episodes of {runs} seeds are pooled; the lowest and the highest seed stand after the interval.")
    lines.append("In the second line of a cell: the paper's agent.")
    return "\n".join(lines) + "\n"


_REWARD = """Reward models: percent of held-out, untied comparisons that are judged right; the mean and, in brackets,
the lowest and the highest model (over targets, and seeds if there are several). The paper has 20 for each number.
"""


def outcome_table(files: Sequence[dict[str, Any]]) -> str:
    """One row for each agent that was measured, or that the paper has."""
    names = {name for file in files for name in file["agents"]} | set(paper.SUCCESS)
    lines = [f"| agent | {' | '.join(OUTCOMES)} | episodes |", "|---|" + "---:|" * (len(OUTCOMES) + 1)]
    for name in sorted(names, key=agent_order):
        entries = [file["agents"][name] for file in files if name in file["agents"]]
        cells = [_outcome_cell(entries, outcome, paper.SUCCESS.get(name, {}).get(outcome)) for outcome in OUTCOMES]
        lines.append(f"| {agent_title(name)} | {' | '.join(cells)} | {_total(entries) or '-'} |")
    return "\n".join(lines) + "\n"


def _total(entries: Sequence[dict[str, Any]]) -> int:
    return sum(entry["episodes"] for entry in entries)


def _outcome_cell(entries: Sequence[dict[str, Any]], outcome: str, theirs: float | None) -> str:
    text = ABSENT
    if entries:
        counts = [entry["outcomes"].get(outcome, 0) for entry in entries]
        text = f"**{wilson(sum(counts), _total(entries)).percent().replace(' % ', '** ')}"
        if len(entries) > 1:
            shares = [100 * n / entry["episodes"] for n, entry in zip(counts, entries, strict=True)]
            text += f", {min(shares):.1f}-{max(shares):.1f}"
    return text if theirs is None else f"{text}<br>paper {theirs:.1f}"


def reward_table(files: Sequence[dict[str, Any]]) -> str:
    """One row for each number of comparisons, both starts, ours and the paper's."""
    ours: dict[tuple[str, int], list[float]] = {}
    for file in files:
        for starts in file["reward_models"].values():
            for start, sizes in starts.items():
                for size, entry in sizes.items():
                    ours.setdefault((start, int(size)), []).append(100 * entry["accuracy"])
    sizes = sorted({size for _, size in ours} or set(paper.REWARD_ACCURACY["agent"]))
    lines = [
        "| comparisons | started from the agent | from random weights | paper: agent | paper: random |",
        "|---:|---:|---:|---:|---:|",
    ]
    for size in sizes:
        cells = [_spread(ours.get((start, size), [])) for start in ("agent", "random")]
        for start in ("agent", "random"):
            theirs = paper.REWARD_ACCURACY[start].get(size)
            cells.append("-" if theirs is None else f"{theirs[0]:.1f} ({theirs[1]:.1f}-{theirs[2]:.1f})")
        lines.append(f"| {size:,} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ABSENT
    mean = sum(values) / len(values)
    return f"**{mean:.1f}** ({min(values):.1f}-{max(values):.1f}, {len(values)} model{'s' * (len(values) > 1)})"


def _run_line(path: Path, file: dict[str, Any]) -> str:
    run = file.get("run")
    link = f"[{path.stem}]({(RESULTS / path.name).as_posix()})"
    if not run:
        return f"- {link}\n"
    machine = run["hardware"]
    time = duration(sum(run["stage_seconds"].values()))
    where = ", ".join([f"{machine['cores']} cores of {machine['cpu']}", *machine.get("gpus", [])])
    facts = f"{where}, torch {machine['torch']}, commit {run['commit'][:10]}{'-dirty' * ('dirty' in run['commit'])}"
    return f"- {link}: `{run['command']}`, {run['date']}, {facts}; its stages took {time}, added up.\n"


if __name__ == "__main__":
    sys.exit(main())
