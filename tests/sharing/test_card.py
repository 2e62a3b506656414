"""Cards of real runs: their metadata, lineage and intervals, and what they say of what is not known."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results

from lit_align.data.preferences import read_preferences
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.folder import fingerprint
from lit_align.models.reward import RewardModel
from lit_align.sharing import card as card_module
from lit_align.sharing.card import Card, leave_card, make_card
from lit_align.sharing.facts import count_parameters
from lit_align.sharing.hub_rules import LICENCES, faults
from lit_align.sharing.lineage import lineage
from lit_align.sharing.scrub import relative
from lit_align.sharing.what import find
from tests.helpers import tiny_agent
from tests.sharing.made_runs import COUNTS, copy, evaluate, recipe
from tests.support.hub_server import HubServer

MODELS = {"base": "agent", "tuned": "agent", "judge": "reward_model", "aligned": "agent"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The runs, as they were left; tests that change something copy them."""
    return recipe(tmp_path_factory.mktemp("runs") / "ours")


@pytest.fixture
def evaluated(made, tmp_path):
    root = copy(made, tmp_path / "ours")
    evaluate(root / "eval_aligned", root / "aligned" / "agent", COUNTS, "aligned")
    evaluate(root / "eval_tuned", root / "tuned" / "agent", {"left": 20, "none": 30}, "tuned")
    (root / "eval_aligned" / "videos").mkdir()
    (root / "eval_aligned" / "videos" / "a.mp4").write_bytes(b"film")
    (root / "eval_aligned" / "videos" / "b.mp4").write_bytes(b"another")
    films = [{"file": "a.mp4", "outcome": "none"}, {"file": "b.mp4", "outcome": "left"}]
    (root / "eval_aligned" / "videos" / "videos.json").write_text(json.dumps(films))
    return root


def head_of(card: Card) -> dict:
    return yaml.safe_load(card.text.split("---\n")[1])


def wilson_by_roots(count: int, total: int) -> list[float]:
    """The interval's ends as the roots of (p - count / total)^2 = z^2 p (1 - p) / total in p."""
    z, share = 1.959963984540054, count / total
    return sorted(np.roots([1 + z * z / total, -(2 * share + z * z / total), share * share]).real)


def test_every_stage_leaves_a_card_beside_its_model(made):
    for run, kind in MODELS.items():
        path = made / run / kind / "README.md"
        head = metadata_load(path)
        assert faults(head, "model") == []
        assert (head["library_name"], head["pipeline_tag"]) == ("lit_align", "reinforcement-learning")
        assert "license" not in head, "nobody chose one"
        assert f"`{fingerprint(made / run / kind)}`" in path.read_text()
    assert {p.name for p in (made / "base" / "agent").iterdir()} == {"config.json", "model.safetensors", "README.md"}


def test_a_lineage_is_whole_over_three_stages(made):
    origin = lineage(find(made / "aligned"))
    found = {one.name: one for one in origin.walk() if one.kind in ("agent", "reward_model")}
    assert list(found) == ["base", "tuned", "judge", "aligned"]
    for name, kind in MODELS.items():
        assert found[name].fingerprint == fingerprint(made / name / kind)
        assert not found[name].unknown
    assert [(one.how, one.name) for one in origin.parents] == [("started from", "tuned"), ("was rewarded by", "judge")]
    assert [(one.how, one.name) for one in found["judge"].parents] == [
        ("started from", "tuned"),
        ("learned from", "pairs"),
    ]
    assert found["judge"].parents[1].parents[0].meta["episodes"] == 12
    text = make_card(find(made / "aligned")).text
    assert "`base` -> `tuned` -> `aligned`, rewarded by `judge`" in text
    assert "learned from 10 env steps a second" in text, "the speed of the play that the first of them read"
    assert "unknown:" not in text
    for name, kind in MODELS.items():
        assert fingerprint(made / name / kind)[:16] in text
        assert f"# {name}\nlit-align " in text, "the command that made it"


def test_a_recipe_that_was_moved_keeps_its_lineage(made, tmp_path):
    moved = copy(made, tmp_path / "elsewhere")
    hidden = made.rename(made.with_name("hidden"))
    try:
        names = [
            (one.name, one.unknown) for one in lineage(find(moved / "aligned")).walk() if one.kind != "trajectories"
        ]
    finally:
        hidden.rename(made)
    assert names == [("base", ""), ("tuned", ""), ("pairs", ""), ("judge", ""), ("aligned", "")]


