"""`lit-align export`: what was at `--out` before is lost only to what is right."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_align.cli import main
from lit_align.models import onnx_check, onnx_export
from tests.helpers import tiny_agent
from tests.stages.runs import inputs, pretrain


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("apart", "heavy"), [(1.0, True), (math.nan, False), (0.0, True), (0.0, False)])
def test_an_onnx_file_takes_its_place_only_if_it_computes_the_same(tmp_path, monkeypatch, capsys, apart, heavy):
    """The exporter and the comparison are told what to do; the files are real."""

    def make(agent, path, worlds=None):
        Path(path).write_text("new")
        if heavy:
            Path(path).with_name(f"{Path(path).name}.data").write_text("new weights")
        return Path(path)

    def compare(agent, file, steps):
        assert file.name == "agent.onnx"  # by which it names its weights
        assert file.read_text() == "new"
        assert written(made) == before
        return apart

    tiny_agent().save(tmp_path / "agent")
    made = tmp_path / "made"
    made.mkdir()
    for name in ("agent.onnx", "agent.onnx.data"):
        (made / name).write_text("old")
    before = written(made)
    monkeypatch.setattr(onnx_export, "need_onnx", lambda: None)
    monkeypatch.setattr(onnx_export, "export_onnx", make)
    monkeypatch.setattr(onnx_check, "largest_difference", compare)
    code = main(["export", str(tmp_path / "agent"), f"--out={made / 'agent.onnx'}", "--format=onnx"])
    told = capsys.readouterr()
    if apart == 0:
        assert code == 0, told.err
        assert told.out.startswith(f"{made / 'agent.onnx'}: ")
        assert written(made) == {"agent.onnx": "new", "agent.onnx.data": "new weights" if heavy else "old"}
    else:
        assert code == 2
        assert f"away from torch in log-probability, expected at most 1e-04; it was removed, and {made}" in told.err
        assert written(made) == before


@pytest.mark.slow
def test_a_folder_is_written_to_where_a_link_leads(tmp_path, capsys):
    folder = inputs(tmp_path)
    assert main(pretrain(folder, folder / "run")) == 0
    left = folder / "run" / "agent"
    (tmp_path / "empty").mkdir()
    for name in ("empty", "to-be-made"):
        link = tmp_path / f"link-to-{name}"
        link.symlink_to(tmp_path / name)
        capsys.readouterr()
        assert main(["export", str(folder / "run"), f"--out={link}"]) == 0
        assert f"{link}: agent of pretrain" in capsys.readouterr().out
        assert link.is_symlink()
        assert (tmp_path / name / "model.safetensors").read_bytes() == (left / "model.safetensors").read_bytes()
