"""Scripted players recorded to trajectories: the gameplay that stands in for people's."""

from __future__ import annotations

import atexit
from typing import Any

import numpy as np

from lit_align.data.trajectory import Trajectory
from lit_align.envs import WorldFailed
from lit_align.envs.guard import Guard
from lit_align.envs.isolate import make_world
from lit_align.envs.jumppads.players import make_player
from lit_align.errors import MAX_ATTEMPTS, UserError
from lit_align.seeds import noise_of
from lit_align.spaces import AXIS_BINS, ActionCodec


class ScriptedPlay:
    """Plays single episodes in one world.

    Args:
        mixture: Kinds of players and how often each plays.
        targets: What players head for, in turn by episode id; None lets each choose.
        env: Gymnasium id of the world.
        env_args: Arguments that it is made with.
        seed: The run's seed.
        step_timeout: Seconds that a step may take before the world counts as hung; see `make_world`.
        bins: That each axis of the action space is cut into.
    """

    def __init__(
        self,
        mixture: dict[str, float],
        targets: list[str] | None,
        env: str,
        env_args: dict[str, Any],
        seed: int,
        step_timeout: float | None = None,
        bins: int = AXIS_BINS,
    ) -> None:
        weights = np.array(list(mixture.values()), float)
        if not len(weights) or (weights < 0).any() or weights.sum() <= 0:
            raise UserError(f"players is {mixture}; expected kinds with weights of 0 or more, not all 0")
        self.kinds, self.weights = list(mixture), weights / weights.sum()
        self.targets, self.seed, self.env = targets, seed, env
        self.world = Guard(lambda: make_world(env, env_args, step_timeout=step_timeout))
        self.codec = ActionCodec(self.world.action_space, bins)
        self.failures = 0
        atexit.register(self.world.close)

    def play(self, episode: int, seed: int) -> Trajectory:
        """One episode; if the world dies it is thrown away and played again.

        Raises:
            WorldFailed: The world died again and again.
            UserError: The player chose an action that the space does not hold.
        """
        for _ in range(MAX_ATTEMPTS - 1):
            try:
                return self._play(episode, seed)
            except WorldFailed:
                self.failures += 1
        return self._play(episode, seed)

    def _play(self, episode: int, seed: int) -> Trajectory:
        rng = noise_of(self.seed, episode, seed)
        kind = str(rng.choice(self.kinds, p=self.weights))
        target = self.targets[episode % len(self.targets)] if self.targets else None
        observation, info = self.world.reset(seed=seed)
        player = make_player(kind, int(rng.integers(2**31)), self.world, target=target)
        seen, actions, positions, rewards = [self.world.seen], [], [info["position"]], []
        terminated = truncated = False
        while not (terminated or truncated):
            # What is recorded is what is played: the action is cut into classes first.
            classes = self.codec.encode(player.act(observation, info))
            observation, reward, terminated, truncated, info = self.world.step(self.codec.decode(classes))
            seen.append(self.world.seen)
            actions.append(classes)
            positions.append(info["position"])
            rewards.append(float(reward))
        return Trajectory(
            frames=np.stack([frame for frame, _ in seen]),
            vectors=np.stack([vector for _, vector in seen]),
            actions=np.stack(actions),
            id=episode,
            seed=seed,
            outcome=info["outcome"],
            reason=info["reason"],
            player=kind,
            positions=np.stack(positions).astype(np.float32),
            rewards=np.array(rewards, np.float32),
            terminated=terminated,
            truncated=truncated,
        )
