"""DPO and CPL: the losses by hand and by their papers' formulas, what they teach a policy, what a run leaves."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lit_align.cli import main
from lit_align.data.preferences import PreferenceMeta, Preferences, write_preferences
from lit_align.data.trajectory import Trajectory
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.folder import fingerprint
from lit_align.models.heads import PolicyConfig
from lit_align.spaces import ActionCodec, gamepad_space
from lit_align.stages.prefer import Prefer
from tests.helpers import TINY, made_up, record, tiny_agent
from tests.stages.pair import torchrun
from tests.stages.runs import CPU, assert_same_weights, rows


class Table(nn.Module):
    """A policy over one head of two classes, whose log-probabilities of class 0 `(U, T)` were written down."""

    def __init__(self, log_probs: list[list[float]]) -> None:
        super().__init__()
        self.log_probs = nn.Parameter(torch.tensor(log_probs, dtype=torch.float64))

    def forward(self, frames: Any, vectors: Any, actions: Any, temperature: float) -> torch.Tensor:
        return torch.stack((self.log_probs, torch.full_like(self.log_probs, -7.0)), -1)[:, :, None]


def a_stage(log_probs: list[list[float]], **options: Any) -> Prefer:
    stage = Prefer(init_from="nowhere", **options)
    stage.trainer = SimpleNamespace(global_step=0, log_every_n_steps=10**9)  # type: ignore[assignment]
    stage.agent = Table(log_probs)  # type: ignore[assignment]
    return stage


def a_batch(
    pairs: list[tuple[int, int]], lengths: list[int], reference: list[list[float]] | None = None, ties: Any = ()
) -> dict[str, torch.Tensor]:
    shape = (len(lengths), max(lengths))
    chosen, rejected = zip(*pairs, strict=True)
    told = torch.zeros(shape) if reference is None else torch.tensor(reference)
    told = told * (torch.arange(shape[1]) < torch.tensor(lengths)[:, None])  # as data is padded
    return {
        "frames": torch.zeros(1),
        "vectors": torch.zeros(1),
        "actions": torch.zeros((*shape, 1), dtype=torch.uint8),
        "lengths": torch.tensor(lengths),
        "reference": told.double(),
        "chosen": torch.tensor(chosen),
        "rejected": torch.tensor(rejected),
        "tie": torch.tensor([i in ties for i in range(len(pairs))]),
    }


def loss_of(stage: Prefer, batch: dict[str, torch.Tensor]) -> float:
    return float(stage.training_step(batch, 0).detach())


def slope_of(stage: Prefer) -> np.ndarray:
    """The gradient with respect to what the table holds `(U, T)`."""
    table = stage.agent
    assert isinstance(table, Table)
    assert table.log_probs.grad is not None
    return table.log_probs.grad.numpy()


# A chosen trajectory of two steps and a rejected one of one step; the number behind the latter is padding.
POLICY = [[-1.0, -2.0], [-3.0, -50.0]]
REFERENCE = [[-1.5, -2.25], [-2.0, 0.0]]


def test_dpo_by_hand():
    # Log-ratios: (-1.0 + 1.5) + (-2.0 + 2.25) = 0.75 of the chosen, -3.0 + 2.0 = -1.0 of the rejected.
    # beta (0.75 - -1.0) = 0.2 * 1.75 = 0.35; -log sigmoid(0.35) = log(1 + e^-0.35) = log(1.7046881) = 0.5333819.
    stage = a_stage(POLICY, beta=0.2)
    batch = a_batch([(0, 1)], [2, 1], REFERENCE)
    assert loss_of(stage, batch) == pytest.approx(0.5333819, abs=1e-6)
    # Every step of the chosen is pulled up alike, of the rejected down: beta (1 - sigmoid(0.35)) = 0.2 * 0.4133824.
    stage.training_step(batch, 0).backward()
    np.testing.assert_allclose(slope_of(stage), np.array([[-0.0826765, -0.0826765], [0.0826765, 0.0]]), atol=1e-6)


def test_dpo_starts_at_a_coin_and_the_other_fields_by_hand():
    batch = a_batch([(0, 1)], [2, 1], REFERENCE)
    # The policy is the reference: log 2.
    assert loss_of(a_stage(REFERENCE, beta=3.0), batch) == pytest.approx(0.6931472, abs=1e-6)
    # Per step: 0.75 / 2 = 0.375 and -1.0 / 1; 0.2 * 1.375 = 0.275; log(1 + e^-0.275) = log(1.7595721) = 0.5650706.
    assert loss_of(a_stage(POLICY, beta=0.2, normalise_length=True), batch) == pytest.approx(0.5650706, abs=1e-6)
    # Discounted by half: 0.5 + 0.25 / 2 = 0.625 and -1.0; 0.2 * 1.625 = 0.325; log(1 + e^-0.325) = 0.5437926.
    assert loss_of(a_stage(POLICY, beta=0.2, gamma=0.5), batch) == pytest.approx(0.5437926, abs=1e-6)
    # A tenth of the labels is wrong: 0.9 * 0.5333819 + 0.1 * log(1 + e^0.35) = 0.4800437 + 0.1 * 0.8833819.
    assert loss_of(a_stage(POLICY, beta=0.2, label_smoothing=0.1), batch) == pytest.approx(0.5683819, abs=1e-6)
    # A tie: (0.5333819 + 0.8833819) / 2, smoothing or not.
    tie = a_batch([(0, 1)], [2, 1], REFERENCE, ties=[0])
    assert loss_of(a_stage(POLICY, beta=0.2, label_smoothing=0.1), tie) == pytest.approx(0.7083819, abs=1e-6)
    # Imitation of the chosen adds half of (1.0 + 2.0) / 2 nats a step; a tie has no chosen.
    imitates = a_stage(POLICY, beta=0.2, imitation=0.5)
    assert loss_of(imitates, batch) == pytest.approx(0.5333819 + 0.5 * 1.5, abs=1e-6)
    assert loss_of(imitates, tie) == pytest.approx(0.7083819, abs=1e-6)


def test_cpl_by_hand():
    # alpha 0.1, gamma 0.5: 0.1 (-1.0 + 0.5 * -2.0) = -0.2 of the chosen, 0.1 * -3.0 = -0.3 of the rejected.
    # lambda 0.5: -log(e^-0.2 / (e^-0.2 + e^(0.5 * -0.3))) = log(1 + e^0.05) = log(2.0512711) = 0.7184597.
    options: dict[str, Any] = {"loss": "cpl", "alpha": 0.1, "gamma": 0.5, "bias": 0.5}
    batch = a_batch([(0, 1)], [2, 1])
    assert loss_of(a_stage(POLICY, **options), batch) == pytest.approx(0.7184597, abs=1e-6)
    # A tie is both orders: the other is log(1 + e^(0.5 * -0.2 + 0.3)) = log(1 + e^0.2) = 0.7981389.
    tie = a_batch([(0, 1)], [2, 1], ties=[0])
    assert loss_of(a_stage(POLICY, **options), tie) == pytest.approx((0.7184597 + 0.7981389) / 2, abs=1e-6)
    # With lambda 1 and a reference it is DPO of the same scale.
    options = {"loss": "cpl", "alpha": 0.2, "bias": 1.0, "reference": "elsewhere"}
    assert loss_of(a_stage(POLICY, **options), a_batch([(0, 1)], [2, 1], REFERENCE)) == pytest.approx(0.5333819)


tables = st.lists(st.lists(st.floats(-6, 0), min_size=3, max_size=3), min_size=4, max_size=4)
couples = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(lambda p: p[0] != p[1]), min_size=1)
sizes = st.lists(st.integers(1, 3), min_size=3, max_size=3).map(lambda some: [3, *some])


@settings(max_examples=100, deadline=None)
@given(tables, tables, couples, sizes, st.floats(0.01, 2), st.sampled_from([0.0, 0.1, 0.3]), st.data())
def test_dpo_is_the_formula_of_its_paper_at_every_pair(policy, reference, pairs, lengths, beta, smoothing, data):
    ties = data.draw(st.sets(st.integers(0, len(pairs) - 1)))
    stage = a_stage(policy, beta=beta, label_smoothing=smoothing)
    loss = stage.training_step(a_batch(pairs, lengths, reference, ties), 0)
    total, slope = 0.0, np.zeros((4, 3))
    for i, (w, l) in enumerate(pairs):  # noqa: E741 (the paper's letters)
        # Equation 7: -log sigmoid(beta log pi(y_w)/ref(y_w) - beta log pi(y_l)/ref(y_l)), and with noisy labels
        # (1 - eps) of it and eps of the opposite.
        pi_w, pi_l = (sum(policy[y][: lengths[y]]) for y in (w, l))
        ref_w, ref_l = (sum(reference[y][: lengths[y]]) for y in (w, l))
        logits = (pi_w - pi_l) - (ref_w - ref_l)
        eps = 0.5 if i in ties else smoothing
        total += -(1 - eps) * log_sigmoid(beta * logits) - eps * log_sigmoid(-beta * logits)
        pull = beta * ((1 - eps) * sigmoid(-beta * logits) - eps * sigmoid(beta * logits))
        slope[w, : lengths[w]] -= pull
        slope[l, : lengths[l]] += pull
    assert float(loss.detach()) == pytest.approx(total / len(pairs), rel=1e-5, abs=1e-6)
    loss.backward()
    np.testing.assert_allclose(slope_of(stage), slope / len(pairs), atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(tables, couples, sizes, st.floats(0.01, 1), st.floats(0, 1), st.floats(0.1, 1))
def test_cpl_is_the_formula_of_its_paper_at_every_pair(policy, pairs, lengths, alpha, bias, gamma):
    stage = a_stage(policy, loss="cpl", alpha=alpha, bias=bias, gamma=gamma)
    total = 0.0
    for plus, minus in pairs:
        # Equation 5 with the regulariser of equation 8.
        good, bad = (
            sum(gamma**t * alpha * policy[s][t] for t in range(lengths[s])) for s in (plus, minus)
        )  # fmt: skip
        total -= math.log(math.exp(good) / (math.exp(good) + math.exp(bias * bad)))
    assert loss_of(stage, a_batch(pairs, lengths)) == pytest.approx(total / len(pairs), rel=1e-5, abs=1e-6)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_what_does_not_fit_is_said_at_once():
    with pytest.raises(UserError) as error:
        Prefer(init_from="x", beta=0, alpha=-1, bias=1.5, gamma=0, label_smoothing=0.5, imitation=-1, temperature=0)
    for name in ("beta", "alpha", "bias", "gamma", "label_smoothing", "imitation", "temperature"):
        assert f"model.{name} is" in str(error.value)
    with pytest.raises(UserError, match="model.loss is ipo; expected dpo or cpl"):
        Prefer(init_from="x", loss="ipo")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give --init_from"):
        Prefer()


@pytest.mark.parametrize(
    ("loss", "options", "says"),
    [
        ("cpl", {"beta": 0.5}, "model.beta is 0.5, which cpl does not use: leave it out, or set model.loss to dpo"),
        ("dpo", {"alpha": 1.0}, "model.alpha is 1.0, which dpo does not use: leave it out, or set model.loss to cpl"),
        ("dpo", {"alpha": 0.2, "bias": 1.0}, "model.alpha is 0.2 and model.bias is 1.0, which dpo does not use"),
    ],
)
def test_an_option_of_the_other_loss_is_refused(loss, options, says):
    with pytest.raises(UserError, match=says):
        Prefer(init_from="x", loss=loss, **options)
    other: Any = {"cpl": "dpo", "dpo": "cpl"}[loss]
    assert Prefer(init_from="x", loss=other, **options).kind == other


def test_the_shipped_settings_serve_both_losses():
    """`configs/jumppads/prefer.yaml` names beta, and the study runs CPL on it: the default is no wish."""
    given = yaml.safe_load((Path(__file__).parents[2] / "configs" / "jumppads" / "prefer.yaml").read_text())["model"]
    for loss in ("dpo", "cpl"):
        Prefer(init_from="x", **{**given, "loss": loss, "optimizer": None})


PLAYED, TEST = 60, 16
"""Episodes, of which so many are held out."""


def presses(episode: Trajectory) -> float:
    """What is preferred: how often the first button was pressed."""
    return float((episode.actions[:, 0] == 1).mean())


def episodes() -> list[Trajectory]:
    """Noise, in which the first button is pressed seldom or often."""
    rng, played = np.random.default_rng(0), []
    for i in range(PLAYED):
        episode = made_up(5 * i, 6 + i % 5)
        episode.actions[:, 0] = rng.random(len(episode)) < rng.random()
        played.append(episode)
    return played


def compared(played: list[Trajectory], low: int, high: int, count: int) -> Preferences:
    rng = np.random.default_rng(low)
    good = np.array([presses(episode) for episode in played])
    a, b = rng.integers(low, high, (2, 9 * count))
    a, b = a[good[a] > good[b]][:count], b[good[a] > good[b]][:count]
    return Preferences(5 * a, 5 * b)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """`play/`, `pairs/` and `base/agent/`."""
    place = tmp_path_factory.mktemp("prefer")
    played = episodes()
    play = record(place / "play", played)
    splits = {"train": compared(played, 0, PLAYED - TEST, 120), "test": compared(played, PLAYED - TEST, PLAYED, 40)}
    write_preferences(place / "pairs", splits, PreferenceMeta(play, {"name": "pressed"}), "today")
    tiny_agent().save(place / "base" / "agent")
    return place


def prefer(folder: Path, out: Path, *more: str, epochs: int = 2) -> list[str]:
    argv = ["prefer", "fit", f"--out={out}", f"--init_from={folder / 'base' / 'agent'}", *CPU]
    argv += [f"--data.preferences={folder / 'pairs'}", "--data.pairs=8", f"--trainer.max_epochs={epochs}"]
    return [*argv, "--model.optimizer.lr=0.003", "--model.optimizer.warmup_steps=2", *more]


@torch.no_grad()
def log_probs(agent: Agent, episode: Trajectory, temperature: float = 1.0) -> np.ndarray:
    """Of each action of an episode under an agent `(T,)`, from one forward over it."""
    seen, actions = torch.from_numpy(episode.frames[:-1])[None], torch.from_numpy(episode.actions)[None].long()
    found = agent.eval()(seen, torch.zeros(1, len(episode), 0), actions, temperature)[0]
    return np.array([sum(float(found[t, h, c]) for h, c in enumerate(row)) for t, row in enumerate(episode.actions)])


@pytest.fixture(scope="module")
def learned(folder):
    """A run, the agents before and after, and the episodes."""
    assert main(prefer(folder, folder / "run", "--model.beta=0.5", epochs=6)) == 0
    return folder / "run", Agent.load(folder / "base" / "agent"), Agent.load(folder / "run" / "agent"), episodes()


def ratios(before: Agent, after: Agent, played: list[Trajectory]) -> dict[int, np.ndarray]:
    return {e.id: log_probs(after, e) - log_probs(before, e) for e in played}


def test_the_chosen_become_likelier_than_the_rejected(learned):
    run, before, after, played = learned
    change = ratios(before, after, played)
    train, test = compared(played, 0, PLAYED - TEST, 120), compared(played, PLAYED - TEST, PLAYED, 40)
    for pairs, enough in ((train, 0.85), (test, 0.75)):
        gaps = [change[c].sum() - change[r].sum() for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
        assert np.mean(np.array(gaps) > 0) > enough
    pressed = []
    for agent in (before, after):
        found = agent(torch.from_numpy(played[-1].frames)[None]).detach()
        pressed.append(float(found[0, :, 0, 1].exp().mean()))
    assert pressed[1] > pressed[0] + 0.1  # what is preferred is done more often
    first = rows(run, "train/loss")[0]
    assert float(first["train/loss"]) == pytest.approx(math.log(2), abs=1e-4)  # the policy was the reference
    assert float(first["train/margin"]) == pytest.approx(0, abs=1e-4)


def test_what_validation_says_is_true(learned, capsys):
    run, before, after, played = learned
    assert main(["prefer", "validate", f"--config={run / 'config.yaml'}", f"--out={run}"]) == 0
    told = yaml.safe_load((run / "validate.yaml").read_text())[0]
    change, pairs = ratios(before, after, played), compared(played, PLAYED - TEST, PLAYED, 40)
    sides = list(zip(pairs.chosen, pairs.rejected, strict=True))
    gaps = np.array([0.5 * (change[c].sum() - change[r].sum()) for c, r in sides])
    compared_ids = {int(i) for pair in sides for i in pair}
    expected = {
        "val/accuracy": np.mean(gaps > 0),
        "val/loss": np.mean(np.log1p(np.exp(-gaps))),
        "val/margin": np.mean(gaps),
        "val/chosen": np.mean([change[c].mean() for c, _ in sides]),
        "val/rejected": np.mean([change[r].mean() for _, r in sides]),
        "val/pairs": len(pairs),
        # Per step over all held-out episodes: E_ref[log ref - log pi].
        "val/kl": -np.concatenate([change[i] for i in compared_ids]).mean(),
    }
    assert told.keys() == expected.keys()
    for name, value in expected.items():
        assert told[name] == pytest.approx(value, abs=2e-3), name
    info = json.loads((run / "agent" / "config.json").read_text())["info"]
    assert info["accuracy"] == pytest.approx(told["val/accuracy"])
    assert (info["stage"], info["loss"], info["target"], info["comparisons"]) == ("prefer", "dpo", "pressed", 120)
    assert (run / "headline.txt").read_text().startswith(f"val/accuracy {info['accuracy']:.4g}")


def stored(folder: Path) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """What is kept of references beside the frames: for each its facts and its rows."""
    found = {}
    for place in (folder / "play" / ".cache").glob("reference-*.json"):
        told = json.loads(place.read_text())
        (values,) = place.parent.glob(f"{place.stem}-{told['sha256'][:16]}.f32")
        found[place.name] = (told, np.fromfile(values, np.float32))
    return found


def of(folder: Path, weights: str, **facts: Any) -> np.ndarray:
    (found,) = (
        values
        for told, values in stored(folder).values()
        if told["weights"] == weights and facts.items() <= told.items()
    )
    return found


@pytest.mark.parametrize("heads", ["independent", "autoregressive"])
def test_what_is_stored_is_a_fresh_forward_of_the_reference(folder, tmp_path, heads):
    torch.manual_seed(3)
    reference = Agent(TINY, ActionCodec(gamepad_space()), policy=PolicyConfig(heads, width=8)).eval()
    reference.save(tmp_path / "agent")
    start = [f"--init_from={tmp_path / 'agent'}", "--trainer.max_steps=2"]
    for temperature in (1.0, 0.7):
        run = prefer(folder, tmp_path / f"run-{temperature}", *start, f"--model.temperature={temperature}")
        assert main(run) == 0
        values, at = of(folder, fingerprint(tmp_path / "agent"), temperature=temperature), 0
        for episode in episodes():
            steps = len(episode)
            expected = log_probs(reference, episode, temperature)
            np.testing.assert_allclose(values[at : at + steps], expected, atol=1e-3, rtol=1e-5)
            assert values[at + steps] == 0  # no action follows the last frame
            at += steps + 1
        assert at == len(values)


def test_it_is_computed_anew_for_other_weights_and_only_then(folder, tmp_path, monkeypatch):
    agent = tiny_agent(4)
    agent.save(tmp_path / "agent")
    made: list[Prefer] = []
    real = Prefer.reference_log_probs

    def counted(self: Prefer) -> Any:
        made.append(self)
        return real(self)

    monkeypatch.setattr(Prefer, "reference_log_probs", counted)
    short = ["--trainer.max_steps=1", f"--model.reference={tmp_path / 'agent'}"]

    def computed(*more: str) -> int:
        made.clear()
        assert main(prefer(folder, tmp_path / "run", *short, "--overwrite=true", *more)) == 0
        return len(made)

    assert computed() == 1
    assert computed() == 0
    assert computed("--model.beta=0.3", "--data.comparisons=20", "--seed=5") == 0
    agent.info["note"] = "the same weights"
    agent.save(tmp_path / "agent")
    assert computed() == 0
    assert computed("--trainer.precision=bf16-mixed") == 1
    agent.head.bias.data.add_(0.01)
    agent.save(tmp_path / "agent")
    assert computed() == 1
    assert computed("--model.loss=cpl") == 0  # with the reference that was given
    before = len(stored(folder))
    assert main(prefer(folder, tmp_path / "cpl", "--model.loss=cpl", epochs=1)) == 0
    assert len(stored(folder)) == before  # none was given, and none is used
    assert "val/kl" not in rows(tmp_path / "cpl", "val/loss")[0]


def test_in_sixteen_bits_the_policy_starts_as_its_reference(folder, tmp_path):
    assert main(prefer(folder, tmp_path / "run", "--trainer.precision=bf16-mixed", "--model.beta=1", epochs=3)) == 0
    found = rows(tmp_path / "run", "train/loss")
    assert float(found[0]["train/margin"]) == pytest.approx(0, abs=0.02)
    assert float(found[-1]["train/margin"]) > 0.3
    assert (tmp_path / "run" / "agent" / "model.safetensors").is_file()


def test_too_few_bits_are_refused(folder, tmp_path, capsys):
    assert main(prefer(folder, tmp_path / "run", "--trainer.precision=bf16-true")) == 2
    assert "trainer.precision is bf16-true; prefer needs one of 32-true" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("what", "still"),
    [
        (["heads"], ["backbone."]),
        (["last_layers"], ["backbone.vision.", "backbone.transformer.layers.0."]),
        (["lora", "--model.train.rank=2"], ["backbone.vision."]),
    ],
)
def test_what_is_asked_for_trains_and_a_plain_agent_is_left(folder, tmp_path, what, still):
    parameters, *more = what
    assert main(prefer(folder, tmp_path / "run", f"--model.train.parameters={parameters}", *more, epochs=1)) == 0
    before, after = Agent.load(folder / "base" / "agent"), Agent.load(tmp_path / "run" / "agent")
    changed = [n for n, p in after.state_dict().items() if not torch.equal(p, before.state_dict()[n])]
    assert "head.weight" in changed
    assert (parameters != "heads") == any(name.startswith("backbone.transformer.layers.1.") for name in changed)
    assert not [name for name in changed if name.startswith(tuple(still))]


@pytest.mark.parametrize(
    "more",
    [
        ["--data.batch=trajectories", "--data.trajectories_in_batch=10"],
        ["--model.loss=cpl", "--model.normalise_length=true", "--model.imitation=0.1", "--model.optimizer.ema=0.9"],
    ],
)
def test_other_batches_and_losses_learn_too(folder, tmp_path, more):
    assert main(prefer(folder, tmp_path / "run", *more, epochs=8)) == 0
    found = rows(tmp_path / "run", "val/accuracy")
    assert max(float(row["val/accuracy"]) for row in found) > 0.75


EVERY = ["--checkpoint_every=2", "--model.train.parameters=lora"]


@pytest.fixture(scope="module")
def whole(folder):
    """A run that nothing stopped."""
    assert main(prefer(folder, folder / "whole", *EVERY)) == 0
    return folder / "whole"


def assert_same_run(one: Path, other: Path) -> None:
    assert_same_weights(one / "agent", other / "agent")
    for column in ("train/loss", "val/loss", "frames"):
        assert rows(one, column) == rows(other, column)
    assert len(rows(one, "train/loss")) > 10
    facts = [json.loads((run / "agent" / "config.json").read_text())["info"] for run in (one, other)]
    assert facts[0]["accuracy"] == facts[1]["accuracy"] is not None


@pytest.mark.parametrize("step", [8, 15, 17])  # with a checkpoint, at an epoch's border, and between two checkpoints
def test_a_run_resumes_from_wherever_it_crashed(folder, tmp_path, whole, step):
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", f"--trainer.callbacks.step={step}"]
    with pytest.raises(RuntimeError, match="pulled the plug"):
        main(prefer(folder, tmp_path / "hurt", *EVERY, *crash))
    for place in (folder / "play" / ".cache").glob("reference-*"):
        place.unlink()  # what was stored is computed again, and draws nothing that the run draws from
    assert main(prefer(folder, tmp_path / "hurt", *EVERY, "--resume=auto")) == 0
    assert_same_run(whole, tmp_path / "hurt")
    assert main(prefer(folder, tmp_path / "hurt", *EVERY, "--resume=auto")) == 0  # at its end nothing is left to do
    assert_same_run(whole, tmp_path / "hurt")


@pytest.mark.slow
def test_two_processes_resume_too_and_measure_what_one_would(folder, tmp_path):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--model.beta=0.5", "--checkpoint_every=2"]
    crash = ["--trainer.callbacks+=tests.stages.test_resume.Stop", "--trainer.callbacks.step=9"]
    for place in (folder / "play" / ".cache").glob("reference-*"):
        place.unlink()
    # All on the same two processes, which import the libraries once.
    runs = [[], crash, ["--resume=last"]]
    named = [prefer(folder, tmp_path / ("hurt" if more else "whole"), *two, *more) for more in runs]
    (tmp_path / "runs.json").write_text(json.dumps(named))
    torchrun(["-m", "tests.stages.test_prefer", str(tmp_path / "runs.json")], tmp_path / "log")
    assert len(stored(folder)) == 1
    assert (tmp_path / "log").read_text().count("it is on: pulled the plug") == 2
    assert_same_run(tmp_path / "whole", tmp_path / "hurt")
    found = rows(tmp_path / "whole", "val/accuracy")[-1]
    change = ratios(Agent.load(folder / "base" / "agent"), Agent.load(tmp_path / "whole" / "agent"), episodes())
    pairs = compared(episodes(), PLAYED - TEST, PLAYED, 40)
    gaps = [0.5 * (change[c].sum() - change[r].sum()) for c, r in zip(pairs.chosen, pairs.rejected, strict=True)]
    assert float(found["val/margin"]) == pytest.approx(np.mean(gaps), abs=2e-3)
    assert float(found["val/accuracy"]) == pytest.approx(np.mean(np.array(gaps) > 0))


def test_a_dry_run_tells_what_a_step_takes_and_computes_no_reference(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Prefer, "reference_log_probs", lambda self: pytest.fail("nothing is trained"))
    tiny_agent(6).save(tmp_path / "agent")
    start = [f"--init_from={tmp_path / 'agent'}"]
    assert main([*prefer(folder, tmp_path / "run", *start), "--dry_run"]) == 0
    said = capsys.readouterr().out
    facts = {k: v.strip() for k, _, v in (line.partition("  ") for line in said.splitlines())}
    assert float(facts["memory of one training step (MB)"]) > 100
    assert int(facts["trainable parameters"]) == sum(p.numel() for p in tiny_agent().parameters())
    assert facts["optimizer steps in all"] == "30"
    assert "float32" in facts["batch reference"]
    assert not (tmp_path / "run").exists()


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(argv) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def test_what_does_not_fit_the_data_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "run"
    tiny_agent(space=spaces.Discrete(5)).save(tmp_path / "acts" / "agent")
    tiny_agent(image_size=64).save(tmp_path / "sees" / "agent")
    for option, what in (("--init_from", "agent"), ("--model.reference", "reference")):
        said = refused(prefer(folder, out, f"{option}={tmp_path / 'acts' / 'agent'}"), capsys)
        assert f"the {what} of '{tmp_path / 'acts' / 'agent'}' acts on ActionCodec(1 x 5" in said
        said = refused(prefer(folder, out, f"{option}={tmp_path / 'sees' / 'agent'}"), capsys)
        assert f"the {what} sees 64 pixels, the data holds 32" in said
    (tmp_path / "sees" / "agent" / "model.safetensors").unlink()
    sees = ["--data.image_size=64", f"--init_from={tmp_path / 'sees' / 'agent'}"]
    assert "no model.safetensors" in refused(prefer(folder, out, *sees), capsys)
    assert "model.reference: there is no folder 'nowhere'" in refused(
        prefer(folder, out, "--model.reference=nowhere"), capsys
    )
    assert "model.beta is 0.0" in refused(prefer(folder, out, "--model.beta=0"), capsys)
    splits = {"test": compared(episodes(), PLAYED - TEST, PLAYED, 4)}
    write_preferences(tmp_path / "few", splits, PreferenceMeta(str(folder / "play")), "today")
    said = refused(prefer(folder, out, f"--data.preferences={tmp_path / 'few'}"), capsys)
    assert "there are 0 comparisons to train on" in said
    assert not out.exists()


def test_a_broken_reference_is_found_before_a_run_begins(folder, tmp_path, capsys):
    tiny_agent(8).save(tmp_path / "agent")
    weights = tmp_path / "agent" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    said = refused(prefer(folder, tmp_path / "run", f"--model.reference={tmp_path / 'agent'}"), capsys)
    assert "is not a readable safetensors file" in said
    assert not (tmp_path / "run").exists()


if __name__ == "__main__":
    for run in json.loads(Path(sys.argv[1]).read_text()):
        torch.manual_seed(len(run))  # what a process drew before is not what the next run draws
        try:
            code = main(run)
        except RuntimeError as error:
            print("it is on:", error, flush=True)  # noqa: T201  what the test looks for
        else:
            assert code == 0
