"""What a stage reads outside its pipeline, however it is named, and which stages it needs without saying so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_verbs
import pytest
import yaml

from lit_align.errors import UserError
from lit_align.named_files import named_in, outside_input
from lit_align.pipeline import Pipeline, load_pipeline


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and scores."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "left").mkdir(parents=True)
    (tmp_path / "models" / "left" / "config.json").write_text("{}")
    (tmp_path / "scores.json").write_text("{}")
    return tmp_path


def load(stages: dict[str, Any]) -> Pipeline:
    Path("pipeline.yaml").write_text(yaml.safe_dump({"out": "run", "stages": stages}, sort_keys=False))
    return load_pipeline(["pipeline.yaml"], [], fake_verbs.VERBS)


def changes(stage: dict[str, Any], file: str) -> bool:
    """Whether the stage is to run again once the file is another."""
    before = load({"one": {"run": "write", **stage}}).fingerprints()
    assert load({"one": {"run": "write", **stage}}).fingerprints() == before
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"it": "was changed"}')
    return load({"one": {"run": "write", **stage}}).fingerprints() != before


@pytest.mark.parametrize(
    "args",
    [
        {"model": {"rewards": {"models/left": 1.0, "env": 0.1}}},
        {"model.rewards": "{models/left: 1.0, env: 0.1}"},
        {"model.rewards": ["[env, models/left]"]},
        {"init_from": "models/left"},
    ],
)
def test_a_folder_that_is_a_key_or_within_a_word_is_an_input(place: Path, args: dict[str, Any]) -> None:
    assert changes({"args": args}, "models/left/config.json")


def test_a_file_without_a_slash_is_an_input(place: Path) -> None:
    assert changes({"args": {"data.select.scores": "scores.json"}}, "scores.json")


@pytest.mark.parametrize(
    "content", [{"init_from": "models/left"}, {"model": {"rewards": {"models/left": 1.0}}}, {"also": ["models/left"]}]
)
def test_what_a_config_file_names_is_an_input(place: Path, content: dict[str, Any]) -> None:
    Path("one.yaml").write_text(yaml.safe_dump(content))
    assert changes({"config": "one.yaml"}, "models/left/config.json")


def test_what_is_no_input_changes_nothing(place: Path) -> None:
    Path("logs/run").mkdir(parents=True)
    written = {"out": "logs/run", "trainer": {"default_root_dir": "logs/run", "logger.save_dir": "logs/run"}}
    Path("one.yaml").write_text(yaml.safe_dump(written))
    assert not changes({"config": "one.yaml"}, "logs/run/log.txt")
    assert not changes({"args": {"reads": "logs", "more": "run/two"}}, "run/two/log.txt")
    assert not changes({"args": {"reads": "logs"}}, "logs/run/more.txt")  # a folder's name may be a word by chance


def test_words_that_are_no_paths_do_no_harm(place: Path) -> None:
    for word in ("[" * 2000, "{a: &a [*a]}", "x" * 5000, "a\0b", "{a: 2026-99-99}", "{[a]: 1}", "{: "):
        assert word in named_in({"args": [word]})
        assert outside_input(word, Path("run")) == []


def test_a_path_into_the_folder_of_another_stage_is_a_need(place: Path) -> None:
    Path("c.yaml").write_text(yaml.safe_dump({"data": {"trajectories": [str(place / "run" / "a" / "left")]}}))
    stages = {
        "b": {"run": "write", "args": {"trajectories": "./run/a"}},
        "c": {"run": "write", "config": "c.yaml"},
        "d": {"run": "write", "args": {"rewards": {"run/b/reward_model": 1.0}, "own": "run/d/x", "all": "run"}},
        "a": {"run": "write", "args": {"x": 1}},
        "ab": {"run": "write", "needs": "a", "args": {"name": "a"}},
    }
    before = load(stages)
    needs = {name: stage.needs for name, stage in before.stages.items()}
    assert needs == {"a": [], "b": ["a"], "c": ["a"], "d": ["b"], "ab": ["a"]}
    assert list(before.stages) == ["a", "b", "c", "d", "ab"]
    stages["a"]["args"] = {"x": 2}
    after = load(stages).fingerprints()
    assert all(found != after[name] for name, found in before.fingerprints().items())
    stages["a"]["args"] = {"reads": "run/b"}
    with pytest.raises(UserError, match="b -> a -> b"):
        load(stages)
