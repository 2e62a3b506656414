"""Messages over a WebSocket: JSON in text, the rest in binary messages."""

from __future__ import annotations

import asyncio
import errno
import functools
import http
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import DATA_OPCODES, Frame
from websockets.http11 import Request, Response
from websockets.protocol import Event

from lit_align.errors import UserError
from lit_align.serving.channel import WRITE_LIMIT, Channel, ChannelClosed, now
from lit_align.serving.protocol import TEXT_LIMIT, Data

CLOSE_SECONDS = 2.0
"""That a client has to answer the closing handshake."""
OPEN_SECONDS = 10.0
"""That a client has for the opening handshake."""

CODES = {"": 1000, "stopping": 1001, "malformed": 1002, "too_large": 1009, "full": 1013, "internal": 1011}
"""WebSocket's own codes for ours; what is not here is a violated policy, 1008."""


class Connection(ServerConnection):
    """Knows whether a part of a message is here, and is counted.

    Args:
        together: All connections there are.
        most: How many may be; one more is told so, and of many more none is heard.
    """

    half_since: float | None = None

    def __init__(self, together: set[Connection], most: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.together, self.most = together, most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        super().connection_made(transport)
        self.together.add(self)
        if len(self.together) > 2 * self.most:
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop."""
        super().connection_lost(exc)
        self.together.discard(self)

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        super().data_received(data)
        half = self.protocol.current_size is not None or len(self.protocol.reader.buffer) > 0
        if not half:
            self.half_since = None
        elif self.half_since is None:
            self.half_since = now()

    def process_event(self, event: Event) -> None:
        """Called for every frame; after a whole message, a part that is here is of the next one."""
        super().process_event(event)
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES and event.fin:
            self.half_since = None


class WebSocketChannel:
    """One client."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @property
    def half_since(self) -> float | None:
        """See `Channel`."""
        return self._connection.half_since

    @half_since.setter
    def half_since(self, value: float | None) -> None:
        self._connection.half_since = value

    async def receive(self) -> Data:
        """See `Channel`; of a message that is too large the library tells the client, by code 1009."""
        try:
            return await self._connection.recv()
        except ConnectionClosed as error:
            raise ChannelClosed from error

    async def send(self, data: bytes | str) -> None:
        """See `Channel`."""
        try:
            await self._connection.send(data)
        except ConnectionClosed as error:
            raise ChannelClosed from error

    def allow(self, size: int) -> None:
        """See `Channel`."""
        self._connection.protocol.max_message_size = size

    async def close(self, code: str) -> None:
        """See `Channel`."""
        await self._connection.close(CODES.get(code, 1008), code)

    def abort(self) -> None:
        """See `Channel`."""
        self._connection.transport.abort()


class WebSocketListener:
    """A port that clients connect to.

    Args:
        host: Name or address of the interface.
        port: 0 takes any that is free.
        connections: How many there may be at a time.
        origins: Web pages, by their origin, that may connect; none by default. A browser tells which page opens a
            connection, and other clients tell nothing: without this check any page that its user looks at could drive
            the agent of the same machine.
    """

    def __init__(self, host: str, port: int, connections: int, origins: Sequence[str] = ()) -> None:
        self._host, self._port, self._connections = host, port, connections
        self._origins = list(origins)
        self._server: Server | None = None
        self._together: set[Connection] = set()

    async def start(self, talk: Callable[[Channel], Awaitable[None]]) -> None:
        """Takes clients from here on; `talk` is the conversation with one.

        Raises:
            UserError: The port cannot be had.
        """

        async def take(connection: ServerConnection) -> None:
            assert isinstance(connection, Connection)
            await talk(WebSocketChannel(connection))

        options: dict[str, Any] = {"close_timeout": CLOSE_SECONDS, "open_timeout": OPEN_SECONDS}
        # Frames hardly shrink, and every byte that is packed costs time. The server keeps its own clocks.
        log = logging.getLogger("lit_align.serving.websocket")
        log.setLevel(logging.CRITICAL)  # else whoever sends garbage fills the log with tracebacks
        options |= {
            "logger": log,
            "compression": None,
            "ping_interval": None,
            "max_queue": 1,
            "write_limit": WRITE_LIMIT,
        }
        try:
            self._server = await serve(
                take,
                self._host,
                self._port,
                origins=[None, *self._origins],  # type: ignore[list-item]
                process_request=self._admit,
                create_connection=functools.partial(Connection, self._together, self._connections),  # type: ignore[arg-type]
                max_size=TEXT_LIMIT,
                server_header=None,
                **options,
            )
        except OSError as error:
            raise UserError(self._told(error)) from error
        port = next(iter(self._server.sockets)).getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"ws://{host}:{port}"

    def _admit(self, connection: ServerConnection, _: Request) -> Response | None:
        """Refuses what is more than the clients and some that are coming and going; called by the library."""
        if len(self._together) > self._connections:
            return connection.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        return None

    def _told(self, error: OSError) -> str:
        where = f"port {self._port} of {self._host}"
        if error.errno == errno.EADDRINUSE:
            return f"{where} is in use; name another with --port, or 0 for any that is free"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            return f"--host {self._host} is no address of this machine ({error.strerror or error})"
        return f"{where} cannot be had: {error.strerror or error}"

    def stop_listening(self) -> None:
        """Takes no more clients."""
        if self._server is not None:
            self._server.close(close_connections=False)
            self._server = None
