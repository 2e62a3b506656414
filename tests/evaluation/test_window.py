"""The window, on SDL's display without a screen: keys are put into its queue, and its surface is read."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lit_align.cli import main
from lit_align.errors import UserError
from lit_align.evaluation import window
from lit_align.evaluation.match import Match
from lit_align.evaluation.watch import Closed, Painter, Step, Watched
from lit_align.evaluation.window import Window, open_display
from lit_align.seeds import episode_seeds
from tests.helpers import LightWorld, tiny_agent

pygame = pytest.importorskip("pygame")

LIGHT, SIZE = "LitAlign-test/Light-v0", (160, 90)


@pytest.fixture(autouse=True)
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(window, "HOLD", 0.0)
    yield
    pygame.display.quit()


def press(*keys: int) -> None:
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key))


def clockwork(
    monkeypatch: pytest.MonkeyPatch,
    sleep: Callable[[float], None],
    monotonic: Callable[[], float] = time.monotonic,
) -> None:
    """Gives the window a clock of its own: `time.sleep` itself is everybody's, threads of other tests sleep too."""
    monkeypatch.setattr(window, "time", SimpleNamespace(sleep=sleep, monotonic=monotonic))


class Shown(Window):
    """A window that keeps what it showed, with somebody at its keyboard: `hands` are told of each step before it."""

    def __init__(self, hands: Callable[[Shown, Step], None], folder: Path = Path("unused")) -> None:
        self.hands, self.steps, self.played = hands, [], []
        paint = Painter(tiny_agent().codec, "who in where")
        super().__init__(open_display(), paint, SIZE, 1000.0, folder)

    def show(self, step: Step) -> None:
        self.steps.append((step.episode, step.number))
        self.hands(self, step)
        super().show(step)

    def end(self, step: Step, trajectory: Any) -> None:
        self.played.append(trajectory)
        super().end(step, trajectory)


def watch(screen: Window, episodes: int = 2) -> None:
    with Watched(tiny_agent(), Match(LIGHT, {}, episodes, 0), screen) as watched:
        watched.watch(episode_seeds("evaluation", 0, episodes))


def test_it_shows_what_is_painted() -> None:
    def look(screen: Shown, step: Step) -> None:
        if step.number == 1:
            before = screen._step
            assert before is not None
            there = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
            np.testing.assert_array_equal(there, screen.paint(before, SIZE))

    screen = Shown(look)
    watch(screen)
    assert [one.id for one in screen.played] == [0, 1]
    lengths = [len(one) for one in screen.played]
    assert screen.steps == [(episode, t) for episode, length in enumerate(lengths) for t in range(length)]
    assert pygame.display.get_caption()[0] == "who in where"


@pytest.mark.parametrize("how", ["q", "escape", "cross"])
def test_closing_it_ends_cleanly_and_closes_the_worlds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_agent().save(tmp_path / "agent")
    worlds: list[LightWorld] = []
    plain_reset, plain_show = LightWorld.reset, Window.show
    closed: list[Any] = []

    def reset(self: LightWorld, **options: Any) -> Any:
        worlds.append(self)
        return plain_reset(self, **options)

    def show(self: Window, step: Step) -> None:
        if step.number == 3:
            keys = {"q": pygame.K_q, "escape": pygame.K_ESCAPE}
            pygame.event.post(pygame.event.Event(pygame.QUIT)) if how == "cross" else press(keys[how])
        assert step.number <= 3, "it was closed"
        plain_show(self, step)

    monkeypatch.setattr(LightWorld, "reset", reset)
    monkeypatch.setattr(LightWorld, "close", lambda self: closed.append(self))
    monkeypatch.setattr(Window, "show", show)
    out = ["--out", str(tmp_path / "out"), "--fps", "1000"]
    assert main(["play", str(tmp_path / "agent"), "--env", LIGHT, "--window", "true", *out]) == 0
    assert len(worlds) == 1
    assert worlds[0] in closed
    assert not pygame.display.get_init()
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err == ""


def test_n_goes_on_to_the_next_episode_and_r_starts_again() -> None:
    def hands(screen: Shown, step: Step) -> None:
        if (step.episode, step.number) == (0, 2):
            press(pygame.K_n)
        if (step.episode, step.number) == (1, 1) and screen.steps.count((1, 1)) == 1:
            press(pygame.K_r)

    screen = Shown(hands)
    watch(screen, 3)
    assert [one.id for one in screen.played] == [1, 2]
    whole = len(screen.played[0])
    assert screen.steps[:3] == [(0, 0), (0, 1), (0, 2)]
    assert screen.steps[3 : 5 + whole] == [(1, 0), (1, 1), *((1, t) for t in range(whole))]


