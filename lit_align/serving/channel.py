"""What a conversation needs of a transport."""

from __future__ import annotations

import time
from typing import Protocol

from lit_align.serving.protocol import Data

WRITE_LIMIT = 1 << 15
"""Bytes of answers that wait for a client which does not read."""


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel(Protocol):
    """A connection that carries whole messages.

    Attributes:
        half_since: When the message began of which a part is here, in `time.monotonic` seconds; None between messages.
    """

    half_since: float | None

    async def receive(self) -> Data:
        """The next message.

        Raises:
            ChannelClosed: There will be none.
            ProtocolError: It is larger than is allowed.
        """

    async def send(self, data: bytes | str) -> None:
        """Sends a message; waits while the other side does not read.

        Raises:
            ChannelClosed: It is gone.
        """

    def allow(self, size: int) -> None:
        """Lets messages be of so many bytes."""

    async def close(self, code: str) -> None:
        """Ends the connection in good order; `code` is why, one of the protocol's codes of errors, or `""`."""

    def abort(self) -> None:
        """Ends the connection at once."""


now = time.monotonic
"""Seconds on a clock that only goes forward."""
