"""A Hub on this machine for each test, and a cache of its own."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from tests.support.hub_server import HubServer


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with HubServer(tokens={"hf_" + "b" * 34: "bob"}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
        for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        # These are read when huggingface_hub is imported, which another test may have done.
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf_home" / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        # Its waits between attempts, not those of the server.
        from huggingface_hub.utils import _http

        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _: None, time=_http.time.time))
        yield server


@pytest.fixture
def card(tmp_path) -> str:
    path = tmp_path / "card.md"
    path.write_text("---\nlicense: apache-2.0\n---\n\n# An agent\n")
    return str(path)
