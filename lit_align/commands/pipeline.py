"""`lit-align pipeline`: the recipe as a list of stages, see `lit_align.pipeline`."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import NoReturn

from lit_align.commands import ALONE, STAGES, VERBS, check_verb, run_verb
from lit_align.commands.inputs import missing_inputs
from lit_align.errors import UserError, raise_all
from lit_align.pipeline import Pipeline, commands_of, load_pipeline
from lit_align.progress import Progress
from lit_align.scheduler import StageState, run_pipeline
from lit_align.workers import check_all


def run_command(argv: list[str]) -> None:
    """Runs `lit-align pipeline ARGV`; ends with SystemExit(1) when a stage failed."""
    options, pipeline = _parse(argv)
    places = [Path(file).parent for file in options.config]
    if options.dry_run:
        _show(pipeline, places)
        return
    prints = pipeline.fingerprints()
    words = _will(pipeline, prints)
    raise_all(missing_inputs(pipeline, _to_run(words), places))
    progress = Progress(len(pipeline.stages), max(map(len, pipeline.stages)))
    done = len(words) - len(_to_run(words))
    many = f", up to {pipeline.jobs} at a time" if pipeline.jobs > 1 else ""
    before = f"; {done} are done already, and said to be the `same`" if done else ""
    progress.write(f"{len(words)} stages into {pipeline.out}{many}{before}")
    try:
        code = run_pipeline(pipeline, run_verb, check_verb, can_resume, progress, prints)
        report = pipeline.out / "report" / "index.html"
        if not code and report.is_file():
            progress.write(f"report: {report}")
    finally:
        progress.close()
    if code:
        sys.exit(code)


def check_command(argv: list[str]) -> None:
    """Raises a UserError if the pipeline cannot be read."""
    _parse(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"pipeline: {message}")


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Pipeline]:
    parser = _Parser(
        prog="lit-align pipeline",
        description="Runs a list of stages; finished ones are skipped unless their inputs changed.",
        epilog="Any other --key value changes the file: --seed 1, --out outputs/other, --jobs 1, --wandb offline, "
        "--stages.pretrain.args.trainer.max_epochs 3",
        allow_abbrev=False,
    )
    parser.add_argument("--config", "-c", action="append", required=True, metavar="FILE", help="later files win")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="this stage and what it needs")
    parser.add_argument("--dry_run", action="store_true", help="check everything, show what would run, and stop")
    options, rest = parser.parse_known_args(argv)
    pipeline = load_pipeline(options.config, overrides_of(rest), set(VERBS) - set(ALONE))
    return options, pipeline.only(options.only) if options.only else pipeline


def overrides_of(words: list[str]) -> list[str]:
    """`--a.b 1 --c=2` as `a.b=1`, `c=2`."""
    found, errors, index = [], [], 0
    while index < len(words):
        word = words[index]
        index += 1
        if not word.startswith("--"):
            errors.append(f"{word!r} belongs to no option")
        elif "=" in word:
            found.append(word[2:])
        elif index < len(words):
            found.append(f"{word[2:]}={words[index]}")
            index += 1
        else:
            errors.append(f"{word} lacks a value")
    raise_all(errors)
    return found


def can_resume(run: list[str]) -> bool:
    """Whether a stage of these words goes on where it was interrupted."""
    return run[0] in STAGES and run[1:2] == ["fit"]


def _will(pipeline: Pipeline, prints: dict[str, str]) -> dict[str, str]:
    """What is to become of each stage: `same`, it is done; `resume` or `run`."""
    found = {}
    for name, stage in pipeline.stages.items():
        state = StageState(pipeline.out, name, stage.is_cell)
        found[name] = "same" if state.is_done(prints[name]) else "run"
        if found[name] == "run" and state.was_interrupted(prints[name]) and can_resume(stage.run):
            found[name] = "resume"
    return found


def _show(pipeline: Pipeline, places: list[Path]) -> None:
    raise_all(check_all(check_verb, commands_of(pipeline.stages.values())))
    words = _will(pipeline, pipeline.fingerprints())
    for name, stage in pipeline.stages.items():
        will = words[name]
        notes = [f"needs {', '.join(stage.needs)}"] if stage.needs else []
        if stage.inner is not None:
            notes.append(f"{_done_in(stage.inner)} of {len(stage.inner.stages)} stages are done")
        after = f"  # {'; '.join(notes)}" if notes else ""
        sys.stdout.write(f"{will:<7} {name}: lit-align {shlex.join(stage.argv)}{after}\n")
    for message in missing_inputs(pipeline, _to_run(words), places):
        sys.stdout.write(f"missing {message}\n")
    todo = len(_to_run(words))
    sys.stdout.write(f"{todo} of {len(words)} stages would run in {pipeline.out}; those marked `same` are done\n")


def _to_run(words: dict[str, str]) -> list[str]:
    return [name for name, word in words.items() if word != "same"]


def _done_in(pipeline: Pipeline) -> int:
    prints = pipeline.fingerprints()
    return sum(StageState(pipeline.out, name).is_done(prints[name]) for name in pipeline.stages)