def test_what_is_gone_is_said_to_be_unknown_and_what_was_told_of_it_is_not_lost(made, tmp_path):
    root = copy(made, tmp_path / "ours")
    alone = copy(root / "aligned", tmp_path / "alone" / "aligned")
    known = {name: fingerprint(made / name / "agent") for name in ("base", "tuned")}
    for path in (alone / "config.yaml", root / "aligned" / "config.yaml"):
        path.write_text(path.read_text().replace(str(made), "/gone"))
    shutil.rmtree(root / "tuned")
    for run in (alone, root / "aligned"):
        start = lineage(find(run)).parents[0]
        assert (start.name, start.fingerprint) == ("tuned", known["tuned"])
        assert (start.parents[0].name, start.parents[0].fingerprint) == ("base", known["base"])
        assert "not to be found" in start.unknown
    text = make_card(find(alone)).text
    assert "further back unknown" in text
    assert "The lineage is not whole" in text
    assert "# tuned: its command is not known" in text


def test_another_model_in_the_place_of_an_ancestor_is_not_taken_for_it(made, tmp_path):
    root = copy(made, tmp_path / "ours")
    config = root / "aligned" / "config.yaml"
    config.write_text(config.read_text().replace(str(made), str(root)))
    tiny_agent(7).save(root / "tuned" / "agent")
    RewardModel.from_agent(tiny_agent(8)).save(root / "judge" / "reward_model")
    start, judge = lineage(find(root / "aligned")).parents
    assert start.fingerprint == fingerprint(made / "tuned" / "agent")
    assert judge.fingerprint == fingerprint(made / "judge" / "reward_model")
    for one in (start, judge):
        assert "another model" in one.unknown
    assert judge.kind == "reward_model"


def test_a_model_without_its_run_says_what_it_cannot_know(made, tmp_path):
    copy(made / "tuned" / "agent", tmp_path / "found")
    text = make_card(find(tmp_path / "found")).text
    for sentence in ("hardware: unknown", "versions: unknown", "what it read is not known", "was not evaluated"):
        assert sentence in text
    assert "started from `base`" in text


@pytest.mark.parametrize("name", [*MODELS, "play", "pairs"])
def test_the_metadata_passes_the_hubs_checks_and_comes_back_as_it_was(evaluated, tmp_path, monkeypatch, name):
    shared = find(evaluated / name)
    card = make_card(shared, "user/its-name", "mit")
    kind = ModelCard if shared.repo_type == "model" else DatasetCard
    path = tmp_path / "README.md"
    path.write_text(card.text)
    head = metadata_load(path)
    assert faults(head, shared.repo_type) == []
    assert head["license"] == "mit"
    loaded = kind.load(path)
    assert str(loaded) == card.text
    if "model-index" in head:
        assert model_index_to_eval_results(head["model-index"])[0] == "its-name"
    with HubServer() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        loaded.validate()
        assert any("validate-yaml" in line for line in server.seen)


def test_shares_and_intervals_are_those_of_the_closed_form(evaluated):
    card = make_card(find(evaluated / "aligned"))
    _, found = model_index_to_eval_results(head_of(card)["model-index"])
    assert {one.metric_args["outcome"] for one in found} == set(COUNTS)
    for one in found:
        count = COUNTS[one.metric_args["outcome"]]
        low, high = wilson_by_roots(count, 50)
        assert one.metric_value == pytest.approx(count / 50)
        assert [one.metric_args["low"], one.metric_args["high"]] == pytest.approx([low, high], abs=1e-6)
        assert f"{100 * low:.1f} - {100 * high:.1f} %" in card.text
        assert one.metric_args["n"] == 50
    low, high = wilson_by_roots(20, 50)
    assert f"40.0 % ({100 * low:.1f} - {100 * high:.1f} %)" in card.text, "the one it started from, for comparison"


