"""`lit-align serve`: a process as a user starts it, and what is refused before anything is loaded."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from lit_align.cli import main
from lit_align.commands.serve import _until_signal
from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.serving.client import Client
from lit_align.serving.server import Server, is_local
from lit_align.serving.service import Limits, Service
from lit_align.serving.unix import UnixListener
from lit_align.spaces import ActionCodec
from tests.helpers import tiny_agent
from tests.serving.helpers import film, running

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    tiny_agent().save(tmp_path / "taught" / "agent")
    return str(tmp_path / "taught" / "agent")


@contextmanager
def process(*words, **environment):
    """A server that listens; gives it and its address."""
    command = [sys.executable, "-m", "lit_align", "serve", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, env={**os.environ, **environment}, **options) as started:
        try:
            line = started.stdout.readline()
            assert " acts at " in line, started.stderr.read()
            yield started, line.split(" acts at ")[1].split(";")[0]
        finally:
            started.kill()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_process_serves_and_ends_cleanly(folder, tmp_path, number, code, word):
    path, stats, token = tmp_path / "s", tmp_path / "stats.json", "let-me-in"
    words = [folder, "--socket", str(path), "--json", str(stats), "--threads", "1", "--clients", "2"]
    with process(*words, LIT_ALIGN_TOKEN=token) as (started, address):
        assert address == f"unix:{path}"
        with Client(address, token=token, temperature=0) as client:
            assert client.welcome["agent"] == "taught"
            agent, codec = tiny_agent(), ActionCodec.from_dict(client.welcome["actions"])
            for frame in film(0, 4):
                assert np.array_equal(codec.encode(client.act(frame)), codec.encode(agent.act(frame, temperature=0)))
            started.send_signal(number)
            out, err = started.communicate(timeout=60)
    assert (started.returncode, err) == (code, f"{word}\n")
    assert not path.exists()
    assert json.loads(stats.read_text())["frames"] == 4
    assert "4 frames; frame to action p50" in out
    assert token not in out + err + stats.read_text()


def refused(capsys, *words):
    assert main(["serve", *words]) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert "Traceback" not in told.err
    return told.err


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--host", "0.0.0.0"], "no token is set"),
        (["--host", "::"], "no token is set"),
        (["--host", "192.168.1.7"], "LIT_ALIGN_TOKEN"),
        (["--token", "a\nb"], "cannot be printed"),
        (["--clients", "0"], "clients is 0"),
        (["--max_frame", "100000"], "max_frame is 100000"),
        (["--idle_timeout", "0"], "idle_timeout is 0"),
        (["--temperature", "-1"], "temperature is -1"),
        (["--port", "70000"], "0 to 65535"),
        ([], "there is no folder 'nowhere'"),
        (["--device", "gpu"], "device is 'gpu'; expected cpu, cuda, cuda:1, mps or auto"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_served(capsys, monkeypatch, words, word):
    monkeypatch.delenv("LIT_ALIGN_TOKEN", raising=False)
    assert word in refused(capsys, "nowhere", *words)


@pytest.mark.parametrize(("words", "device"), [([], "cpu"), (["--device", "meta"], "meta")])
def test_the_agent_is_loaded_on_the_device_that_is_named(folder, capsys, monkeypatch, words, device):
    def load(folder, device="nowhere", random_init=False):
        raise UserError(f"asked for {device}")

    monkeypatch.setattr(Agent, "load", load)
    assert refused(capsys, folder, *words) == f"error: asked for {device}\n"


def test_a_signal_while_the_server_starts_ends_it_cleanly_too(tmp_path):
    class Hasty(UnixListener):
        """Is told to end as soon as its socket is there."""

        async def start(self, talk):
            await super().start(talk)
            assert path.exists()
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)

    async def serve():
        service = Service(tiny_agent(), "tested", Limits(clients=2))
        return await _until_signal(Server(service, Hasty(str(path))), "tested")

    def killed(*_):
        raise AssertionError("nobody took the signal")

    path = tmp_path / "s"
    before = signal.signal(signal.SIGTERM, killed)
    try:
        stats, number = asyncio.run(serve())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (number, stats["frames"]) == (signal.SIGTERM, 0)
    assert not path.exists()


def test_a_port_in_use_is_one_line(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = refused(capsys, folder, "--port", str(taken.getsockname()[1]))
    assert "is in use; name another with --port" in told
    assert len(told.splitlines()) == 1
    assert "no address of this machine" in refused(capsys, folder, "--host", "192.0.2.1", "--token", "x")


def test_without_the_extra_it_is_named(folder, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'lit-align[serve]'" in refused(capsys, folder)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [(name, False) for name in ("0.0.0.0", "::", "10.0.0.1", "", "localhost.evil.com", "example.com")],
)
def test_only_loopback_is_local(host, local):
    assert is_local(host) == local


def node():
    """Node with a WebSocket of its own, or nothing."""
    found = shutil.which("node")
    for flags in ([], ["--experimental-websocket"]):
        if found is None:
            break
        asked = [found, *flags, "-e", "process.exit(typeof WebSocket === 'function' ? 0 : 1)"]
        if subprocess.run(asked, capture_output=True).returncode == 0:
            return [found, "--no-warnings", *flags]
    return None


def test_the_client_in_javascript_gets_what_the_agent_does():
    command = node()
    if command is None:
        pytest.skip("no node that has a WebSocket")
    script = ROOT / "docs" / "examples" / "client.mjs"
    assert len(script.read_text().splitlines()) < 60
    agent = tiny_agent()
    with running(agent, token="open") as server:
        words = [*command, str(script), server.address, "12", "open"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        told = [json.loads(line) for line in done.stdout.splitlines()]
        wrong = subprocess.run([*words[:-1], "shut"], capture_output=True, text=True, timeout=60)
        with Client(server.address, token="open") as client:
            for step, each in enumerate(told):
                pixels = ((np.arange(32 * 32 * 3) + 7 * step) % 256).astype(np.uint8).reshape(32, 32, 3)
                action = client.act(pixels)
                assert each["step"] == step
                assert each["log_prob"] == pytest.approx(client.log_prob, abs=1e-3)
                assert all(np.array_equal(action[key], np.float32(each["action"][key])) for key in action)
    assert len(told) == 12
    assert wrong.returncode != 0
    assert "token" in wrong.stderr
