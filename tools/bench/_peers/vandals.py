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
from games import HANDSHAKE, HELLO, frame_of, masked

PAUSE = 0.2


async def vandal(port: int, kind: int) -> None:
    """One of them: 0 vanishes, 1 sends noise, 2 says no more."""
    while True:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HANDSHAKE)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(masked(1, HELLO))
            await reader.read(1 << 16)
            frame = frame_of(64)
            writer.write(masked(2, os.urandom(2000)) + os.urandom(2000) if kind == 1 else frame[: len(frame) // 2])
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
