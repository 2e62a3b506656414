"""`lit-align play`: watch an agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lit_align.errors import UserError


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
) -> None:
    """Plays a few episodes with an agent and writes each as an MP4.

    Args:
        agent: Folder of the agent.
        out: Folder for the videos.
        env: Gymnasium id of the world.
        episodes: Episodes to play.
        seed: The run's seed; the same seed shows the same episodes.
        temperature: Sampling temperature of the actions; 0 takes the likeliest.
        top_p: Draw from the smallest set of classes that holds this much probability; 1 leaves every class.
        precision: Precision of the agent's arithmetic: `fp32`; `bf16`; `int8`: 8-bit weights.
        env_args: Arguments that the world is made with; the island's frame size is the agent's by default.
    """
    if episodes < 1:
        raise UserError(f"episodes is {episodes}; expected 1 or more")
    from lit_align.commands.evaluate import _stage_of, _with_size
    from lit_align.evaluation.match import Match
    from lit_align.models.agent import Agent
    from lit_align.rollout.sampler import Sampler
    from lit_align.seeds import episode_seeds

    player = Agent.load(agent).prepare(precision)
    args = _with_size(env, dict(env_args or {}), player.config.image_size)
    match = Match(env, args, episodes, seed, temperature, min(4, episodes))
    try:
        sampler = Sampler(player, match.make_world, match.worlds, temperature, seed, top_p=top_p)
    except ValueError as error:
        raise UserError(f"agent '{_stage_of(Path(agent))}' does not fit the environment {env}: {error}") from error
    with sampler:
        played = list(sampler.play(enumerate(episode_seeds("evaluation", seed, episodes))))
    films = match.film(sorted(played, key=lambda one: one.id), out, player.codec)
    for one in films:
        print(f"{Path(out) / one.file}  {one.outcome} ({one.reason}), {one.steps} steps")  # noqa: T201  what was asked
