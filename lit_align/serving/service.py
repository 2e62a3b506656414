"""What all clients of a server share: the agent, its slots, the limits, and what is counted."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import lit_align
from lit_align.errors import raise_all
from lit_align.models.agent import Agent
from lit_align.serving.actions import ActionText
from lit_align.serving.batcher import Batcher
from lit_align.serving.latency import Histogram
from lit_align.serving.protocol import FRAME_HEADER, MAX_SIDE, TEXT_LIMIT, Hello, ProtocolError
from lit_align.serving.session import Session
from lit_align.serving.slots import Slots


@dataclass(frozen=True)
class Limits:
    """What clients may do.

    Attributes:
        clients: How many there may be at a time.
        frame: Pixels that a frame's side may have.
        idle_timeout: Seconds without a message after which a client is let go.
        message_timeout: Seconds that the hello, the rest of a message that has begun, and the reading of an answer may
            take.
    """

    clients: int = 32
    frame: int = 1024
    idle_timeout: float = 300.0
    message_timeout: float = 10.0

    def check(self) -> None:
        """Raises a UserError with every limit that is none."""
        wrong = [] if self.clients >= 1 else [f"clients is {self.clients}; expected 1 or more"]
        if not 1 <= self.frame <= MAX_SIDE:
            wrong.append(f"max_frame is {self.frame}; expected 1 to {MAX_SIDE} pixels")
        for name in ("idle_timeout", "message_timeout"):
            if not getattr(self, name) > 0:  # so written, NaN is refused too
                wrong.append(f"{name} is {getattr(self, name)}; expected more than 0 seconds")
        raise_all(wrong)


class Service:
    """An agent that acts for clients. Made inside a running event loop.

    Args:
        agent: Who acts.
        name: What it is called; clients are told.
        limits: What clients may do.
        token: A secret that they must know; None where none is asked.
        temperature: Divides the logits where a client asks for nothing else.
        top_p: The same of the smallest set of classes that holds this much probability.
        fingerprint: A digest of the agent's weights; clients are told.

    Attributes:
        latency: Seconds from a frame that is here whole to its action handed to the system.
        about: What the welcome tells.
        sessions: The conversations that go on.
    """

    def __init__(
        self,
        agent: Agent,
        name: str,
        limits: Limits,
        token: str | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        fingerprint: str = "",
    ) -> None:
        self.limits, self.token = limits, token
        self._temperature, self._top_p = temperature, top_p
        self.image_size, self.vector_size = agent.config.image_size, agent.config.vector_size
        self.heads = len(agent.codec.heads)
        self.text = ActionText(agent.codec)
        self._slots = Slots(agent, limits.clients)
        self.batcher = Batcher(self._slots)
        self.decoders = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode")
        self.latency = Histogram()
        self.sessions: set[Session] = set()
        self._clients = self._peak = self._welcomed = 0
        self._errors: Counter[str] = Counter()
        self._begun = time.perf_counter()
        self.about: dict[str, Any] = {
            "version": lit_align.__version__,
            "agent": name,
            "fingerprint": fingerprint,
            "image_size": self.image_size,
            "vector_size": self.vector_size,
            "fps": agent.fps,
            "max_frame": limits.frame,
            "idle_timeout": limits.idle_timeout,
            "temperature": temperature,
            "top_p": top_p,
            "heads": self.text.heads,
            "actions": agent.codec.to_dict(),
        }

    @property
    def largest_message(self) -> int:
        """Bytes that a message may have after the hello."""
        picture = 3 * self.limits.frame**2 if self.image_size else 0
        return max(TEXT_LIMIT, FRAME_HEADER + 4 * self.vector_size + picture)

    def sampling(self, hello: Hello) -> tuple[float, float]:
        """Temperature and top_p of a client."""
        temperature = self._temperature if hello.temperature is None else hello.temperature
        return temperature, self._top_p if hello.top_p is None else hello.top_p

    def enter(self) -> int:
        """A slot for a new client.

        Raises:
            ProtocolError: There is none.
        """
        row = self._slots.take()
        if row is None:
            raise ProtocolError("full", f"{self._clients} clients are here, as many as there may be; try again later")
        self._clients += 1
        self._welcomed += 1
        self._peak = max(self._peak, self._clients)
        return row

    def leave(self, row: int) -> None:
        """A client has gone."""
        self._slots.give_back(row)
        self._clients -= 1

    def count_error(self, code: str) -> None:
        """Counts an error that a client was told."""
        self._errors[code] += 1

    def stats(self) -> dict[str, Any]:
        """What was done so far; the schema is in docs/serving.md."""
        seconds = time.perf_counter() - self._begun
        frames, sizes = self.latency.total, self.batcher.sizes
        steps = sum(sizes)
        return {
            "seconds": round(seconds, 3),
            "frames": frames,
            "frames_per_second": round(frames / seconds, 3),
            "latency_ms": self.latency.summary(),
            "steps": steps,
            "mean_batch": round(sum(i * count for i, count in enumerate(sizes)) / steps, 3) if steps else 0.0,
            "clients": {"now": self._clients, "most": self._peak, "all": self._welcomed},
            "errors": dict(sorted(self._errors.items())),
        }

    async def close(self) -> None:
        """Ends the agent's thread; no client may be left."""
        await self.batcher.close()
        self.decoders.shutdown(wait=False, cancel_futures=True)
