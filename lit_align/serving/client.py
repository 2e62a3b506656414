"""A small client in Python: what another language's would do, and a way to try a server.

It needs NumPy, and `websockets` where it does not connect to a Unix socket.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lit_align.serving.protocol import (
    JPEG,
    NONE,
    PNG,
    RGB,
    Action,
    Data,
    Frame,
    Hello,
    Message,
    ProtocolError,
    Reset,
    Stats,
    decode_answer,
    encode,
)

Picture = NDArray[np.uint8] | bytes


class Client:
    """Plays with an agent that `lit-align serve` serves. Close it, or use it in a `with`.

    Args:
        address: `ws://HOST:PORT`, or `unix:PATH`.
        token: The server's secret, where it has one.
        seed: Seed of the choices: the same frames with the same seed get the same actions.
        temperature: Divides the logits; None takes the server's.
        top_p: None takes the server's.
        answer: `json` gives actions of the action space; `classes` gives the classes of the heads `(heads,)`, uint8.
        timeout: Seconds to wait for the server.

    Attributes:
        welcome: What the server said of itself and its agent.
        log_prob: Joint log-probability of the last action.

    Raises:
        ConnectionError: There is no server, or it went.
        ProtocolError: The server refused; its `code` says why.
    """

    def __init__(
        self,
        address: str = "ws://127.0.0.1:8765",
        token: str | None = None,
        seed: int = 0,
        temperature: float | None = None,
        top_p: float | None = None,
        answer: str = "json",
        timeout: float = 30.0,
    ) -> None:
        self._wire = _Unix(address[5:], timeout) if address.startswith("unix:") else _WebSocket(address, timeout)
        self._step = 0
        self.log_prob = 0.0
        try:
            hello = Hello(token=token, seed=seed, temperature=temperature, top_p=top_p, answer=answer)
            self.welcome: dict[str, Any] = self._ask(hello)
        except BaseException:
            self.close()
            raise

    def act(self, frame: Picture | None = None, vector: Any = None) -> Any:
        """What to do now.

        Args:
            frame: Pixels `(S, S, 3)`, uint8, of any size that the server takes, or the bytes of a JPEG or PNG of the
                agent's size; None where the agent sees none.
            vector: Numbers `(V,)` where the agent sees them.

        Raises:
            ProtocolError: The server refused the frame.
        """
        numbers = np.zeros(0, np.float32) if vector is None else np.asarray(vector, np.float32)
        answer = self._ask(self._frame(frame, numbers))
        self._step += 1
        if isinstance(answer, Action):
            self.log_prob = answer.log_prob
            return np.frombuffer(answer.classes, np.uint8)
        self.log_prob = answer["log_prob"]
        return in_space(answer["action"], self.welcome["actions"])

    def reset(self, episode: int | None = None, world_seed: int = 0) -> int:
        """Begins an episode, the next one by default; returns its number."""
        number: int = self._ask(Reset(episode, world_seed))["episode"]
        self._step = 0
        return number

    def stats(self) -> dict[str, Any]:
        """The server's statistics."""
        answer: dict[str, Any] = self._ask(Stats())
        return answer

    def close(self) -> None:
        """Ends the connection."""
        self._wire.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _frame(self, frame: Picture | None, vector: NDArray[np.float32]) -> Frame:
        if frame is None:
            return Frame(self._step, NONE, 0, 0, vector, b"")
        if isinstance(frame, bytes):
            side = self.welcome["image_size"]
            return Frame(self._step, PNG if frame[:4] == b"\x89PNG" else JPEG, side, side, vector, frame)
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise ValueError(f"the frame is {frame.dtype} of shape {frame.shape}; expected uint8 of shape (S, S, 3)")
        return Frame(self._step, RGB, frame.shape[1], frame.shape[0], vector, frame.tobytes())

    def _ask(self, message: Message) -> Any:
        answer = decode_answer(self._wire.ask(encode(message)))
        if isinstance(answer, dict) and answer["type"] == "error":
            raise ProtocolError(answer["code"], answer["message"])
        return answer


def in_space(action: Any, space: dict[str, Any]) -> Any:
    """An action from JSON as an element of the action space that the welcome describes."""
    if space["kind"] == "Dict":
        return {key: in_space(action[key], sub) for key, sub in space["spaces"].items()}
    if space["kind"] == "Tuple":
        return tuple(in_space(part, sub) for part, sub in zip(action, space["spaces"], strict=True))
    if space["kind"] == "Discrete":
        return np.int64(action)
    dtypes = {"MultiBinary": "int8", "MultiDiscrete": "int64"}
    return np.asarray(action, space.get("dtype") or dtypes[space["kind"]])


class _Unix:
    """Messages behind their length, four bytes, the lowest first."""

    def __init__(self, path: str, timeout: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise ConnectionError(f"no server at unix:{path}: {error}") from error

    def ask(self, message: bytes) -> Data:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have said why it went
            self._socket.sendall(len(message).to_bytes(4, "little") + message)
        return self._read(int.from_bytes(self._read(4), "little"))

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = self._socket.recv(size - len(parts))
            if not part:
                raise ConnectionError("the server has gone")
            parts += part
        return bytes(parts)

    def close(self) -> None:
        self._socket.close()


class _WebSocket:
    """JSON as text, the rest as binary messages."""

    def __init__(self, address: str, timeout: float) -> None:
        from websockets.exceptions import InvalidHandshake, InvalidURI
        from websockets.sync.client import connect

        self._timeout, self._closing = timeout, contextlib.ExitStack()
        options: dict[str, Any] = {"open_timeout": timeout, "compression": None, "max_size": None, "proxy": None}
        try:
            self._connection = self._closing.enter_context(connect(address, ping_interval=None, **options))
        except InvalidURI:
            raise
        except (OSError, InvalidHandshake) as error:
            raise ConnectionError(f"no server at {address}: {error}") from error

    def ask(self, message: bytes) -> Data:
        from websockets.exceptions import ConnectionClosed

        with contextlib.suppress(ConnectionClosed):  # it may have said why it went
            self._connection.send(message, text=message[:1] == b"{")
        try:
            answer: Data = self._connection.recv(self._timeout)
        except ConnectionClosed as error:
            raise ConnectionError(f"the server has gone: {error}") from error
        return answer

    def close(self) -> None:
        self._closing.close()
