"""A Weights & Biases server on this machine, as far as `wandb` asks one in a run, which can be lost in the middle.

It answers GraphQL by what is asked for (who I am, a run, places for files), takes the rows of a run's file stream, and
says of every artifact that it has one of these contents already.
"""

from __future__ import annotations

import gzip
import json
import socket
import threading
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """A server that runs in threads of this process.

    Attributes:
        rows: Of the histories it was sent, in the order in which they came.
        files: Names of the files it was sent.
        artifacts: `(name, digest, aliases)` of those that runs wanted to make.
        used: Digests of those that runs said they use.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.files: list[str] = []
        self.artifacts: list[tuple[str, str, set[str]]] = []
        self.used: list[str] = []
        self.lost = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self._http.server_port}"

    def hang(self) -> None:
        """From now on it takes what it is sent and never answers."""
        self.lost.set()

    def refuse(self) -> None:
        """From now on nobody is there: what is open is cut, what is new is refused."""
        self.lost.set()
        self._http.shutdown()
        self._http.server_close()
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Ends it."""
        self.refuse()
        self._thread.join(5)

    def answer(self, query: str, asked: dict[str, Any]) -> dict[str, Any]:
        """What a GraphQL query gets."""
        if "upsertBucket" in query:
            of = {"id": "p", "name": asked.get("project") or "p", "entity": {"id": "e", "name": "me"}}
            run = {"id": "r", "name": asked.get("name") or "r", "displayName": asked.get("displayName") or "r"}
            run |= {"config": "{}", "description": "", "sweepName": None, "historyLineCount": 0, "project": of}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "createRunFiles" in query:
            places = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in asked["files"]]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": places}}
        if "createArtifact" in query and "digest" in (asked.get("input") or {}):
            wanted = asked["input"]
            aliases = {each["alias"] for each in wanted["aliases"] or ()}
            self.artifacts.append((wanted["artifactCollectionName"], wanted["digest"], aliases))
            found = {"id": wanted["digest"], "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
            return {"createArtifact": {"artifact": found}}
        if "useArtifact" in query:
            self.used += [str(value) for value in _values(asked)]
            return {"useArtifact": {"artifact": {"id": "a"}}}
        return {
            "viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
            "serverInfo": {"cliVersionInfo": {"min_cli_version": "0.10.0"}, "features": []},
        }

    def stream(self, sent: dict[str, Any]) -> None:
        """Takes rows of a history."""
        history = (sent.get("files") or {}).get("wandb-history.jsonl") or {}
        self.rows += [json.loads(line) for line in history.get("content", [])]


def _values(nested: Any) -> list[Any]:
    return [each for value in nested.values() for each in _values(value)] if isinstance(nested, dict) else [nested]


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            server._open.add(self.connection)

        def handle(self) -> None:
            with suppress(OSError):  # it was cut
                super().handle()
            server._open.discard(self.connection)

        def log_message(self, *_: Any) -> None:
            pass

        def body(self) -> bytes:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while server.lost.is_set():
                threading.Event().wait(3600)
            return gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw

        def reply(self, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            raw = self.body()
            if self.path == "/graphql":
                asked = json.loads(raw)
                self.reply({"data": server.answer(asked["query"], asked.get("variables") or {})})
                return
            if self.path.endswith("/file_stream"):
                server.stream(json.loads(raw))
            self.reply({})

        def do_PUT(self) -> None:
            self.body()
            server.files.append(self.path.removeprefix("/upload/"))
            self.reply({})

        def do_GET(self) -> None:
            self.body()
            self.reply({})

    return Handler


@contextmanager
def wandb_server(monkeypatch: Any) -> Any:
    """A server that `wandb` of this process takes for its own."""
    import wandb

    server = WandbServer()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    wandb.teardown()  # else it goes by the environment that an earlier test gave it
    try:
        yield server
    finally:
        server.close()
        with suppress(Exception):
            wandb.teardown()
