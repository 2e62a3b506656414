"""The conversation with one client: hello, then one answer to every message."""

from __future__ import annotations

import asyncio
import hmac
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lit_align.seeds import noise_of
from lit_align.serving.channel import Channel, ChannelClosed, now
from lit_align.serving.pictures import check_square, is_quick, pixels_of
from lit_align.serving.protocol import (
    VERSION,
    Action,
    Frame,
    Hello,
    Message,
    ProtocolError,
    Reset,
    Stats,
    decode,
    encode_action,
    encode_error,
    encode_json,
)
from lit_align.serving.slots import Step

if TYPE_CHECKING:
    from lit_align.serving.service import Service

DRAWN = 32
"""Steps whose noise is drawn at a time: the same numbers as step by step, and many calls fewer."""
GOODBYE_SECONDS = 1.0
"""That a client has to take the error that ends its connection."""


class Session:
    """One client, from its hello to its end.

    Args:
        service: What all clients share.
        channel: The connection.
    """

    def __init__(self, service: Service, channel: Channel) -> None:
        self.service, self.channel = service, channel
        self._doing, self._since = "greeting", now()
        self._ended = False
        self._row: int | None = None
        self._hello = Hello()
        self._temperature = self._top_p = 1.0
        self._episode = self._step = 0
        self._noise = noise_of(0, 0, 0)
        self._uniform: NDArray[np.float32]

    async def run(self) -> None:
        """Talks until one side has had enough."""
        try:
            await self._greet()
            largest = self.service.limits.frame
            while True:
                self._doing, self._since = "waiting", now()
                data = await self.channel.receive()
                begun = time.perf_counter()
                try:
                    message = decode(data, largest)
                    if isinstance(message, Frame):
                        await self._act(message, begun)
                    else:
                        await self._answer(message)
                except ProtocolError as error:
                    if error.fatal:
                        raise
                    self.service.count_error(error.code)
                    await self._send(encode_error(error))
        except ProtocolError as error:
            await self.end(error)
        except ChannelClosed:
            pass
        finally:
            if self._row is not None:
                self.service.leave(self._row)
            self.channel.abort()

    async def end(self, error: ProtocolError) -> None:
        """Tells the client why, as long as it listens, and ends the connection."""
        if self._ended:
            return
        self._ended = True
        if error.code != "stopping":  # which is nobody's mistake
            self.service.count_error(error.code)
        with suppress(ChannelClosed, TimeoutError):
            async with asyncio.timeout(GOODBYE_SECONDS):
                # One that does not read has an answer before it that does not go out either.
                if self._doing != "sending":
                    await self.channel.send(encode_error(error))
                await self.channel.close(error.code)
        self.channel.abort()

    def overdue(self) -> ProtocolError | None:
        """Why the client has had its time, if it has."""
        limits, waited = self.service.limits, now() - self._since
        half = self.channel.half_since
        if self._ended or self._doing == "acting":
            return None
        if self._doing == "sending":
            return ProtocolError("slow", "the answer was not read") if waited > limits.message_timeout else None
        if half is not None and now() - half > limits.message_timeout:
            return ProtocolError("half", f"half a message, and no more for {limits.message_timeout:g} s")
        limit = limits.message_timeout if self._doing == "greeting" else limits.idle_timeout
        return ProtocolError("idle", f"no message for {limit:g} s") if waited > limit else None

    async def _send(self, data: bytes | str) -> None:
        self._doing, self._since = "sending", now()
        await self.channel.send(data)

    async def _greet(self) -> None:
        """Takes the hello, checks it, gives the client a slot and welcomes it."""
        hello = decode(await self.channel.receive(), self.service.limits.frame)
        if not isinstance(hello, Hello):
            raise ProtocolError("order", "the first message is a hello")
        self._check(hello)
        self._row = self.service.enter()
        self._hello = hello
        self._temperature, self._top_p = self.service.sampling(hello)
        self._begin(hello.episode, hello.world_seed)
        self.channel.allow(self.service.largest_message)
        await self._send(encode_json("welcome", protocol=VERSION, episode=self._episode, **self.service.about))

    def _check(self, hello: Hello) -> None:
        token = self.service.token
        # Bytes, so that it takes the same time wherever they differ.
        given = (hello.token or "").encode("utf-8", "surrogatepass")
        if token is not None and not hmac.compare_digest(given, token.encode()):
            raise ProtocolError("token", "the token is missing or wrong")
        size = hello.frame_size
        if size is not None and not self.service.image_size:
            raise ProtocolError("malformed", "frame_size is given, and the agent sees no pixels")
        if size is not None and size > self.service.limits.frame:
            raise ProtocolError("malformed", f"frame_size is {size}; at most {self.service.limits.frame} is taken")

    async def _answer(self, message: Message) -> None:
        if isinstance(message, Reset):
            after = self._episode + 1 if self._step else self._episode
            self._begin(after if message.episode is None else message.episode, message.world_seed)
            await self._send(encode_json("ready", episode=self._episode))
        elif isinstance(message, Stats):
            await self._send(encode_json("stats", **self.service.stats()))
        else:
            raise ProtocolError("order", "a second hello; connect anew to change what it said")

    def _begin(self, episode: int, world_seed: int) -> None:
        self._episode, self._step = episode, 0
        self._noise = noise_of(self._hello.seed, episode, world_seed)

    async def _act(self, frame: Frame, begun: float) -> None:
        """Answers a frame with an action; what costs every frame of every client costs the others, so it is brief."""
        service = self.service
        self._doing, self._since = "acting", now()
        vector = self._checked_vector(frame)
        if frame.step != self._step:
            raise ProtocolError("step", f"the frame is of step {frame.step}; expected step {self._step} of the episode")
        expected = self._hello.frame_size
        if expected is not None and frame.width != expected:
            raise ProtocolError("frame", f"the frame is {frame.width}x{frame.height}; the hello said {expected}")
        quick = is_quick(frame, service.image_size)
        pixels = pixels_of(frame, service.image_size) if quick else await self._pixels(frame)
        # Only now: a frame that was refused takes no noise.
        if not self._step % DRAWN:
            self._uniform = self._noise.random((DRAWN, service.heads), np.float32)
        uniform = self._uniform[self._step % DRAWN]
        assert self._row is not None
        step = Step(self._row, self._step == 0, pixels, vector, uniform, self._temperature, self._top_p)
        self._step += 1
        try:
            classes, log_prob = await service.batcher.act(step)
        except Exception as error:
            raise ProtocolError("internal", "the agent failed; the server's log says more") from error
        if not math.isfinite(log_prob):
            raise ProtocolError("not_finite", "the agent's answer is not a number: begin a new episode")
        await self._send(self._told(frame.step, log_prob, classes.tobytes()))
        service.latency.add(time.perf_counter() - begun)

    async def _pixels(self, frame: Frame) -> NDArray[np.uint8]:
        """Decodes and resizes in a thread of its own."""
        check_square(frame.width, frame.height)
        size = self.service.image_size
        return await asyncio.get_running_loop().run_in_executor(self.service.decoders, pixels_of, frame, size)

    def _checked_vector(self, frame: Frame) -> NDArray[np.float32]:
        wanted = self.service.vector_size
        if len(frame.vector) != wanted:
            raise ProtocolError(
                "vector", f"the frame's vector has {len(frame.vector)} numbers; the agent sees {wanted}"
            )
        if wanted and not np.isfinite(frame.vector).all():
            raise ProtocolError("vector", "the frame's vector holds a number that is not finite")
        return frame.vector

    def _told(self, step: int, log_prob: float, classes: bytes) -> bytes | str:
        if self._hello.answer == "classes":
            return encode_action(Action(step, log_prob, classes))
        # By hand: the action is JSON already.
        return (
            f'{{"type": "action", "step": {step}, "log_prob": {log_prob:.8g}, "action": {self.service.text(classes)}}}'
        )
