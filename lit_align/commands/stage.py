"""A verb that trains: a LightningCLI with a fixed module and data module, and a run folder that it leaves."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_align import slurm
from lit_align.commands.arguments import PARSER_MODE, OneLineErrors, check_config_files, known_keys
from lit_align.commands.dry_run import DryRun, DryRunDone
from lit_align.commands.fit import fit
from lit_align.commands.hub_names import DATA, pin_names
from lit_align.commands.loggers import loggers_of
from lit_align.commands.run_folder import RunFolder
from lit_align.commands.signals import Signals, handlers_put_back
from lit_align.commands.wandb_story import LastPlay
from lit_align.errors import UserError, did_you_mean, raise_all
from lit_align.hub import fetch
from lit_align.models.folder import read_config
from lit_align.rollout.judge import NO_REFERENCE
from lit_align.rollout.rewards import check_source
from lit_align.stages.base import Stage
from lit_align.stages.checkpoints import AtomicCheckpointIO, RunState, last_checkpoint
from lit_align.stages.filming import Videos, filming
from lit_align.stages.launched import check_number, slurm_environment
from lit_align.stages.preemption import Preemption

CLASSES = {
    "pretrain": ("lit_align.stages.pretrain:Pretrain", "lit_align.data.modules:TrajectoryDataModule"),
    "finetune": ("lit_align.stages.finetune:Finetune", "lit_align.data.modules:TrajectoryDataModule"),
    "reward": ("lit_align.stages.reward:Reward", "lit_align.data.modules:PreferenceDataModule"),
    "prefer": ("lit_align.stages.prefer:Prefer", "lit_align.data.policy_pairs:PolicyPairsDataModule"),
    "align": ("lit_align.stages.align:Align", "lit_align.rollout.buffer:RolloutDataModule"),
}
CALLBACKS = {"align": "lit_align.rollout.callback:RolloutCallback"}
ACTIONS = ("fit", "validate", "test")
MODEL_FOLDERS = ("init_from", "model.reference")
DATA_FOLDERS = (*DATA, "data.scores")
NOT_KEPT = ("config", "resume", "dry_run", "overwrite")
"""Options that say how this one start goes, not what is trained."""
RANK_VARIABLES = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What Lightning's launcher sets in a run of several processes."""


class StageParser(OneLineErrors, LightningArgumentParser):
    """Lightning's parser with one-line errors."""


