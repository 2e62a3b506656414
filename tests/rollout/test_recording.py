"""Scripted players in processes of their own: the same episodes whatever their number, and nothing left behind."""

import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.rollout.recording import Play, agent_plays, players_play
from lit_align.spaces import ActionCodec, gamepad_space
from tests.stages.runs import WORLD, Process
from tests.support.light_world import LightWorld

PLAY = Play("LitAlign/Jumppads-v0", {"size": 32, "max_steps": 8}, "play", 3, 6)
MIXTURE = {"goal": 1.0, "boxer": 1.0}


def children(pid):
    """Ids of a process's children and theirs."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry), *children(int(entry))]
    return found


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_episodes_do_not_depend_on_the_number_of_processes():
    one = list(players_play(MIXTURE, None, PLAY, workers=1))
    two = list(players_play(MIXTURE, None, PLAY, workers=2))
    assert len(one) == len(two) == 6
    for a, b in zip(one, two, strict=True):
        assert a.table.equals(b.table)
    assert len({bytes(np.array(r.table["action"][0].as_py())) for r in one}) > 1


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc to see processes")
def test_a_killed_collect_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "lit_align", "collect", "--out", str(tmp_path / "play"), "--episodes", "100000"]
    run = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not any("vizdoom" in Path(f"/proc/{p}/cmdline").read_text() for p in children(run.pid) if alive(p)):
            assert time.monotonic() < deadline, "no engine was started"
            time.sleep(0.1)
        started = children(run.pid)
        run.send_signal(signal.SIGKILL)
        run.wait()
        deadline = time.monotonic() + 30
        while left := [pid for pid in started if alive(pid)]:
            assert time.monotonic() < deadline, f"still running: {left}"
            time.sleep(0.1)
    finally:
        run.kill()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_a_terminated_collect_leaves_nothing_half_written(tmp_path):
    Agent(BackboneConfig(image_size=32, width=16, layers=1, heads=2), ActionCodec(gamepad_space())).save(tmp_path / "a")
    argv = [f"--agent={tmp_path / 'a'}", f"--env={WORLD}", "--episodes=1000000", f"--out={tmp_path / 'play'}"]
    run = Process(["collect", *argv], tmp_path / "log.txt").process
    deadline = time.monotonic() + 120
    while not [path for path in tmp_path.glob(".play-*/**/*.parquet") if path.stat().st_size]:
        assert run.poll() is None, (tmp_path / "log.txt").read_text()[-2000:]
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 143
    assert "terminated" in (tmp_path / "log.txt").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "log.txt"]


@pytest.mark.parametrize("worlds", [1, 5, 24])
def test_the_first_episodes_of_an_outcome_are_not_the_shortest(tmp_path, worlds):
    agent = Agent(BackboneConfig(image_size=32, width=16, layers=1, heads=2), ActionCodec(gamepad_space()))
    play = Play(WORLD, purpose="rollouts")
    played = list(islice(agent_plays(agent, play, worlds), 30))
    lengths = [len(recorded.table) - 1 for recorded in played]
    assert [recorded.table["episode"][0].as_py() for recorded in played] == list(range(30))
    assert len(set(lengths)) > 4
    assert lengths == [length_of(seed) for _, seed in islice(play.deal(), 30)]


def length_of(seed: int) -> int:
    world = LightWorld()
    world.reset(seed=seed)
    return world.left
