"""`lit-align play`: watch an agent."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_align.errors import UserError

if TYPE_CHECKING:
    from lit_align.evaluation.footage import Film
    from lit_align.evaluation.watch import Step
    from lit_align.evaluation.window import Window
    from lit_align.models.agent import Agent
    from lit_align.models.reward import RewardModel


def run(
    agent: str,
    out: str = "outputs/play",
    env: str = "LitAlign/Jumppads-v0",
    episodes: int = 3,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    env_args: dict[str, Any] | None = None,
    window: bool = False,
    heads: bool = True,
    reward_model: str | None = None,
    size: str = "640x360",
    fps: float | None = None,
) -> None:
    """Shows episodes that an agent plays: as MP4s, or in a window.

    They are the first ones that `evaluate` counts with the same seed. Beside the picture stand the action heads: a
    stick as a pad with the probability of each bin, buttons as bars, choices as columns; what was chosen is yellow.

    Args:
        agent: Folder of the agent, or its name on the Hub: `user/name`.
        out: Folder for the videos; with `window`, for pictures that are saved there.
        env: Gymnasium id of the world.
        episodes: Episodes to play.
        seed: The run's seed; the same seed shows the same episodes.
        temperature: Sampling temperature of the actions; 0 takes the likeliest.
        top_p: Draw from the smallest set of classes that holds this much probability; 1 leaves every class.
        precision: Precision of the agent's arithmetic: `fp32`; `bf16`; `int8`: 8-bit weights.
        env_args: Arguments that the world is made with; the island's frame size is the agent's by default.
        window: Show them in a window in place of MP4s (`pip install 'lit-align[play]'`). Keys: space pauses and goes
            on; n shows the next step while paused, else the next episode; r starts the episode again; s saves a
            picture; q or Esc quits.
        heads: Draw the action heads; without them there is the picture alone.
        reward_model: Folder of a reward model: a line shows the reward of the episode so far, 0 the mean and 1 the
            standard deviation over the rollouts it was normalised on.
        size: Width and height of the video or the window in pixels.
        fps: Steps shown in a second; by default the world's own speed.
    """
    pixels = _checked(episodes, size, fps)
    pygame = None
    if window:
        from lit_align.evaluation.window import open_display

        pygame = open_display()
    from lit_align.commands.agents import title_of, warn_of_another_world, with_size
    from lit_align.evaluation.match import Match
    from lit_align.evaluation.recorder import Recorder
    from lit_align.evaluation.watch import Closed, Painter, Watched
    from lit_align.models.agent import Agent
    from lit_align.models.reward import RewardModel
    from lit_align.seeds import episode_seeds

    player = Agent.load(agent).prepare(precision)
    judge = None if reward_model is None else RewardModel.load(reward_model)
    _check_judge(player, judge)
    warn_of_another_world(title_of(agent), player, env)
    args = with_size(env, dict(env_args or {}), player.config.image_size)
    match = Match(env, args, episodes, seed, temperature, worlds=1, top_p=top_p)
    paint = Painter(
        player.codec, f"{title_of(agent)} in {env}", heads, judge is not None, player.policy.heads == "independent"
    )
    speed, folder = fps or match.fps(), Path(out)
    screen: Recorder | Window = Recorder(folder, paint, pixels, speed, _say(folder))
    if pygame is not None:
        from lit_align.evaluation.window import Window

        screen = Window(pygame, paint, pixels, speed, folder)
    try:
        try:
            watched = Watched(player, match, screen, judge)
        except ValueError as error:
            raise UserError(f"agent '{title_of(agent)}' does not fit the environment {env}: {error}") from error
        with watched, suppress(Closed):
            watched.watch(episode_seeds("evaluation", seed, episodes))
    finally:
        screen.close()


def _say(folder: Path) -> Callable[[Film, Step], None]:
    def said(film: Film, last: Step) -> None:
        reward = f", reward {last.scores[-1]:+.2f}" if last.scores else ""
        blind = "" if last.picture is not None else "; the heads alone: the world shows no picture"
        print(f"{folder / film.file}  {last.ended}, {film.steps} steps{reward}{blind}")  # noqa: T201  what was asked

    return said


def _checked(episodes: int, size: str, fps: float | None) -> tuple[int, int]:
    """The width and height; raises a UserError before anything is loaded if an option does not fit."""
    if episodes < 1:
        raise UserError(f"episodes is {episodes}; expected 1 or more")
    if fps is not None and not 0 < fps <= 1000:
        raise UserError(f"fps is {fps}; expected steps in a second, above 0 and up to 1000")
    found = re.fullmatch(r"(\d{2,4})x(\d{2,4})", size)
    width, height = (int(found[1]), int(found[2])) if found else (0, 0)
    if not (64 <= width <= 3840 and 64 <= height <= 2160):
        raise UserError(
            f"size is {size!r}; expected width and height in pixels, from 64x64 to 3840x2160: --size 640x360"
        )
    return width, height


def _check_judge(agent: Agent, judge: RewardModel | None) -> None:
    """Raises a UserError unless the reward model sees what the agent sees; frames may differ in size."""
    if judge is None:
        return
    sees = [(one.config.image_size > 0, one.config.vector_size) for one in (agent, judge)]
    if sees[0] != sees[1]:
        told = [
            " and ".join(["pixels"] * pixels + [f"a vector of {size} numbers"] * (size > 0)) for pixels, size in sees
        ]
        raise UserError(f"the agent sees {told[0]}, the reward model {told[1]}: use one that was made for this world")
