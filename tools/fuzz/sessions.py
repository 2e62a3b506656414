"""Conversations of a server: whatever clients send, each hears of it in words, and another's answers stay right."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch

from lit_align.models.agent import Agent
from lit_align.models.config import BackboneConfig
from lit_align.serving.channel import ChannelClosed
from lit_align.serving.protocol import Action, Data, Frame, Hello, ProtocolError, Reset, Stats, decode_answer, encode
from lit_align.serving.service import Limits, Service
from lit_align.serving.session import Session
from lit_align.spaces import ActionCodec, gamepad_space
from tools.fuzz.protocol import SIZE, hurt, words

SECONDS = 30.0
CLIENTS = 3
NO_VECTOR = np.zeros(0, np.float32)


class Script:
    """A channel on which a client says what was written down, and then is gone.

    Args:
        says: Its messages.
        vanishes: Whether it is gone before the answers to the last one.
    """

    half_since: float | None = None

    def __init__(self, says: Sequence[Data], vanishes: bool = False) -> None:
        self._says, self._vanishes = list(reversed(says)), vanishes
        self._most = 1 << 16
        self.heard: list[dict[str, Any] | Action] = []

    async def receive(self) -> Data:
        """The next message."""
        await asyncio.sleep(0)
        if not self._says:
            raise ChannelClosed
        if len(self._says[-1]) > self._most:
            raise ProtocolError("too_large", "larger than is allowed")
        return self._says.pop()

    async def send(self, data: Data) -> None:
        """What the server says has to be a message."""
        if self._vanishes and not self._says:
            raise ChannelClosed
        self.heard.append(decode_answer(data))

    def allow(self, size: int) -> None:
        """Lets messages be of so many bytes."""
        self._most = size

    async def close(self, code: str) -> None:
        """There is nothing to close."""

    def abort(self) -> None:
        """Nor to break off."""


class Served:
    """A service on a loop of its own.

    Attributes:
        alone: What the good client hears where no other is.
    """

    def __init__(self) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        config = BackboneConfig(image_size=SIZE, channels=4, blocks=0, width=32, layers=1, heads=2, context=4)
        self._agent = Agent(config, ActionCodec(gamepad_space()))
        rng = random.Random(0)
        frames = [encode(Frame(step, 1, SIZE, SIZE, NO_VECTOR, rng.randbytes(3 * SIZE**2))) for step in range(6)]
        self._good = [encode(Hello(seed=7, answer="classes")), *frames]
        self._loop = asyncio.new_event_loop()
        self.service = self._loop.run_until_complete(self._start())
        self.alone = self.heard_beside([])

    async def _start(self) -> Service:
        return Service(self._agent, "fuzzed", Limits(clients=CLIENTS, frame=2 * SIZE))

    def heard_beside(self, others: Sequence[Script]) -> list[dict[str, Any] | Action]:
        """What the good client hears while others talk too."""
        good = Script(self._good)
        self._loop.run_until_complete(self._talk([good, *others]))
        return good.heard

    async def _talk(self, scripts: Sequence[Script]) -> None:
        await asyncio.gather(*(Session(self.service, script).run() for script in scripts))


@cache
def _served() -> Served:
    return Served()


def one(rng: random.Random) -> None:
    """One case: raises only where something is wrong."""
    served = _served()
    heard = served.heard_beside([Script(_conversation(rng), rng.random() < 0.3) for _ in range(CLIENTS - 1)])
    if len(heard) != len(served.alone) or not all(map(_same, heard, served.alone)):
        raise AssertionError(f"the good client heard {heard[1:]}; alone it hears {served.alone[1:]}")
    if served.service.stats()["clients"]["now"]:
        raise AssertionError("a client that is gone is still counted")


def _same(one: dict[str, Any] | Action, other: dict[str, Any] | Action) -> bool:
    if isinstance(one, Action) and isinstance(other, Action):  # sums round otherwise in a larger batch
        return one.step == other.step and one.classes == other.classes and abs(one.log_prob - other.log_prob) < 1e-3
    return isinstance(one, dict) and isinstance(other, dict) and one["type"] == other["type"] == "welcome"


def _conversation(rng: random.Random) -> list[Data]:
    """A hello and what may follow; now and then a message that is hurt, out of order or of another kind."""
    says: list[Data] = [encode(Hello(seed=rng.getrandbits(8), answer=rng.choice(["json", "classes"])))]
    if rng.random() < 0.1:
        says = []
    step = 0
    for _ in range(rng.randrange(8)):
        kind = rng.random()
        if kind < 0.6:
            side = SIZE if rng.random() < 0.8 else rng.choice([1, 2 * SIZE, 3 * SIZE])
            told = step if rng.random() < 0.9 else rng.getrandbits(32)
            says.append(encode(Frame(told, 1, side, side, NO_VECTOR, rng.randbytes(3 * side**2))))
            step += 1
        elif kind < 0.8:
            says.append(encode(Reset(rng.choice([None, rng.getrandbits(20)]), rng.getrandbits(20))))
            step = 0
        else:
            says.append(rng.choice([encode(Stats()), words(rng), rng.randbytes(rng.randrange(99))]))
    return [hurt(rng, bytes(said)) if rng.random() < 0.15 and not isinstance(said, str) else said for said in says]
