"""Evaluating an agent: in a world of a few lines, and on the island."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from lit_align.commands import evaluate, play, report
from lit_align.errors import UserError
from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.footage import Picks, film, read_index, replay
from lit_align.evaluation.match import Match
from lit_align.evaluation.paired import film_pairs
from lit_align.evaluation.results import read
from lit_align.evaluation.video import read_mp4, write_mp4
from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.rollout.sampler import Sampler
from lit_align.seeds import episode_seeds
from lit_align.spaces import ActionCodec


class Line(gymnasium.Env[Any, Any]):
    """A line with an end on either side; the seed says where one starts, and time is up after six steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, size: int = 32, render_mode: str | None = None, resolution: str = "32x32") -> None:
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Discrete(2)
        self.size, self.render_mode, self.big = size, render_mode, int(resolution.split("x")[1])

    def _view(self, side: int) -> Any:
        return np.full((side, side, 3), 100 + 20 * self.at, np.uint8)

    def _info(self) -> dict[str, Any]:
        end = {-2: "left", 2: "right"}.get(self.at, "none")
        over = end != "none" or self.steps == 6
        reason = "" if not over else "reached" if end != "none" else "timeout"
        return {"position": np.array([self.at, 0, 0], np.float32), "outcome": end, "reason": reason}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.at, self.steps = int(self.np_random.integers(-1, 2)), 0
        return self._view(self.size), self._info()

    def step(self, action: Any) -> Any:
        self.at += 2 * int(action) - 1
        self.steps += 1
        info = self._info()
        return self._view(self.size), 0.0, info["outcome"] != "none", self.steps == 6, info

    def render(self) -> Any:
        return self._view(self.big)


gymnasium.register("Line-v0", entry_point=Line)
LINE = "Line-v0"


@pytest.fixture
def agent(tmp_path: Path) -> str:
    torch.manual_seed(0)
    config = BackboneConfig(image_size=32, channels=4, width=16, layers=1, heads=1)
    made = Agent(config, ActionCodec(spaces.Discrete(2)), {"train_frames": 123, "train_seconds": 4.5})
    made.save(tmp_path / "finetune" / "agent")
    return str(tmp_path / "finetune" / "agent")


def test_evaluate_writes_what_was_played(agent: str, tmp_path: Path) -> None:
    evaluate.run(
        [agent], env=LINE, episodes=20, seed=3, worlds=4, out=str(tmp_path / "out"), json=str(tmp_path / "r.json")
    )
    found = read(tmp_path / "r.json")
    assert found == read(tmp_path / "out" / "results.json")
    entry = found["agents"]["finetune"]
    assert entry["episode_seeds"] == episode_seeds("evaluation", 3, 20)
    assert (entry["episodes"], entry["seed"], entry["train_frames"], entry["train_seconds"]) == (20, 3, 123, 4.5)
    played = Episodes.load(tmp_path / "out" / "episodes.npz")
    # Independent of the counts: an episode ended where its last position is.
    ends = [int(path[-1, 0]) for path in played.positions]
    assert entry["outcomes"]["left"] == ends.count(-2)
    assert entry["outcomes"]["right"] == ends.count(2)
    assert entry["outcomes"]["none"] == 20 - ends.count(-2) - ends.count(2)
    assert entry["reasons"].get("timeout", 0) == entry["outcomes"]["none"]
    assert entry["mean_steps"] == pytest.approx(np.mean([len(path) - 1 for path in played.positions]), abs=0.01)


def test_result_does_not_depend_on_the_number_of_worlds(agent: str, tmp_path: Path) -> None:
    for worlds in (1, 5):
        evaluate.run([agent], env=LINE, episodes=12, worlds=worlds, json=str(tmp_path / f"{worlds}.json"))
    assert read(tmp_path / "1.json") == read(tmp_path / "5.json")


def test_films_show_the_episodes_that_were_counted(agent: str, tmp_path: Path) -> None:
    evaluate.run([agent], env=LINE, episodes=20, worlds=4, out=str(tmp_path / "out"), videos=2)
    films = read_index(tmp_path / "out" / "videos")
    played = Episodes.load(tmp_path / "out" / "episodes.npz")
    assert {one.outcome for one in films} == set(played.outcomes)
    for one in films:
        place = list(played.seeds).index(one.seed)
        frames, fps = read_mp4(tmp_path / "out" / "videos" / one.file)
        assert fps == 5
        assert len(frames) == one.steps + 1 == len(played.positions[place])
        assert one.replayed
        brightness = [round((int(frame.mean()) - 100) / 20) for frame in frames]
        assert brightness == [int(x) for x in played.positions[place][:, 0]]


