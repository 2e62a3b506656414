"""A world that names no outcome (CartPole) and pays by itself: play, metrics, evaluation and report do without."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from gymnasium import spaces

from lit_align.cli import main
from lit_align.data.trajectories import TrajectoryDataset
from lit_align.evaluation.results import read
from tests.helpers import tiny_agent
from tests.stages.runs import CPU

WORLD = "CartPole-v1"


def steps_of(trajectory: object) -> list[float]:
    """A reward of one's own."""
    return [2.0] * len(trajectory)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a pipeline leaves one: an agent from nothing, aligned twice, evaluated, recorded."""
    out = tmp_path_factory.mktemp("cart")
    tiny_agent(space=spaces.Discrete(2), image_size=0, vector_size=4, context=1).save(out / "start" / "agent")
    for name, reward in (("align_env", "env"), ("align_own", f"{__name__}:steps_of")):
        argv = ["align", "fit", f"--out={out / name}", f"--init_from={out / 'start' / 'agent'}", *CPU]
        argv += [f"--data.env={WORLD}", "--data.worlds=2", "--data.episodes=4", "--data.minibatches=1"]
        argv += [f"--model.reward_model={reward}", "--trainer.max_epochs=2", "--trainer.limit_val_batches=0"]
        assert main(argv) == 0
    agent = str(out / "align_env" / "agent")
    assert main(["align", "validate", *argv[2:], f"--out={out / 'checked'}", "--trainer.limit_val_batches=1"]) == 0
    assert main(["evaluate", agent, f"--env={WORLD}", "--episodes=5", f"--out={out / 'eval_align_env'}"]) == 0
    assert main(["collect", f"--agent={agent}", f"--env={WORLD}", "--episodes=3", f"--out={out / 'play'}"]) == 0
    return out


def test_an_episode_without_an_outcome_has_ended(run: Path) -> None:
    with (run / "align_env" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["reward/mean"]]
    assert {name for name in rows[0] if name.startswith("outcome/")} == {"outcome/ended"}
    assert [float(row["outcome/ended"]) for row in rows] == [1.0, 1.0]
    assert TrajectoryDataset(run / "play").meta.outcomes == {"ended": 3}
    entry = read(run / "eval_align_env" / "results.json")["agents"]["align_env"]
    assert entry["outcomes"] == {"ended": 5}
    assert "none" not in entry["rates"], "none is an episode that reached nothing, and nobody said so"


def test_what_it_was_told_is_the_worlds_own_return(run: Path) -> None:
    own, other = (json.loads((run / n / "over_optimisation.json").read_text()) for n in ("align_env", "align_own"))
    assert (own["truth"], own["outcomes"]) == ("return", {})
    assert own["return"] == own["proxy"]
    assert "no reward model stands between" in own["words"] or "the end of the run" in own["words"]
    assert (other["truth"], other["outcomes"]) == ("return", {})
    assert other["proxy"] == pytest.approx([2 * paid for paid in other["return"]]), "a function is not the world"
    assert "no reward model stands between" not in other["words"]


def test_the_report_shows_it(run: Path) -> None:
    assert main(["report", str(run)]) == 0
    text = (run / "report" / "index.html").read_text()
    assert "<th>ended</th>" in text
    assert "The world&#x27;s own return was highest at" in text
    assert "reach nothing" not in text