class StageCLI(LightningCLI):
    """The command line of one stage.

    Args:
        verb: which stage.
        action: `fit`, `validate` or `test`.
        argv: its arguments.
        classes: import paths of the module and of the data module, `package.module:Class`.
        parse_only: stop after parsing.
    """

    def __init__(
        self, verb: str, action: str, argv: list[str], classes: tuple[str, str], parse_only: bool = False
    ) -> None:
        self.verb, self.action, self.parse_only = verb, action, parse_only
        self.run_state, self.signals = RunState(), Signals()
        module, data = (_load(path) for path in classes)
        defaults = {"use_distributed_sampler": False, "num_sanity_val_steps": 0, "log_every_n_steps": 20}
        defaults |= {"enable_progress_bar": sys.stdout.isatty(), "enable_model_summary": False}
        super().__init__(
            module,
            data,
            run=False,
            args=argv,
            save_config_callback=None,
            trainer_defaults=defaults,
            parser_class=StageParser,
            parser_kwargs={
                "parser_mode": PARSER_MODE,
                "prog": f"lit-align {verb} fit|validate|test",
                "description": (module.__doc__ or "").split("\n")[0],
                "allow_abbrev": False,  # a key that is cut short is a typing error
            },
            auto_configure_optimizers=False,
        )

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Our `--seed` stands in for `--seed_everything`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds what is the same for every stage."""
        add = parser.add_argument
        add("--out", type=str, default=f"outputs/{self.verb}", help="run folder")
        add("--seed", type=int, default=0, help="seeds every generator, and the data")
        add("--resume", type=str | None, default=None, help="`last`, `auto` (last if there is one) or a checkpoint")
        add("--overwrite", type=bool, default=False, help="start again in a folder that holds a run")
        add("--dry_run", type=bool, nargs="?", const=True, default=False, help="show what would run, then stop")
        add("--checkpoint_every", type=int | None, default=None, help="optimizer steps; always at an epoch's end")
        add("--wandb", type=Literal["offline", "online"] | None, default=None, help="log to Weights & Biases too")
        add("--tensorboard", type=bool, default=False, help="log to TensorBoard too, in the run folder's tensorboard/")
        add(
            "--wandb_data",
            type=bool,
            default=False,
            help="tell W&B which folders of data it used, not what is in them",
        )
        if self.verb in CALLBACKS:
            parser.add_class_arguments(Videos, "videos")
        known = known_keys(parser)
        add("--init_from", type=str | None, default=None, help="folder of the agent to start from")
        add("--random_init", type=bool, default=False, help="take its architecture only")
        for source, target in (
            ("init_from", "model.init_from"),
            ("random_init", "model.random_init"),
            ("seed", "data.seed"),
        ):
            if target in known:
                parser.link_arguments(source, target)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Names every unknown key of the config files before the parser stops at the first."""
        check_config_files(parser, args)
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        if not self.parse_only:
            seed_everything(self.config.seed, workers=True, verbose=False)

    def instantiate_classes(self) -> None:
        """Checks the folders, then builds the data module, the module and the Trainer."""
        if self.parse_only:
            return
        self.folder = RunFolder(self.config.out)
        self.checkpoint = self.run_state.checkpoint = self._check()
        pin_names(self.config, self.folder.path if self.checkpoint else None)
        with _values_as_user_errors():
            super().instantiate_classes()
            if isinstance(self.model, Stage):
                self.model.check_data(self.datamodule)

    def _check(self) -> Path | None:
        """Returns the checkpoint to go on from; raises one UserError with all that is amiss with the folders."""
        config, errors, checkpoint = self.config, missing_folders(self.config), None
        if self.verb == "align" and config.checkpoint_every:
            errors.append(
                f"checkpoint_every is {config.checkpoint_every}; align always saves at the end of an iteration, and "
                "only then, since a checkpoint holds no rollouts: leave it out"
            )
        resume = config.resume
        if self.action == "fit" and slurm.restarts() and (not resume or self._has_begun()):
            resume = "auto"  # the same job again: to go on is what it was requeued for
        trained, first = self.folder.has_checkpoint, rank_zero_only.rank == 0
        if self.action != "fit" and not resume and (trained or not config.init_from):
            resume = "last"  # a run's own weights are what is meant; `init_from` says where they came from
        try:
            checkpoint = self.folder.checkpoint(resume, read=first)
            if self.folder.warning and first:
                sys.stderr.write(f"warning: {self.folder.warning}\n")
            if self.action == "fit" and not config.dry_run and first:
                if not (resume or config.overwrite):
                    self.folder.check_free()
                self.folder.check_not_running()
                self.folder.check_writable()
        except UserError as error:
            errors.append(str(error))
        raise_all(errors)
        return checkpoint

    def _has_begun(self) -> bool:
        """Whether this Slurm job has saved a checkpoint here before it was requeued."""
        before = (self.folder.read_run().get("process") or {}).get("slurm") or {}
        return before.get("job") == slurm.job_id() and self.folder.has_checkpoint

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The Trainer with this run's loggers, checkpoints and callbacks beside those of the config."""
        config = {**self.config_init["trainer"], **kwargs}
        callbacks = config.get("callbacks") or []
        callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        self.preemption = next((each for each in callbacks if isinstance(each, Preemption)), None) or Preemption()
        # Before what plays or saves at an epoch's border.
        config["callbacks"] = [self.run_state, self.preemption, *(c for c in callbacks if c is not self.preemption)]
        if self.verb in CALLBACKS and not any(isinstance(each, _load(CALLBACKS[self.verb])) for each in callbacks):
            config["callbacks"].append(_load(CALLBACKS[self.verb])())
        if self.verb in CALLBACKS and self.action == "fit" and not self.config.dry_run:
            config["callbacks"] += [*filming(self.folder.path, self.config_init.videos, bool(self.config.wandb))]
            config["callbacks"] += [LastPlay()] if self.config.wandb else []
        config |= validation_at_the_end(config)
        plugins = config.get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        config["plugins"] = [*plugins, AtomicCheckpointIO(), *slurm_environment(plugins)]
        if self.config.dry_run:
            config["callbacks"].append(DryRun())
            config |= {"logger": False, "enable_checkpointing": False}
        else:
            if config.get("enable_checkpointing") is not False:
                config["callbacks"] += last_checkpoint(self.folder.checkpoints, self.config.checkpoint_every)
            if config.get("logger") in (None, True):
                loggers = loggers_of(self.config, self.folder, self.checkpoint, self.run_state)
                # `metrics.csv`, the first, is of the training; what is measured later is in `validate.yaml`.
                config["logger"] = loggers if self.action == "fit" else loggers[1:] or False
            config["default_root_dir"] = str(self.folder.path)
        trainer = Trainer(**config)
        check_number(trainer, plugins)
        return trainer

    def resolved(self) -> str:
        """The configuration as YAML, interpolations resolved; `--config` takes it again."""
        content = yaml.safe_load(self.parser.dump(self.config, skip_none=False, format="yaml"))
        return yaml.safe_dump({key: value for key, value in content.items() if key not in NOT_KEPT}, sort_keys=False)


def check_stage(verb: str, argv: list[str]) -> None:
    """Raises a UserError if `argv` does not parse; reads no data."""
    StageCLI(verb, *_action_of(verb, argv), CLASSES[verb], parse_only=True)


def run_stage(verb: str, argv: list[str], classes: tuple[str, str] | None = None) -> None:
    """Runs `lit-align VERB ARGV`; may be called again and again in one process.

    Args:
        verb: the stage.
        argv: `fit`, `validate` or `test`, then options.
        classes: other import paths than those of the verb, for tests.

    Raises:
        UserError: if the configuration cannot run; nothing was written then.
        KeyboardInterrupt: after Ctrl-C; Lightning has shut down by then.
        Terminated: after SIGTERM, likewise.
        Preempted: after a signal to make room, when it is saved where to go on.
    """
    action, rest = _action_of(verb, argv)
    with handlers_put_back(), _own_argv([verb, *argv]):
        cli = StageCLI(verb, action, rest, classes or CLASSES[verb])
        if cli.config.dry_run:
            _dry_run(cli)
        elif action == "fit":
            fit(cli, lambda: _train(cli))
        else:
            _measure(cli)


