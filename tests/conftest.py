"""What tests share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The tests' networks are so small that more threads only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Other work on the machine is no fault of the code.
settings.register_profile("lit_align", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("lit_align")
# Started in the background, a shell has us ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _same_process_state() -> Iterator[None]:
    """A test that runs a stage in this process must not change the next one: seeds, threads, working folder."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    kept = {name: os.environ.get(name) for name in names}
    folder = os.getcwd()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    yield
    os.chdir(folder)
    for name, value in kept.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
