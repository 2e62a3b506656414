"""Engines die, parents die, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lit_align.envs import WorldFailed
from lit_align.envs.gym import make
from lit_align.spaces import gamepad_space

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")

ISLAND = "LitAlign/Jumppads-v0"
ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, os
from lit_align.envs.gym import make
env = make("LitAlign/Jumppads-v0")
env.reset(seed=0)
engine = env.unwrapped._engine
print(engine.pid, engine.folder, (engine.folder / "instance").read_text().strip(), flush=True)
{then}
"""


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def shared(instance: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if instance in name]


def test_a_dead_engine_loses_the_episode_and_the_next_reset_starts_another() -> None:
    env = make(ISLAND)
    idle = gamepad_space().sample()
    try:
        first, _ = env.reset(seed=3)
        pid, folder = env.unwrapped.engine_pid, env.unwrapped._engine.folder
        instance = (folder / "instance").read_text().strip()
        assert shared(instance)
        os.kill(pid, signal.SIGKILL)
        assert wait_for(lambda: not alive(pid))
        with pytest.raises(WorldFailed, match="next reset"):
            env.step(idle)
        assert not shared(instance)
        assert not folder.exists()
        again, _ = env.reset(seed=3)
        assert env.unwrapped.engine_pid != pid
        np.testing.assert_array_equal(first, again)
        os.kill(env.unwrapped.engine_pid, signal.SIGKILL)
        with pytest.raises(WorldFailed):
            env.reset(seed=4)
        env.reset(seed=4)
    finally:
        env.close()


def test_close_leaves_nothing_and_the_callers_cores_are_its_own_again() -> None:
    cores = os.sched_getaffinity(0)
    env = make(ISLAND)
    env.reset(seed=0)
    engine = env.unwrapped._engine
    pid, folder, instance = engine.pid, engine.folder, (engine.folder / "instance").read_text().strip()
    assert os.sched_getaffinity(0) == cores
    env.close()
    env.close()
    assert not alive(pid)
    assert not folder.exists()
    assert not shared(instance)


def test_the_working_directory_stays_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = make(ISLAND)
    env.reset(seed=0)
    env.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "os._exit", "forgotten"])
def test_nothing_survives_its_parent(how: str) -> None:
    ends = {"os._exit": "os._exit(3)", "forgotten": "sys.exit(0)"}
    code = HOLD.format(then=ends.get(how, "time.sleep(60)"))
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pid, folder, instance = child.stdout.readline().split()
        if how.startswith("SIG"):
            assert alive(int(pid))
            assert len(shared(instance)) == 3
            child.send_signal(getattr(signal, how))
        child.wait(timeout=20)
        assert wait_for(lambda: not alive(int(pid)))
        assert wait_for(lambda: not shared(instance))
        assert wait_for(lambda: not Path(folder).exists())
    finally:
        child.kill()
        child.wait()


def test_engines_started_at_the_same_moment_do_not_meet() -> None:
    code = HOLD.format(then="env.close()")
    children = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    for child in children:
        _, errors = child.communicate(timeout=60)
        assert child.returncode == 0, errors.decode()


def test_where_programs_cannot_be_run_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.X_OK and real(path, mode))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    env = make(ISLAND)
    with pytest.raises(WorldFailed, match="TMPDIR"):
        env.reset(seed=0)
    assert not list(tmp_path.iterdir())


def test_registering_the_island_imports_no_engine_and_no_torch() -> None:
    code = "import sys, lit_align.envs.gym; print([m for m in ('vizdoom', 'torch', 'pygame') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert out.stdout.strip() == "[]"
