"""The study's files: they parse, take a quickstart's stages over, fit together, and run in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from lit_align.commands import VERBS, check_verb
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.pipeline import Pipeline, commands_of, load_pipeline
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec, gamepad_space

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "jumppads"
STUDIES = [FOLDER / "study.yaml", FOLDER / "study" / "paper.yaml", FOLDER / "study" / "smoke.yaml"]
CELLS = [path for path in sorted((FOLDER / "study").rglob("*.yaml")) if "stages" in yaml.safe_load(path.read_text())]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@cache
def load(path: Path, *overrides: str) -> Pipeline:
    return load_pipeline([str(path)], overrides, VERBS)


def cells(study: Pipeline) -> dict[str, Pipeline]:
    return {name: stage.inner for name, stage in study.stages.items() if stage.inner is not None}


@pytest.mark.parametrize(
    "path", [STUDIES[0], pytest.param(STUDIES[1], marks=pytest.mark.slow), STUDIES[2]], ids=lambda path: path.stem
)
def test_every_stage_of_every_cell_takes_its_arguments(path: Path) -> None:
    kinds: dict[tuple[str, ...], list[str]] = {}
    for argv in commands_of(load(path).stages.values()):
        # Cells are much alike: one of each verb with the same files and options.
        kinds.setdefault(tuple(word.split("=")[0] for word in argv if not word.startswith("outputs/")), argv)
    assert len(kinds) > 10
    for argv in kinds.values():
        check_verb(argv)


def test_the_study_uses_every_cell_and_runs_the_headline_three_times() -> None:
    study = cells(load(STUDIES[0]))
    used = {stage.config[0] for name, stage in load(STUDIES[0]).stages.items() if name in study}
    alone = {str(path.relative_to(ROOT)) for path in CELLS if path not in STUDIES and path.parent.name == "study"}
    assert used == alone
    kinds = Counter(name.rpartition("_")[0] for name in study)
    assert {kind for kind, count in kinds.items() if count == 3} == {
        "base",
        "headline",
        "middle",
        "realign",
        "longer_right",
    }
    for name, inner in study.items():
        seeds = {str(stage.args["seed"]) for stage in inner.stages.values() if "seed" in stage.args}
        rounds = {"101", "102", "103"} if name.startswith("methods_offline") else set()  # of ReST, each with its own
        assert seeds == {name.rpartition("_")[2]} | rounds
        assert inner.out == Path("outputs/study") / name


def test_a_cell_alone_is_the_same_as_in_the_study() -> None:
    """So that what was run alone is not run again."""
    study = cells(load(STUDIES[0]))
    for name, overrides in {
        "base_1": ["seed=1"],
        "headline_2": ["seed=2"],
        "realign_0": [],
        "longer_right_1": ["seed=1"],
        "rewards_right_0": ["target=right"],
        "curves_left_50_0": ["size=50"],
        "methods_offline_0": [],
        "robustness_0": [],
    }.items():
        kind = name.partition("_")[0] if name != "methods_offline_0" else "methods_offline"
        alone = load(FOLDER / "study" / f"{kind}.yaml", *overrides)
        assert {n: stage.argv for n, stage in alone.stages.items()} == {
            n: stage.argv for n, stage in study[name].stages.items()
        }
        assert alone.fingerprints() == study[name].fingerprints()


@pytest.mark.parametrize("seed", [0, 2])
def test_a_finished_quickstart_can_be_carried_over(seed: int) -> None:
    quickstart = load(FOLDER / "quickstart.yaml", f"seed={seed}").fingerprints()
    base = load(FOLDER / "study" / "base.yaml", f"seed={seed}").fingerprints()
    shared = ("play", "demonstrations", "pretrain", "finetune", "scratch")
    assert {name: base[name] for name in shared} == {name: quickstart[name] for name in shared}


def test_what_a_cell_reads_of_another_is_made_there() -> None:
    """Every folder under the study's that an argument names is a stage of a cell that this one waits for."""
    study = load(STUDIES[0])
    inside = cells(study)
    seen = 0
    for name, inner in inside.items():
        for stage in inner.stages.values():
            for word in " ".join(stage.argv).replace('"', " ").replace("=", " ").replace("]", " ").split():
                parts = Path(word).parts
                if parts[:2] != ("outputs", "study") or len(parts) < 4 or parts[2] == name:
                    continue
                seen += 1
                assert parts[2] in study.stages[name].needs, (name, word)
                assert parts[3] in inside[parts[2]].stages, (name, word)
    assert seen > 50


def test_the_rewards_of_a_figure_differ_in_labels_and_start_alone() -> None:
    stages = cells(load(STUDIES[0]))["rewards_left_0"].stages
    models = {name: dict(stage.args) for name, stage in stages.items() if stage.run[0] == "reward"}
    assert len(models) == 12
    counts = {(args.pop("data.comparisons"), args.pop("random_init", False)) for args in models.values()}
    assert counts == {(n, start) for n in (50, 100, 1000, 10_000, 100_000, None) for start in (False, True)}
    assert len({json.dumps(args, sort_keys=True) for args in models.values()}) == 1