def validation_at_the_end(trainer: dict[str, Any]) -> dict[str, int]:
    """A later `val_check_interval` than the end of a run, which was made shorter than its file meant, is its end."""
    every, steps = trainer.get("val_check_interval"), trainer.get("max_steps") or -1
    batches = steps * (trainer.get("accumulate_grad_batches") or 1)
    by_batches = isinstance(every, int) and trainer.get("check_val_every_n_epoch", 1) is None
    return {"val_check_interval": batches} if by_batches and 0 < batches < every else {}


def missing_folders(config: Any) -> list[str]:
    """Returns one message for each folder that the configuration names and that is not there."""
    errors = []
    for key in MODEL_FOLDERS:
        folder = config.get(key)
        if folder and not (key == "model.reference" and folder == NO_REFERENCE):
            try:
                read_config(folder)
            except ValueError as error:
                errors.append(f"{key}: {error}")
    sources = {"model.reward_model": [config.get("model.reward_model")], "model.rewards": config.get("model.rewards")}
    for key, named in sources.items():
        for source in filter(None, named or ()):
            try:
                check_source(source, key)
            except UserError as error:
                errors.append(str(error))
    for key in DATA_FOLDERS:
        value = config.get(key) or []
        for folder in [value] if isinstance(value, str) else value:
            try:
                if not fetch(folder, "dataset").is_dir():
                    errors.append(f"{key}: there is no folder '{folder}' (looked in {Path.cwd()})")
            except UserError as error:
                errors.append(f"{key}: {error}")
    return errors


def _train(cli: StageCLI) -> None:
    with _values_as_user_errors(until=cli.run_state):
        _trainer_call(cli)


def _measure(cli: StageCLI) -> None:
    with _values_as_user_errors():
        results = _trainer_call(cli)
    if rank_zero_only.rank == 0:
        cli.folder.write(
            f"{cli.action}.yaml", yaml.safe_dump([dict(result) for result in results or []], sort_keys=False)
        )


def _dry_run(cli: StageCLI) -> None:
    if rank_zero_only.rank == 0:
        sys.stdout.write(f"# lit-align {cli.verb} {cli.action}, resolved configuration\n{cli.resolved()}\n")
        sys.stdout.flush()
    cli.action = "fit"  # the summary is taken where training would begin
    try:
        with _values_as_user_errors():
            _trainer_call(cli)
    except DryRunDone as done:
        if rank_zero_only.rank == 0:
            sys.stdout.write(done.text())


def _trainer_call(cli: StageCLI) -> Any:
    path = None if cli.checkpoint is None else str(cli.checkpoint)
    try:
        return getattr(cli.trainer, cli.action)(cli.model, datamodule=cli.datamodule, ckpt_path=path, weights_only=True)
    except RuntimeError as error:
        if path is None or cli.run_state.training or "loading state_dict" not in str(error):
            raise
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint {path} is of another network ({told} ...); expected the settings that it was "
            f"trained with, which are in {cli.folder.path / 'config.yaml'}: --config takes that file"
        ) from error
    except SystemExit as end:
        if cli.trainer.interrupted:  # Lightning turns Ctrl-C into exit code 1
            raise KeyboardInterrupt from end
        raise


def _action_of(verb: str, argv: list[str]) -> tuple[str, list[str]]:
    action = argv[0] if argv else ""
    if action in ACTIONS:
        return action, argv[1:]
    if action in ("-h", "--help") or action.startswith("--print_config"):
        return "fit", argv
    found = f"found {action!r}{did_you_mean(action, ACTIONS)}" if action else "found nothing"
    raise UserError(f"`lit-align {verb}` is followed by fit, validate or test, {found}")


class _NoAdverts(logging.Filter):
    """Lightning's tips and its list of accelerators that are not there."""

    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not (text.startswith(("💡", "GPU available: False", "TPU available: False")))


logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_NoAdverts())


def _load(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


@contextmanager
def _values_as_user_errors(until: RunState | None = None) -> Iterator[None]:
    """A ValueError before the first step is about the configuration or the data: its message is enough."""
    try:
        yield
    except ValueError as error:
        if until is not None and until.training:
            raise
        raise UserError(str(error)) from error


@contextmanager
def _own_argv(argv: list[str]) -> Iterator[None]:
    """Lightning starts other ranks with `sys.argv`, and leaves variables that tell the next run it is such a rank."""
    before, sys.argv = sys.argv, [sys.argv[0], *argv]
    variables = {name: os.environ.get(name) for name in RANK_VARIABLES}
    try:
        yield
    finally:
        sys.argv = before
        for name, value in variables.items():
            os.environ.pop(name, None)
            os.environ |= {} if value is None else {name: value}
