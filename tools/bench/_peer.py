"""Peers: an environment of their own, and processes in it that run when they are told to."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tools.bench._machine import ROOT
from tools.bench._race import Timing

VENV = ROOT / ".venv-bench"
SCRIPTS = Path(__file__).parent / "_peers"


def peer_python(*packages: str, venv: Path = VENV, constrained: bool = True) -> Path:
    """The Python of `.venv-bench`, with some packages and the very build of torch that we run on.

    Args:
        *packages: What pip installs, in the versions of `constraints.txt` where it names them.
        venv: Another environment, for packages that want other versions than the peers beside them.
        constrained: Whether the versions of `constraints.txt` hold; some peers need older ones.
    """
    python = venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp = venv / f".installed-{'-'.join(packages)}"
    versions = (ROOT / "constraints.txt").read_text() if constrained else ""
    wanted = f"torch {version('torch')}\n{versions}"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {', '.join(packages)} into {venv.name}, once", file=sys.stderr)
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    # The local part of the version (+cpu) counts: a GPU build would be another racer, and gigabytes.
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    constraints = ["--constraint", str(ROOT / "constraints.txt")] if constrained else []
    subprocess.run([*install, *constraints, f"torch=={version('torch')}", *packages], check=True)
    stamp.write_text(wanted)
    return python


class Peer:
    """A worker process that runs whenever it is called.

    Args:
        script: Of the folder `_peers`, without `.py`.
        python: Which Python runs it.
        **settings: What the script reads, as JSON; `threads` and `seed` among them.

    Attributes:
        facts: What the script told of itself.
    """

    def __init__(self, script: str, python: Path | str, **settings: Any) -> None:
        self.script = script
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [str(python), str(SCRIPTS / f"{script}.py"), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.facts: dict[str, Any] = self._answer()

    def __call__(self) -> Timing:
        """One run; its seconds are those that the peer measured."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died; what it said of that is told below
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"the peer {self.script} died (exit code {code}):\n{self._errors.read()[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        """Ends the process: it stops when nobody can tell it to run any more."""
        self._process.communicate()
        self._errors.close()
