"""FSDP2 as a strategy of the Trainer, on all its devices, with checkpoints that a kill cannot harm."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.optim import Optimizer

from lit_align.errors import UserError
from lit_align.rollout.together import exchanged
from lit_align.stages.sharding import like, reshard, spread, whole
from lit_align.stages.shards import (
    is_shards,
    reach_disk,
    read_facts,
    read_into,
    weight_names,
    write_checksums,
    write_facts,
)
from lit_align.stages.torn import LAST, checksums, keep_before, remove

TIMEOUT = timedelta(minutes=30)
HERE = "lit_align.stages.fsdp.FullySharded"


class FullySharded(ModelParallelStrategy):
    """Weights, gradients and optimizer state shared out over all processes; gloo on CPUs, NCCL on GPUs.

    Either kind of checkpoint can be gone on from with another number of processes. A single file is what other
    strategies write and read too.

    Args:
        sharded_checkpoints: Each process writes its own part, and a checkpoint is a folder. False: process 0 gathers
            all of it in its memory and writes a single file.
        process_group_backend: `gloo` or `nccl`; None takes the one of the device.
        timeout: How long a process waits for the others before it gives up.
    """

    def __init__(
        self,
        sharded_checkpoints: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = TIMEOUT,
    ) -> None:
        super().__init__(
            save_distributed_checkpoint=sharded_checkpoints,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.sharded_checkpoints = sharded_checkpoints

    def setup_environment(self) -> None:
        """Takes all processes for one mesh; Lightning's default would split matrices inside a machine."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state: by parameters' names, sharded; or, for a single file, whole and as torch numbers it.

        The latter on process 0 alone.
        """
        plain: Any = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        if self.sharded_checkpoints:
            return super().optimizer_state(plain)
        state = plain.state_dict()
        found: dict[Any, dict[str, Any]] = {}
        for key, values in state["state"].items():
            made = {name: whole(v).cpu() if isinstance(v, Tensor) else v for name, v in values.items()}
            if self.is_global_zero:
                found[key] = made
        return {**state, "state": found} if self.is_global_zero else {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes beside the target, reaches the disk, renames; of `last.ckpt` the one before is kept too."""
        path = Path(self.broadcast(filepath))
        if not self.sharded_checkpoints:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path)
            return
        aside = path.with_name(f".{path.name}.shards.tmp")  # the same name on every process
        if self.is_global_zero:
            remove(aside)
            aside.mkdir(parents=True)
        self.barrier()
        state = {"state_dict": checkpoint.pop("state_dict")}
        state |= {f"optimizer_{i}": each for i, each in enumerate(checkpoint.pop("optimizer_states", []))}
        save_shards(state, checkpoint_id=aside)
        known = self._checksums(aside)
        if self.is_global_zero:
            write_facts(checkpoint, aside)
            write_checksums(aside, known)
            keep_before(path) if path.name == LAST else remove(path)
            os.replace(aside, path)
            reach_disk(path.parent)
        self.barrier()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Takes up weights and optimizer state; returns the rest. Tensors and plain types only, whatever is asked."""
        path = Path(self.broadcast(checkpoint_path))
        module = self.lightning_module
        assert self.model is not None
        assert module is not None
        reshard(module)
        if not is_shards(path):
            content = self.checkpoint_io.load_checkpoint(path)
            self._check(content, set(content["state_dict"]))
            spread(self.model, content.pop("state_dict"))
            for optimizer, state in zip(self.optimizers, content.pop("optimizer_states"), strict=False):
                _spread_optimizer(optimizer, state)
            return content
        content = read_facts(path)
        self._check(content, weight_names(path))
        state = {"state_dict": get_model_state_dict(self.model)}
        read_into(state, path)
        self.model.load_state_dict(state["state_dict"])
        for i, optimizer in enumerate(self.optimizers):
            one: dict[str, Any] = {f"optimizer_{i}": get_optimizer_state_dict(self.model, optimizer)}
            read_into(one, path)
            options = StateDictOptions(cpu_offload=True)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=one[f"optimizer_{i}"], options=options)
        return content

    def _checksums(self, folder: Path) -> dict[str, list[int]]:
        """Of all shards; each process reads those that it wrote."""
        mine = checksums(folder, [path.name for path in folder.glob(f"__{self.global_rank}_*")])
        assert self.lightning_module is not None
        found = exchanged(self.lightning_module.trainer, mine)
        return {name: value for each in found for name, value in each.items()}

    def _check(self, content: dict[str, Any], names: set[str]) -> None:
        check = getattr(self.lightning_module, "check_checkpoint", None)
        if check is not None:
            check(content, names)


def _spread_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Gives an optimizer of sharded parameters a whole state, numbered as torch does; called by every process."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    made: dict[Any, dict[str, Any]] = {}
    if len(parameters) == len(numbers):  # else the optimizer itself says what does not fit
        for parameter, number in zip(parameters, numbers, strict=True):
            made[number] = {
                name: like(parameter, value) if isinstance(value, Tensor) and value.shape == parameter.shape else value
                for name, value in state["state"].get(number, {}).items()
            }
    optimizer.load_state_dict({**state, "state": made})


def check_strategy(strategy: Any) -> None:
    """Raises a UserError for a strategy that stages cannot run on; called before anything is read."""
    lightnings = isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FullySharded)
    if lightnings or isinstance(strategy, FSDPStrategy):
        raise UserError(
            f"trainer.strategy is {type(strategy).__name__}; expected auto, ddp or {HERE}, which shards the weights of "
            "every stage: --config configs/trainer/fsdp.yaml sets it"
        )


def is_sharded(trainer: pl.Trainer) -> bool:
    """Whether the Trainer's strategy shards weights."""
    return isinstance(trainer.strategy, FullySharded)