def test_a_film_that_cannot_be_made_does_not_cost_the_numbers(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(path: Any, *rest: Any, **more: Any) -> Path:
        if "left" in Path(path).name:
            raise OSError(28, "No space left on device")
        return write_mp4(path, *rest, **more)

    out, want = tmp_path / "out", {"env": LINE, "episodes": 12, "worlds": 4, "videos": 1}
    evaluate.run([agent], **want, out=str(out))
    whole = read(out / "results.json")
    monkeypatch.setattr("lit_align.evaluation.footage.write_mp4", no_room)
    evaluate.run([agent], **want, out=str(out))
    assert read(out / "results.json") == whole
    assert {one.outcome for one in read_index(out / "videos")} == set(Episodes.load(out / "episodes.npz").outcomes) - {
        "left"
    }
    assert "is not filmed: OSError: [Errno 28] No space left on device" in caplog.text
    monkeypatch.setattr(Match, "larger", lambda _: lambda: gymnasium.make("Nowhere-v0"))
    evaluate.run([agent], **want, out=str(out))
    assert read(out / "results.json") == whole
    assert read_index(out / "videos") == [], "films of an evaluation before are not of this one"
    assert "no videos in" in caplog.text


def test_paired_videos_without_a_place_for_them_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert film_pairs(Match(LINE, {}, 1, 0), [], tmp_path / "file" / "paired", 1) == []
    assert "no index of the paired videos" in caplog.text


def test_files_are_named_after_how_an_episode_ended(agent: str, tmp_path: Path) -> None:
    player = Agent.load(agent)
    with Sampler(player, lambda: Line(), 1) as sampler:
        played = list(sampler.play([(number, 5) for number in range(4)]))
    told = [("grasped", ""), ("", ""), ("none", "left the track: " + "x" * 250), ("../a b", "shadow_boxing")]
    for one, (outcome, reason) in zip(played, told, strict=True):
        one.outcome, one.reason = outcome, reason
    names = [item.file for item in film(played, tmp_path, 5, player.codec)]
    long = "none-left_the_track_" + "x" * 17 + "-0002.mp4"
    assert names == ["grasped-0000.mp4", "ended-0001.mp4", long, "a_b-shadow_boxing-0003.mp4"]
    assert all((tmp_path / name).is_file() for name in names)


def test_a_world_that_draws_into_one_array_is_filmed_as_it_went(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canvas = np.zeros((32, 32, 3), np.uint8)

    def draw(world: Line) -> Any:
        canvas[:] = world._view(32)
        return canvas

    player = Agent.load(agent)
    with Sampler(player, lambda: Line(), 1) as sampler:
        (one,) = sampler.play([(0, 5)])
    monkeypatch.setattr(Line, "render", draw)
    frames = replay(one, Line(render_mode="rgb_array"), player.codec)
    assert frames is not None
    assert [(int(frame.mean()) - 100) // 20 for frame in frames] == one.positions[:, 0].tolist()


def test_replay_refuses_another_course(agent: str) -> None:
    player = Agent.load(agent)
    with Sampler(player, lambda: Line(), 1) as sampler:
        one = next(iter(sampler.play([(0, 5)])))
    world = Line(render_mode="rgb_array", resolution="80x64")
    frames = replay(one, world, player.codec)
    assert frames is not None
    assert frames.shape == (len(one) + 1, 64, 64, 3)
    one.positions = one.positions + 1
    assert replay(one, world, player.codec) is None


def test_a_world_that_cannot_render_larger_is_filmed_as_seen(agent: str, tmp_path: Path) -> None:
    player = Agent.load(agent)
    with Sampler(player, lambda: Line(), 1) as sampler:
        played = list(sampler.play([(0, 5)]))
    (one,) = film(played, tmp_path, 5, player.codec)
    assert not one.replayed
    assert read_mp4(tmp_path / one.file)[0].shape[1:] == (320, 320, 3)
    assert Match("CartPole-v1", {}, 1, 0).larger() is None


def test_picks_keep_a_few_of_each_outcome_and_one_of_each_reason(agent: str) -> None:
    player = Agent.load(agent)
    with Sampler(player, lambda: Line(), 3) as sampler:
        played = list(sampler.play([(i, i) for i in range(30)]))
    shuffled, ordered = Picks(2), Picks(2)
    for one in played:
        shuffled.see(one)
    for one in sorted(played, key=lambda one: one.id):
        ordered.see(one)
    assert [one.id for one in shuffled.chosen()] == [one.id for one in ordered.chosen()]
    counts = [one.outcome for one in ordered.chosen()]
    assert all(counts.count(outcome) == min(2, sum(p.outcome == outcome for p in played)) for outcome in set(counts))
    reasons = Picks(1)
    for number, (outcome, reason) in enumerate([("none", "a"), ("none", "a"), ("none", "b"), ("won", "c")]):
        one = played[number]
        one.id, one.outcome, one.reason = number, outcome, reason
        reasons.see(one)
    assert [one.id for one in reasons.chosen()] == [0, 2, 3]


def test_blanked_world_shows_nothing(agent: str, tmp_path: Path) -> None:
    world = Match(LINE, {}, 1, 0, blank=True).make_world()
    assert world.reset(seed=0)[0].max() == 0
    assert world.step(1)[0].max() == 0
    evaluate.run([agent], env=LINE, episodes=3, blank=True, json=str(tmp_path / "r.json"))
    assert read(tmp_path / "r.json")["agents"]["finetune"]["blank"] is True


def test_several_agents_get_a_folder_each(agent: str, tmp_path: Path) -> None:
    evaluate.run([agent, agent], env=LINE, episodes=3, names=["a", "b"], out=str(tmp_path / "out"), videos=0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["eval_a", "eval_b"]
    report.run(str(tmp_path / "out"))
    assert (tmp_path / "out" / "report" / "index.html").is_file()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"env_args": {"size": 64}}, r"'finetune' does not fit the environment Line-v0.*\(32, 32, 3\).*\(64, 64, 3\)"),
        ({"env": "CartPole-v1"}, "'finetune' does not fit the environment CartPole-v1"),
        ({"names": ["a", "b"]}, "2 names for 1 agents"),
        ({"episodes": 0}, "episodes is 0"),
        ({"agents": []}, "no agent was given"),
        ({"agents": ["/nowhere"]}, "/nowhere"),
    ],
)
def test_mistakes_are_said_clearly(agent: str, tmp_path: Path, change: dict[str, Any], says: str) -> None:
    wanted = {"agents": [agent], "env": LINE, "episodes": 2, "out": str(tmp_path / "out"), **change}
    with pytest.raises(UserError, match=says):
        evaluate.run(**wanted)
    assert not (tmp_path / "out").exists()


