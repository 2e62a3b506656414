"""`lit-align serve`: an agent acts for games in any language, over a WebSocket or a Unix socket."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from lit_align.commands.agents import stage_of
from lit_align.errors import Terminated, UserError


def run(
    agent: str,
    host: str = "127.0.0.1",
    port: int = 8765,
    socket: str | None = None,
    token: str | None = None,
    clients: int = 32,
    temperature: float = 1.0,
    top_p: float = 1.0,
    precision: Literal["fp32", "bf16", "int8"] = "fp32",
    device: str = "cpu",
    threads: int | None = None,
    max_frame: int = 1024,
    idle_timeout: float = 300.0,
    message_timeout: float = 10.0,
    allow_origins: list[str] | None = None,
    json: str | None = None,
) -> None:
    """Serves an agent to games until Ctrl-C or SIGTERM; docs/serving.md describes the protocol.

    Args:
        agent: Folder of the agent, or its id on the Hub.
        host: Address to listen at; one that other machines can reach needs a token.
        port: Port to listen at; 0 takes any that is free.
        socket: Path of a Unix socket to listen at, in place of host and port.
        token: A secret that clients must give; better set in the environment, as LIT_ALIGN_TOKEN, where other users of
            the machine do not see it.
        clients: Clients that may be connected at a time; each has its own past.
        temperature: Sampling temperature of the actions where a client asks for none; 0 takes the likeliest.
        top_p: Draw from the smallest set of classes that holds this much probability; 1 leaves every class.
        precision: Precision of the agent's arithmetic: `fp32`; `bf16`; `int8`: 8-bit weights.
        device: Where it computes: `cpu`, `cuda`, `cuda:1`, `mps`; `auto` takes a GPU if there is one.
        threads: Torch threads; None leaves torch's own number.
        max_frame: Pixels that the side of a frame may have.
        idle_timeout: Seconds without a message after which a client is let go.
        message_timeout: Seconds that the hello, the rest of a message that has begun, and the reading of an answer may
            take.
        allow_origins: Origins of web pages whose scripts may connect, such as `http://localhost:3000`; none by default.
        json: File to write the last statistics to.
    """
    token = token or os.environ.get("LIT_ALIGN_TOKEN") or None
    _check(socket, port)
    if socket is None and importlib.util.find_spec("websockets") is None:
        raise UserError(
            "a WebSocket needs the package websockets: pip install 'lit-align[serve]', or give --socket PATH"
        )
    from lit_align.models.acting import check_sampling
    from lit_align.serving.server import check_token
    from lit_align.serving.service import Limits

    check_sampling(temperature, top_p)
    check_token("localhost" if socket is not None else host, token)
    limits = Limits(clients, max_frame, idle_timeout, message_timeout)
    limits.check()

    import torch

    from lit_align.hub import fetch
    from lit_align.loading import find_device
    from lit_align.models.acting import check_precision
    from lit_align.models.agent import Agent
    from lit_align.models.folder import fingerprint

    place = find_device(device)
    check_precision(precision, place)
    if threads:
        torch.set_num_threads(threads)
    folder = fetch(agent)  # once: a branch on the Hub may move
    player = Agent.load(folder, place).prepare(precision)
    digest = fingerprint(folder)
    make_listener = _listener(host, port, socket, clients, allow_origins or [])

    async def serve() -> tuple[dict[str, Any], int]:
        from lit_align.serving.server import Server
        from lit_align.serving.service import Service

        service = Service(player, _name(agent), limits, token, temperature, top_p, digest)
        return await _until_signal(Server(service, make_listener(), _say), service.about["agent"])

    stats, number = asyncio.run(serve())
    _finish(stats, json)
    raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _check(socket: str | None, port: int) -> None:
    if not 0 <= port <= 65535:
        raise UserError(f"port is {port}; expected 0 to 65535")
    if socket is not None and not socket:
        raise UserError("socket is empty; expected the path of a Unix socket")


def _listener(host: str, port: int, socket: str | None, clients: int, origins: list[str]) -> Callable[[], Any]:
    from lit_align.serving.server import connections

    if socket is not None:
        from lit_align.serving.unix import UnixListener

        return lambda: UnixListener(socket)
    from lit_align.serving.websocket import WebSocketListener

    return lambda: WebSocketListener(host, port, connections(clients), origins)


async def _until_signal(server: Any, name: str) -> tuple[dict[str, Any], int]:
    """Serves until the first SIGTERM or Ctrl-C; another one, where the end takes long, ends the process at once."""
    loop = asyncio.get_running_loop()
    told: asyncio.Future[int] = loop.create_future()

    def take(number: int) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(each)
        told.set_result(number)

    for each in (signal.SIGINT, signal.SIGTERM):  # first, so that one that comes in between leaves no socket's file
        loop.add_signal_handler(each, take, each)
    await server.start()
    _say(f"{name} acts at {server.listener.address}; Ctrl-C ends it")
    number = await told
    return await server.stop(), number


def _finish(stats: dict[str, Any], json: str | None) -> None:
    from lit_align.serving.server import line

    _say(line(stats))
    if json is not None:
        import json as codec

        from lit_align.files import write_whole

        write_whole(json, codec.dumps(stats, indent=2) + "\n")


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  what was asked


def _name(agent: str) -> str:
    """What clients are told that the agent is called: its id on the Hub, or its stage; no path of this machine."""
    return stage_of(agent) if Path(agent).exists() else agent