def test_r_at_the_end_of_the_last_episode_plays_it_again() -> None:
    class Again(Shown):
        def end(self, step: Step, trajectory: Any) -> None:
            if len(self.played) < 2:
                press(pygame.K_r)
            super().end(step, trajectory)

    screen = Again(lambda *_: None)
    watch(screen, 1)
    assert len(screen.played) == 3
    assert all((one.actions == screen.played[0].actions).all() for one in screen.played)


def test_space_pauses_until_it_is_pressed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if screen.paused:
            assert screen.steps[-1] == (0, 2), "a paused episode stays where it is"
            if len(slept) > 30:
                press(pygame.K_SPACE)

    clockwork(monkeypatch, sleep)
    screen = Shown(lambda _, step: press(pygame.K_SPACE) if (step.episode, step.number) == (0, 2) else None)
    watch(screen, 1)
    assert len(slept) > 30
    assert len(screen.played) == 1


def test_n_shows_one_step_while_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[int, int]] = []

    def sleep(seconds: float) -> None:
        if screen.paused:
            waited.append(screen.steps[-1])
            press(pygame.K_n if screen.steps[-1][1] < 4 else pygame.K_SPACE)

    clockwork(monkeypatch, sleep)
    screen = Shown(lambda _, step: press(pygame.K_SPACE) if step.number == 1 else None)
    watch(screen, 1)
    assert waited == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert len(screen.played) == 1


def test_s_saves_the_picture_that_is_shown(tmp_path: Path) -> None:
    kept: list[Step] = []

    def hands(_: Shown, step: Step) -> None:
        if step.number == 2:
            kept.append(step)
            press(pygame.K_s)

    screen = Shown(hands, tmp_path / "pictures")
    watch(screen, 1)
    saved = np.asarray(Image.open(tmp_path / "pictures" / "episode-0000-step-0002.png"))
    np.testing.assert_array_equal(saved, screen.paint(kept[0], SIZE))


def test_a_window_that_is_made_larger_is_painted_larger() -> None:
    sizes: list[tuple[int, int]] = []

    def hands(_: Shown, step: Step) -> None:
        sizes.append(pygame.display.get_surface().get_size())
        for number, size in ((1, (300, 200)), (3, (20, 10))):
            if step.number == number:
                pygame.display.set_mode(size, pygame.RESIZABLE)
                pygame.event.post(pygame.event.Event(pygame.VIDEORESIZE, size=size, w=size[0], h=size[1]))

    screen = Shown(hands)
    watch(screen, 1)
    assert sizes[:5] == [SIZE, SIZE, (300, 200), (300, 200), (window.SMALLEST, window.SMALLEST)]
    assert len(screen.played) == 1


def test_it_keeps_the_pace_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: the time that choosing takes is part of a step, not added to it."""
    clock = [100.0]

    def sleep(seconds: float) -> None:
        clock[0] += max(seconds, 1e-4)

    clockwork(monkeypatch, sleep, lambda: clock[0])
    at: list[float] = []

    def hands(_: Shown, step: Step) -> None:
        clock[0] += 0.03  # the agent thinks
        at.append(clock[0])

    screen = Shown(hands)
    screen.seconds = 0.1
    watch(screen, 1)
    assert np.diff(at[1:]) == pytest.approx(0.1, abs=0.002)


def test_leaving_in_the_last_frame_is_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaves(Shown):
        def end(self, step: Step, trajectory: Any) -> None:
            press(pygame.K_q)
            super().end(step, trajectory)

    screen = Leaves(lambda *_: None)
    with pytest.raises(Closed):
        watch(screen, 2)
    assert {episode for episode, _ in screen.steps} == {0}


def test_no_display_is_one_line_that_names_the_mp4(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    # Said before anything is read: there is no such agent.
    assert main(["play", str(tmp_path / "nowhere"), "--window", "true"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no display" in said
    assert "MP4" in said


def test_a_driver_that_does_not_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "nonsense")
    with pytest.raises(UserError, match=r"no display for a window \(.*\); leave out --window"):
        open_display()


def test_without_pygame_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(UserError, match=r"pip install 'lit-align\[play\]'"):
        open_display()