def test_two_agents_of_one_name_are_refused(agent: str) -> None:
    with pytest.raises(UserError, match="several agents are called finetune"):
        evaluate.run([agent, agent], env=LINE)


def test_play_films_each_episode(agent: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play.run(agent, out=str(tmp_path / "play"), env=LINE, episodes=2)
    assert len(list((tmp_path / "play").glob("*.mp4"))) == 2
    assert capsys.readouterr().out.count(".mp4") == 2


@pytest.mark.slow
def test_on_the_island_films_are_replayed_larger(tmp_path: Path) -> None:
    from lit_align.spaces import gamepad_space

    torch.manual_seed(0)
    config = BackboneConfig(image_size=32, channels=4, width=16, layers=1, heads=1)
    Agent(config, ActionCodec(gamepad_space())).save(tmp_path / "a" / "agent")
    out = tmp_path / "out"
    evaluate.run([str(tmp_path / "a" / "agent")], episodes=2, out=str(out), env_args={"max_steps": 12})
    assert json.loads((out / "results.json").read_text())["agents"]["a"]["outcomes"]["none"] == 2
    films = read_index(out / "videos")
    assert films
    assert all(one.replayed for one in films)
    assert read_mp4(out / "videos" / films[0].file)[0].shape == (13, 240, 320, 3)
