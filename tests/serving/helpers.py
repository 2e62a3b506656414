"""A server in a thread of this process, and a way to talk to it in bytes."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import threading
from contextlib import contextmanager

import numpy as np
import torch

from lit_align.serving.server import Server, connections
from lit_align.serving.service import Limits, Service
from lit_align.serving.unix import UnixListener
from lit_align.serving.websocket import WebSocketListener


class Running:
    """A server that runs: its address, its service, and what it said when it ended."""

    def __init__(self, address, service, loop):
        self.address, self.service, self._loop = address, service, loop
        self.stats = None

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)


@contextmanager
def running(agent, folder=None, limits=None, origins=(), **options):
    """Serves over a WebSocket, or over a Unix socket in `folder`."""
    limits = limits or Limits(clients=8)
    ready, end, found = threading.Event(), None, []

    async def serve():
        nonlocal end
        end = asyncio.Event()
        service = Service(agent, "tested", limits, **options)
        if folder is None:
            listener = WebSocketListener("127.0.0.1", 0, connections(limits.clients), origins)
        else:
            listener = UnixListener(os.path.join(folder, "s"))
        server = Server(service, listener)
        await server.start()
        found.append(Running(listener.address, service, asyncio.get_running_loop()))
        ready.set()
        await end.wait()
        found[0].stats = await server.stop()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield found[0]
    finally:
        found[0]._loop.call_soon_threadsafe(end.set)
        thread.join(30)
        assert not thread.is_alive()


class Raw:
    """A client in bytes, written from docs/serving.md alone: a Unix socket."""

    def __init__(self, address, hello=None, timeout=30.0):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(timeout)
        self.socket.connect(address.removeprefix("unix:"))
        self.welcome = None
        if hello is not None:
            self.welcome = self.ask(json.dumps({"type": "hello", "protocol": 1, **hello}).encode())

    def ask(self, message):
        self.send(message)
        return self.read()

    def send(self, message):
        self.socket.sendall(struct.pack("<I", len(message)) + message)

    def read(self):
        """A JSON object, the bytes of a binary message, or None when the server has hung up."""
        try:
            (size,) = struct.unpack("<I", self._exactly(4))
            data = self._exactly(size)
        except (EOFError, ConnectionResetError):
            return None
        return json.loads(data) if data[:1] == b"{" else data

    def _exactly(self, size):
        data = b""
        while len(data) < size:
            part = self.socket.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def rgb(step, frame, vector=()):
    """A raw frame as a message, by the table in docs/serving.md."""
    height, width = frame.shape[:2]
    numbers = struct.pack(f"<{len(vector)}f", *vector)
    return struct.pack("<BBHIHH", 1, 1, len(vector), step, width, height) + numbers + frame.tobytes()


def film(seed, steps, size=32):
    """Frames of noise `(steps, size, size, 3)`."""
    return np.random.default_rng(seed).integers(0, 256, (steps, size, size, 3), dtype=np.uint8)


def alone(agent, frames, noise, temperature=1.0, top_p=1.0, vectors=None):
    """Classes `(T, heads)` and log-probabilities `(T,)` of an episode that nothing else is played beside."""
    cache = agent.new_cache(1)
    out = []
    with torch.inference_mode():
        for t, frame in enumerate(frames):
            vector = None if vectors is None else torch.from_numpy(vectors[t : t + 1])
            uniform = torch.from_numpy(noise[t : t + 1])
            out.append(agent.choose(torch.from_numpy(frame[None]), cache, vector, uniform, temperature, top_p))
    return np.stack([a[0].numpy() for a, _ in out]), np.array([float(p[0]) for _, p in out])
