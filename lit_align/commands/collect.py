"""`lit-align collect`: an agent or scripted players play, and the trajectories are saved."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any, Literal

from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from lit_align import __version__
from lit_align.data.trajectories import Meta, TrajectoryWriter
from lit_align.envs.gym import Observations, fps_of
from lit_align.errors import UserError
from lit_align.hub import called
from lit_align.rollout.recording import Play, Recordings, agent_plays, players_play
from lit_align.seeds import PURPOSES
from lit_align.spaces import AXIS_BINS, ActionCodec
from lit_align.workers import cores

_PATIENCE = 20  # episodes that may be played for each one kept


def run(
    out: str,
    agent: str | None = None,
    players: dict[str, float] | None = None,
    episodes: int = 100,
    only: list[str] | None = None,
    targets: list[str] | None = None,
    env: str = "LitAlign/Jumppads-v0",
    env_args: dict[str, Any] | None = None,
    seed: int = 0,
    purpose: str | None = None,
    bins: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    compile: bool = False,
    worlds: int = 16,
    workers: int | None = None,
    threads: int | None = None,
    isolate: bool = False,
    step_timeout: float | None = None,
) -> None:
    """Records play to a folder of trajectories.

    Args:
        out: Folder to write; it must not exist or be empty.
        agent: Folder of the agent that plays; None lets scripted players play.
        players: Scripted players and how often each plays, such as `{goal: 3, wander: 1}`; None takes the island's
            own mixture.
        episodes: Episodes to record.
        only: Keep episodes with one of these outcomes only, and play on until `episodes` are kept.
        targets: Scripted players head for these in turn; None lets each choose.
        env: Gymnasium id of the world.
        env_args: Arguments that it is made with, such as `{size: 64}`.
        seed: The run's seed: worlds, players and choices follow from it.
        purpose: Range of seeds to play: play, demonstrations, rollouts, train, validation or evaluation; by default
            `rollouts` for an agent, `play` for players.
        bins: Bins that each axis of the action space is cut into where scripted players play, from 2 to 256, an odd
            number so that a stick can rest; None takes 11. An agent keeps those that it learned with.
        temperature: Sampling temperature of an agent.
        top_p: An agent draws from the smallest set of classes that holds this much probability; 1 leaves every class.
        precision: Precision of an agent's arithmetic: `fp32`; `bf16`; `int8`: 8-bit weights.
        compile: Compile an agent's step with `torch.compile`, which takes up to a minute.
        worlds: Worlds that an agent plays in one batch.
        workers: Processes for scripted players; None takes one for each core.
        threads: Torch threads for an agent; None leaves torch's own number.
        isolate: Each world of an agent in a process of its own, for worlds that crash or hang; scripted players have
            processes of their own anyway.
        step_timeout: Seconds that a world's step may take (a reset ten times as long) before it counts as hung and is
            killed. Needs `isolate`, but not on the island, whose limit is 60 where this is None; elsewhere None is no
            limit.
    """
    purpose = purpose or ("rollouts" if agent else "play")
    if purpose not in PURPOSES or episodes < 1:
        raise UserError(
            f"purpose is {purpose!r} and episodes {episodes}; expected one of {', '.join(PURPOSES)}, "
            "and 1 episode or more"
        )
    if agent and bins is not None:
        raise UserError(f"bins is {bins} and agent '{agent}'; expected no bins: an agent keeps those that it learned")
    play = Play(env, dict(env_args or {}), purpose, seed, episodes if only is None else None, isolate, step_timeout)
    world = play.make_world()
    try:
        Observations.of(world)  # a world that nobody can record is found before anything is played
        codec, fps = ActionCodec(world.action_space, AXIS_BINS if bins is None else bins), fps_of(world)
    finally:
        world.close()
    provenance: dict[str, Any] = {"version": __version__, "purpose": purpose, "seed": seed, "only": only}
    if agent:
        from lit_align.models.agent import Agent

        if threads:
            import torch

            torch.set_num_threads(threads)
        provenance |= {"agent": called(agent), "temperature": temperature}
        provenance |= {"top_p": top_p, "precision": precision}
        player = Agent.load(agent).prepare(precision, compile)
        codec = player.codec
        recordings = agent_plays(player, play, worlds, temperature, top_p)
    else:
        from lit_align.envs.jumppads.players import MIXTURE

        mixture = dict(players or MIXTURE)
        provenance |= {"players": mixture, "targets": targets}
        recordings = players_play(mixture, targets, play, workers or cores(), codec.bins)
    try:
        writer = TrajectoryWriter(out, codec, fps, env, play.env_args, provenance)
        _record(recordings, writer, episodes, only)
    except OSError as error:
        raise UserError(
            f"'{out}' could not be written ({error}); nothing was kept: make room, or name another folder"
        ) from error
    finally:
        recordings.close()
    _headline(out, writer.meta)


def _record(recordings: Recordings, writer: TrajectoryWriter, episodes: int, only: list[str] | None) -> None:
    """Writes episodes until enough are kept; those of `only` are shared out evenly over its outcomes."""
    kept: Counter[str] = Counter()
    failures = 0
    with writer, _progress() as bar:
        task = bar.add_task("episodes", total=episodes)
        for played, episode in enumerate(recordings):
            failures += episode.failures
            if only is not None:
                if played >= _PATIENCE * (sum(kept.values()) + 10):
                    raise UserError(
                        f"{played} episodes gave {dict(kept) or 'none'} of the outcomes {only}, {episodes} in all were "
                        "asked for: ask for outcomes that this play reaches"
                    )
                if episode.outcome not in only or kept[episode.outcome] >= -(-episodes // len(only)):
                    continue
            writer.write_table(episode.table, episode.image_size)
            kept[episode.outcome] += 1
            bar.advance(task)
            if writer.meta.episodes == episodes:
                break
        writer.meta.provenance["failures"] = failures


def _headline(out: str, meta: Meta) -> None:
    shares = ", ".join(f"{name} {count / meta.episodes:.0%}" for name, count in sorted(meta.outcomes.items()))
    failures = meta.provenance["failures"]
    thrown = f"; {failures} thrown away since a world died" if failures else ""
    line = f"{meta.episodes} episodes, {meta.steps} env steps: {shares}{thrown}"
    print(line)  # noqa: T201  what the command found
    with open(os.path.join(out, "headline.txt"), "w") as file:
        file.write(line + "\n")


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn(), transient=True)
