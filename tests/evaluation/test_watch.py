"""Watching an agent: what is shown is what `evaluate` counts, and what is drawn is what the agent thought."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lit_align.cli import main
from lit_align.commands import evaluate, play
from lit_align.errors import UserError
from lit_align.evaluation.camera import Camera, twin_of
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.footage import read_index
from lit_align.evaluation.match import Match
from lit_align.evaluation.recorder import Recorder
from lit_align.evaluation.video import Mp4, read_mp4
from lit_align.evaluation.watch import Closed, Painter, Step, Watched
from lit_align.models.agent import Agent
from lit_align.models.heads import PolicyConfig
from lit_align.models.reward import RewardModel
from lit_align.rollout.sampler import Sampler
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec, gamepad_space
from tests.helpers import TINY, LightWorld, tiny_agent

LIGHT = "LitAlign-test/Light-v0"


class Notes:
    """A screen that keeps what it is shown; `script` may do something at a step."""

    def __init__(self, script: Callable[[Step], None] = lambda _: None) -> None:
        self.steps: list[Step] = []
        self.played: list[Any] = []
        self.script = script
        self.wanted, self.once_more = True, False

    def again(self) -> bool:
        once_more, self.wanted, self.once_more = self.once_more, True, False
        return once_more

    def show(self, step: Step) -> None:
        self.steps.append(step)
        self.script(step)

    def end(self, step: Step, trajectory: Any) -> None:
        self.steps.append(step)
        self.played.append(trajectory)


def watch(agent: Agent, match: Match, judge: RewardModel | None = None, **more: Any) -> Notes:
    notes = Notes(**more)
    with Watched(agent, match, notes, judge) as watched:
        watched.watch(episode_seeds("evaluation", match.seed, match.episodes))
    return notes


def autoregressive() -> Agent:
    torch.manual_seed(0)
    return Agent(TINY, ActionCodec(gamepad_space()), policy=PolicyConfig("autoregressive", 16)).eval()


SEES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "pixels": ({}, {}),
    "vector": ({"image_size": 0, "vector_size": 3}, {"size": 0, "vector": 3}),
    "both": ({"vector_size": 3}, {"vector": 3}),
}


@pytest.mark.parametrize("sees", SEES)
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (0.0, 1.0)])
def test_what_is_watched_is_what_the_sampler_plays(sees: str, temperature: float, top_p: float) -> None:
    changes, args = SEES[sees]
    agent = tiny_agent(**changes)
    notes = watch(agent, Match(LIGHT, args, 3, 5, temperature, top_p=top_p))
    with Sampler(agent, lambda: LightWorld(**args), 1, temperature, 5, top_p=top_p) as sampler:
        played = list(sampler.play(enumerate(episode_seeds("evaluation", 5, 3))))
    for ours, theirs in zip(notes.played, played, strict=True):
        for name in ("frames", "vectors", "actions", "positions", "rewards", "log_probs"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert (ours.id, ours.seed, ours.outcome) == (theirs.id, theirs.seed, theirs.outcome)


def test_autoregressive_agents_play_the_same_too() -> None:
    agent = autoregressive()
    notes = watch(agent, Match(LIGHT, {}, 2, 0))
    with Sampler(agent, LightWorld, 1, 1.0, 0) as sampler:
        played = list(sampler.play(enumerate(episode_seeds("evaluation", 0, 2))))
    assert [one.actions.tolist() for one in notes.played] == [one.actions.tolist() for one in played]


@pytest.mark.parametrize("make", [tiny_agent, autoregressive])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_what_is_drawn_is_what_the_action_was_drawn_from(make: Callable[[], Agent], temperature: float) -> None:
    agent = make()
    notes = watch(agent, Match(LIGHT, {}, 2, 0, temperature))
    for trajectory in notes.played:
        steps = [step for step in notes.steps if step.episode == trajectory.id]
        assert [step.number for step in steps] == list(range(len(trajectory) + 1))
        assert steps[-1].probabilities is None
        assert steps[-1].ended == f"{trajectory.outcome} (reached)"
        for t, step in enumerate(steps):
            np.testing.assert_array_equal(step.picture, trajectory.frames[t])
        # Independent: one forward over the whole episode.
        frames, actions = torch.from_numpy(trajectory.frames[None, :-1]), torch.from_numpy(trajectory.actions[None])
        with torch.no_grad():
            whole = agent(frames, None, actions, temperature)[0].exp().numpy()
        for t, step in enumerate(steps[:-1]):
            assert step.probabilities is not None
            assert step.chosen is not None
            np.testing.assert_allclose(step.probabilities, whole[t], atol=1e-5)
            np.testing.assert_array_equal(step.chosen, trajectory.actions[t])
            joint = np.log(step.probabilities[range(16), step.chosen]).sum()
            assert joint == pytest.approx(trajectory.log_probs[t], abs=1e-3)


@pytest.mark.parametrize("readout", ["last", "sum"])
@pytest.mark.parametrize("sees", ["pixels", "both"])
def test_the_score_of_each_step_is_the_reward_of_the_episode_so_far(readout: Any, sees: str) -> None:
    changes, args = SEES[sees]
    judge = RewardModel.from_agent(tiny_agent(3, **changes), heads=3, readout=readout).eval()
    judge.mean.add_(torch.tensor([0.1, -0.2, 0.0]))
    judge.std.mul_(torch.tensor([0.5, 2.0, 1.0]))
    notes = watch(tiny_agent(**changes), Match(LIGHT, args, 2, 0), judge)
    for trajectory in notes.played:
        steps = [step for step in notes.steps if step.episode == trajectory.id]
        for t, step in enumerate(steps):
            frames = torch.from_numpy(trajectory.frames[None, : t + 1])
            vectors = torch.from_numpy(trajectory.vectors[None, : t + 1]) if args else None
            with torch.no_grad():
                reward = judge.normalise(judge(frames, torch.tensor([t + 1]), vectors)).mean()
            assert len(step.scores) == t + 1
            assert step.scores[-1] == pytest.approx(float(reward), abs=1e-4)


def test_the_episodes_are_those_that_evaluate_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_agent().save(tmp_path / "a" / "agent")
    agent = str(tmp_path / "a" / "agent")
    evaluate.run([agent], env=LIGHT, episodes=8, seed=4, worlds=5, out=str(tmp_path / "eval"), videos=0)
    play.run(agent, out=str(tmp_path / "play"), env=LIGHT, episodes=3, seed=4, size="161x95")
    counted = Episodes.load(tmp_path / "eval" / "episodes.npz")
    films = read_index(tmp_path / "play")
    assert [one.seed for one in films] == [int(seed) for seed in counted.seeds[:3]]
    assert [one.outcome for one in films] == list(counted.outcomes[:3])
    assert [one.steps for one in films] == [int(length) for length in counted.lengths[:3]]
    for one in films:
        frames, fps = read_mp4(tmp_path / "play" / one.file)
        assert frames.shape == (one.steps + 1, 96, 162, 3)
        assert fps == 10
        assert (tmp_path / "play" / one.strip).is_file()
    assert capsys.readouterr().out.count(".mp4") == 3
    assert not list((tmp_path / "play").glob("*.part"))


def test_an_episode_whose_world_dies_is_filmed_from_its_start_again(tmp_path: Path) -> None:
    agent = tiny_agent()
    match = Match(LIGHT, {"dies_at": (4,)}, 2, 0)
    paint = Painter(agent.codec, "who")
    with Watched(agent, match, recorder := Recorder(tmp_path, paint, (64, 64), 10)) as watched:
        watched.watch(episode_seeds("evaluation", 0, 2))
        assert watched.failures == 1
    healthy = watch(agent, Match(LIGHT, {}, 2, 0)).played
    assert [one.steps for one in recorder.films] == [len(one) for one in healthy]
    for one in recorder.films:
        assert len(read_mp4(tmp_path / one.file)[0]) == one.steps + 1


def test_an_episode_can_be_left_or_played_again() -> None:
    agent, match = tiny_agent(), Match(LIGHT, {}, 3, 0)
    whole = {one.id: one for one in watch(agent, match).played}

    def script(step: Step) -> None:
        if (step.episode, step.number) == (1, 2):
            notes.wanted = False
        if (step.episode, step.number, len(notes.steps)) == (0, 1, 2):
            notes.wanted, notes.once_more = False, True

    notes = Notes(script)
    with Watched(agent, match, notes) as watched:
        watched.watch(episode_seeds("evaluation", 0, 3))
    assert [one.id for one in notes.played] == [0, 2]
    assert [step.episode for step in notes.steps if step.number == 0] == [0, 0, 1, 2]
    for one in notes.played:
        np.testing.assert_array_equal(one.actions, whole[one.id].actions)


def test_worlds_are_closed_when_the_watcher_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(LightWorld, "close", lambda self: closed.append(self))

    def leave(step: Step) -> None:
        closed.clear()
        raise Closed

    agent = tiny_agent()
    with pytest.raises(Closed), Watched(agent, Match(LIGHT, {}, 1, 0), Notes(leave)) as watched:
        watched.watch([1])
    assert len(closed) == 1


class Dial(gymnasium.Env[Any, Any]):
    """Shows a number; renders its place as brightness, unless told to go another way, to break, or not to render."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None, twist: int = 99, back: int = 99, breaks: int = 99):
        self.observation_space = spaces.Box(-9, 9, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode, self.twist, self.back, self.breaks = render_mode, twist, back, breaks
        self.closed = False

    def _seen(self) -> Any:
        return np.array([self.at], np.float32), {"position": np.array([self.at, 0, 0], np.float32)}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.steps = 0, 0
        return self._seen()

    def step(self, action: Any) -> Any:
        self.steps += 1
        astray = (self.steps == self.twist) - (self.steps == self.back)
        self.at += 2 * int(action) - 1 + astray * (self.render_mode is not None)
        seen, info = self._seen()
        return seen, 0.0, self.steps == 6, False, info

    def render(self) -> Any:
        if self.steps == self.breaks:
            raise RuntimeError("no more light")
        return np.full((8, 12, 3), 100 + 10 * self.at, np.uint8)

    def close(self) -> None:
        self.closed = True


gymnasium.register("LitAlign-test/Dial-v0", entry_point=lambda **args: Dial(**args))
gymnasium.register("LitAlign-test/Dark-v0", entry_point=lambda: DarkDial())
DIAL = "LitAlign-test/Dial-v0"


class DarkDial(Dial):
    """The same without pictures."""

    metadata = {"render_modes": [], "render_fps": 20}


def dial_agent() -> Agent:
    return tiny_agent(space=spaces.Discrete(2), image_size=0, vector_size=1)


def test_a_world_without_pixels_is_shown_as_it_renders() -> None:
    notes = watch(dial_agent(), Match(DIAL, {}, 2, 0))
    places = [int(one.positions[t, 0]) for one in notes.played for t in range(len(one) + 1)]
    brightness = [(int(step.picture[0, 0, 0]) - 100) // 10 for step in notes.steps if step.picture is not None]
    assert brightness == places


@pytest.mark.parametrize("fault", [{"twist": 3}, {"twist": 3, "back": 5}, {"breaks": 3}])
def test_a_twin_that_goes_another_way_or_breaks_shows_nothing_and_costs_nothing(fault: dict[str, int]) -> None:
    notes = watch(dial_agent(), Match(DIAL, fault, 1, 0))
    plain = watch(dial_agent(), Match(DIAL, {}, 1, 0))
    np.testing.assert_array_equal(notes.played[0].actions, plain.played[0].actions)
    assert [step.picture is not None for step in notes.steps] == [True] * 3 + [False] * 4


def test_a_camera_closes_both_worlds() -> None:
    world, twin = Dial(), Dial("rgb_array")
    camera = Camera(world, lambda: twin)
    camera.reset(seed=0)
    assert camera.picture is not None
    camera.close()
    assert world.closed
    assert twin.closed


def test_a_world_without_any_picture_shows_the_heads_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dial_agent().save(tmp_path / "agent")
    assert twin_of(Match("LitAlign-test/Dark-v0", {}, 1, 0)) is None
    play.run(str(tmp_path / "agent"), out=str(tmp_path / "out"), env="LitAlign-test/Dark-v0", episodes=1)
    assert "the heads alone" in capsys.readouterr().out
    (film,) = read_index(tmp_path / "out")
    frames, _ = read_mp4(tmp_path / "out" / film.file)
    assert len(frames) == 7
    assert (frames[0].astype(int) - frames[-1]).any(), "the bars of the heads are gone at the end"


def test_a_world_of_gymnasium_itself(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    agent = tiny_agent(space=spaces.Discrete(2), image_size=0, vector_size=4)
    agent.save(tmp_path / "agent")
    play.run(str(tmp_path / "agent"), out=str(tmp_path / "out"), env="CartPole-v1", episodes=1, size="320x180")
    (film,) = read_index(tmp_path / "out")
    frames, fps = read_mp4(tmp_path / "out" / film.file)
    assert (len(frames), fps) == (film.steps + 1, 50)
    assert (frames[0] > 200).all(-1).mean() > 0.2, "CartPole's ground is white"


def test_without_heads_there_is_the_picture_alone(tmp_path: Path) -> None:
    agent = tiny_agent()
    step = watch(agent, Match(LIGHT, {}, 1, 0)).steps[0]
    with_heads, without = (Painter(agent.codec, "", heads)(step, (320, 180)) for heads in (True, False))
    right = np.s_[40:, 280:]
    assert (with_heads[right] != without[right]).any()
    assert Painter(agent.codec, "")(step, (101, 77)).shape == (77, 101, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"episodes": 0}, "episodes is 0"),
        ({"size": "big"}, "size is 'big'; expected width and height"),
        ({"size": "20x2000"}, "from 64x64"),
        ({"fps": 0.0}, "fps is 0"),
        ({"agent": "/nowhere"}, "/nowhere"),
        ({"env": "CartPole-v1"}, "agent 'a' does not fit the environment CartPole-v1"),
        ({"reward_model": "vector"}, "the agent sees pixels, the reward model a vector of 3 numbers"),
        ({"temperature": -1.0}, "temperature is -1"),
    ],
)
def test_mistakes_are_said_before_anything_is_filmed(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    tiny_agent().save(tmp_path / "a" / "agent")
    RewardModel(replace(TINY, image_size=0, vector_size=3)).save(tmp_path / "vector")
    if "reward_model" in change:
        change = {"reward_model": str(tmp_path / change["reward_model"])}
    given = {"agent": str(tmp_path / "a" / "agent"), "env": LIGHT, "out": str(tmp_path / "out"), **change}
    with pytest.raises(UserError, match=says):
        play.run(**given)
    assert not (tmp_path / "out").exists()


def test_a_reward_model_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_agent().save(tmp_path / "a" / "agent")
    judge = RewardModel.from_agent(tiny_agent(1), heads=2)
    judge.save(tmp_path / "reward")
    files = ["--reward_model", str(tmp_path / "reward"), "--out", str(tmp_path / "out"), "--size", "160x90"]
    assert main(["play", str(tmp_path / "a" / "agent"), "--env", LIGHT, "--episodes", "1", *files]) == 0
    said = capsys.readouterr().out
    trajectory = watch(Agent.load(tmp_path / "a" / "agent"), Match(LIGHT, {"size": 32}, 1, 0)).played[0]
    frames = torch.from_numpy(trajectory.frames[None])
    with torch.no_grad():
        reward = float(judge.eval().normalise(judge(frames, torch.tensor([len(trajectory) + 1]))).mean())
    assert f", reward {reward:+.2f}" in said


def test_a_film_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    def half() -> None:
        with Mp4(tmp_path / "one.mp4", (10, 12), 5) as film:
            film.add(np.zeros((10, 12, 3), np.uint8))
            film.add(np.zeros((10, 13, 3), np.uint8))

    with pytest.raises(ValueError, match="as of the others"):
        half()
    assert list(tmp_path.iterdir()) == []
