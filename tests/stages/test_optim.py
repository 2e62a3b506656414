"""The optimiser: schedules against closed forms, who decays, Muon beside AdamW, the moving average of the weights."""

import copy
import io
import math
import shutil
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.stages.base import channels_last
from lit_align.stages.optim import MovingAverage, OptimizerConfig
from tests.helpers import tiny_agent
from tests.stages.runs import align, assert_same_weights, inputs, pretrain, rows

WARM = ["--model.optimizer.warmup_steps=2"]


@pytest.fixture
def folder(tmp_path):
    return inputs(tmp_path)


@given(
    schedule=st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    warmup=st.integers(0, 30),
    after=st.integers(1, 300),
    fraction=st.floats(0.01, 1),
    step=st.integers(0, 400),
)
def test_schedules_are_their_closed_forms(schedule, warmup, after, fraction, step):
    total = warmup + after
    config = OptimizerConfig(schedule=schedule, warmup_steps=warmup, decay_fraction=fraction)
    expected = {
        "constant": 1.0,
        "linear": np.interp(step, [warmup, total], [1, 0]),
        "cosine": 0.1 + 0.9 * math.cos(min(1.0, (step - warmup) / after) * math.pi / 2) ** 2,
        "wsd": np.interp(step, [total - max(1, min(fraction * total, after)), total], [1, 0]),
    }
    if step < warmup:
        assert config.scale(step, total) == config.scale(step, math.inf) == (step + 1) / warmup
    else:
        assert config.scale(step, total) == pytest.approx(expected[schedule], abs=1e-9)
        assert config.scale(step, math.inf) == 1.0  # a run without an end does not decay


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_that_trains_is_in_one_group_and_weights_alone_decay(name):
    # Beside an agent: two dimensions that must not decay, and what does not train.
    extras = nn.ParameterDict({"positions": torch.ones(5, 4), "frozen": nn.Parameter(torch.ones(2, 2), False)})
    module = nn.ModuleDict({"agent": tiny_agent(), "table": nn.Embedding(3, 4), "extras": extras})
    names = {p: key for key, p in module.named_parameters()}
    groups = OptimizerConfig(name=name, weight_decay=0.3).build(module, 9)["optimizer"].param_groups
    assert sorted(names[p] for g in groups for p in g["params"]) == sorted(names[p] for p in names if p.requires_grad)
    decays = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    plain = {"table.weight", "extras.positions"} | {key for p, key in names.items() if p.ndim < 2}
    assert decays == {key: 0.0 if key in plain else 0.3 for key in decays}
    if name == "muon":
        inner = {key for p, key in names.items() if ".transformer.layers." in key and p.ndim == 2}
        assert {names[p] for p in groups[0]["params"]} == inner
        assert len(inner) == 8  # qkv, out and two of the MLP, in two layers