def test_a_return_that_says_more_than_outcomes_is_told(made, tmp_path):
    root = copy(made, tmp_path / "ours")
    own = {"mean": 195.25, "std": 20.0, "low": 189.566, "high": 200.934}  # of 50, by the t table: 2.00958 / sqrt(50)
    evaluate(root / "eval_aligned", root / "aligned" / "agent", COUNTS, "aligned", **{"return": own})
    paid = {
        "mean": 0.4,
        "std": (0.24 * 50 / 49) ** 0.5,
        "low": 0.259,
        "high": 0.541,
    }  # 0 or 1 each: no more than the outcomes say
    evaluate(root / "eval_tuned", root / "tuned" / "agent", {"left": 20, "none": 30}, "tuned", **{"return": paid})
    card = make_card(find(root / "aligned"))
    assert "own return is 195.2 (189.6 to 200.9) an episode (mean, 95 % t interval)" in card.text
    assert re.search(r"\| `tuned` .*\| +0\.4 \(0\.259 to 0\.541\) \|", card.text)
    assert re.search(r"\| `aligned` .*\| +195\.2 \(189\.6 to 200\.9\) \|", card.text)
    _, found = model_index_to_eval_results(head_of(card)["model-index"])
    (one,) = [one for one in found if one.metric_type == "mean_reward"]
    assert one.metric_value == "195.25 +/- 20.00"
    assert one.metric_args == {"low": 189.566, "high": 200.934, "interval": "t 95 %", "n": 50}
    assert "own return" not in make_card(find(root / "tuned")).text


@pytest.mark.parametrize(
    ("mean", "std", "value"),
    [(0.0021, 0.00034, "0.00210 +/- 0.00034"), (-1234.5, 0.0, "-1234.50 +/- 0.00"), (21.456, 3.0, "21.46 +/- 3.00")],
)
def test_a_small_return_keeps_its_digits(made, tmp_path, mean, std, value):
    root = copy(made, tmp_path / "ours")
    own = {"mean": mean, "std": std, "low": mean - std, "high": mean + std}
    evaluate(root / "eval_aligned", root / "aligned" / "agent", COUNTS, "aligned", **{"return": own})
    _, found = model_index_to_eval_results(head_of(make_card(find(root / "aligned")))["model-index"])
    assert [one.metric_value for one in found if one.metric_type == "mean_reward"] == [value]


def test_a_reward_models_accuracy_has_its_interval(made):
    info = RewardModel.load(made / "judge" / "reward_model").info
    right = round(info["accuracy"] * info["pairs"])
    low, high = wilson_by_roots(right, info["pairs"])
    _, (one,) = model_index_to_eval_results(head_of(make_card(find(made / "judge")))["model-index"])
    assert one.metric_type == "accuracy"
    assert one.metric_value == pytest.approx(info["accuracy"])
    expected = [0.0 if right == 0 else low, 1.0 if right == info["pairs"] else high]
    assert [one.metric_args["low"], one.metric_args["high"]] == pytest.approx(expected, abs=1e-6)


def test_heatmap_and_replay_are_files_of_the_card_and_it_is_the_same_every_time(evaluated):
    first = make_card(find(evaluated / "aligned"), "user/name")
    drawn = first.files["heatmap.png"].read_bytes()
    assert drawn.startswith(b"\x89PNG")
    assert first.files["replay.mp4"].name == "b.mp4", "the first film of the most frequent outcome"
    assert first.files["results.json"] == evaluated / "eval_aligned" / "results.json"
    first.files["heatmap.png"].unlink()
    assert make_card(find(evaluated / "aligned"), "user/name") == first
    assert first.files["heatmap.png"].read_bytes() == drawn
    for name in ("heatmap.png", "replay.mp4"):
        assert f"]({name})" in first.text


def test_an_evaluation_of_other_weights_is_not_shown(evaluated):
    path = evaluated / "eval_aligned" / "results.json"
    content = json.loads(path.read_text())
    content["agents"]["aligned"]["train_frames"] += 1
    path.write_text(json.dumps(content))
    card = make_card(find(evaluated / "aligned"))
    assert "model-index" not in head_of(card)
    assert "of other weights" in card.text
    assert "results.json" not in card.files


