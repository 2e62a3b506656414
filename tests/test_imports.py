"""Modules that a user names are found where `lit-align` is started, as the console script starts: `python -P`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import gymnasium
import numpy as np
import my_neighbour

class Tiny(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (my_neighbour.SIZE,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

gymnasium.register("Tiny-v0", entry_point=Tiny)

def reward(trajectory):
    return [0.0] * len(trajectory)
"""


def run(folder: Path, code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a folder that is not on the path."""
    return subprocess.run([sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_worlds.py").write_text(MODULE)
    (tmp_path / "my_neighbour.py").write_text("SIZE = 3\n")
    (tmp_path / "json.py").write_text("raise SystemExit('the standard library was hidden')\n")
    return tmp_path


def test_a_world_and_a_function_beside_the_command_are_found_and_hide_nothing(folder: Path) -> None:
    code = """
import sys
before = list(sys.path)
from lit_align.envs.gym import make
from lit_align.data.annotators import load_function
make("CartPole-v1").close()
load_function("math:sqrt", "rule.score")
assert sys.path == before, "what is installed needs no other place"
print(make("my_worlds:Tiny-v0").observation_space.shape, load_function("my_worlds:reward", "rule.score")([1]))
assert sys.path[:-1] == before
import json
json.dumps(1)
"""
    done = run(folder, code)
    assert done.stderr == ""
    assert done.stdout == "(3,) [0.0]\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("her_worlds:Tiny-v0", "in a module 'her_worlds', which is neither installed nor in {folder}: start lit-align"),
        ("my_worlds.sub:Tiny-v0", "in a module 'my_worlds.sub', which is neither installed"),
        ("lacking:Tiny-v0", "needs a package that is missing: No module named 'not_there_at_all'"),
        ("broken:Tiny-v0", "cannot import 'broken' of 'broken:Tiny-v0': ZeroDivisionError"),
        (
            "my_worlds:Hugehuge-v0",
            "there is no environment 'my_worlds:Hugehuge-v0'; 'my_worlds' was imported",
        ),
        ("my_worlds:Tinny-v0", "there is no environment 'my_worlds:Tinny-v0'; did you mean my_worlds:Tiny-v0?"),
    ],
)
def test_what_cannot_be_imported_says_where_it_was_looked_for(folder: Path, name: str, says: str) -> None:
    (folder / "lacking.py").write_text("import not_there_at_all\n")
    (folder / "broken.py").write_text("1 / 0\n")
    code = f"""
from lit_align.envs.gym import make
from lit_align.errors import UserError
try:
    make({name!r})
except UserError as error:
    print(error)
"""
    done = run(folder, code)
    assert done.stderr == ""
    assert says.format(folder=folder) in done.stdout