def train(agent: nn.Module, *optimizers, schedule=None, count: int = 3, seed: int = 0) -> None:
    """Optimizer steps on gradients that depend on the weights."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in agent.parameters():
            parameter.grad = parameter.detach() ** 2 + torch.randn(parameter.shape, generator=generator)
        for each in (*optimizers, schedule) if schedule else optimizers:
            each.step()


def difference(one: nn.Module, other: nn.Module) -> float:
    return max(float((a - b).detach().abs().max()) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_muon_and_adamw_together_step_as_each_alone():
    agent, apart = tiny_agent(), tiny_agent()
    train(agent, OptimizerConfig(name="muon", lr=0.01, weight_decay=0.1, warmup_steps=4).build(agent, 9)["optimizer"])
    lr, betas = 0.01 / 4, (0.9, 0.95)  # the first step of the warm-up
    inner = [p for layer in apart.backbone.transformer.layers for p in layer.parameters() if p.ndim == 2]
    outer = [p for p in apart.parameters() if not any(p is q for q in inner)]
    weights, rest = ([p for p in outer if (p.ndim >= 2) == wanted] for wanted in (True, False))
    train(
        apart,
        torch.optim.Muon(inner, lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(weights, lr=lr, betas=betas, weight_decay=0.1, fused=True),
        torch.optim.AdamW(rest, lr=lr, betas=betas, weight_decay=0.0, fused=True),
    )
    assert difference(agent, apart) == 0 < difference(agent, tiny_agent())


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_saved_optimizer_goes_on_as_if_it_had_not_been_saved(name):
    def parts(agent):
        built = OptimizerConfig(name=name, lr=0.01, warmup_steps=4).build(agent, 9)
        return built["optimizer"], built["lr_scheduler"]["scheduler"]

    first = tiny_agent()
    before = parts(first)
    train(first, before[0], schedule=before[1])
    file = io.BytesIO()
    torch.save([part.state_dict() for part in before], file)
    file.seek(0)
    second = copy.deepcopy(first)
    after = parts(second)
    for part, state in zip(after, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    for agent, (optimizer, schedule) in ((first, before), (second, after)):
        train(agent, optimizer, schedule=schedule, seed=1)
    assert difference(first, second) == 0
    other = OptimizerConfig(name="muon" if name == "adamw" else "adamw").build(tiny_agent(), 9)["optimizer"]
    with pytest.raises(UserError, match=r"by AdamW.*resume with the optimizer\.name"):
        other.load_state_dict(before[0].state_dict())


def test_muon_that_cannot_run_says_so(monkeypatch):
    with pytest.raises(UserError, match="found none that trains"):
        OptimizerConfig(name="muon").build(nn.Linear(2, 2), 1)
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UserError, match=r"has no torch\.optim\.Muon, 2\.9 and later do"):
        OptimizerConfig(name="muon").build(tiny_agent(), 1)


def test_fused_adamw_is_adamw_and_the_default_where_it_can_run(folder):
    fused, plain = agents = [channels_last(tiny_agent()) for _ in range(2)]
    for agent, choice in zip(agents, (None, False), strict=True):
        optimizer = OptimizerConfig(fused=choice, warmup_steps=0).build(agent, 100)["optimizer"]
        assert {group["fused"] for group in optimizer.param_groups} == {choice is None}
        train(agent, optimizer, count=5)
    assert difference(fused, plain) < 1e-6 < difference(fused, tiny_agent())
    clipped = OptimizerConfig().build(tiny_agent(), 1, scaler=True, clips=True)["optimizer"]
    assert not any(group["fused"] for group in clipped.param_groups)
    with pytest.raises(UserError, match="too late to clip"):
        OptimizerConfig(fused=True).build(tiny_agent(), 1, scaler=True, clips=True)
    with pytest.raises(UserError, match="float32 on meta; expected floating point on one of cpu"):
        OptimizerConfig(fused=True).build(nn.Linear(1, 1, device="meta"), 1)
    # Lightning clips no fused optimizer in any mixed precision, unless it is told that nothing is unscaled.
    mixed = ["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1", "--model.optimizer.fused=true"]
    assert main([*pretrain(folder, folder / "run"), *mixed, "--trainer.max_steps=1"]) == 0


class Record(pl.Callback):
    """Keeps the weights after every optimizer step."""

    weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.weights.append({name: p.detach().clone() for name, p in pl_module.model.named_parameters()})


def test_what_validates_and_what_is_left_is_the_average_over_the_steps(folder):
    Record.weights.clear()
    run, agent = folder / "run", folder / "run" / "agent"
    ema = ["--model.optimizer.ema=0.9", "--trainer.callbacks+=tests.stages.test_optim.Record", *WARM]
    assert main([*pretrain(folder, run), *ema]) == 0
    assert len(Record.weights) > 8
    average = Record.weights[0]
    for weights in Record.weights[1:]:
        average = {name: 0.9 * mean + 0.1 * weights[name] for name, mean in average.items()}
    left = load_file(agent / "model.safetensors")
    assert max((left[name] - mean).abs().max() for name, mean in average.items()) < 1e-6
    assert max((left[name] - last).abs().max() for name, last in Record.weights[-1].items()) > 1e-4
    # Measured again: the weights in the checkpoint, and those of the agent that was left.
    again = ["pretrain", "validate", f"--config={run / 'config.yaml'}"]
    last = float(rows(run, "val/loss")[-1]["val/loss"])
    for where in ([f"--out={run}"], [f"--out={folder / 'again'}", f"--init_from={agent}"]):
        assert main([*again, *where]) == 0
        measured = yaml.safe_load((folder / where[0].split("=")[1] / "validate.yaml").read_text())[0]
        assert measured["val/loss"] == pytest.approx(last, rel=1e-6)


def test_a_killed_run_with_muon_and_an_average_ends_with_the_same_weights(folder):
    more = ["--model.optimizer.name=muon", "--model.optimizer.ema=0.9", "--checkpoint_every=3", *WARM]
    whole, going_on = folder / "whole", {}
    assert main([*pretrain(folder, whole), *more]) == 0
    for step in (7, 10):  # within the first epoch, and within the second, after a validation
        hurt = folder / f"hurt{step}"
        crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", f"--trainer.callbacks.step={step}"]
        with pytest.raises(RuntimeError, match="pulled the plug"):
            main([*pretrain(folder, hurt), *more, *crash])
        assert main([*pretrain(folder, hurt), *more, "--resume=auto"]) == 0
        assert_same_weights(whole / "agent", hurt / "agent")
        assert rows(whole, "val/loss") == rows(hurt, "val/loss")
    for out in (whole, hurt):
        going_on[out] = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)["current_model_state"]
    assert all(torch.equal(weight, going_on[hurt][name]) for name, weight in going_on[whole].items())
    shutil.move(whole / "agent", folder / "before")  # as if it had died between its last step and its export
    assert main([*pretrain(folder, whole), *more, "--resume=auto"]) == 0
    assert_same_weights(folder / "before", whole / "agent")


def test_what_cannot_be_is_refused_in_one_line(folder, capsys):
    for argv, option, said in (
        (align, "model.optimizer.ema=0.9", "an average of its weights is another policy"),
        (pretrain, "model.optimizer.ema=1", "optimizer.ema is 1.0; expected between 0 and 1"),
        (pretrain, "model.optimizer.decay_fraction=0", "expected more than 0"),
        (pretrain, "trainer.precision=bf16-true", "whose few bits lose"),
    ):
        more = ["--model.optimizer.ema=0.9"] if option.startswith("trainer") else []
        assert main([*argv(folder, folder / "a"), *more, f"--{option}"]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
        assert said in errors[0]
        assert not (folder / "a").exists()
    sharded = SimpleNamespace(strategy=SimpleNamespace(restore_checkpoint_after_setup=True), precision="32-true")
    with pytest.raises(UserError, match="shards the weights"):
        MovingAverage(0.9).setup(sharded, pl.LightningModule(), "fit")  # type: ignore[arg-type]


def test_moments_get_the_layout_of_their_parameters():
    """A fused AdamW takes it for granted: with another one it would pair each weight with another weight's moments."""
    torch.manual_seed(0)
    layer, twin = (channels_last(nn.Conv2d(3, 4, 3)) for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    made, other = (OptimizerConfig(lr=0.1, fused=True).build(each, math.inf)["optimizer"] for each in (layer, twin))

    def step(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        module(torch.arange(75.0).view(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    step(layer, made)
    state = copy.deepcopy(made.state_dict())
    for values in state["state"].values():
        for name, value in values.items():
            values[name] = value.clone(memory_format=torch.contiguous_format)
    twin.load_state_dict(layer.state_dict())
    other.load_state_dict(state)
    step(layer, made)
    step(twin, other)
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