def test_blanked_frames_are_a_control_and_no_headline(evaluated):
    folder = evaluated / "eval_aligned_blank"
    evaluate(folder, evaluated / "aligned" / "agent", {"none": 1000}, "aligned", blank=True)
    card = make_card(find(evaluated / "aligned"))
    _, found = model_index_to_eval_results(head_of(card)["model-index"])
    assert {one.metric_args["n"] for one in found} == {50}
    assert "As a control: 1,000 episodes" in card.text


def test_neither_a_place_on_this_machine_nor_its_user_is_told(evaluated, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/jane")
    for name in MODELS:
        path = evaluated / name / "environment.json"
        content = json.loads(path.read_text())
        content["command"] += ["--x=/home/jane/secret/place", "--y=~/mine", "file:///home/jane/z", "/home/jane"]
        path.write_text(json.dumps(content))
    for name in (*MODELS, "play", "pairs"):
        text = make_card(find(evaluated / name), "user/name").text
        assert "jane" not in text
        assert str(evaluated.parent) not in text
        assert not re.search(r"(?<![\w./:])/(tmp|home|root|work|Users)/", text)
        assert relative(text) == text, "nothing is left for push to make relative"


def test_the_hubs_cards_of_data_open_in_datasets_and_our_readers(made, tmp_path):
    for name, rows in (("play", 12 + sum(4 + i % 5 for i in range(12))), ("pairs", 8)):
        folder = copy(made / name, tmp_path / name)
        (folder / "README.md").write_text(make_card(find(folder), "user/name").text)
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert loaded["train"].num_rows == rows
        assert set(loaded) == ({"train"} if name == "play" else {"train", "test"})
    assert len(TrajectoryDataset(tmp_path / "play")) == 12
    assert len(read_preferences(tmp_path / "pairs")[1]["train"]) == 8


def test_a_start_on_the_hub_is_the_base_model(made, tmp_path, monkeypatch):
    root = copy(made, tmp_path / "ours")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    config = root / "tuned" / "config.yaml"
    config.write_text(config.read_text().replace(f"{made}/base/agent", f"someone/base@{'a' * 40}"))
    card = make_card(find(root / "tuned"), "user/tuned")
    head = head_of(card)
    assert head["base_model"] == ["someone/base"]
    assert head["base_model_relation"] == "finetune"
    assert faults(head, "model") == []
    assert f"started from `someone/base`, revision `{'a' * 40}`" in card.text
    assert fingerprint(made / "base" / "agent")[:16] in card.text
    assert "it is not on this disk" in card.text
    copy(made / "base" / "agent", tmp_path / "cache" / "models--someone--base" / "snapshots" / ("a" * 40))
    start = lineage(find(root / "tuned")).parents[0]
    assert (start.name, start.repository, start.revision) == ("someone/base", "someone/base", "a" * 40)
    assert start.facts is not None
    assert start.fingerprint == fingerprint(made / "base" / "agent")


def test_parameters_are_counted_by_the_header_alone(made):
    agent = Agent.load(made / "tuned" / "agent")
    expected = sum(p.numel() for p in agent.state_dict().values())
    assert count_parameters(made / "tuned" / "agent" / "model.safetensors") == expected
    assert f"- parameters: {sum(p.numel() for p in agent.parameters()):,}" in make_card(find(made / "tuned")).text


@pytest.mark.parametrize("content", [b"", b"\xff" * 30, b"\x02" + b"\0" * 7 + b"[]", b"\x02" + b"\0" * 7 + b"{}"])
def test_weights_that_are_none_have_no_parameters(tmp_path, content):
    (tmp_path / "w").write_bytes(content)
    assert count_parameters(tmp_path / "w") is None


def test_the_code_on_the_card_runs(evaluated, monkeypatch, capsys):
    text = make_card(find(evaluated / "aligned")).text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(evaluated)
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("size", "vector", "seen"),
    [(32, 0, "sees pixels,"), (32, 3, "sees pixels and a vector of numbers,"), (0, 3, "sees a vector of numbers,")],
)
def test_the_code_on_a_reward_models_card_runs_whatever_it_sees(tmp_path, monkeypatch, size, vector, seen):
    monkeypatch.chdir(tmp_path)
    RewardModel.from_agent(tiny_agent(image_size=size, vector_size=vector)).save(tmp_path / "judge" / "reward_model")
    text = make_card(find(tmp_path / "judge" / "reward_model")).text
    assert f"A reward model that {seen}" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    found = {"frames": torch.zeros(2, 4, size, size, 3, dtype=torch.uint8), "lengths": torch.tensor([4, 2])}
    exec(compile(code, "card", "exec"), found | ({"vectors": torch.ones(2, 4, vector)} if vector else {}))
    tiny_agent(image_size=size, vector_size=vector).save(tmp_path / "agent")
    assert f"An agent that {seen.removesuffix(',')} and acts" in make_card(find(tmp_path / "agent")).text


