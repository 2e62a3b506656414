"""`lit-align collect`: an agent or scripted players play, and the trajectories are saved."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn

from lit_align import __version__
from lit_align.data.trajectories import TrajectoryWriter, encode
from lit_align.envs.gym import make
from lit_align.errors import UserError
from lit_align.seeds import PURPOSES, episode_seeds
from lit_align.spaces import ActionCodec

_PATIENCE = 20  # episodes that may be played for each one kept
_CHUNK = 4  # episodes that a worker plays at a time


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
    temperature: float = 1.0,
    worlds: int = 16,
    workers: int | None = None,
    threads: int | None = None,
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
        temperature: Sampling temperature of an agent.
        worlds: Worlds that an agent plays in one batch.
        workers: Processes for scripted players; None takes one for each core.
        threads: Torch threads for an agent; None leaves torch's own number.
    """
    purpose = purpose or ("rollouts" if agent else "play")
    if purpose not in PURPOSES or episodes < 1:
        raise UserError(
            f"purpose is {purpose!r} and episodes {episodes}; expected one of {', '.join(PURPOSES)}, "
            "and 1 episode or more"
        )
    env_args = dict(env_args or {})
    world = make(env, **env_args)
    codec, fps = ActionCodec(world.action_space), float(world.metadata.get("render_fps", 30.0))
    world.close()
    provenance: dict[str, Any] = {"version": __version__, "purpose": purpose, "seed": seed, "only": only}
    if agent:
        provenance |= {"agent": os.path.basename(os.path.dirname(os.path.abspath(agent))), "temperature": temperature}
        tables = _agent_plays(
            agent, env, env_args, purpose, seed, temperature, worlds, threads, episodes if only is None else None
        )
    else:
        from lit_align.envs.jumppads.players import MIXTURE

        mixture = dict(players or MIXTURE)
        provenance |= {"players": mixture, "targets": targets}
        tables = _players_play(
            mixture,
            targets,
            env,
            env_args,
            purpose,
            seed,
            workers or os.cpu_count() or 1,
            episodes if only is None else None,
        )
    kept: dict[str, int] = {}
    with TrajectoryWriter(out, codec, fps, env, env_args, provenance) as writer, _progress() as bar:
        task = bar.add_task("episodes", total=episodes)
        try:
            for played, (outcome, table, size) in enumerate(tables):
                if only is not None and played >= _PATIENCE * (writer.meta.episodes + 10):
                    raise UserError(
                        f"{played} episodes gave {kept or 'none'} of the outcomes {only}, {episodes} in all were asked "
                        "for: ask for outcomes that this play reaches"
                    )
                if only is not None and outcome not in only:
                    continue
                # Kept episodes are shared out evenly over the outcomes asked for.
                if only is not None and kept.get(outcome, 0) >= -(-episodes // len(only)):
                    continue
                writer.write_table(table, size)
                kept[outcome] = kept.get(outcome, 0) + 1
                bar.advance(task)
                if writer.meta.episodes == episodes:
                    break
        finally:
            tables.close()
    _headline(out, writer.meta.episodes, writer.meta.steps, kept)


def _headline(out: str, episodes: int, steps: int, outcomes: dict[str, int]) -> None:
    shares = ", ".join(f"{name} {count / episodes:.0%}" for name, count in sorted(outcomes.items()))
    line = f"{episodes} episodes, {steps} env steps: {shares}"
    print(line)  # noqa: T201  what the command found
    with open(os.path.join(out, "headline.txt"), "w") as file:
        file.write(line + "\n")


def _progress() -> Progress:
    return Progress(*Progress.get_default_columns()[:-1], TimeElapsedColumn(), TimeRemainingColumn(), transient=True)


def _deal(purpose: str, seed: int, count: int | None) -> Iterator[tuple[int, int]]:
    """Episodes (id, world's seed): `count` of them, or without end."""
    at = 0
    while count is None or at < count:
        step = _CHUNK if count is None else min(_CHUNK, count - at)
        yield from enumerate(episode_seeds(purpose, seed, step, at), start=at)
        at += step


def _agent_plays(
    agent: str,
    env: str,
    env_args: dict[str, Any],
    purpose: str,
    seed: int,
    temperature: float,
    worlds: int,
    threads: int | None,
    count: int | None,
) -> Any:
    import torch

    from lit_align.models.agent import Agent
    from lit_align.rollout.sampler import Sampler

    if threads:
        torch.set_num_threads(threads)
    player = Agent.load(agent)
    with Sampler(
        player,
        lambda: make(env, **env_args),
        min(worlds, count or worlds),
        temperature,
        seed,
        player=str(player.info.get("stage", "agent")),
    ) as sampler:
        for trajectory in sampler.play(_deal(purpose, seed, count)):
            yield trajectory.outcome, encode(trajectory), trajectory.frames.shape[1]


def _players_play(
    mixture: dict[str, float],
    targets: list[str] | None,
    env: str,
    env_args: dict[str, Any],
    purpose: str,
    seed: int,
    workers: int,
    count: int | None,
) -> Any:
    """Scripted players in processes of their own; the order of episodes does not depend on how many."""
    dealt = _deal(purpose, seed, count)
    chunks = iter(lambda: [e for _, e in zip(range(_CHUNK), dealt, strict=False)], [])
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _start, (mixture, targets, env, env_args, seed)
    ) as pool:
        waiting: list[Future[list[tuple[str, Any, int]]]] = []
        try:
            while True:
                while len(waiting) < 2 * workers and (chunk := next(chunks, None)) is not None:
                    waiting.append(pool.submit(_play_chunk, chunk))
                if not waiting:
                    return
                yield from waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


_worker: Any = None


def _start(mixture: dict[str, float], targets: list[str] | None, env: str, env_args: dict[str, Any], seed: int) -> None:
    from lit_align.rollout.scripted import ScriptedPlay

    global _worker
    _worker = ScriptedPlay(mixture, targets, env, env_args, seed)


def _play_chunk(chunk: list[tuple[int, int]]) -> list[tuple[str, Any, int]]:
    played = [_worker.play(episode, seed) for episode, seed in chunk]
    return [(t.outcome, encode(t), t.frames.shape[1]) for t in played]
