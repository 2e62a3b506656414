"""Submits the stages of a pipeline as Slurm jobs that wait for each other.

    python -m tools.slurm.pipeline --config configs/jumppads/quickstart.yaml --partition gpu --gpus 1 --time 4:00:00 \
        --set pretrain.ntasks-per-node=8 --set pretrain.gpus=8

Each job runs one stage by the pipeline's own rules: what is done with the same inputs is skipped, what was interrupted
goes on. So the command may be given again at any time; a stage that a job of before still waits for or runs is waited
for. The folder must be one that all nodes see, and this the folder that the pipeline's paths start from.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import yaml

from lit_align.commands import STAGES, VERBS, check_verb
from lit_align.commands.pipeline import can_resume, overrides_of
from lit_align.errors import Preempted, UserError, raise_all
from lit_align.pipeline import Pipeline, commands_of, load_pipeline
from lit_align.progress import Progress
from lit_align.scheduler import STATE, StageState, run_pipeline
from lit_align.slurm import NOT_REQUEUED, PREEMPTED, leave
from lit_align.workers import SHARE, check_all

DEFAULTS = {"nodes": 1, "ntasks-per-node": 1, "cpus-per-task": 1, "time": "24:00:00", "signal": "USR1@120"}
"""Options of sbatch where neither the file nor the command line says otherwise."""


def parser() -> argparse.ArgumentParser:
    """The options; those that are not known change the pipeline's file, as with `lit-align pipeline`."""
    made = argparse.ArgumentParser(prog="python -m tools.slurm.pipeline", description=__doc__, allow_abbrev=False)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    add = made.add_argument
    add("--config", "-c", action="append", required=True, metavar="FILE", help="the pipeline; later files win")
    add("--only", action="append", default=[], metavar="STAGE", help="this stage and what it needs")
    add("--resources", metavar="FILE", help="YAML: `default:` and `stages: {NAME: ...}`, options of sbatch by name")
    for name, text in (("gpus", "of each stage"), ("partition", "of each stage"), ("time", "limit of each stage")):
        add(f"--{name}", help=f"{text}, an option of sbatch")
    add("--set", action="append", default=[], metavar="STAGE.OPTION=VALUE", help="an option of sbatch for one stage")
    add("--dry_run", action="store_true", help="show the commands and submit nothing")
    add("--inside", metavar="STAGE", help=argparse.SUPPRESS)
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Submits, or in a job runs the stage that it is for; returns the exit code."""
    options, rest = parser().parse_known_args(argv)
    try:
        pipeline = load_pipeline(options.config, overrides_of(rest), VERBS)
        if options.inside:
            return _run(pipeline, options.inside)
        wanted = pipeline.only(options.only) if options.only else pipeline
        resources = resources_of(options, list(pipeline.stages))
        raise_all(check_all(check_verb, commands_of(wanted.stages.values())))
        same = [word for file in options.config for word in ("--config", file)] + rest
        _submit(wanted, resources, same, options.dry_run)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    except Preempted as stop:
        return leave(stop)
    except KeyboardInterrupt:  # Slurm ends a job that is requeued with SIGTERM
        return 130
    return 0


def resources_of(options: argparse.Namespace, stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each stage's options of sbatch: those of the file, of the command line for all, and of `--set` for one.

    Raises:
        UserError: if the file or a `--set` cannot be read, or names a stage that is none.
    """
    content: Any = {}
    if options.resources:
        try:
            with open(options.resources) as file:
                content = yaml.safe_load(file) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--resources {options.resources} cannot be read: {error}") from error
    known = isinstance(content, Mapping) and not set(content) - {"default", "stages"}
    parts = [content.get("default") or {}, *(content.get("stages") or {}).values()] if known else [None]
    if not all(isinstance(part, Mapping) for part in parts):
        raise UserError(f"--resources {options.resources}: expected `default:` and `stages:` with options of sbatch")
    given = {name: getattr(options, name) for name in ("gpus", "partition", "time") if getattr(options, name)}
    found = {name: {**DEFAULTS, **(content.get("default") or {}), **given} for name in stages}
    errors = []
    single = [(str(stage), dict(values or {})) for stage, values in (content.get("stages") or {}).items()]
    for word in options.set:
        match = re.fullmatch(r"([\w-]+)\.([\w-]+)=(.*)", word)
        if match:
            single.append((match[1], {match[2]: match[3]}))
        else:
            errors.append(f"--set {word}: expected STAGE.OPTION=VALUE")
    for stage, values in single:
        if stage in found:
            found[stage] |= values
        else:
            errors.append(f"resources of {stage!r}: there is no such stage; there are {', '.join(stages)}")
    raise_all(errors)
    return found


