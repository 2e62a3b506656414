"""Optimiser, learning-rate schedule and average of the weights, the same for every stage."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lit_align.errors import UserError, raise_all
from lit_align.models.transformer import Layer
from lit_align.stages.muon import MuonAdamW

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")
"""Where torch runs AdamW as one kernel."""


@dataclass
class OptimizerConfig:
    """AdamW, or Muon with AdamW, linear warm-up, then a schedule.

    Attributes:
        lr: Peak learning rate.
        weight_decay: On parameters of two dimensions or more that are named `weight`: those of linear layers and
            convolutions, not those of embeddings. Biases, norms, adapters and the tables of autoregressive heads have
            none.
        beta1: Decay of AdamW's first moment.
        beta2: Decay of AdamW's second moment.
        warmup_steps: Optimizer steps of linear warm-up.
        schedule: After the warm-up: `constant`, `linear` to zero, `cosine` to a tenth of the peak, or `wsd`: the peak,
            then linear to zero over the end of the run (warm-up, stable, decay: Hu et al. 2024, arXiv 2404.06395,
            whose decay is exponential).
        decay_fraction: Part of the run over which `wsd` decays; it never reaches into the warm-up.
        name: `adamw`, or `muon` for the weight matrices of the transformer's layers, with AdamW for the rest: the
            encoder and its projection, the heads, norms and biases.
        fused: Run AdamW as one kernel. None: where torch can on the parameters' device, except with a gradient scaler
            (precision `16-mixed`) and gradient clipping, which Lightning refuses.
        ema: Decay, for each optimizer step, of an exponential moving average of the weights; it is what validates and
            what the stage leaves. None for no average. Not for align.
    """

    lr: float = 1e-3
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    warmup_steps: int = 50
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    decay_fraction: float = 0.2
    name: Literal["adamw", "muon"] = "adamw"
    fused: bool | None = None
    ema: float | None = None

    def check(self) -> None:
        """Raises UserError with every field that does not fit, each with what is expected."""
        errors = []
        if not (self.lr > 0 and self.weight_decay >= 0 and self.warmup_steps >= 0):
            errors.append(
                f"optimizer.lr is {self.lr}, weight_decay {self.weight_decay} and warmup_steps {self.warmup_steps}; "
                "expected more than 0, and 0 or more of the others"
            )
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            errors.append(f"optimizer.beta1 is {self.beta1} and beta2 {self.beta2}; expected 0 or more and below 1")
        if not 0 < self.decay_fraction <= 1:
            errors.append(f"optimizer.decay_fraction is {self.decay_fraction}; expected more than 0 and at most 1")
        if self.ema is not None and not 0 < self.ema < 1:
            errors.append(f"optimizer.ema is {self.ema}; expected between 0 and 1, such as 0.999, or null for none")
        raise_all(errors)

    def scale(self, step: int, total: float) -> float:
        """The learning rate at an optimizer step, over the peak.

        Args:
            step: Optimizer steps taken before this one.
            total: Optimizer steps in the whole run; infinite when unknown, and then nothing decays.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.schedule == "constant" or not math.isfinite(total):
            return 1.0
        after = total - self.warmup_steps
        length = min(self.decay_fraction * total, after) if self.schedule == "wsd" else after
        done = min(1.0, max(0.0, 1.0 - (total - step) / max(1.0, length)))
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1.0 - done

    def build(self, module: nn.Module, total: float, scaler: bool = False, clips: bool = False) -> dict[str, Any]:
        """What `LightningModule.configure_optimizers` returns, for the parameters of `module` that train.

        Args:
            module: Whose parameters.
            total: Optimizer steps in the whole run; infinite when unknown.
            scaler: Whether the Trainer scales the loss for float16.
            clips: Whether the Trainer clips gradients.

        Raises:
            UserError: The optimiser cannot run here.
        """
        optimizer = self._optimizer(module, scaler, clips)
        optimizer.register_load_state_dict_pre_hook(_fit_state)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.scale(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer(self, module: nn.Module, scaler: bool, clips: bool) -> torch.optim.Optimizer:
        decayed = _weights(module)
        layers = [m for m in module.modules() if isinstance(m, Layer)] if self.name == "muon" else []
        inner = {p for layer in layers for p in layer.parameters() if p.ndim == 2 and p in decayed}
        parameters = [p for p in module.parameters() if p.requires_grad]
        hidden = [p for p in parameters if p in inner]
        others = [p for p in parameters if p not in inner]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p in decayed], "weight_decay": self.weight_decay},
            {"params": [p for p in others if p not in decayed], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        betas, fused = (self.beta1, self.beta2), self._is_fused(others, scaler and clips)
        if self.name == "muon":
            return MuonAdamW(hidden, groups, self.lr, self.weight_decay, betas, fused)
        optimizer = torch.optim.AdamW(groups, self.lr, betas, fused=fused)
        if fused and not scaler:
            # With any mixed precision Lightning (issue 21435) clips no optimizer that says that it unscales gradients,
            # as fused ones do even where nothing was scaled.
            optimizer._step_supports_amp_scaling = False
        return optimizer

    def _is_fused(self, parameters: list[nn.Parameter], clips_scaled: bool) -> bool:
        able = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
        if self.fused is None:
            return able and not clips_scaled
        if self.fused and clips_scaled:
            raise UserError(
                "optimizer.fused is true with trainer.precision 16-mixed and gradient clipping; a fused AdamW unscales "
                "gradients in its own step, too late to clip them: leave it out, or use bf16-mixed"
            )
        if self.fused and not able:
            found = sorted({f"{p.dtype} on {p.device.type}".removeprefix("torch.") for p in parameters})
            raise UserError(
                f"optimizer.fused is true with parameters {', '.join(found)}; expected floating point on one of "
                f"{', '.join(FUSED_DEVICES)}: leave it out"
            )
        return self.fused


def _weights(module: nn.Module) -> set[nn.Parameter]:
    tables = {p for m in module.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    return {p for name, p in module.named_parameters() if p.ndim >= 2 and name.endswith("weight")} - tables


def _fit_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Refuses the state of another kind of optimizer; whether AdamW is fused is this run's choice.

    Where torch puts AdamW's `step`, on the device or not, follows from it. Moments get the layout in memory of their
    parameters, which a fused AdamW takes for granted; they had another one where weights were sharded.
    """
    loaded, own = state["param_groups"], optimizer.param_groups
    if [(len(g["params"]), "betas" in g) for g in loaded] != [(len(g["params"]), "betas" in g) for g in own]:
        raise UserError(
            f"the checkpoint's optimizer has other groups of parameters ({_shape(loaded)}; here {_shape(own)}): "
            "resume with the optimizer.name, and with the parts of the network that train, of the run"
        )
    kept = [{**g, "fused": mine["fused"]} if "fused" in mine else g for g, mine in zip(loaded, own, strict=True)]
    owners = [p for group in own for p in group["params"]]
    moments = {
        number: {name: _laid_out_as(owner, value) for name, value in state["state"][number].items()}
        for number, owner in zip([n for group in loaded for n in group["params"]], owners, strict=True)
        if number in state["state"]
    }
    return {**state, "state": {**state["state"], **moments}, "param_groups": kept}


def _laid_out_as(parameter: nn.Parameter, value: Any) -> Any:
    plain = isinstance(value, Tensor) and type(parameter) is nn.Parameter
    if not plain or value.shape != parameter.shape or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)


def _shape(groups: list[dict[str, Any]]) -> str:
    return ", ".join(f"{len(g['params'])} by {'AdamW' if 'betas' in g else 'Muon'}" for g in groups)


class MovingAverage(WeightAveraging):
    """An exponential moving average of the weights, for validation and for what the stage leaves.

    It starts as the weights after the first optimizer step; from then on, at every step,
    `average = decay * average + (1 - decay) * weights`. In a checkpoint `state_dict` is the average, and what training
    goes on from stands beside it.

    Args:
        decay: More than 0, less than 1.
    """

    def __init__(self, decay: float) -> None:
        # Lightning's default averages buffers too, and an index, such as the heads' `layout`, comes out rounded down.
        update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        super().__init__(use_buffers=False, multi_avg_fn=update)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the average.

        Raises:
            UserError: No process holds whole weights, or weights have too few bits for an average.
        """
        if stage == "fit":
            check_averages(trainer)
            self._device = trainer.strategy.root_device  # the module is moved there only after this hook
        with warnings.catch_warnings():
            # About sharded weights, which were refused.
            warnings.filterwarnings("ignore", "You're using the WeightAveraging callback")
            super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Takes up both sets of weights; outside of training the average, as `state_dict`, is all that is needed."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    @torch.no_grad()
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the average also when a run resumed at its end, where Lightning calls no `on_train_end`."""
        assert self._average_model is not None
        average: list[Tensor] = list(self._average_model.module.parameters())
        for current, mean in zip(pl_module.parameters(), average, strict=True):
            current.copy_(mean)


def check_averages(trainer: Trainer) -> None:
    """Raises UserError unless an average of the weights can be kept; called before processes meet."""
    errors = []
    if trainer.strategy.restore_checkpoint_after_setup:
        name = type(trainer.strategy).__name__
        errors.append(f"optimizer.ema with {name}, which shards the weights; the average needs them whole: use ddp")
    if str(trainer.precision) not in ("32-true", "64-true", "16-mixed", "bf16-mixed"):
        errors.append(
            f"optimizer.ema with trainer.precision {trainer.precision}, whose few bits lose the small steps of an "
            "average: use bf16-mixed or 32-true"
        )
    raise_all(errors)