def test_an_agent_of_several_worlds_names_them_all(made, tmp_path):
    root = copy(made, tmp_path / "ours")
    meta = json.loads((root / "play" / "meta.json").read_text())
    for name, episodes in (("Other-v0", 500), ("Small-v0", 3)):
        copy(root / "play", root / name)
        (root / name / "meta.json").write_text(json.dumps({**meta, "env": name, "episodes": episodes}))
    config = yaml.safe_load((root / "tuned" / "config.yaml").read_text())
    config["data"]["trajectories"] = [str(root / name) for name in ("Small-v0", "play", "Other-v0")]
    (root / "tuned" / "config.yaml").write_text(yaml.safe_dump(config))
    text = make_card(find(root / "tuned")).text
    assert "acts in `Other-v0`, `made-up` and `Small-v0`, fine-tuned" in text
    assert "- environments, most episodes first: `Other-v0`, `made-up` and `Small-v0`" in text
    assert "- 3 worlds, `Other-v0`, `made-up` and `Small-v0`: what it does in another one" in text
    assert "- One world, `made-up`: what" in make_card(find(root / "base")).text, "that of its own play"


def test_a_licence_that_the_hub_does_not_know_is_refused(made):
    with pytest.raises(UserError, match=r"'Apache-2\.0'.*did you mean apache-2\.0\?"):
        make_card(find(made / "base"), "user/name", "Apache-2.0")


def test_a_card_that_fails_ends_no_run(made, tmp_path, monkeypatch, caplog):
    root = copy(made / "base", tmp_path / "base")
    (root / "agent" / "README.md").unlink()
    monkeypatch.setattr(card_module, "make_card", lambda *_, **__: 1 / 0)
    leave_card(root)
    assert "no card was written" in caplog.text
    assert not (root / "agent" / "README.md").exists()


BREAKS = {
    "license": lambda head: head.update(license="my own"),
    "tags": lambda head: head.update(tags=["", None]),
    "base_model": lambda head: head.update(base_model="./base/agent"),
    "relation": lambda head: head.update(base_model_relation="child"),
    "datasets": lambda head: head.update(datasets=[None]),
    "config": lambda head: head["model-index"][0]["results"][0]["dataset"].update(config=3),
    "type": lambda head: head["model-index"][0]["results"][0]["dataset"].update(type=""),
    "metric": lambda head: head["model-index"][0]["results"][0]["metrics"][0].update(value=math.nan),
    "none": lambda head: head["model-index"][0]["results"][0].update(metrics=[]),
    "name": lambda head: head["model-index"][0].pop("name"),
}


@pytest.mark.parametrize("fault", BREAKS)
def test_what_the_hub_refuses_is_found(evaluated, fault):
    head = head_of(make_card(find(evaluated / "aligned")))
    assert faults(head, "model") == []
    BREAKS[fault](head)
    assert faults(head, "model")


def test_licences_are_written_as_the_hub_writes_them():
    assert {"apache-2.0", "mit", "cc-by-4.0", "other", "unknown"} <= LICENCES
    assert all(re.fullmatch(r"[a-z0-9.+-]+", licence) for licence in LICENCES)


def test_a_run_named_like_nothing_else(made, tmp_path):
    strange = "a|b `c` *d* <e> [f](g) é 世界"
    root = copy(made, tmp_path / "ours")
    (root / "tuned").rename(root / strange)
    evaluate(root / "eval", root / strange / "agent", {"left|": 3, "`none`": 4}, strange, world="my|world:`A`-v0")
    card = make_card(find(root / strange))
    assert faults(head_of(card), "model") == []
    assert head_of(card)["model-index"][0]["name"] == strange
    assert Path(card.files["results.json"]).is_file()
