"""A list of stages as one run that can be killed anywhere and started again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lit_align import __version__
from lit_align.errors import UserError, did_you_mean, raise_all
from lit_align.files import read_yaml
from lit_align.layers import lay_over
from lit_align.named_files import named_in, named_in_files, outside_input

KEYS = ("run", "needs", "config", "args", "threads")
TOP = ("out", "seed", "jobs", "stages", "base", "wandb")
LOGGED = ("pretrain", "finetune", "reward", "prefer", "align")
"""Verbs that log to Weights & Biases where a pipeline's `wandb` says so, when they train; `report` does too."""


@dataclass
class StageSpec:
    """One `lit-align` command of a pipeline.

    Attributes:
        name: of the stage, and of its folder in the pipeline's.
        run: the verb and its words, `["pretrain", "fit"]`; `["pipeline"]` for a cell, a pipeline of its own.
        folder: where its results go: its `--out`.
        needs: names of the stages whose results it reads.
        config: its `--config` files, later ones win.
        args: its other options.
        threads: CPU threads it takes; None shares the cores with what runs beside it.
        inner: of a cell, the pipeline that it runs.
        wandb: `offline` or `online` to log to Weights & Biases; its result does not depend on it.
    """

    name: str
    run: list[str]
    folder: Path
    needs: list[str] = field(default_factory=list)
    config: list[str] = field(default_factory=list)
    args: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    inner: Pipeline | None = None
    wandb: str | None = None

    @property
    def is_cell(self) -> bool:
        """Whether it is a pipeline of its own."""
        return self.run == ["pipeline"]

    @property
    def argv(self) -> list[str]:
        """The stage as the arguments of `lit-align`."""
        words = list(self.run)
        for file in self.config:
            words += ["--config", file]
        words += ["--out", str(self.folder)]
        for key, value in flatten(self.args):
            words.append(f"--{key}={as_word(value)}")
        takes = self.is_cell or self.run == ["report"] or (self.run[0] in LOGGED and self.run[1:] == ["fit"])
        logs = self.wandb and "wandb" not in self.args and takes
        return [*words, f"--wandb={self.wandb}"] if logs else words


@dataclass
class Pipeline:
    """A checked pipeline: `stages` in an order in which every stage follows what it needs.

    Attributes:
        out: the run's folder.
        jobs: how many stages may run at a time.
        stages: by name.
        names: of all stages of the file, where these are only some.
    """

    out: Path
    jobs: int
    stages: dict[str, StageSpec]
    names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.names = self.names or list(self.stages)

    def fingerprints(self, around: Path | None = None) -> dict[str, str]:
        """For each stage, a hash of all that its result depends on; equal ones need not run again.

        That of a cell covers all that its own files say, and those that these include.

        Args:
            around: of a cell, the folder of the pipeline that it is in: what lies there is known by what made it.
        """
        found: dict[str, str] = {}
        folder = around or self.out
        for stage in self.stages.values():
            # The run's folder may be moved or reached by another path without a new run.
            words = [*stage.run, *(f"{key}={as_word(value)}" for key, value in flatten(stage.args))]
            words = [word.replace(str(folder), "${out}") for word in words]
            files = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in stage.config]
            given = [outside_input(word, folder) for word in words_of(stage.args)]
            content = [words, files, given, [found[name] for name in sorted(stage.needs)], __version__]
            # Added only where there is one: what was done before these were looked at is still done.
            further = sorted(set(_named(stage)) - set(words_of(stage.args)))
            content += [also for word in further if (also := outside_input(word, folder))]
            if stage.inner is not None:
                content[1] = stage.inner.fingerprints(folder)
            found[stage.name] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return found

    def only(self, names: Sequence[str]) -> Pipeline:
        """The same pipeline with these stages and what they need, directly or not."""
        wanted: set[str] = set()
        todo = list(names)
        raise_all(
            [
                f"--only {name}: no such stage{did_you_mean(name, self.stages)}"
                for name in names
                if name not in self.stages
            ]
        )
        while todo:
            name = todo.pop()
            if name not in wanted:
                wanted.add(name)
                todo += self.stages[name].needs
        stages = {name: stage for name, stage in self.stages.items() if name in wanted}
        return Pipeline(self.out, self.jobs, stages, self.names)


