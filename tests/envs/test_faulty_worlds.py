"""Worlds that raise, hang, answer with nonsense or die: named, restarted, their episodes played again, nothing else."""

from __future__ import annotations

import logging
import os
import signal
import struct
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_align.data.trajectory import Trajectory
from lit_align.envs import WorldFailed
from lit_align.envs.guard import Guard
from lit_align.envs.gym import make
from lit_align.envs.isolate import Isolated, make_world
from lit_align.envs.jumppads import orphans
from lit_align.errors import UserError
from lit_align.rollout.sampler import Sampler
from lit_align.workers import descendants
from tests.envs.test_engine import ISLAND, ROOT, alive, shared, wait_for
from tests.helpers import LightWorld, tiny_agent
from tests.support.faulty_world import ID, FaultyWorld

EPISODES = [(i, 100 + i) for i in range(8)]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def play(make_one: Any, worlds: int = 3, episodes: Any = EPISODES, **agent: Any) -> tuple[dict[int, Trajectory], int]:
    with Sampler(tiny_agent(**agent), make_one, worlds, threads=1, backoff=0.01) as sampler:
        return {t.id: t for t in sampler.play(episodes)}, sampler.failures


def assert_same(some: dict[int, Trajectory], others: dict[int, Trajectory]) -> None:
    assert some.keys() == others.keys()
    for i, trajectory in some.items():
        for name in ("frames", "vectors", "actions", "rewards", "positions"):
            np.testing.assert_array_equal(getattr(trajectory, name), getattr(others[i], name), err_msg=f"{i} {name}")
        np.testing.assert_allclose(trajectory.log_probs, others[i].log_probs, atol=1e-5)
        assert trajectory.outcome == others[i].outcome


FAULTS = {
    "raise": "raised ZeroDivisionError: no lamp",
    "nan reward": "gave a reward that is nan; expected a finite number",
    "array reward": "gave a reward that is an array of shape (1,); expected a number",
    "no reward": "answered with 5 values; expected observation, reward, terminated, truncated, info",
    "shape": r"showed pixels (31, 32, 3), uint8; its observation space says (32, 32, 3), uint8",
    "dtype": "showed pixels (32, 32, 3), float32; its observation space says (32, 32, 3), uint8",
    "nothing": "answered with a NoneType; expected observation",
    "four": "answered with 4 values; expected observation",
    "info": "gave a NoneType as info; expected a dict",
    "position": "gave the position (0.0, inf, 0.0); expected 3 finite numbers",
}


@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_counted_and_costs_its_episode_only(fault, at, tmp_path, caplog):
    if at == 0 and fault in ("nan reward", "array reward", "no reward"):
        pytest.skip("a reset has no reward")
    whole, _ = play(LightWorld)
    faults = {102: (fault, at), 105: (fault, at)}
    hurt, failures = play(lambda: FaultyWorld(faults, str(tmp_path), times=2))
    assert failures == 4
    assert_same(hurt, whole)
    where = "at its reset" if at == 0 else "at step 3"
    lost = [r.getMessage() for r in caplog.records if r.name == "lit_align.rollout.sampler"]
    assert len(lost) == 4
    said = FAULTS[fault].replace("answered with 4", "answered with 1") if at == 0 else FAULTS[fault]
    for episode, seed in ((2, 102), (5, 105)):
        mine = [line for line in lost if f"episode {episode} is thrown away after {max(at - 1, 0)} steps" in line]
        assert len(mine) == 2
        assert "(attempt 2 of 5): world " in mine[0]
        for line in mine:
            assert f"(FaultyWorld), seed {seed}, {where}: " in line
            assert (said.split(", reward")[0] if at == 0 else said) in line


def test_a_vector_that_is_not_finite_costs_its_episode_only(tmp_path, caplog):
    numbers: dict[str, int] = {"size": 0, "vector": 3}
    whole, _ = play(lambda: LightWorld(**numbers), image_size=0, vector_size=3)
    spoiled = partial(FaultyWorld, {104: ("nan vector", 2)}, str(tmp_path), **numbers)
    hurt, failures = play(spoiled, image_size=0, vector_size=3)
    assert failures == 1
    assert_same(hurt, whole)
    assert "seed 104, at step 2: showed a vector whose number 0 is nan" in caplog.text


def test_a_fault_that_stays_stops_the_play_with_one_error_and_closes_all_worlds(tmp_path):
    open_now = []

    class Counted(FaultyWorld):
        def __init__(self, *args, **more):
            super().__init__(*args, **more)
            open_now.append(self)

        def close(self):
            open_now.remove(self)

    words = r"^a world failed 5 times over episode 4; last: world \d \(Counted\), seed 104, at step 1: raised ZeroDiv"
    with pytest.raises(WorldFailed, match=words):
        play(lambda: Counted({104: ("raise", 1)}, str(tmp_path), times=99))
    assert open_now == []


class Script(LightWorld):
    """Fails at the first steps as a script tells; how often it was made is counted."""

    made = 0

    def __init__(self, script: list[Exception | None]) -> None:
        super().__init__()
        self.script = script
        Script.made += 1

    def step(self, action: Any) -> Any:
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error
        return super().step(action)

    def close(self) -> None:
        raise OSError("this one cannot even be closed")


