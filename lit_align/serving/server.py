"""A server: a service behind a listener, from its start to its clean end."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable
from typing import Any, Protocol

from lit_align.errors import UserError
from lit_align.serving.channel import Channel
from lit_align.serving.protocol import ProtocolError
from lit_align.serving.service import Service
from lit_align.serving.session import Session

SWEEP_SECONDS = 0.25
"""Between two looks at who has had their time."""
REPORT_SECONDS = 60.0
"""Between two lines of statistics."""
FAREWELL_SECONDS = 3.0
"""That all clients have to go when the server ends."""

Talk = Callable[[Channel], Any]


class Listener(Protocol):
    """Where clients come from."""

    address: str

    async def start(self, talk: Talk) -> None:
        """Takes clients from here on."""

    def stop_listening(self) -> None:
        """Takes no more."""


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_token(host: str, token: str | None) -> None:
    """Raises a UserError where others could reach the agent without a secret."""
    if token is None and not is_local(host):
        raise UserError(
            f"--host {host} lets other machines in, and no token is set; set LIT_ALIGN_TOKEN (or --token) to a secret "
            "that clients must give, or leave the host at 127.0.0.1"
        )
    if token is not None and not (token and token.isprintable()):
        raise UserError("the token is empty or holds a character that cannot be printed; expected a line of text")


class Server:
    """Serves until it is told to stop.

    Args:
        service: Who answers.
        listener: Where clients come from.
        say: Takes the lines of statistics.
    """

    def __init__(self, service: Service, listener: Listener, say: Callable[[str], None] = lambda _: None) -> None:
        self.service, self.listener, self._say = service, listener, say
        self._background: list[asyncio.Task[None]] = []
        self._talks: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        """Takes clients from here on.

        Raises:
            UserError: The address cannot be had.
        """
        try:
            await self.listener.start(self._talk)
        except BaseException:
            await self.service.close()
            raise
        self._background = [asyncio.create_task(self._sweep()), asyncio.create_task(self._report())]

    async def stop(self) -> dict[str, Any]:
        """Tells the clients, ends everything, returns the last statistics."""
        self.listener.stop_listening()
        for task in self._background:
            task.cancel()
        stopping = ProtocolError("stopping", "the server stops")
        ends = [asyncio.create_task(session.end(stopping)) for session in self.service.sessions]
        waiting = {*ends, *self._talks}
        if waiting:
            await asyncio.wait(waiting, timeout=FAREWELL_SECONDS)
        for session in list(self.service.sessions):
            session.channel.abort()
        await self.service.close()
        return self.service.stats()

    async def _talk(self, channel: Channel) -> None:
        session = Session(self.service, channel)
        task = asyncio.current_task()
        assert task is not None
        if len(self.service.sessions) >= connections(self.service.limits.clients):
            await session.end(ProtocolError("full", "too many connections; try again later"))
            return
        self.service.sessions.add(session)
        self._talks.add(task)
        try:
            await session.run()
        finally:
            self.service.sessions.discard(session)
            self._talks.discard(task)

    async def _sweep(self) -> None:
        """Lets go of clients that have had their time."""
        ending: set[asyncio.Task[None]] = set()
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for session in list(self.service.sessions):
                error = session.overdue()
                if error is not None:
                    task = asyncio.create_task(session.end(error))
                    ending.add(task)
                    task.add_done_callback(ending.discard)

    async def _report(self) -> None:
        """Says what was done in the last minute, where anything was."""
        before = 0
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            stats = self.service.stats()
            if stats["frames"] > before:
                self._say(line(stats, stats["frames"] - before))
            before = stats["frames"]


def connections(clients: int) -> int:
    """How many connections there may be: all clients, and as many again that come and go."""
    return 2 * clients + 8


def line(stats: dict[str, Any], frames: int | None = None) -> str:
    """Statistics as a line for a log.

    Args:
        stats: Of the service.
        frames: How many of its frames came in the last minute; None leaves that out.
    """
    ms, clients = stats["latency_ms"], stats["clients"]
    last = "" if frames is None else f", {frames} of them in the last minute"
    wrong = "".join(f", {count} x {code}" for code, count in stats["errors"].items())
    return (
        f"{stats['frames']} frames{last}; frame to action p50 {ms['p50']:.1f} ms, p95 {ms['p95']:.1f} ms, "
        f"p99 {ms['p99']:.1f} ms; {stats['mean_batch']:.1f} frames a step; {clients['now']} clients, "
        f"{clients['most']} at most{wrong}"
    )
