"""What a pipeline's command line and a file over a `base` say wins, however the key was written below."""

from __future__ import annotations

from pathlib import Path

import fake_verbs
import pytest
import yaml

from lit_align.pipeline import load_pipeline

ARGS = {"trainer": {"accelerator": "cpu"}, "data.window": 64, "trainer.max_epochs": 3}


def argv(folder: Path, args: object, *overrides: str, over: object = None) -> list[str]:
    """The words of a stage of these `args`, with a file laid `over` it, after the stage's folder."""
    low, high = folder / "low.yaml", folder / "high.yaml"
    low.write_text(yaml.safe_dump({"out": "o", "stages": {"one": {"run": "write", "args": args}}}, sort_keys=False))
    high.write_text(yaml.safe_dump({"base": "low.yaml", "stages": {"one": {"args": over or {}}}}))
    return load_pipeline([str(high)], overrides, fake_verbs.VERBS).stages["one"].argv[3:]


def test_the_command_line_wins_over_a_dotted_key(tmp_path: Path) -> None:
    found = argv(tmp_path, ARGS, "stages.one.args.trainer.max_epochs=9")
    assert found == ["--trainer.accelerator=cpu", "--data.window=64", "--trainer.max_epochs=9"]
    found = argv(tmp_path, ARGS, "stages.one.args={trainer.max_epochs: 9}")
    assert "--trainer.max_epochs=9" in found
    assert "--trainer.max_epochs=3" not in found


@pytest.mark.parametrize("over", [{"trainer": {"max_epochs": 5}}, {"trainer.max_epochs": 5}])
@pytest.mark.parametrize("below", [{"trainer": {"max_epochs": 3}}, {"trainer.max_epochs": 3}])
def test_a_file_wins_over_its_base(tmp_path: Path, below: object, over: object) -> None:
    assert argv(tmp_path, below, over=over) == ["--trainer.max_epochs=5"]


def test_a_path_or_a_function_as_a_key_stays_in_one_piece(tmp_path: Path) -> None:
    rewards = {"runs/v1.2/reward_model": 1.0, "my.rewards:left": 0.5}
    assert argv(tmp_path, {"model.rewards": rewards}) == [f"--model.rewards.{key}={rewards[key]}" for key in rewards]
    file = str(tmp_path / "high.yaml")
    over = "stages.one.args.model.rewards.runs/v1.2/reward_model=2.0"
    assert "--model.rewards.runs/v1.2/reward_model=2.0" in argv(tmp_path, {"model.rewards": rewards}, over)
    kept = load_pipeline([file], [], fake_verbs.VERBS).stages["one"].args["model.rewards"]
    assert kept == rewards


def test_an_option_that_is_there_twice_is_replaced_twice(tmp_path: Path) -> None:
    twice = {"trainer.max_epochs": 3, "trainer": {"max_epochs": 4}}
    assert argv(tmp_path, twice, "stages.one.args.trainer.max_epochs=9") == ["--trainer.max_epochs=9"] * 2


def test_a_new_option_joins_its_group(tmp_path: Path) -> None:
    found = argv(tmp_path, ARGS, over={"trainer.devices": 1})
    assert found[:2] == ["--trainer.accelerator=cpu", "--trainer.devices=1"]


@pytest.mark.parametrize("over", [{"data": {"batch": 5}}, {"data.batch": 5}])
def test_options_beside_a_group_that_is_named_elsewhere(tmp_path: Path, over: object) -> None:
    """`data: ${pairs}` is resolved only when all layers are read, so what stands beside it stays beside it."""
    args = {"data": "${pairs}", "data.batch": 4}
    words = ("pairs.window=32", "stages.one.args.data.batch=9")
    for overrides, batch in ((words[:1], 5), (words, 9)):
        low = {"out": "o", "pairs": {"batch": 1, "window": 8}, "stages": {"one": {"run": "write", "args": args}}}
        (tmp_path / "low.yaml").write_text(yaml.safe_dump(low, sort_keys=False))
        (tmp_path / "high.yaml").write_text(yaml.safe_dump({"base": "low.yaml", "stages": {"one": {"args": over}}}))
        stage = load_pipeline([str(tmp_path / "high.yaml")], overrides, fake_verbs.VERBS).stages["one"]
        assert fake_verbs.parse(stage.argv)[1] == {"out": "o/one", "data.batch": str(batch), "data.window": "32"}
