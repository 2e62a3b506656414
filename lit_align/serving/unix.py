"""Messages over a Unix socket: each begins with its length, four bytes, the lowest first."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress

from lit_align.errors import UserError
from lit_align.serving.channel import WRITE_LIMIT, Channel, ChannelClosed, now
from lit_align.serving.protocol import TEXT_LIMIT, Data, ProtocolError


class UnixChannel:
    """One client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.half_since: float | None = None
        self._reader, self._writer, self._limit = reader, writer, TEXT_LIMIT
        writer.transport.set_write_buffer_limits(high=WRITE_LIMIT)

    async def receive(self) -> Data:
        """See `Channel`."""
        try:
            first = await self._reader.readexactly(1)
            self.half_since = now()
            size = int.from_bytes(first + await self._reader.readexactly(3), "little")
            if size > self._limit:
                raise ProtocolError("too_large", f"a message of {size} bytes; at most {self._limit} are taken")
            data = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise ChannelClosed from error
        self.half_since = None
        return data

    async def send(self, data: bytes | str) -> None:
        """See `Channel`."""
        raw = data.encode() if isinstance(data, str) else data
        try:
            self._writer.write(len(raw).to_bytes(4, "little") + raw)
            await self._writer.drain()
        except OSError as error:
            raise ChannelClosed from error

    def allow(self, size: int) -> None:
        """See `Channel`."""
        self._limit = size

    async def close(self, code: str) -> None:
        """See `Channel`."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    def abort(self) -> None:
        """See `Channel`."""
        self._writer.transport.abort()


class UnixListener:
    """A Unix socket that clients connect to; only its owner may, until its mode is changed.

    Args:
        path: Where it lies.
    """

    def __init__(self, path: str) -> None:
        self.address = f"unix:{path}"
        self._path = path
        self._server: asyncio.Server | None = None

    async def start(self, talk: Callable[[Channel], Awaitable[None]]) -> None:
        """Takes clients from here on; `talk` is the conversation with one.

        Raises:
            UserError: The path cannot be used, or another server is there.
        """

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await talk(UnixChannel(reader, writer))

        listening = bind(self._path)
        self._inode = os.stat(self._path).st_ino
        self._server = await asyncio.start_unix_server(take, sock=listening)

    def stop_listening(self) -> None:
        """Takes no more clients, and removes the socket's file, unless another server has put its own there."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        with suppress(FileNotFoundError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)


def bind(path: str) -> socket.socket:
    """A listening socket at a path; one that a dead server left there is replaced.

    Raises:
        UserError: The path cannot be used, or another server is there.
    """
    _make_way(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(path)
        os.chmod(path, 0o600)  # before it listens: nobody can have connected
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise UserError(
            f"--socket {path} cannot be made: {error}; expected a short path in a folder that exists"
        ) from error
    return listening


def _make_way(path: str) -> None:
    """Removes a socket that nobody listens at."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # nothing is there; what else may be wrong is said when it is bound
    if not stat.S_ISSOCK(mode):
        raise UserError(f"--socket {path} is a file or folder, and no socket; name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(1.0)
        try:
            asking.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError:  # it is busy, or not ours: not to be removed
            pass
    raise UserError(f"another server is at --socket {path}; stop it, or name another path")
