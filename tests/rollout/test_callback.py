"""What the online loop does beside playing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lit_align.rollout.callback import give_back


def held() -> float:
    """This process's own memory, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("RssAnon"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_that_was_freed_below_what_is_still_held_is_given_back():
    blocks = [bytes(1000) for _ in range(200_000)]
    full, last = held(), blocks[-1]
    del blocks
    assert held() > full - 50  # a block at the end keeps all that lies below it
    give_back()
    assert held() < full - 150
    assert len(last) == 1000