def load_pipeline(
    files: Sequence[str], overrides: Sequence[str], verbs: Iterable[str], above: tuple[Path, ...] = ()
) -> Pipeline:
    """Reads and checks a pipeline and those inside it; nothing runs.

    Args:
        files: YAML files, later ones win; a file's `base` is read before it.
        overrides: `key=value` with dotted keys, the last word.
        verbs: those of `lit-align`.
        above: files of the pipelines that this one is a cell of.

    Raises:
        UserError: with everything that is wrong.
    """
    config: Any = OmegaConf.create({})
    for file in files:
        config = _merge(config, _read(Path(file), ()), str(file))
    read = tuple(Path(file).resolve() for file in files)
    if again := [str(file) for file in read if file in above]:
        raise UserError(f"{', '.join(again)} is a cell of itself")
    written = OmegaConf.to_yaml(config)
    named = [word.split("=")[0].split(".") for word in overrides]
    missing = [
        key[1] for key in named if key[0] == "stages" and len(key) > 1 and key[1] not in (config.get("stages") or {})
    ]
    raise_all([f"--stages.{name}: no such stage{did_you_mean(name, config.get('stages') or {})}" for name in missing])
    try:
        config = lay_over(config, OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"cannot read {' '.join(overrides)}: {error}") from error
    # A key that only a value refers to which an override replaced is one of the file's all the same.
    written += OmegaConf.to_yaml(config) if overrides else ""
    raise_all(
        [f"unknown key {str(key)!r}{did_you_mean(str(key), TOP)}" for key in config if not _is_top(str(key), written)]
    )
    if not config.get("stages"):
        raise UserError(
            f"there are no stages in {', '.join(files)}; expected `stages:` with a name and `run:` for each"
        )
    if not config.get("out"):
        raise UserError(f"there is no `out:` in {', '.join(files)}; it is the folder of the run")
    out, jobs = Path(str(config.out)), config.get("jobs", 1)
    if not isinstance(jobs, int) or jobs < 1:
        raise UserError(f"jobs is {jobs!r}, expected how many stages may run at a time: 1 or more")
    wandb = config.get("wandb") or None  # `off` is false in YAML
    if wandb not in (None, "offline", "online"):
        raise UserError(f"wandb is {wandb!r}; expected offline, online, or null to log nothing to Weights & Biases")
    stages, errors = _resolve_stages(config, out, [place for file in files for place in Path(file).resolve().parents])
    for stage in stages.values():
        stage.wandb = wandb
        _add_needs(stage, stages)
    errors += [error for stage in stages.values() for error in _check(stage, stages, set(verbs))]
    if not errors:
        errors += [error for stage in stages.values() for error in _load_cell(stage, set(verbs), (*above, *read))]
    raise_all(errors)
    return Pipeline(out, jobs, {stage.name: stage for stage in sort_stages(stages)})


def commands_of(stages: Iterable[StageSpec]) -> list[list[str]]:
    """The commands of some stages, those inside cells too; of those that differ in numbers alone only the first.

    They are what is checked before anything runs: the cells of a study are many, and much alike.
    """
    found: dict[tuple[str, ...], list[str]] = {}
    for stage in stages:
        commands = [stage.argv] if stage.inner is None else commands_of(stage.inner.stages.values())
        for argv in commands:
            found.setdefault(tuple(word if word in stage.config else re.sub(r"\d+", "0", word) for word in argv), argv)
    return list(found.values())


