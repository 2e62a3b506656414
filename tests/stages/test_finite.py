"""Training that diverges: the run says so and leaves nothing that a later stage could take up."""

import json
import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lit_align.cli import main
from lit_align.data.select import Select
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError
from lit_align.models.reward import RewardModel
from lit_align.stages.base import Stage
from lit_align.stages.finite import is_finite
from lit_align.stages.reward import Reward
from tests.stages.runs import CPU, align, assert_same_weights, comparisons, finetune, inputs

TOO_FAST = ["--model.optimizer.lr=1e38", "--model.optimizer.warmup_steps=0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = inputs(tmp_path_factory.mktemp("diverge"))
    comparisons(root)
    return root


def runs(folder, out):
    start = f"--init_from={folder / 'base' / 'agent'}"
    pairs = [start, f"--data.preferences={folder / 'pairs'}", "--data.pairs=4", *CPU, "--trainer.max_epochs=2"]
    return {
        "finetune": finetune(folder, out),
        "reward": ["reward", "fit", f"--out={out}", *pairs],
        "prefer": ["prefer", "fit", f"--out={out}", *pairs],
        "align": align(folder, out, epochs=3),
    }


@pytest.mark.parametrize("stage", ["finetune", "reward", "prefer", "align"])
def test_a_run_that_diverges_ends_in_an_error_and_leaves_no_model(folder, tmp_path, capsys, stage):
    assert main([*runs(folder, tmp_path / "run")[stage], *TOO_FAST]) == 2
    said = capsys.readouterr().err
    assert f"{stage} diverged: weights are not finite after optimizer step" in said
    assert "lower model.optimizer.lr (1e+38 here)" in said
    assert not list(tmp_path.glob("run/*/model.safetensors"))


def test_what_has_diverged_is_neither_saved_nor_resumed(folder, tmp_path, capsys):
    argv = runs(folder, tmp_path / "run")["finetune"]
    late = ["--model.optimizer.lr=1e30", "--model.optimizer.warmup_steps=2", "--trainer.log_every_n_steps=1000"]
    assert main([*argv, *late]) == 2
    found = re.search(r"finetune diverged: weights are not finite after optimizer step (\d+)", capsys.readouterr().err)
    assert found is not None
    assert int(found[1]) > 1, "at the first epoch's end, where it would have been saved"
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
    argv = runs(folder, tmp_path / "good")["finetune"]
    assert main([*argv, "--trainer.max_epochs=1"]) == 0
    kept = torch.load(tmp_path / "good" / "checkpoints" / "last.ckpt", weights_only=True)
    name = next(iter(kept["state_dict"]))
    kept["state_dict"][name].fill_(math.nan)
    torch.save(kept, tmp_path / "bad.ckpt")
    assert main([*argv, "--trainer.max_epochs=3", f"--resume={tmp_path / 'bad.ckpt'}"]) == 2
    assert f"the checkpoint is of a run that diverged ({name} holds values" in capsys.readouterr().err


def test_gradients_that_are_left_out_in_16_bits_are_seen_by_the_scale():
    stage = Reward(init_from="nowhere")
    stage.reward_model = nn.Linear(2, 1)  # type: ignore[assignment]
    for scale, diverged in ((65536.0, False), (1e-7, True)):
        plugin = SimpleNamespace(scaler=SimpleNamespace(get_scale=lambda scale=scale: scale))
        trainer = SimpleNamespace(precision_plugin=plugin)  # Lightning holds it weakly
        stage.trainer = trainer  # type: ignore[assignment]
        assert stage.has_diverged() is diverged


def test_what_no_line_of_metrics_has_found_is_found_when_the_model_is_left(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Stage, "ends_if_diverged", False)
    assert main([*runs(folder, tmp_path / "run")["finetune"], *TOO_FAST]) == 2
    assert re.search(r"finetune diverged: \S+ of the network holds values that are not finite", capsys.readouterr().err)
    assert not (tmp_path / "run" / "agent").exists()


@pytest.mark.parametrize("keeps", [["--model.leave=best"], ["--model.max_kl=1e9"]])
def test_alignment_that_keeps_its_best_leaves_that(folder, tmp_path, keeps):
    with pytest.warns(UserWarning, match="iteration 0 left weights that are not finite: the run ends"):
        assert main([*align(folder, tmp_path / "run", epochs=3), *TOO_FAST, *keeps]) == 0
    assert_same_weights(tmp_path / "run" / "agent", folder / "base" / "agent")  # which played iteration 0


def test_every_parameter_that_trains_counts():
    last = nn.Linear(4, 2)
    network = nn.Sequential(nn.Linear(3, 4), last)
    network.register_parameter("nothing", nn.Parameter(torch.zeros(0)))  # as of one that is shared out
    assert is_finite(network)
    for value in (math.nan, math.inf, -math.inf):
        last.bias.data[1] = value
        assert not is_finite(network)
    last.bias.requires_grad_(False)
    assert is_finite(network), "it was there before, and is what `leave` looks at"


def test_scores_that_are_none_are_neither_written_nor_read(folder, tmp_path, capsys):
    model = RewardModel.load(folder / "judge" / "reward_model")
    model.head.bias.data[0] = math.nan
    model.save(tmp_path / "reward_model")
    argv = ["score", f"--reward_model={tmp_path / 'reward_model'}", f"--trajectories={folder / 'play'}"]
    assert main([*argv, f"--out={tmp_path / 'score'}"]) == 2
    assert "gives 24 of 24 episodes a score that is not finite (first: nan for episode 0)" in capsys.readouterr().err
    assert not (tmp_path / "score" / "scores.json").exists()
    dataset = TrajectoryDataset(folder / "play")
    scores = {str(int(number)): 0.5 for number in dataset.episodes["id"]} | {"7": math.nan}
    (tmp_path / "scores.json").write_text(json.dumps({"scores": scores}))
    with pytest.raises(UserError, match=r"holds 1 scores that are not finite \(first: of episode 7\)"):
        Select(scores=str(tmp_path / "scores.json"), top=0.5).apply(dataset)
