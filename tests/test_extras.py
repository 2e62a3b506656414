"""What a plain install leaves out is asked for by the name of its extra, in one line; see `tests/packaging` too."""

import sys

import pytest

from lit_align.cli import main
from tests.helpers import tiny_agent

ASKED = {
    "serve": ("websockets", ["serve", "agent"]),
    "onnx": ("onnxscript", ["export", "agent", "--out=agent.onnx", "--format=onnx"]),
    "play": ("pygame", ["play", "agent", "--window=true"]),
}


@pytest.mark.parametrize("extra", sorted(ASKED))
def test_a_missing_package_is_one_line_with_its_extra(extra, tmp_path, monkeypatch, capfd):
    package, argv = ASKED[extra]
    monkeypatch.chdir(tmp_path)
    tiny_agent().save("agent")
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    before = sorted(tmp_path.rglob("*"))
    assert main(argv) == 2
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: ")
    assert f"pip install 'lit-align[{extra}]'" in said
    assert sorted(tmp_path.rglob("*")) == before
