"""Clients that nobody wants, until they are ended: a third vanish in a frame, a third send noise, a third say no more.

Each does so five times a second, but for those that say no more: they stay until the server lets go of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from games import HELLO, masked

PAUSE = 0.2
SHAKE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def vandal(port: int, kind: int) -> None:
    """One of them: 0 vanishes, 1 sends noise, 2 says no more."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(SHAKE)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(masked(1, HELLO))
            await reader.read(1 << 16)
            frame = masked(2, b"\x01\x01" + bytes(6) + (64).to_bytes(2, "little") * 2 + os.urandom(3 * 64 * 64))
            writer.write(frame[: len(frame) // 2] if kind != 1 else masked(2, os.urandom(2000)) + os.urandom(2000))
            if kind == 2:
                while await reader.read(1 << 16):
                    pass
            elif kind == 1:
                await reader.read(1 << 16)
            writer.transport.abort()
        await asyncio.sleep(PAUSE)


async def main() -> None:
    port, count = int(sys.argv[1]), int(sys.argv[2])
    await asyncio.gather(*(vandal(port, i % 3) for i in range(count)))


if __name__ == "__main__":
    asyncio.run(main())
