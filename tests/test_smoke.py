"""The quickstart in miniature, through the real command line: every stage runs and the report is whole."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_whole_recipe_in_miniature(tmp_path):
    out = tmp_path / "smoke"
    command = [
        sys.executable,
        "-m",
        "lit_align",
        "pipeline",
        "--config",
        "configs/jumppads/smoke.yaml",
        "--out",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    results = json.loads((out / "report" / "results.json").read_text())
    assert results["schema"] == 1
    agents = {"pretrain", "finetune", "scratch", "rest_left", "rest_right", "align_left", "align_right"}
    assert set(results["agents"]) == agents
    for entry in results["agents"].values():
        assert sum(entry["outcomes"].values()) == entry["episodes"] == 4
        assert entry["rates"]["none"]["low"] <= entry["rates"]["none"]["value"] <= entry["rates"]["none"]["high"]
    assert set(results["reward_models"]) == {"left", "right"}
    assert {len(sizes) for starts in results["reward_models"].values() for sizes in starts.values()} == {2}
    page = (out / "report" / "index.html").read_text()
    assert "not run" not in page.lower()
    assert any((out / "report").rglob("*.mp4"))
    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0
    assert again.stdout.count(" same ") >= len(agents)  # nothing is run twice