def words_of(value: Any) -> list[str]:
    """Every string in nested lists and dicts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [word for part in value.values() for word in words_of(part)]
    return [word for part in value for word in words_of(part)] if isinstance(value, (list, tuple)) else []


def _named(stage: StageSpec) -> list[str]:
    """What may be files or folders: values and keys of `args`, parts of these words, and what config files name.

    A cell's own stages tell of what its files name.
    """
    return named_in(stage.args) + ([] if stage.is_cell else named_in_files(stage.config))


def _add_needs(stage: StageSpec, stages: Mapping[str, StageSpec]) -> None:
    """A stage needs each other one in whose folder something lies that it names, said or not."""
    folders = {Path(os.path.abspath(other.folder)): other.name for other in stages.values() if other is not stage}
    for word in _named(stage):
        # Nobody names what lies in a folder by a word without a slash.
        path = Path(os.path.abspath(word)) if "/" in word and "\0" not in word else Path("/")
        need = next((folders[place] for place in (path, *path.parents) if place in folders), None)
        if need is not None and need not in stage.needs:
            stage.needs.append(need)


def sort_stages(stages: Mapping[str, StageSpec]) -> list[StageSpec]:
    """Returns the stages with each after those it needs, else in the order given; a UserError names a cycle."""
    done: dict[str, StageSpec] = {}
    path: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        if name in path:
            raise UserError(f"stages need each other in a circle: {' -> '.join([*path[path.index(name) :], name])}")
        path.append(name)
        for need in stages[name].needs:
            visit(need)
        path.pop()
        done[name] = stages[name]

    for name in stages:
        visit(name)
    return list(done.values())


def flatten(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields `(dotted key, value)`; a dict without entries is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def as_word(value: Any) -> str:
    """A value as a command-line word that reads back as the same value."""
    return value if isinstance(value, str) else json.dumps(value)


def _read(file: Path, above: tuple[Path, ...]) -> Any:
    if not file.is_file():
        raise UserError(f"there is no pipeline file {file} (looked in {Path.cwd()})")
    if file.resolve() in above:
        raise UserError(f"{file} is its own base")
    if (content := read_yaml(file)) is not None and not isinstance(content, dict):
        raise UserError(f"{file} holds a {type(content).__name__}, expected `out:`, `seed:`, `jobs:` and `stages:`")
    try:
        config: Any = OmegaConf.load(file)
    except Exception as error:  # YAML's errors and OmegaConf's have no common base
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    try:
        base = config.pop("base", None)
    except OmegaConfBaseException as error:
        raise UserError(f"{file}: base: {' '.join(str(error).split())}") from error
    if base is None:
        return config
    if not isinstance(base, str) or "\0" in base:
        raise UserError(f"{file}: base is {base!r:.80}, expected the path of a file")
    return _merge(_read(file.parent / base, (*above, file.resolve())), config, str(file))


def _merge(below: Any, above: Any, what: str) -> Any:
    """One configuration over another."""
    try:
        return lay_over(below, above)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(f"{what} does not fit what it is laid over: {' '.join(str(error).split())}") from error


def _is_top(key: str, written: str) -> bool:
    """Keys of our own, and those that some value of the YAML `written` refers to with `${key}`."""
    return key in TOP or bool(re.search(r"\$\{" + re.escape(key) + r"[}.]", written))


def _resolve_stages(config: Any, out: Path, places: Sequence[Path]) -> tuple[dict[str, StageSpec], list[str]]:
    """Resolves `${...}` stage by stage, so that a `${stage:NAME}` is known to be a dependency of that stage."""
    used: list[str] = []

    def folder_of(name: str) -> str:
        used.append(name)
        return str(out / name)

    OmegaConf.register_resolver("stage", folder_of, replace=True)
    stages: dict[str, StageSpec] = {}
    errors: list[str] = []
    for name in map(str, config.stages):
        used.clear()
        try:
            content = OmegaConf.to_container(config.stages[name], resolve=True) or {}
        except (OmegaConfBaseException, ValueError) as error:
            errors.append(f"stage {name}: {' '.join(str(error).split())}")
            continue
        if not isinstance(content, dict):
            errors.append(f"stage {name} holds {content!r}, expected `run:` and other keys")
            continue
        errors += [
            f"stage {name}: unknown key {str(key)!r}{did_you_mean(str(key), KEYS)}"
            for key in content
            if key not in KEYS
        ]
        if wrong := list(_misshapen(name, content)):
            errors += wrong
            continue
        run = content.get("run") or ""
        needs = list(dict.fromkeys([*_words(content.get("needs")), *used]))
        files = [_find(file, places) for file in _words(content.get("config"))]
        words = run.split() if isinstance(run, str) else [str(word) for word in run]
        stages[name] = StageSpec(
            name, words, out / name, needs, files, content.get("args") or {}, content.get("threads")
        )
    return stages, errors


def _misshapen(name: str, content: Mapping[Any, Any]) -> Iterator[str]:
    """What a stage's keys hold and cannot hold."""
    for key in ("run", "needs", "config"):
        value = content.get(key)
        words = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(word, str) and "\0" not in word for word in words):
            yield f"stage {name}: {key} is {value!r:.80}, expected a word or a list of words"
    args = content.get("args")
    if args is not None and not (isinstance(args, dict) and all(isinstance(key, str) for key in args)):
        yield f"stage {name}: args is {args!r:.80}, expected `option: value` lines"


