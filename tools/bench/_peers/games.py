"""Games that are played by a server: one process, raw frames over WebSockets, as little work of its own as can be.

A frame is packed once; only its step is written into it. The mask of a client's WebSocket frame is zero, which is
allowed, so that nothing has to be masked. Of an answer only its length is looked at, and at the end whether it was an
action.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from serve import serve, settings

HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HELLO = b'{"type": "hello", "protocol": 1}'


def masked(opcode: int, payload: bytes) -> bytearray:
    """A client's WebSocket frame, whose mask is zero."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytearray(bytes([0x80 | opcode]) + length + bytes(4) + payload)


def frame_of(size: int) -> bytearray:
    """A raw frame of noise, of step 0, in its WebSocket frame."""
    return masked(2, b"\x01\x01" + bytes(6) + size.to_bytes(2, "little") * 2 + os.urandom(3 * size * size))


class Game(asyncio.Protocol):
    """One client: a frame, its answer, the next frame."""

    def __init__(self, size: int, taken: list[float], over: float) -> None:
        self.taken, self.over = taken, over
        self.frame = frame_of(size)
        self.place = len(self.frame) - 3 * size * size - 8
        self.buffer, self.step, self.state = b"", 0, "handshake"
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.state == "handshake":
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                return
            assert head.startswith(b"HTTP/1.1 101"), head
            self.buffer, self.state = rest, "hello"
            self.transport.write(masked(1, HELLO))
        length, start = (self.buffer[1], 2) if len(self.buffer) > 4 else (0, 0)
        if length == 126:
            length, start = int.from_bytes(self.buffer[2:4], "big"), 4
        if not start or len(self.buffer) < start + length:
            return
        answer, self.buffer = self.buffer[start : start + length], b""  # one answer to every message
        if self.state == "hello":
            assert b'"welcome"' in answer[:30], answer
            self.state = "playing"
        else:
            self.taken.append(time.perf_counter() - self.sent)
            self.step += 1
        if time.perf_counter() < self.over:
            self.play()
        else:
            assert answer.startswith(b'{"type": "action"'), answer
            self.transport.close()

    def play(self) -> None:
        self.frame[self.place : self.place + 4] = self.step.to_bytes(4, "little")
        self.sent = time.perf_counter()
        self.transport.write(self.frame)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def play(port: int, clients: int, size: int, seconds: float) -> dict[str, Any]:
    """All clients at once; what came of it."""
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    begun = time.perf_counter()
    games = [Game(size, taken, begun + seconds) for _ in range(clients)]
    for game in games:
        await loop.create_connection(lambda game=game: game, "127.0.0.1", port)
    await asyncio.gather(*(game.done for game in games))
    steps = sorted(game.step for game in games)
    assert steps[0] > 0, "a client got no answer"
    return {"wall": time.perf_counter() - begun, "frames": len(taken), "steps": steps, "taken": taken}


def main() -> None:
    wanted = settings()
    port, clients, size, seconds = (wanted[name] for name in ("port", "clients", "size", "seconds"))

    def turn(_: Any) -> dict[str, Any]:
        cpu = time.process_time()
        told = asyncio.run(play(port, clients, size, seconds))
        return {**told, "cpu": time.process_time() - cpu}

    serve(lambda: None, turn)


if __name__ == "__main__":
    main()
