"""A stage in imitation: tensors with shapes and types but neither numbers nor memory, to read off what a step costs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric


class Imitation:
    """A copy of a stage whose tensors, on the device that it trains on, take no memory.

    Its `training_step` runs every operation of the real one, in no time whatever the size, and torch's own rules
    give the shapes. It logs nothing and changes nothing of the stage.

    Args:
        trainer: The stage's Trainer.
        stage: The stage; if it has no network yet, the copy builds its own and the stage stays without.

    Attributes:
        stage: The copy.
        held: Every tensor that it holds: weights, buffers, frozen networks.
        device: Where the stage trains.
    """

    def __init__(self, trainer: pl.Trainer, stage: pl.LightningModule) -> None:
        self.trainer = trainer
        self.device = trainer.strategy.root_device
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.held: list[Tensor] = []
        if next(stage.parameters(), None) is None:
            stage = self._built(stage)
        with _Copying(self):
            self.stage = copy.deepcopy(stage)
        self.stage.trainer = trainer
        _silence(self.stage)
        # As for a real optimizer, what depends on the data (how many steps there are) is found out beforehand.
        self._steps = trainer.estimated_stepping_batches

    def _built(self, stage: pl.LightningModule) -> pl.LightningModule:
        stage = copy.deepcopy(stage)
        stage.trainer = self.trainer
        plugin = self.trainer.precision_plugin
        with warnings.catch_warnings(), plugin.module_init_context(), torch.device("meta"), _StayOnMeta():
            warnings.filterwarnings("ignore", ".*copying from a non-meta parameter.*")
            stage.configure_model()
            return plugin.convert_module(stage)  # type: ignore[return-value]

    def like(self, tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
        """An imitation of a tensor; in another shape if one is given."""
        with self.mode:
            if shape is not None:
                return torch.empty(shape, dtype=tensor.dtype, device=self.device)
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=self.device)

    def batch(self, batch: Mapping[str, Any], rows: int | None = None, steps: int | None = None) -> dict[str, Any]:
        """An imitation of a batch.

        Args:
            batch: The real one. What has the first axes of its `frames` `(B, T, ...)` is made longer or shorter.
            rows: Sequences in place of B.
            steps: Frames of each in place of T.
        """
        was = tuple(batch["frames"].shape[:2]) if "frames" in batch else (None, None)

        def shape(tensor: Tensor) -> tuple[int, ...]:
            size = list(tensor.shape)
            for axis, wanted in ((0, rows), (1, steps)):
                if wanted is not None and tensor.ndim > axis and size[axis] == was[axis]:
                    size[axis] = wanted
            return tuple(size)

        made = {k: self.like(v, shape(v)) if isinstance(v, Tensor) else v for k, v in batch.items()}
        return dict(self.trainer.precision_plugin.convert_input(made))

    def optimizer(self) -> torch.optim.Optimizer:
        """The copy's own optimizer."""
        made: Any = self.stage.configure_optimizers()
        while not isinstance(made, torch.optim.Optimizer):
            made = made["optimizer"] if isinstance(made, dict) else made[0]
        for group in made.param_groups:
            # torch looks at a parameter's type to choose this way, and does not know imitations.
            if self.device.type == "cuda" and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True
        return made

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside, operations are imitated, compiled ones too."""
        with torch.compiler.set_stance("force_eager"), self.mode, _Answers():  # type: ignore[no-untyped-call]
            yield

    def loss(self, batch: dict[str, Any], index: int = 0) -> Tensor:
        """The copy's `training_step` in the Trainer's precision; only inside of `running`."""
        with self.trainer.precision_plugin.train_step_context():
            result: Any = self.stage.training_step(batch, index)
        loss = result["loss"] if isinstance(result, dict) else result
        assert isinstance(loss, Tensor)
        return loss

    @property
    def averages(self) -> bool:
        """Whether the run keeps a second set of weights, an average."""
        return any(isinstance(c, WeightAveraging) for c in self.trainer.callbacks)  # type: ignore[attr-defined]


class _Copying(TorchFunctionMode):
    """Turns every tensor that `copy.deepcopy` meets into an imitation."""

    def __init__(self, to: Imitation) -> None:
        super().__init__()
        self.to = to

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clone:  # how a parameter copies itself
            return self._copy(args[0])
        if func is Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._copy(tensor).requires_grad_(tensor.requires_grad)
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))

    def _copy(self, tensor: Tensor) -> Tensor:
        self.to.held.append(self.to.like(tensor))
        return self.to.held[-1]


class _StayOnMeta(TorchFunctionMode):
    """A network that is built without memory stays so when it is sent to a device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to and args[0].is_meta:
            args = tuple("meta" if isinstance(a, (str, torch.device)) else a for a in args)
            kwargs |= {"device": "meta"} if "device" in kwargs else {}
        return func(*args, **kwargs)


class _Answers(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers what only numbers could: no to a question, 1 to `item`. Both leave shapes as they are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return False if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        return func(*args, **(kwargs or {}))


def _silence(stage: pl.LightningModule) -> None:
    def nothing(*args: Any, **kwargs: Any) -> None:
        """Metrics ask for values, and a log is for real runs."""

    stage.log = stage.log_dict = nothing  # type: ignore[method-assign]
    stage.evenly = lambda mean, count: mean  # type: ignore[assignment]  # nothing is sent to other processes
    for module in stage.modules():
        if isinstance(module, Metric):
            module.update = module.compute = module.reset = module.forward = nothing  # type: ignore[method-assign]
