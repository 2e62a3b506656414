"""A Hub on this machine: what huggingface_hub asks of one, over HTTP, with faults that a test can order.

Point HF_ENDPOINT at `HubServer.url` and set HF_HUB_DISABLE_XET=1: this server stores large files by LFS alone.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".parquet", ".mp4", ".png", ".bin", ".pkl")
WRITES = ("/api/repos/create", "/commit/", "/preupload/", "/branch/", "/lfs", "objects/batch")
CHUNK = 1 << 16


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    kind: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        content = json.dumps([sorted((n, git_hash(c)) for n, c in files.items()), len(self.commits), message])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def sha(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.branches["main"]]


@dataclass
class Fault:
    """Answers `times` requests whose "METHOD /path" matches with a status, or cuts them after so many bytes."""

    pattern: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    times: int = 1
    then: Callable[[], None] = lambda: None


class HubServer:
    """Serves in a thread until the end of the `with` block.

    Attributes:
        repos: By `(kind, "user/name")`, kind `model` or `dataset`.
        stored: What LFS holds, by sha256.
        received: Bytes that arrived for each LFS file, by sha256, cut uploads included.
        seen: Every request, as "METHOD /path".
        faults: What goes wrong next.
        multipart: Files of more bytes than this come in parts of this size; None takes all in one piece.
    """

    def __init__(self, tokens: dict[str, str] | None = None) -> None:
        self.tokens = {"hf_" + "a" * 34: "alice", **(tokens or {})}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.received: dict[str, int] = {}
        self.seen: list[str] = []
        self.faults: list[Fault] = []
        self.multipart: int | None = None
        self.lock = threading.RLock()

    def __enter__(self) -> HubServer:
        server = self

        class Bound(Handler):
            hub = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Bound)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def token(self) -> str:
        return next(iter(self.tokens))

    @property
    def writes(self) -> list[str]:
        return [line for line in self.seen if not line.startswith(("GET", "HEAD")) and any(w in line for w in WRITES)]

    def put(
        self, repo_id: str, files: dict[str, bytes], kind: str = "model", branch: str = "main", **facts: bool
    ) -> str:
        """Makes a commit, past all checks."""
        repo = self.repos.setdefault((kind, repo_id), Repo(kind, **facts))
        before = repo.commits.get(repo.branches.get(branch, ""), {})
        return repo.commit(branch, {**before, **files}, "put")

    def fail(self, pattern: str, **fault: object) -> None:
        self.faults.append(Fault(pattern, **fault))  # type: ignore[arg-type]

    def fault(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    fault.times -= 1
                    return fault
        return None


class Refused(Exception):
    def __init__(self, status: int, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        self.hub.seen.append(line)
        fault = self.hub.fault(line)
        if fault is not None and fault.after is None:
            self.body()
            self.answer({"error": "ordered"}, fault.status, fault.headers)
            return
        try:
            if self.command == "PUT":
                self.store(path, fault)
                return
            body = self.body()
            for pattern, action in ROUTES:
                if found := re.fullmatch(pattern, line):
                    with self.hub.lock:
                        action(self, body, *found.groups())
                    return
            raise Refused(404, f"no such place: {line}")
        except Refused as refused:
            self.answer({"error": str(refused)}, refused.status, refused.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def body(self) -> bytes:
        return b"".join(self.pieces())

    def pieces(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            while size := int(self.rfile.readline().strip() or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return
        left = int(self.headers.get("Content-Length", 0))
        while left > 0:
            piece = self.rfile.read(min(left, CHUNK))
            if not piece:
                raise ConnectionResetError
            left -= len(piece)
            yield piece

    def answer(self, content: object = None, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        names = {name.lower() for name in headers or {}}
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    # Who asks, and for what

    def user(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if given and given not in self.hub.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(given)

    def repo(self, kind: str, repo_id: str, write: bool = False) -> Repo:
        user, found = self.user(), self.hub.repos.get((kind.removesuffix("s"), repo_id))
        mine = user == repo_id.split("/")[0]
        if found is None or (found.private and not mine):
            raise Refused(404 if user else 401, "Repository not found", "RepoNotFound")
        if found.gated and not mine:
            raise Refused(403, "Access to this repository is restricted", "GatedRepo")
        if write and not mine:
            raise Refused(403 if user else 401, "You have no write access")
        return found

    def commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.sha(revision)
        if sha is None:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha

    # What is asked

    def whoami(self, body: bytes) -> None:
        if (user := self.user()) is None:
            raise Refused(401, "Invalid username or password.")
        self.answer({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"role": "write"}}})

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        kind, repo_id = asked.get("type", "model"), f"{asked['organization']}/{asked['name']}"
        user = self.user()
        if user is None:
            raise Refused(401, "Invalid username or password.")
        if user != asked["organization"]:
            raise Refused(403, f"You don't have the rights to create a model under the namespace {repo_id}")
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.hub.repos:
            self.answer({"error": "You already created this model repo", "url": url}, 409)
            return
        repo = Repo(kind, private=bool(asked.get("private")) or asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self.hub.repos[kind, repo_id] = repo
        self.answer({"url": url, "id": repo_id})

    def info(self, body: bytes, kind: str, repo_id: str, revision: str | None = None) -> None:
        repo = self.repo(kind, repo_id)
        sha = self.commit_of(repo, revision or "main")
        self.answer(
            {"id": repo_id, "sha": sha, "private": repo.private, "tags": [], "downloads": 0, "likes": 0}
            | {"siblings": [{"rfilename": name} for name in sorted(repo.commits[sha])]}
        )

    def tree(self, body: bytes, kind: str, repo_id: str, revision: str, folder: str | None = None) -> None:
        repo = self.repo(kind, repo_id)
        entries = []
        for name, content in sorted(repo.commits[self.commit_of(repo, revision)].items()):
            if folder and not name.startswith(f"{folder}/"):
                continue
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
            if name.endswith(LARGE):
                oid = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self.answer(entries)

    def refs(self, body: bytes, kind: str, repo_id: str) -> None:
        repo = self.repo(kind, repo_id)
        branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": s} for n, s in repo.branches.items()]
        self.answer({"branches": branches, "converts": [], "tags": []})

    def branch(self, body: bytes, kind: str, repo_id: str, name: str) -> None:
        repo = self.repo(kind, repo_id, write=True)
        if name in repo.branches:
            raise Refused(409, "Reference already exists")
        start = json.loads(body or b"{}").get("startingPoint", "main")
        repo.branches[name] = self.commit_of(repo, start)
        self.answer({})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            self.answer({"warnings": [{"message": "empty or missing yaml metadata in repo card"}], "errors": []})
        elif re.search(r"^license:\s*\[?\s*$", content.split("---")[1], re.MULTILINE):
            self.answer({"errors": [{"message": '"license" must be a string'}], "warnings": []}, 400)
        else:
            self.answer({"errors": [], "warnings": []})

    def preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id, write=True)
        present = repo.commits[self.commit_of(repo, revision)]
        files = []
        for asked in json.loads(body)["files"]:
            name = asked["path"]
            large = name.endswith(LARGE) or asked["size"] > 10_000_000
            entry = {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if name in present:
                old = present[name]
                entry["oid"] = hashlib.sha256(old).hexdigest() if large else git_hash(old)
            files.append(entry)
        self.answer({"files": files})

    def batch(self, body: bytes, kind: str | None, repo_id: str) -> None:
        self.repo("dataset" if kind else "model", repo_id, write=True)
        objects = []
        for asked in json.loads(body)["objects"]:
            oid, size = asked["oid"], asked["size"]
            entry = {"oid": oid, "size": size}
            if oid not in self.hub.stored:
                upload: dict[str, object] = {"href": f"{self.hub.url}/lfs/{oid}"}
                if self.hub.multipart and size > self.hub.multipart:
                    count = -(-size // self.hub.multipart)
                    parts = {f"{n:05d}": f"{self.hub.url}/lfs/{oid}/{n}" for n in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(self.hub.multipart), **parts}
                entry["actions"] = {"upload": upload, "verify": {"href": f"{self.hub.url}/lfs-verify"}}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, path: str, fault: Fault | None) -> None:
        found = re.fullmatch(r"/lfs/([0-9a-f]{64})(?:/(\d+))?", path)
        if not found:
            raise Refused(404, path)
        oid, part = found[1], found[2]
        content = bytearray()
        for piece in self.pieces():
            content += piece
            with self.hub.lock:
                self.hub.received[oid] = self.hub.received.get(oid, 0) + len(piece)
            if fault is not None and fault.after is not None and len(content) >= fault.after:
                fault.then()
                self.close_connection = True
                self.connection.close()
                return
        with self.hub.lock:
            if part is not None:
                self.hub.parts.setdefault(oid, {})[int(part)] = bytes(content)
            else:
                self.keep(oid, bytes(content))
        self.answer(b"", headers={"ETag": f'"{hashlib.md5(content).hexdigest()}"'})

    def keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            raise Refused(400, "the content is not that of its sha256")
        self.hub.stored[oid] = content

    def complete(self, body: bytes, oid: str) -> None:
        asked = json.loads(body)
        parts = self.hub.parts.pop(oid)
        self.keep(oid, b"".join(parts[part["partNumber"]] for part in asked["parts"]))
        self.answer({})

    def verify(self, body: bytes) -> None:
        asked = json.loads(body)
        if len(self.hub.stored.get(asked["oid"], b"")) != asked["size"]:
            raise Refused(404, "not stored")
        self.answer({})

    def commit(self, body: bytes, kind: str, repo_id: str, revision: str) -> None:
        repo = self.repo(kind, repo_id, write=True)
        files = dict(repo.commits[self.commit_of(repo, revision)])
        message = ""
        for line in filter(None, body.split(b"\n")):
            key, value = (json.loads(line)[part] for part in ("key", "value"))
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.stored:
                    raise Refused(400, f"{value['path']}: its content was never uploaded")
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif key == "deletedFile" and files.pop(value["path"], None) is None:
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
        sha = repo.commit(revision, files, message)
        self.answer({"commitUrl": f"{self.hub.url}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, body: bytes, prefix: str | None, repo_id: str, revision: str, name: str) -> None:
        repo = self.repo("dataset" if prefix else "model", repo_id)
        sha = self.commit_of(repo, revision)
        if name not in repo.commits[sha]:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = repo.commits[sha][name]
        etag = hashlib.sha256(content).hexdigest() if name.endswith(LARGE) else git_hash(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        begin, status = 0, 200
        if found := re.match(r"bytes=(\d+)-", self.headers.get("Range", "")):
            begin, status = int(found[1]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.answer(content[begin:], status, headers)


_ID = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"GET /api/whoami-v2", Handler.whoami),
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"GET /api/(models|datasets)/{_ID}", Handler.info),
    (rf"GET /api/(models|datasets)/{_ID}/revision/(.+)", Handler.info),
    (rf"GET /api/(models|datasets)/{_ID}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    (rf"GET /api/(models|datasets)/{_ID}/refs", Handler.refs),
    (rf"POST /api/(models|datasets)/{_ID}/branch/(.+)", Handler.branch),
    (rf"POST /api/(models|datasets)/{_ID}/preupload/(.+)", Handler.preupload),
    (rf"POST /api/(models|datasets)/{_ID}/commit/(.+)", Handler.commit),
    (rf"POST /(datasets/)?{_ID}\.git/info/lfs/objects/batch", Handler.batch),
    (r"POST /lfs/([0-9a-f]{64})", Handler.complete),
    (r"POST /lfs-verify", Handler.verify),
    (rf"(?:GET|HEAD) /(datasets/)?{_ID}/resolve/([^/]+)/(.+)", Handler.resolve),
]