def test_methods_are_let_play_as_many_episodes() -> None:
    """Rollouts that are learned from, and play while learning, in episodes."""
    inside = cells(load(STUDIES[0]))
    align = yaml.safe_load((FOLDER / "align.yaml").read_text())
    base = inside["base_0"].stages["rollouts"].args["episodes"]
    online = {
        name: base + stage.args["trainer.max_epochs"] * align["data"]["episodes"]
        for cell in ("methods_online_0", "parameters_0")
        for name, stage in inside[cell].stages.items()
        if stage.run[0] == "align"
    }
    offline = inside["methods_offline_0"].stages
    rest = base + sum(offline[f"grow_{n}"].args["episodes"] for n in (1, 2, 3))
    assert {*online.values(), rest, offline["rollouts"].args["episodes"]} == {3336}
    assert set(online) == {"reinforce", "rloo", "grpo", "ppo", "heads", "last_layers", "lora"}


def test_the_threshold_of_rest_rises() -> None:
    stages = cells(load(STUDIES[0]))["methods_offline_0"].stages
    thresholds = [stages[f"improve_{n}"].args["data.select"]["at_least"] for n in (1, 2, 3)]
    assert thresholds == sorted(set(thresholds))
    for n in (2, 3):  # each round plays with the agent that the last one left
        assert f"improve_{n - 1}" in stages[f"grow_{n}"].needs
        assert f"improve_{n - 1}" in stages[f"improve_{n}"].needs


def test_there_are_enough_pairs_and_none_is_in_both_splits() -> None:
    """500 episodes to test on; of those to train on, the figure of accuracy has more than 400,000 untied pairs."""
    inside = cells(load(STUDIES[0]))
    episodes = inside["base_0"].stages["rollouts"].args["episodes"]
    for cell, stage in (("headline_0", "compare_left"), ("middle_0", "compare_middle")):
        held_out = round(inside[cell].stages[stage].args["test_fraction"] * episodes)
        assert (held_out, episodes - held_out) == (500, 1300)
    played, compare = (inside["rewards_right_0"].stages[name] for name in ("rollouts", "compare"))
    again = inside["base_0"].stages["rollouts"].args
    assert {**played.args, "episodes": 0} == {**again, "agent": played.args["agent"], "episodes": 0}
    assert compare.needs == ["rollouts"]
    assert compare.args["comparisons"] is None
    held_out = round(compare.args["test_fraction"] * played.args["episodes"])
    assert (held_out, played.args["episodes"] - held_out) == (500, 1500)
    # Of 1800 rollouts of the study's first two agents: left, middle, right, none.
    for left, middle, right, none in ((459, 827, 471, 43), (433, 919, 412, 36)):
        for wanted, other in ((left, middle + right), (right, left + middle)):
            untied = wanted * other + wanted * none + other * none
            assert untied * (1500 / 1800) ** 2 > 400_000
    assert not set(episode_seeds("rollouts", 0, episodes)) & set(episode_seeds("evaluation", 0, 1000))


@pytest.mark.parametrize(("path", "largest"), [(STUDIES[0], 1.4e6), (STUDIES[1], 103e6)], ids=["study", "paper"])
def test_the_sizes_are_three_and_grow(path: Path, largest: float) -> None:
    sizes, inside = [], cells(load(path))
    for name in ("small", "medium", "large"):
        backbone = inside[f"sizes_{name}_0"].stages["pretrain"].args["model.backbone"]
        with torch.device("meta"):
            agent = Agent(BackboneConfig.from_dict(backbone), ActionCodec(gamepad_space()))
        sizes.append(sum(p.numel() for p in agent.parameters()))
    assert all(3 * small < large for small, large in zip(sizes, sizes[1:], strict=False))
    assert sizes[-1] == pytest.approx(largest, rel=0.03)


def test_the_papers_size_is_what_its_file_trains() -> None:
    plain, paper = cells(load(STUDIES[0])), cells(load(STUDIES[1]))
    assert set(paper) == set(plain)
    assert "configs/sizes/paper.yaml" in paper["base_0"].stages["pretrain"].config
    for inner in paper.values():
        for stage in inner.stages.values():
            worlds = [value for key, value in stage.args.items() if key in ("env_args", "data.env_args")]
            assert all(world.get("size", 128) == 128 for world in worlds)
            assert stage.run[-1] != "fit" or any("study/paper/" in file for file in stage.config)


@pytest.mark.slow
def test_the_study_in_miniature(tmp_path: Path) -> None:
    out = tmp_path / "study"
    command = [sys.executable, "-m", "lit_align", "pipeline", "--config", str(STUDIES[2]), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    logs = "".join(path.read_text()[-3000:] for path in out.glob("*/log.txt"))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:] + logs
    study = json.loads((out / "report" / "results.json").read_text())["cells"]
    assert set(study) == {"base_0", "headline_0", "methods_offline_0"}
    assert not any(cell["lacks"] for cell in study.values())
    assert set(study["headline_0"]["agents"]) == {"rest_left", "rest_right", "align_left", "align_right"}
    assert set(study["methods_offline_0"]["agents"]) == {"dpo", "cpl", "rest"}
    assert study["headline_0"]["alignments"]["align_left"]["target"] == "left"
    assert all(cell["rollouts"] for name, cell in study.items() if name != "headline_0")
    for cell in study:
        assert (out / cell / "report" / "results.json").is_file()
    assert (out / "report" / "outcomes.png").is_file()
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert again.stdout.count(" same ") == 4
