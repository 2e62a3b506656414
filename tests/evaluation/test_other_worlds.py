"""Evaluations away from where agents trained: told in the results, and never taken for a headline."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

from lit_align.commands import evaluate
from lit_align.errors import UserError
from lit_align.evaluation.gather import gather
from lit_align.evaluation.match import Match
from lit_align.evaluation.paired import FOLDER, PairedFilm, Side, read_index, side_by_side
from lit_align.evaluation.report import build_report
from lit_align.evaluation.results import agent_result, build, read, write
from lit_align.evaluation.video import write_mp4
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.spaces import ActionCodec, gamepad_space
from tests.evaluation import synthetic
from tests.evaluation.test_report import began, links
from tests.helpers import LightWorld, tiny_agent

LIGHT, ISLAND = "LitAlign-test/Light-v0", "LitAlign/Jumppads-v0"
# A name with the island's in it: its pads are known, and no engine has to start.
MAKE_BELIEVE = "LitAlign-test/Jumppads-v0"
gymnasium.register(MAKE_BELIEVE, entry_point=lambda **args: LightWorld(**args))


@pytest.mark.parametrize(
    ("env", "args", "changes"),
    [
        (ISLAND, {"size": 64, "resolution": "160x120"}, {}),
        (ISLAND, {"spawn": "yard", "sky": "day", "max_steps": 120}, {}),
        (ISLAND, {"size": 64, "spawn": "away"}, {"spawn": "away"}),
        (ISLAND, {"sky": "dusk", "max_steps": 60}, {"sky": "dusk", "max_steps": 60}),
        (LIGHT, {"size": 32, "dies_at": [3]}, {"dies_at": [3]}),
    ],
)
def test_only_what_makes_another_world_is_told(env: str, args: dict[str, Any], changes: dict[str, Any]) -> None:
    assert Match(env, args, 1, 0).changes() == changes


def test_evaluate_tells_the_world_and_the_recovery(tmp_path: Path) -> None:
    tiny_agent().save(tmp_path / "a" / "agent")
    agents, file = [str(tmp_path / "a" / "agent")], str(tmp_path / "r.json")
    evaluate.run(agents, env=LIGHT, episodes=3, worlds=2, json=file)
    assert {"env_args", "recovery"}.isdisjoint(read(file)["agents"]["a"])
    evaluate.run(agents, env=MAKE_BELIEVE, episodes=3, worlds=2, json=file, env_args={"dies_at": [9999]}, target="left")
    entry = read(file)["agents"]["a"]
    assert entry["env_args"] == {"dies_at": [9999]}
    nothing = {"missed": 0, "recovered": 0, "rate": None}  # lamps stand near the origin, far south of the pads
    assert entry["recovery"] == {**nothing, "left": nothing}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"target": "lefft"}, "did you mean left"),
        ({"target": "left", "env": LIGHT}, "pads of .*Light-v0 are not known"),
        ({"paired_videos": 1}, "two agents or more"),
        ({"paired_videos": 1, "agents": ["/a", "/b"], "names": ["a", "b"], "env": LIGHT, "out": "x"}, "the island"),
        ({"paired_videos": 1, "agents": ["/a", "/b"], "names": ["a", "b"]}, "a folder --out"),
        ({"paired_videos": -1}, "expected 0"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_read(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        evaluate.run(**{"agents": ["/nowhere"], **change})


def test_other_worlds_stand_under_ablations(tmp_path: Path) -> None:
    def entry(left: int, **extra: Any) -> Any:
        return agent_result({"left": left, "middle": 0, "right": 0, "none": 20 - left}, seed=0, **extra)

    tally = {"missed": 5, "recovered": 2, "rate": {"value": 0.4, "low": 0.12, "high": 0.77}}
    parts = {
        "eval_align_left": entry(19, recovery={**tally, "left": tally}),
        "eval_align_left_dusk": entry(11, env_args={"sky": "dusk"}),
        "eval_align_left_both": entry(7, env_args={"sky": "night", "spawn": "away"}),
        "eval_align_left_short": entry(3, env_args={"spawn": "elsewhere", "max_steps": 30}, blank=True),
    }
    for folder, one in parts.items():
        write(build(ISLAND, {"align_left": one}), tmp_path / folder / "results.json")
    short = entry(1, env_args={"max_steps": 12})
    write(build(ISLAND, {"scratch": short}), tmp_path / "eval_scratch" / "results.json")
    found = gather(tmp_path)
    assert not found.notes
    assert found.results["agents"] == {"align_left": parts["eval_align_left"]}
    assert found.results["ablations"] == {
        "align_left_dusk": parts["eval_align_left_dusk"],
        "align_left_away_night": parts["eval_align_left_both"],
        "align_left_blank_elsewhere_max-steps-30": parts["eval_align_left_short"],
        "scratch_max-steps-12": short,
    }
    text = build_report(tmp_path, tmp_path / "report").read_text()
    assert "where they never trained" in text
    never, blanked = text.index("where they never trained"), text.index("picture blanked")
    assert blanked < text.index("align_left_blank_elsewhere") < never < text.index("align_left_dusk")
    assert text.count("align_left_blank_elsewhere") == 1
    (tmp_path / "alone").mkdir()  # a run in miniature, all of it in the same world, has headlines
    write(build(ISLAND, {"scratch": short}), tmp_path / "alone" / "eval_scratch" / "results.json")
    assert gather(tmp_path / "alone").results["agents"] == {"scratch": short}
    after = text[text.index('id="recovery"') :]
    assert after.count("<td>5</td><td>2</td>") == 2, "for any pad, and for the left one"


def test_a_stage_of_several_agents_is_read_as_one_of_each(tmp_path: Path) -> None:
    """Folders as `evaluate` leaves them: the same two agents in the yard and away."""
    for stage, args in (("yard", {}), ("away", {"env_args": {"spawn": "away"}})):
        for agent in ("finetune", "scratch"):
            synthetic.evaluation_folder(tmp_path / stage, agent, 6, videos=False)
            path = tmp_path / stage / f"eval_{agent}" / "results.json"
            entry = read(path)["agents"][agent]
            write(build(ISLAND, {agent: {**entry, **args}}), path)
            played = synthetic.episodes(agent, 6)
            played.ids = played.ids + (100 if args else 0)
            played.save(path.parent / "episodes.npz")
    found = gather(tmp_path)
    assert set(found.results["agents"]) == {"finetune", "scratch"}
    assert set(found.results["ablations"]) == {"finetune_away", "scratch_away"}
    assert {name: played.ids[0] for name, played in found.episodes.items()} == {
        "finetune": 0, "scratch": 0, "finetune_away": 100, "scratch_away": 100,
    }  # fmt: skip


def test_the_report_shows_paired_videos(tmp_path: Path) -> None:
    folder = tmp_path / "misses" / FOLDER
    frames = synthetic.frames(5)
    pictures = side_by_side((frames, frames[:3]), (("a", "a"), ("b", "b")))
    write_mp4(folder / "one.mp4", pictures, 8.75)
    sides = [Side("pretrain", "left", "reached", 70, 52), Side("scratch", "none", "stuck", 120, None)]
    index = [asdict(PairedFilm(file, 7, *sides)) for file in ("one.mp4", "lost.mp4")]
    (folder / "paired.json").write_text(json.dumps(index))
    page = build_report(tmp_path, tmp_path / "report")
    assert "Base: left after 70 steps, past the pad at 52; Fine-tuned, no pre-training: none" in page.read_text()
    assert {"videos/paired-misses/one.mp4", "videos/paired-misses/one.jpg"} <= links(page).files
    assert all((page.parent / file).is_file() for file in links(page).files)


def test_a_run_without_pads_has_no_word_of_misses(tmp_path: Path) -> None:
    began(tmp_path)
    page = build_report(tmp_path, tmp_path / "report")
    assert "After a miss" not in page.read_text()
    assert links(page).anchors <= links(page).ids


@pytest.mark.slow
def test_on_the_island_only_misses_are_filmed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folders = []
    for name in ("pretrain", "scratch"):
        config = BackboneConfig(image_size=32, channels=4, width=16, layers=1, heads=1)
        agent = Agent(config, ActionCodec(gamepad_space()))
        agent.save(tmp_path / name / "agent")
        folders.append(str(tmp_path / name / "agent"))
    out = tmp_path / "recovery"
    evaluate.run(
        folders, episodes=2, out=str(out), env_args={"max_steps": 12, "sky": "dusk"}, paired_videos=1, videos=0,
        target="left", json=str(tmp_path / "r.json"),
    )  # fmt: skip
    # Nobody comes that far in twelve steps: there is nothing to film, and an index says so.
    assert read_index(out / FOLDER) == []
    assert (out / FOLDER / "paired.json").read_text() == "[]\n"
    entries = read(tmp_path / "r.json")["agents"]
    assert {entry["env_args"]["sky"] for entry in entries.values()} == {"dusk"}
    assert all(entry["recovery"]["left"]["missed"] == 0 for entry in entries.values())
