"""The package: who imports whom, verbs that exist, and a wheel that holds what it needs."""

from __future__ import annotations

import importlib.util
import inspect
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import lit_align
from lit_align.commands import ALONE, COMMANDS, STAGES

ROOT = Path(__file__).parents[1]


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_every_verb_is_there() -> None:
    from lit_align.commands.stage import CLASSES

    for verb in COMMANDS:
        module = importlib.import_module(f"lit_align.commands.{verb}")
        assert inspect.getdoc(module.run), f"the help of {verb} is the docstring of run()"
        if verb in ALONE:
            continue
        assert "out" in inspect.signature(module.run).parameters, f"a pipeline gives {verb} its folder as --out"
    assert set(CLASSES) == set(STAGES)
    for path in (path for pair in CLASSES.values() for path in pair):
        module_name, name = path.split(":")
        assert hasattr(importlib.import_module(module_name), name)


def test_public_names_are_there() -> None:
    for name in lit_align.__all__:
        assert getattr(lit_align, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Agnet'"):
        _ = lit_align.Agnet


def test_arrows_point_down_only() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_constraints_pin_every_dependency() -> None:
    pins = {_name(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    content = project()
    needed = [*content["dependencies"], *content["optional-dependencies"]["dev"]]
    assert {_name(each) for each in needed} <= pins


def test_constraints_name_no_place() -> None:
    text = (ROOT / "constraints.txt").read_text() + (ROOT / "Makefile").read_text()
    assert not re.search(r"https?://|file:|@ |\+cpu|index-url", text)


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@pytest.mark.slow
def test_a_wheel_builds_installs_and_answers(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    wheel = next(tmp_path.glob("lit_align-*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert "lit_align/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "configs/", "outputs/"))]
    missing = {str(file.relative_to(ROOT)) for file in (ROOT / "lit_align").rglob("*.py")} - set(names)
    assert not missing
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    answer = subprocess.run(
        [tmp_path / "venv" / "bin" / "lit-align", "--help"], capture_output=True, text=True, check=True
    )
    assert "pretrain" in answer.stdout
