"""The example of the world's own reward in docs/methods.md: typed in as it stands, it runs, and it learns."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import markdown_pages as shown
import pytest

from lit_align.cli import main

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "methods.md"


def lines(folder: Path) -> list[list[str]]:
    """Makes the agent as the page does; returns the page's two commands, with the repository's config file."""
    code = next(block for block in shown.blocks(PAGE, "python") if "outputs/cart/start/agent" in block)
    exec(compile(code, PAGE.name, "exec"), {})
    assert (folder / "outputs" / "cart" / "start" / "agent" / "config.json").is_file()
    block = next(block for block in shown.blocks(PAGE, "bash") if "configs/cartpole" in block)
    return [[word.replace("configs/", f"{ROOT}/configs/") for word in shlex.split(line)] for line in shown.lines(block)]


def returns(folder: Path) -> list[float]:
    with (folder / "outputs" / "cart" / "ppo" / "metrics.csv").open() as file:
        return [float(row["reward/mean"]) for row in csv.DictReader(file) if row["reward/mean"]]


def test_the_example_of_the_worlds_own_reward_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    align, evaluate = lines(tmp_path)
    brief = ["--trainer.max_epochs=2", "--data.steps=128", "--data.minibatches=2", "--data.epochs=1"]
    assert main([*align[1:], *brief, "--trainer.enable_progress_bar=false"]) == 0
    assert len(returns(tmp_path)) == 2
    assert main([*evaluate[1:], "--episodes=2", "--worlds=2"]) == 0


@pytest.mark.slow
def test_the_example_of_the_worlds_own_reward_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that chooses at random balances for 22 steps on average; 500 is all there is."""
    monkeypatch.chdir(tmp_path)
    align, _ = lines(tmp_path)
    assert main([*align[1:], "--trainer.enable_progress_bar=false"]) == 0
    made = returns(tmp_path)
    assert made[0] < 60
    assert max(made) > 150
