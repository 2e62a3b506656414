"""Messages over a WebSocket: JSON in text, the rest in binary messages.

The rules of WebSockets are the package `websockets`', its layer that does no I/O; what lies between it and a
transport of asyncio is here. A game waits for its action, and the package's own connection takes several times as
long for a message as its rules do.
"""

from __future__ import annotations

import asyncio
import errno
import http
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import cast

from websockets.exceptions import InvalidState
from websockets.frames import DATA_OPCODES, CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from lit_align.errors import UserError
from lit_align.serving.channel import WRITE_LIMIT, Channel, ChannelClosed, now
from lit_align.serving.protocol import TEXT_LIMIT, Data

CLOSE_SECONDS = 2.0
"""That a client has to answer the closing handshake."""
OPEN_SECONDS = 10.0
"""That a client has for the opening handshake."""
BUFFER = 1 << 15
"""Bytes that are read at a time; a read full of pings holds the loop for as long as their rules take."""
AHEAD = 1
"""Whole messages that may wait to be answered before no more are read."""

CODES = {"": 1000, "stopping": 1001, "malformed": 1002, "too_large": 1009, "full": 1013, "internal": 1011}
"""WebSocket's own codes for ours; what is not here is a violated policy, 1008."""

_log = logging.getLogger("lit_align.serving")
_rules_log = logging.getLogger("lit_align.serving.websocket")
_rules_log.setLevel(logging.CRITICAL)  # else whoever sends garbage fills the log with tracebacks