def _check(stage: StageSpec, stages: Mapping[str, StageSpec], verbs: set[str]) -> Iterator[str]:
    if not re.fullmatch(r"[\w-]+", stage.name):
        yield f"stage {stage.name!r}: a name is letters, digits, _ and -, for it is a folder"
    if not stage.run:
        yield f"stage {stage.name} has no `run:`, expected a verb of lit-align: {', '.join(sorted(verbs))}"
    elif stage.run[0] not in verbs:
        yield f"stage {stage.name}: there is no verb {stage.run[0]!r} to run{did_you_mean(stage.run[0], verbs)}"
    for need in stage.needs:
        if need not in stages:
            yield f"stage {stage.name} needs {need!r}, which is no stage{did_you_mean(need, stages)}"
    for file in stage.config:
        if not Path(file).is_file():
            yield f"stage {stage.name}: there is no config file {file} (looked in {Path.cwd()})"
    if "out" in stage.args:
        yield f"stage {stage.name}: its folder is {stage.folder}, `args.out` cannot be given"
    if stage.threads is not None and (not isinstance(stage.threads, int) or stage.threads < 1):
        yield f"stage {stage.name}: threads is {stage.threads!r}, expected 1 or more"
    if stage.is_cell and not stage.config:
        yield f"stage {stage.name}: `run: pipeline` has no `config:`, expected the file of that pipeline"
    if stage.run[:1] == ["pipeline"] and (len(stage.run) > 1 or "only" in stage.args or "dry_run" in stage.args):
        yield f"stage {stage.name}: a cell is the whole of a pipeline, expected `run: pipeline`, and values in `args`"


def _load_cell(stage: StageSpec, verbs: set[str], above: tuple[Path, ...]) -> Iterator[str]:
    """Reads the pipeline that a stage runs, if it runs one."""
    if not stage.is_cell:
        return
    words = [f"{key}={as_word(value)}" for key, value in flatten(stage.args)]
    try:
        logs = [] if stage.wandb is None else [f"wandb={stage.wandb}"]
        stage.inner = load_pipeline(stage.config, [f"out={stage.folder}", *logs, *words], verbs, above)
    except UserError as error:
        yield f"stage {stage.name}: {error}"


def _find(file: str, places: Sequence[Path]) -> str:
    """The file as it is, or as it is found from the pipeline's own folder or one above it."""
    found = [place / file for place in places if (place / file).is_file()]
    return file if Path(file).is_file() or not found else str(found[0])


def _words(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(each) for each in value]
