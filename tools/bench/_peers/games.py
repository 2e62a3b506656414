"""Games that are played by a server: one process, raw frames over WebSockets, as little work of its own as can be.

A frame is packed once; only its step is written into it. The mask of a client's WebSocket frame is zero, which is
allowed, so that nothing has to be masked. Of an answer only its length is looked at, and at the end whether it was an
action. Plain sockets and epoll: on a machine of few cores an event loop's own work would be the server's loss. All on
one core, which they are told: a kernel wakes whom it writes to on the writer's own core, where the games would wait
until the server has answered them all, while another core has nothing to do.
"""

from __future__ import annotations

import os
import select
import socket
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
SILENCE = 30.0  # seconds without a word from the server, after which it is given up


def masked(opcode: int, payload: bytes) -> bytearray:
    """A client's WebSocket frame, whose mask is zero."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytearray(bytes([0x80 | opcode]) + length + bytes(4) + payload)


def frame_of(size: int) -> bytearray:
    """A raw frame of noise, of step 0, in its WebSocket frame."""
    return masked(2, b"\x01\x01" + bytes(6) + size.to_bytes(2, "little") * 2 + os.urandom(3 * size * size))


def payload_of(data: bytes) -> bytes | None:
    """What a server's WebSocket frame holds; none if it has not all come."""
    if len(data) < 4:
        return None
    length, start = (int.from_bytes(data[2:4], "big"), 4) if data[1] == 126 else (data[1], 2)
    return data[start:] if len(data) >= start + length else None


class Game:
    """One client: a frame, its answer, the next frame."""

    def __init__(self, port: int, size: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SILENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.frame = frame_of(size)
        self.place = len(self.frame) - 3 * size * size - 8
        self.data, self.step, self.sent = b"", 0, 0.0
        self.socket.sendall(HANDSHAKE)
        while not self.data.endswith(b"\r\n\r\n"):  # the server says no more until it is greeted
            self.data += self.received()
        assert self.data.startswith(b"HTTP/1.1 101"), self.data
        self.data = b""
        self.socket.sendall(masked(1, HELLO))
        while (welcome := self.heard()) is None:
            pass
        assert b'"welcome"' in welcome[:30], welcome

    def received(self) -> bytes:
        """What has come."""
        data = self.socket.recv(1 << 16)
        assert data, f"the server has closed the connection after {self.data!r}"
        return data

    def heard(self) -> bytes | None:
        """The answer, if it is whole with what has just come; there is one to every message."""
        self.data += self.received()
        answer = payload_of(self.data)
        if answer is not None:
            self.data = b""
        return answer

    def play(self) -> None:
        """Sends the next frame."""
        self.frame[self.place : self.place + 4] = self.step.to_bytes(4, "little")
        self.sent = time.perf_counter()
        self.socket.sendall(self.frame)


def play(port: int, clients: int, size: int, seconds: float) -> dict[str, Any]:
    """All clients at once; what came of it."""
    games = {game.socket.fileno(): game for game in (Game(port, size) for _ in range(clients))}
    taken: list[float] = []
    playing = len(games)
    begun = time.perf_counter()
    with select.epoll() as poll:
        for descriptor, game in games.items():
            poll.register(descriptor, select.EPOLLIN)
            game.play()
        while playing:
            ready = poll.poll(SILENCE)
            assert ready, f"the server has said nothing for {SILENCE:g} seconds"
            for descriptor, _ in ready:
                game = games[descriptor]
                if (answer := game.heard()) is None:
                    continue
                now = time.perf_counter()
                taken.append(now - game.sent)
                game.step += 1
                if now < begun + seconds:
                    game.play()
                else:
                    assert answer.startswith(b'{"type": "action"'), answer
                    poll.unregister(descriptor)
                    game.socket.close()
                    playing -= 1
    steps = sorted(game.step for game in games.values())
    return {"wall": time.perf_counter() - begun, "frames": len(taken), "steps": steps, "taken": taken}


def main() -> None:
    wanted = settings()
    port, clients, size, seconds = (wanted[name] for name in ("port", "clients", "size", "seconds"))

    os.sched_setaffinity(0, {wanted["core"]})

    def turn(_: Any) -> dict[str, Any]:
        cpu = time.process_time()
        told = play(port, clients, size, seconds)
        return {**told, "cpu": time.process_time() - cpu}

    serve(lambda: None, turn)


if __name__ == "__main__":
    main()
