"""Who started a run's processes (Lightning, Slurm's `srun`, torchrun), and whether as many as the Trainer expects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import (  # type: ignore[attr-defined]
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from lit_align.errors import UserError


def slurm_environment(plugins: Sequence[Any]) -> list[ClusterEnvironment]:
    """The plugin for a job's processes, without Lightning's own requeue: its handler saves wherever it finds the run.

    Args:
        plugins: those of the configuration, one of which may be a cluster environment already.
    """
    if any(isinstance(each, ClusterEnvironment) for each in plugins):
        return []
    # torchrun may have been started in a job; it alone knows of its processes, whose number Slurm was not told.
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    try:
        return [SLURMEnvironment(auto_requeue=False)]
    except RuntimeError as error:  # tasks without `--ntasks-per-node`; what is said says so
        raise UserError(str(error)) from error


def check_number(trainer: Trainer, plugins: Sequence[Any]) -> None:
    """Compares the processes that there are with those that the Trainer counts on.

    Lightning does so only where it starts them itself. Too many would each train alone and write over the same
    folder; too few would wait for the rest.

    Args:
        trainer: of this process.
        plugins: of the configuration; a cluster environment among them knows by itself.

    Raises:
        UserError: if they differ.
    """
    if any(isinstance(each, ClusterEnvironment) for each in plugins):
        return
    expected = trainer.num_devices * trainer.num_nodes
    if TorchElasticEnvironment.detect():
        started, who = int(os.environ["WORLD_SIZE"]), "torchrun started"
    elif not SLURMEnvironment.detect():
        return
    elif "SLURM_STEP_NUM_TASKS" in os.environ:
        started, who = int(os.environ["SLURM_STEP_NUM_TASKS"]), "srun started"
    else:
        started, who = 1, "this Slurm job was started without srun, which makes"
    if started == expected:
        return
    mend = (
        f"start {trainer.num_devices} on each of {trainer.num_nodes} nodes (`srun --ntasks-per-node`, `torchrun "
        "--nproc-per-node`), or say what was started: --trainer.devices (processes of a node) and --trainer.num_nodes"
    )
    raise UserError(
        f"{who} {started} process{'es' * (started != 1)}; expected {expected}: --trainer.devices is "
        f"{trainer.num_devices} and --trainer.num_nodes is {trainer.num_nodes}; {mend}"
    )