class Connection(asyncio.BufferedProtocol):
    """One client: what asyncio tells goes through the rules, and what comes of it is a `Channel`.

    Args:
        listener: Who is told of the client, when it has shaken hands.
    """

    def __init__(self, listener: WebSocketListener) -> None:
        self.half_since: float | None = None
        self.open = False
        self._listener = listener
        # Frames hardly shrink: no extension, so none that packs is agreed on.
        self._rules = ServerProtocol(
            origins=[None, *listener.origins],  # type: ignore[list-item]
            max_size=TEXT_LIMIT,
            logger=_rules_log,
        )
        self._messages: deque[Data] = deque()
        self._parts: list[bytes] = []
        self._is_text = False
        self._came: asyncio.Future[None] | None = None  # somebody waits for a message
        self._gone, self._writable = asyncio.Event(), asyncio.Event()
        self._writable.set()
        self._reading, self._leaving, self._ended = True, False, False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    # What a session asks of it

    async def receive(self) -> Data:
        """See `Channel`; of a message that is too large the client is told by code 1009."""
        while not self._messages:
            if self._gone.is_set():
                raise ChannelClosed
            self._came = asyncio.get_running_loop().create_future()
            try:
                await self._came
            finally:
                self._came = None
        data = self._messages.popleft()
        self._regulate()
        return data

    async def send(self, data: bytes | str) -> None:
        """See `Channel`."""
        try:
            if isinstance(data, str):
                self._rules.send_text(data.encode())
            else:
                self._rules.send_binary(data)
        except InvalidState as error:
            # The rules have ended it and said why; who hangs up before the client has read that may take it away.
            await self._gone.wait()
            raise ChannelClosed from error
        self._flush()
        if not self._writable.is_set():
            await self._writable.wait()
        if self._gone.is_set():
            raise ChannelClosed

    def allow(self, size: int) -> None:
        """See `Channel`."""
        self._rules.max_message_size = size

    async def close(self, code: str) -> None:
        """See `Channel`; what the client still says is not heard."""
        self._leaving = True
        self._messages.clear()
        if self._rules.state is OPEN:
            self._rules.send_close(CODES.get(code, 1008), code)
        self._flush()
        self._regulate()
        await self._gone.wait()

    def abort(self) -> None:
        """See `Channel`."""
        if not self._gone.is_set():
            self._transport.abort()

    # What asyncio tells it

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is here; of many more than there may be none is heard."""
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_LIMIT)
        self._listener.together.add(self)
        self._end_after(OPEN_SECONDS)
        if self._listener.stopped or len(self._listener.together) > 2 * self._listener.connections:
            self.abort()

    def get_buffer(self, _: int) -> bytearray:
        """Where bytes are to be put."""
        return self._listener.buffer

    def buffer_updated(self, size: int) -> None:
        """Bytes are here: messages, parts of them, or a handshake."""
        rules = self._rules
        rules.receive_data(self._listener.buffer[:size])
        for event in rules.events_received():
            if isinstance(event, Frame):
                if event.opcode in DATA_OPCODES:
                    self._hear(event)
            elif isinstance(event, Request):
                self._shake_hands(event)
        self._flush()
        if rules.current_size is None and not rules.reader.buffer:
            self.half_since = None
        elif self.half_since is None:
            self.half_since = now()
        self._regulate()

    def eof_received(self) -> None:
        """The client says no more; the transport closes itself, once what is unsent is sent."""
        self._rules.receive_eof()
        self._flush()
        if self._timer is None:
            self._end_after(CLOSE_SECONDS)

    def pause_writing(self) -> None:
        """The client does not read: what it says is not read either, lest its pings be answered into memory."""
        self._writable.clear()
        self._regulate()

    def resume_writing(self) -> None:
        """The client reads on."""
        self._writable.set()
        self._regulate()

    def connection_lost(self, _: Exception | None) -> None:
        """The client is gone."""
        self._listener.together.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        self._gone.set()
        self._writable.set()
        self._wake()

    # Between the two

    def _shake_hands(self, request: Request) -> None:
        if self._rules.eof_sent:  # what came with the request has ended the connection already
            self.abort()
            return
        if self._listener.stopped or self._listener.is_full():
            response = self._rules.reject(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        else:
            response = self._rules.accept(request)
        self._rules.send_response(response)
        if self._rules.state is OPEN:
            assert self._timer is not None
            self._timer.cancel()
            self._timer, self.open = None, True
            self._listener.welcome(self)

    def _hear(self, frame: Frame) -> None:
        """Takes a frame of a message; after a whole one, a part that is here is of the next one."""
        if self._leaving:
            return
        if frame.opcode is not Opcode.CONT:
            self._is_text = frame.opcode is Opcode.TEXT
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self.half_since = [], None
        try:
            self._messages.append(whole.decode() if self._is_text else whole)
        except UnicodeDecodeError as error:
            if not self._rules.eof_sent:
                self._rules.fail(CloseCode.INVALID_DATA, f"{error.reason} at position {error.start}")
            self._leaving = True
            return
        self._wake()

    def _wake(self) -> None:
        if self._came is not None and not self._came.done():
            self._came.set_result(None)

    def _flush(self) -> None:
        """Sends what the rules want sent; once they are done, the client has a moment to be done too."""
        writes = self._rules.data_to_send()
        if writes and not self._ended and not self._transport.is_closing():
            # In one piece: from Python 3.12 a transport sums up all that is unsent at every write, of a read full of
            # pings ten thousand times. The end of the stream is an empty piece, the last.
            self._transport.write(b"".join(writes))
            if not writes[-1]:
                self._ended = True
                self._transport.write_eof()
        if self._rules.close_expected() and self._timer is None:
            self._end_after(CLOSE_SECONDS)

    def _regulate(self) -> None:
        """Reads as long as somebody takes what is read."""
        wanted = self._writable.is_set() and len(self._messages) <= AHEAD
        if wanted is not self._reading and not self._transport.is_closing():
            self._reading = wanted
            if self.half_since is not None:
                self.half_since = now()  # while nothing was read, nothing could come
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def _end_after(self, seconds: float) -> None:
        if not self._gone.is_set():
            self._timer = asyncio.get_running_loop().call_later(seconds, self.abort)


class WebSocketListener:
    """A port that clients connect to.

    Args:
        host: Name or address of the interface.
        port: 0 takes any that is free.
        connections: How many there may be at a time.
        origins: Web pages, by their origin, that may connect; none by default. A browser tells which page opens a
            connection, and other clients tell nothing: without this check any page that its user looks at could drive
            the agent of the same machine.

    Attributes:
        together: All connections there are.
        stopped: Whether it takes no more.
        buffer: Where they all read into, one at a time: a buffer made for each read costs more than the read.
    """

    def __init__(self, host: str, port: int, connections: int, origins: Sequence[str] = ()) -> None:
        self._host, self._port, self.connections = host, port, connections
        self.origins = list(origins)
        self.together: set[Connection] = set()
        self.stopped = False
        self.buffer = bytearray(BUFFER)
        self._server: asyncio.Server | None = None
        self._talks: set[asyncio.Task[None]] = set()

    async def start(self, talk: Callable[[Channel], Awaitable[None]]) -> None:
        """Takes clients from here on; `talk` is the conversation with one.

        Raises:
            UserError: The port cannot be had.
        """
        self._talk = talk
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(lambda: Connection(self), self._host, self._port)
        except OSError as error:
            raise UserError(self._told(error)) from error
        port = self._server.sockets[0].getsockname()[1]
        host = f"[{self._host}]" if ":" in self._host else self._host
        self.address = f"ws://{host}:{port}"

    def is_full(self) -> bool:
        """Whether there are more connections than the clients and some that are coming and going."""
        return len(self.together) > self.connections

    def welcome(self, connection: Connection) -> None:
        """Begins the conversation with a client that has shaken hands."""
        task = asyncio.get_running_loop().create_task(self._converse(connection))
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)

    async def _converse(self, connection: Connection) -> None:
        try:
            if self.stopped:
                await connection.close("stopping")
            else:
                await self._talk(connection)
        except Exception:  # whatever it is, the other clients play on
            _log.exception("a conversation failed")
        finally:
            connection.abort()

    def _told(self, error: OSError) -> str:
        where = f"port {self._port} of {self._host}"
        if error.errno == errno.EADDRINUSE:
            return f"{where} is in use; name another with --port, or 0 for any that is free"
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            return f"--host {self._host} is no address of this machine ({error.strerror or error})"
        return f"{where} cannot be had: {error.strerror or error}"

    def stop_listening(self) -> None:
        """Takes no more clients, nor any that has not shaken hands yet."""
        if self._server is None:
            return
        self.stopped = True
        self._server.close()
        self._server = None
        for connection in self.together:
            if not connection.open:
                connection.abort()
