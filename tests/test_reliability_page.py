"""The table of faults names tests that exist and run."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_fault_names_a_test_that_exists():
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = [line for line in page.splitlines() if line.startswith("|") and line.count("|") == 5]
    shown = [line for line in table if not line.startswith(("| fault", "|---"))]
    assert len(shown) >= 25
    for line in shown:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line.split("|")[4])
        assert len(named) == 1, line
        (file, name) = named[0]
        functions = [
            node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert name in functions, line