def test_restarts_come_at_once_then_ever_later_and_a_world_that_restarts_itself_is_believed_once(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("lit_align.envs.guard.time", SimpleNamespace(sleep=slept.append))
    script: list[Exception | None] = [WorldFailed("a"), WorldFailed("b"), ValueError("c"), KeyError("d")]
    Script.made = 0
    guard = Guard(lambda: Script(script), 7, backoff=1.0)
    made = []
    for word in ("a$", "b$", "raised ValueError: c$", "raised KeyError: 'd'$"):
        guard.reset(seed=1)
        made.append(Script.made)
        with pytest.raises(WorldFailed, match=rf"^world 7 \(Script\), seed 1, at step 1: {word}"):
            guard.step(guard.action_space.sample())
    guard.reset(seed=1)
    assert slept == [1.0, 2.0, 4.0]
    assert [*made, Script.made] == [1, 1, 2, 3, 4]
    over = False
    while not over:
        over = guard.step(guard.action_space.sample())[2]
    guard.reset(seed=2)  # all is forgiven after a whole episode
    assert len(slept) == 3
    guard.close()


def test_backoff_has_an_end(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("lit_align.envs.guard.time", SimpleNamespace(sleep=slept.append))
    guard = Guard(lambda: Script([ValueError("x")]))
    for _ in range(12):
        guard.reset(seed=1)
        with pytest.raises(WorldFailed):
            guard.step(guard.action_space.sample())
    assert slept[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(slept) == slept[-1] == 30.0


# Worlds in processes of their own


@needs_linux
def test_in_processes_of_their_own_worlds_may_raise_hang_exit_and_be_killed(tmp_path, caplog, capfd):
    whole, _ = play(LightWorld, worlds=2)
    faults = {101: ("raise", 2), 102: ("exit", 3), 104: ("kill", 0), 105: ("hang", 4)}
    before = descendants(os.getpid())
    one = partial(make_world, ID, {"faults": faults, "marks": str(tmp_path)}, isolate=True, step_timeout=5.0)
    hurt, failures = play(one, worlds=2)
    assert failures == 4
    assert_same(hurt, whole)
    for words in (
        "seed 101, at step 2: raised ZeroDivisionError: no lamp",
        "seed 102, at step 3: its process ended with exit code 7",
        "seed 104, at its reset: its process was killed by SIGKILL",
        "seed 105, at step 4: it did not answer within 5 s, and its process was killed",
    ):
        assert words in caplog.text
    assert 'raise ZeroDivisionError("no lamp")' in capfd.readouterr().err, "where in the world it was"
    assert wait_for(lambda: not [pid for pid in descendants(os.getpid()) - before if alive(pid)])


@needs_linux
@pytest.mark.parametrize("fault", ["hang", "spin"])
def test_a_world_that_hangs_dies_with_its_parent(fault, tmp_path):
    code = f"""
from lit_align.envs.isolate import Isolated
world = Isolated({ID!r}, {{"faults": {{1: ({fault!r}, 1)}}, "marks": {str(tmp_path)!r}}})
world.reset(seed=1)
print(world.pid, flush=True)
world.step(world.action_space.sample())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert wait_for(lambda: (tmp_path / "1.txt").exists(), 30), "it never began to hang"
        assert alive(pid)
        parent.kill()
        parent.wait()
        assert wait_for(lambda: not alive(pid))
    finally:
        parent.kill()


def engines_of(parent: int) -> dict[int, str]:
    """The engines below a process: their ids, and the instances by which their shared memory is named."""
    told = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0") for pid in descendants(parent)}
    name = "+viz_instance_id"
    return {pid: words[words.index(name) + 1] for pid, words in told.items() if name in words}


@needs_linux
def test_an_isolated_island_shows_the_same_frames_and_its_engine_dies_with_its_process():
    args = {"size": 32, "max_steps": 20}
    plain, apart = make(ISLAND, **args), make_world(ISLAND, args, isolate=True)
    assert isinstance(apart, Isolated)
    instances: list[str] = []
    try:
        assert (apart.observation_space, apart.action_space) == (plain.observation_space, plain.action_space)
        assert apart.max_steps == 20
        assert apart.metadata["render_fps"] == 8.75
        plain.action_space.seed(0)
        for seed in (3, 4):
            (a, info), (b, other) = plain.reset(seed=seed), apart.reset(seed=seed)
            np.testing.assert_array_equal(a, b)
            for _ in range(6):
                action = plain.action_space.sample()
                (a, *rest, info), (b, *same, other) = plain.step(action), apart.step(action)
                np.testing.assert_array_equal(a, b)
                np.testing.assert_array_equal(info.pop("position"), other.pop("position"))
                assert (rest, info) == (same, other)
        assert apart.pid is not None
        engines = engines_of(apart.pid)
        assert len(engines) == 1
        assert all(shared(instance) for instance in engines.values())
        instances += engines.values()
        os.kill(apart.pid, signal.SIGKILL)
        with pytest.raises(WorldFailed, match="killed by SIGKILL"):
            apart.step(plain.action_space.sample())
        assert wait_for(lambda: not any(map(alive, engines)))
        np.testing.assert_array_equal(apart.reset(seed=3)[0], plain.reset(seed=3)[0])
        instances += engines_of(apart.pid).values()
    finally:
        plain.close()
        apart.close()
    assert len(instances) == 2
    assert wait_for(lambda: not any(map(shared, instances)))


def test_what_cannot_be_made_or_cannot_keep_time_is_told_before_play():
    with pytest.raises(UserError, match="there is no environment 'CartPol-v1'"):
        make_world("CartPol-v1", {}, isolate=True)
    with pytest.raises(UserError, match="step_timeout is 5.0, but a step of CartPole-v1 .* give isolate true as well"):
        make_world("CartPole-v1", {}, step_timeout=5.0)
    with pytest.raises(UserError, match="step_timeout is 0.0; expected seconds, more than 0"):
        make_world(ISLAND, {}, step_timeout=0.0)
    assert make_world(ISLAND, {}, step_timeout=7.0).unwrapped.step_timeout == 7.0


# The island's engine


@needs_linux
def test_an_engine_that_hangs_is_killed_in_time_and_a_hanging_one_can_be_closed():
    world = make_world(ISLAND, {"size": 32}, step_timeout=1.0)
    try:
        first, _ = world.reset(seed=3)
        engine = world.unwrapped._engine
        instance = (engine.folder / "instance").read_text().strip()
        os.kill(engine.pid, signal.SIGSTOP)
        with pytest.raises(WorldFailed, match="did not answer within 1 s and was killed; the next reset starts"):
            world.step(world.action_space.sample())
        assert not shared(instance)
        np.testing.assert_array_equal(world.reset(seed=3)[0], first)
        pid = world.unwrapped.engine_pid
        os.kill(pid, signal.SIGSTOP)
    finally:
        world.close()
    assert not alive(pid)


@needs_linux
def test_an_engine_that_died_with_a_lock_in_its_hands_is_waited_for_no_longer_than_any_other():
    gone = subprocess.Popen(["true"])
    gone.wait()
    world = make_world(ISLAND, {"size": 32}, step_timeout=1.0)
    try:
        first, _ = world.reset(seed=3)
        engine = world.unwrapped._engine
        instance = (engine.folder / "instance").read_text().strip()
        with (orphans.SHARED_MEMORY / f"ViZDoomMQCtr{instance}").open("r+b") as file:
            file.seek(orphans.AT)
            lock = struct.Struct("=5i")
            assert lock.unpack(file.read(lock.size)) == (0, 0, 0, 0, 128)  # else this is not where the lock lies
            file.seek(orphans.AT)
            file.write(lock.pack(1, 0, gone.pid, 1, 128))  # as the engine leaves it that is killed in the middle
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(WorldFailed, match="did not answer within 1 s and was killed; the next reset starts"):
            world.step(world.action_space.sample())
        assert not shared(instance)
        np.testing.assert_array_equal(world.reset(seed=3)[0], first)
        assert not orphans.release((world.unwrapped._engine.folder / "instance").read_text().strip())
    finally:
        world.close()


@needs_linux
def test_an_engine_killed_in_play_costs_its_episode_only(caplog):
    args = {"size": 32, "max_steps": 10}
    killed: list[int] = []

    class Struck:
        """Kills its engine at a step of one episode, once."""

        def __new__(cls):
            world = make(ISLAND, **args)
            step, reset = world.unwrapped.step, world.unwrapped.reset

            def struck(action):
                if now["seed"] == 101 and now["step"] == 4 and not killed:
                    killed.append(world.unwrapped.engine_pid)
                    os.kill(killed[0], signal.SIGKILL)
                now["step"] += 1
                return step(action)

            def noted(*, seed=None, options=None):
                now.update(seed=seed, step=0)
                return reset(seed=seed)

            now: dict[str, Any] = {}
            world.unwrapped.step, world.unwrapped.reset = struck, noted
            return world

    with caplog.at_level(logging.WARNING):
        hurt, failures = play(Struck, worlds=2, episodes=EPISODES[:4])
    whole, none = play(lambda: make(ISLAND, **args), worlds=2, episodes=EPISODES[:4])
    assert (failures, none) == (1, 0)
    assert_same(hurt, whole)
    assert "episode 1 is thrown away after 4 steps" in caplog.text
    assert "(LitAlign/Jumppads-v0), seed 101, at step 5: the game engine died" in caplog.text
    assert not alive(killed[0])


def test_a_deadline_costs_nothing_to_those_in_time_and_kills_late_ones_once():
    from lit_align.envs.jumppads.deadline import Deadline

    killed: list[float] = []
    deadline = Deadline(lambda: killed.append(time.monotonic()))
    with deadline(30.0):
        time.sleep(0.05)
    time.sleep(0.05)  # between calls there is no limit
    assert not killed
    began = time.monotonic()
    with deadline(0.1):
        assert wait_for(lambda: bool(killed))
    assert killed[0] - began >= 0.1
    assert deadline.late
    time.sleep(0.2)
    assert len(killed) == 1