def command_of(
    pipeline: Pipeline, name: str, resources: Mapping[str, Any], after: Sequence[str], same: Sequence[str]
) -> list[str]:
    """The `sbatch` command of a stage.

    Args:
        pipeline: that it is of.
        name: of the stage.
        resources: options of sbatch; None and false leave one out, true gives it without a value.
        after: ids of the jobs that must have succeeded.
        same: the words that say which pipeline it is.
    """
    title = f"{re.sub(r'[^A-Za-z0-9_.-]+', '.', str(pipeline.out)).strip('.')}.{name}"
    log = pipeline.out.absolute() / STATE / f"{name}.slurm.txt"
    # `singleton`: two jobs for one stage, of two submissions, come one after the other.
    waits = ",".join([*([f"afterok:{':'.join(after)}"] if after else []), "singleton"])
    words = ["sbatch", "--parsable", f"--job-name={title}", f"--dependency={waits}", "--kill-on-invalid-dep=yes"]
    words += ["--requeue", "--open-mode=append", f"--output={log}"]
    words += [
        f"--{key}" if value is True else f"--{key}={value}"
        for key, value in resources.items()
        if value is not None and value is not False
    ]
    inside = [sys.executable, "-m", "tools.slurm.pipeline", *same, "--inside", name]
    return [*words, f"--wrap=exec {shlex.join(inside)}"]


def _submit(pipeline: Pipeline, resources: Mapping[str, Mapping[str, Any]], same: Sequence[str], dry_run: bool) -> None:
    prints, ids = pipeline.fingerprints(), dict[str, str]()
    if not dry_run:
        (pipeline.out / STATE).mkdir(parents=True, exist_ok=True)  # Slurm makes no folder for a job's output
    width = max(map(len, pipeline.stages))
    for name, stage in pipeline.stages.items():
        state = StageState(pipeline.out, name, stage.is_cell)
        if state.is_done(prints[name]):
            sys.stdout.write(f"{name:<{width}}  same\n")
            continue
        state.check_ours()
        after = {need: number for need, number in ids.items() if need in stage.needs}
        command = command_of(pipeline, name, resources[name], list(after.values()), same)
        if dry_run:
            ids[name] = f"<{name}>"
            sys.stdout.write(f"{name:<{width}}  {shlex.join(command)}\n")
            continue
        ids[name] = _sbatch(command, name, ids)
        waits = f"  after {', '.join(after)}" if after else ""
        sys.stdout.write(f"{name:<{width}}  {ids[name]}{waits}\n")
        sys.stdout.flush()


def _sbatch(command: list[str], name: str, ids: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UserError("there is no `sbatch` here: submit from a machine of the cluster") from error
    found = re.match(r"(\d+)", done.stdout.strip())
    if done.returncode or not found:
        before = f"; submitted before it: scancel {' '.join(ids.values())}" if ids else ""
        raise UserError(f"sbatch refused stage {name}: {(done.stderr or done.stdout).strip()}{before}")
    return found[1]


def _run(pipeline: Pipeline, name: str) -> int:
    """Runs a stage in its job, in the tasks that the job has."""
    # In this process, which Slurm's signals and the stage's end reach: there is no other stage to run beside it.
    one = replace(pipeline.only([name]), jobs=1)
    prints = one.fingerprints()
    raise_all(
        [
            f"stage {name} needs {need}, which is not done"
            for need in one.stages
            if need != name and not StageState(one.out, need, one.stages[need].is_cell).is_done(prints[need])
        ]
    )
    progress = Progress(len(one.stages), max(map(len, one.stages)))
    try:
        return run_pipeline(one, run_in_tasks, check_verb, can_resume, progress, prints)
    finally:
        progress.close()


def run_in_tasks(argv: list[str]) -> None:
    """Runs `lit-align ARGV` in all tasks of the job if it is a stage that trains, in one if not.

    Raises:
        Preempted: if it stopped to go on later; it has seen to its requeue, or asks for it.
        SystemExit: with the exit code of a run that failed.
    """
    trains = argv[0] in STAGES
    command = ["srun", "--kill-on-bad-exit=1"] if trains else ["srun", "--nodes=1", "--ntasks=1"]
    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    # This process has the cores of all tasks of its node; a task has its own. A stage may ask for fewer threads.
    threads = min(cpus, int(os.environ.get("OMP_NUM_THREADS") or cpus))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", SHARE)
    command += [f"--cpus-per-task={cpus}", sys.executable, "-m", "lit_align", *argv]
    if trains:
        command += [f"--trainer.num_nodes={os.environ['SLURM_NNODES']}"]
        command += [f"--trainer.devices={os.environ['SLURM_NTASKS_PER_NODE']}"]
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    code = subprocess.run(command, check=False, env=environment).returncode
    if code in (PREEMPTED, NOT_REQUEUED):
        raise Preempted("the stage goes on when its job starts again", requeue=code == NOT_REQUEUED)
    if code:
        raise SystemExit(code)


if __name__ == "__main__":
    sys.exit(main())
