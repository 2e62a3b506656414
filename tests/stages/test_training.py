"""Which parameters train: the same field for agents and reward models, and what adapters leave."""

import pytest
import torch

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.lora import LoRALinear
from lit_align.models.reward import RewardModel
from lit_align.stages.training import TrainConfig, as_plain
from tests.helpers import SIZE, TINY, tiny_agent
from tests.stages.runs import align, assert_same_weights, inputs, pretrain, rows


def frames(*shape):
    return torch.randint(0, 256, (*shape, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained_by(config, network):
    """Names of the parameters that a step of SGD changes."""
    config.apply(network)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # an adapter's A moves once its B has
        optimizer.zero_grad()
        inputs = (frames(2, 4), torch.tensor([4, 4])) if isinstance(network, RewardModel) else (frames(2, 4),)
        network(*inputs).square().sum().backward()
        optimizer.step()
    return {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("make", [tiny_agent, lambda: RewardModel.from_agent(tiny_agent(), heads=2)])
def test_what_is_asked_for_trains_and_nothing_else(make):
    every = {name for name, _ in make().named_parameters()}
    heads = {"head.weight", "head.bias"}
    assert trained_by(TrainConfig(), make()) == every
    assert trained_by(TrainConfig("heads"), make()) == heads
    last = {name for name in every if name.startswith(("backbone.transformer.layers.1.", "backbone.transformer.norm."))}
    assert trained_by(TrainConfig("last_layers"), make()) == heads | last
    assert trained_by(TrainConfig(vision=False), make()) == {n for n in every if not n.startswith("backbone.vision.")}
    lora = trained_by(TrainConfig("lora", rank=2), make())
    assert lora - heads
    assert all("lora_" in name for name in lora - heads)
    assert len(lora - heads) == 2 * 4 * TINY.layers  # A and B of four matrices a layer


@torch.no_grad()
def test_adapters_start_as_nothing_and_merge_into_the_same_function():
    agent, plain = tiny_agent(), tiny_agent()
    TrainConfig("lora", rank=3, alpha=6.0).apply(agent)
    seen = frames(2, 9)
    assert torch.equal(agent(seen), plain(seen))
    layer = agent.get_submodule("backbone.transformer.layers.0.mlp.0")
    assert isinstance(layer, LoRALinear)
    for name, parameter in agent.named_parameters():
        if "lora_" in name:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    assert not torch.allclose(agent(seen), plain(seen), atol=1e-3)
    merged = as_plain(agent)
    torch.testing.assert_close(merged(seen), agent(seen), atol=1e-5, rtol=1e-5)
    by_hand = layer.weight + 6.0 / 3 * layer.lora_b @ layer.lora_a
    torch.testing.assert_close(merged.state_dict()["backbone.transformer.layers.0.mlp.0.weight"], by_hand)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    trains = sum(p.numel() for p in agent.parameters() if p.requires_grad)
    assert trains < sum(p.numel() for p in plain.parameters()) / 2


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(UserError, match=r"layers is 3; the network has 2"):
        TrainConfig("last_layers", layers=3).apply(tiny_agent())
    with pytest.raises(UserError, match="rank of 1 or more"):
        TrainConfig("lora", rank=0).check()


def test_a_run_with_adapters_leaves_an_agent_like_any_other_and_resumes_exactly(tmp_path, capsys):
    folder = inputs(tmp_path)
    lora = ["--model.train.parameters=lora", "--model.train.rank=2"]
    argv = ["finetune", *pretrain(folder, folder / "whole", epochs=2)[1:], f"--init_from={folder / 'base' / 'agent'}"]
    argv = [word for word in argv if "backbone" not in word] + lora
    assert main(argv) == 0
    left, start = Agent.load(folder / "whole" / "agent"), Agent.load(folder / "base" / "agent")
    assert left.state_dict().keys() == start.state_dict().keys()
    assert left.info["parameters"] == sum(p.numel() for p in start.parameters())
    left_weights, start_weights = left.state_dict(), start.state_dict()
    frozen, adapted = "backbone.vision.project.weight", "backbone.transformer.layers.0.mlp.0.weight"
    assert torch.equal(left_weights[frozen], start_weights[frozen])
    assert not torch.equal(left_weights[adapted], start_weights[adapted])
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", "--trainer.callbacks.step=3"]
    hurt = [word.replace("whole", "hurt") for word in argv]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        main([*hurt, "--checkpoint_every=1", *crash])
    capsys.readouterr()
    assert main([*(word for word in hurt if "train." not in word), "--resume=auto"]) == 2
    assert "lora_a is in one of them only): give the model.train" in capsys.readouterr().err
    assert main([*hurt, "--resume=auto"]) == 0
    assert_same_weights(folder / "whole" / "agent", folder / "hurt" / "agent")


@pytest.mark.parametrize("parameters", ["lora", "last_layers", "heads"])
def test_align_trains_what_it_is_told_and_plays_with_it(tmp_path, parameters):
    folder = inputs(tmp_path)
    train = [f"--model.train.parameters={parameters}", "--model.optimizer.lr=0.02", "--model.optimizer.warmup_steps=0"]
    assert main([*align(folder, folder / "run", epochs=3), *train]) == 0
    left = Agent.load(folder / "run" / "agent").state_dict()
    start = Agent.load(folder / "base" / "agent").state_dict()
    assert left.keys() == start.keys()
    changed = {name for name in left if not torch.equal(left[name], start[name])}
    assert changed
    assert not any("vision" in name for name in changed)
    assert any("layers" in name for name in changed) == (parameters != "heads")
    # The policy that played in later iterations was the one that had trained, adapters included.
    gaps = [float(row["policy/log_prob_gap"]) for row in rows(folder / "run", "policy/log_prob_gap")]
    assert len(gaps) == 3
    assert max(gaps) < 1e-4


def test_autoregressive_heads_train_by_imitation_and_by_play(tmp_path):
    folder = inputs(tmp_path)
    heads = ["--model.policy.heads=autoregressive", "--model.policy.width=16"]
    assert main([*pretrain(folder, folder / "p", epochs=1), *heads]) == 0
    argv = [word for word in align(folder, folder / "run") if "init_from" not in word]
    assert main([*argv, f"--init_from={folder / 'p' / 'agent'}"]) == 0
    told = rows(folder / "run", "policy/log_prob_gap")
    assert max(float(row["policy/log_prob_gap"]) for row in told) < 1e-4
    assert float(told[0]["policy/kl_conditional"]) >= 0
    assert "policy/kl" not in told[0]
    assert Agent.load(folder / "run" / "agent").policy.heads == "autoregressive"


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_imitation_trains_in_fewer_bits(tmp_path, precision):
    folder = inputs(tmp_path)
    more = [f"--trainer.precision={precision}", "--model.train.gradient_checkpointing=true"]
    losses = []
    for name, extra in (("full", []), ("few", more)):
        argv = [*pretrain(folder, folder / name, epochs=3), "--model.optimizer.warmup_steps=0", *extra]
        assert main(argv) == 0
        losses.append([float(row["train/loss"]) for row in rows(folder / name, "train/loss")])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]
    assert losses[1][-1] < losses[1][0]


@pytest.mark.slow
def test_a_compiled_run_trains_and_plays_alike(tmp_path):
    folder = inputs(tmp_path)
    for name, extra in (("eager", []), ("compiled", ["--model.train.compile=true"])):
        assert main([*align(folder, folder / name, epochs=1), *extra]) == 0
    one, two = (rows(folder / name, "policy/log_prob_gap")[0] for name in ("eager", "compiled"))
    assert float(two["policy/log_prob_gap"]) < 1e-4
    for column in ("env_steps", "reward/mean", "policy/entropy"):
        assert float(two[column]) == pytest.approx(float(one[column]), rel=1e-3)
