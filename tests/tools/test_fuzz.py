"""The fuzzers run, find nothing in two seconds, and their harness finds what is planted."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import planted
from tools.fuzz import TARGETS, __main__, _mutate
from tools.fuzz._harness import Finding, fuzz, loop

ROOT = Path(__file__).parents[2]
MODULE = "tests.support.planted"


def by_case(report):
    return {finding.case: finding for finding in report.findings}


def test_a_planted_crash_hang_and_death_are_found_with_their_case():
    report = fuzz(MODULE, cases=20, limit=0.5)
    found = by_case(report)
    assert set(found) == {planted.CRASH, planted.HANG, planted.SLEEP, planted.DIE, planted.MEMORY}
    assert found[planted.CRASH].what.startswith("KeyError in tests/support/planted.py:")
    assert "planted" in found[planted.CRASH].detail
    assert found[planted.HANG].what.startswith("no answer within 0.5 s of CPU in tests/support/planted.py")
    assert found[planted.SLEEP].what.startswith("no answer within")
    assert "exit code -6" in found[planted.DIE].what
    assert found[planted.MEMORY].what.startswith("MemoryError")
    # 1, 13, 17 raise a UserError, 3, 7, 11, 19 say that they refuse; the other cases are accepted.
    assert (report.refused, report.accepted, report.cases) == (7, 8, 20)


def test_a_case_is_run_again_by_its_number(capsys, monkeypatch):
    monkeypatch.setattr(__main__, "module_of", lambda name: MODULE)
    assert __main__.main(["--target", "actions", "--case", str(planted.CRASH)]) == 1
    said = capsys.readouterr().out
    assert "FOUND KeyError" in said
    assert f"python -m tools.fuzz --target actions --case {planted.CRASH}" in said
    assert __main__.main(["--target", "actions", "--case", "2"]) == 0
    assert "1 cases in 0 s, 1 accepted, 0 refused, 0 findings" in capsys.readouterr().out


def test_the_same_mistake_is_told_once():
    def wrong(rng):
        raise KeyError(rng.random())

    found: list[Finding] = []
    loop(wrong, 0, 60, 3, [0, 0, 0, 0], found.append)
    assert [finding.case for finding in found] == [0, 1, 2]
    assert len({finding.what for finding in found}) == 1


def test_mutations_change_something_and_follow_from_the_seed():
    given = {"a": [1, {"b": 2.5}], "c": "text", "d": None}
    made = [_mutate.tree(random.Random(case), given) for case in range(200)]
    assert sum(repr(each) != repr(given) for each in made) > 180
    assert repr(made) == repr([_mutate.tree(random.Random(case), given) for case in range(200)])
    assert given == {"a": [1, {"b": 2.5}], "c": "text", "d": None}
    assert {_mutate.data(random.Random(case), b"bytes" * 9) for case in range(50)} - {b"bytes" * 9}


@pytest.mark.slow
def test_two_seconds_of_each_find_nothing():
    command = [sys.executable, "-m", "tools.fuzz", "--target", "all", "--seconds", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = re.findall(r"^(\w+): ([1-9]\d*) cases in .* 0 findings$", done.stdout, re.MULTILINE)
    assert [name for name, _ in lines] == list(TARGETS), done.stdout
