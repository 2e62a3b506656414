"""Releasing what an engine held when it was killed.

Caller and engine talk through two message queues in shared memory, each with a lock. An engine that is killed while it
holds one leaves it locked, and whoever talks to it waits for ever, the thread that would tell of its end too. The lock
says which thread holds it; where that one is gone, it is released in its place, and the caller hears of the end.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import sys
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")
QUEUES = ("ViZDoomMQCtr", "ViZDoomMQDoom")
AT = 0x30
"""Where a queue's lock lies in its file, in bytes (Boost's message queue, as ViZDoom's wheels have it)."""
_LOCK = struct.Struct("=5i")  # of glibc: locked, depth, the thread that holds it, users, kind
_SHARED = 128  # the only kind that is touched: shared by processes, and no other property


def release(instance: str) -> bool:
    """Releases the locks of an engine's queues that are held by a thread which is gone.

    Args:
        instance: The engine's name for itself.

    Returns:
        Whether there was one. Elsewhere than on Linux with glibc there never is.
    """
    if not sys.platform.startswith("linux") or not instance:
        return False
    found = False
    for name in QUEUES:
        with suppress(OSError, ValueError, AttributeError):
            found |= _release(SHARED_MEMORY / f"{name}{instance}")
    return found


def _release(path: Path) -> bool:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        locked, depth, holder, _, kind = _LOCK.unpack_from(memory, AT)
        if not locked or depth or kind != _SHARED or holder <= 0 or Path(f"/proc/{holder}").exists():
            return False
        place = (ctypes.c_char * len(memory)).from_buffer(memory)
        try:
            return ctypes.CDLL(None).pthread_mutex_unlock(ctypes.c_void_p(ctypes.addressof(place) + AT)) == 0
        finally:
            del place  # else the memory cannot be let go of
