"""A world in a process of its own: what it does to its process, it does to that one alone.

The two talk through a pair of sockets. A frame of 64x64 is 12 kB, less than a hand-over from process to process costs,
and unlike shared memory a socket leaves nothing behind, however its ends go.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from multiprocessing.connection import Connection, Pipe
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from lit_align.envs import WorldFailed
from lit_align.envs.gym import make, name_of
from lit_align.errors import UserError

START = 120.0
"""Seconds that the process has to make its world."""
RESET = 10.0
"""A reset may take this many times as long as a step: it may have to start a game."""
_GOODBYE = 3.0
"""Seconds that the process has to close its world."""
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def make_world(
    env_id: str, env_args: dict[str, Any], isolate: bool = False, step_timeout: float | None = None
) -> gymnasium.Env[Any, Any]:
    """Makes a world, where asked for in a process of its own.

    Args:
        env_id: Its Gymnasium id.
        env_args: Arguments that it is made with.
        isolate: Whether it gets a process of its own.
        step_timeout: Seconds that a step may take (a reset ten times as long) before the world counts as hung. Needs
            `isolate`, but for worlds that have an attribute `step_timeout` and keep to it, as the island does.

    Raises:
        UserError: It cannot be made, or cannot keep time.
    """
    if step_timeout is not None and not step_timeout > 0:
        raise UserError(f"step_timeout is {step_timeout}; expected seconds, more than 0")
    if isolate:
        return Isolated(env_id, env_args, step_timeout)
    world = make(env_id, **env_args)
    if step_timeout is not None:
        if not hasattr(world.unwrapped, "step_timeout"):
            world.close()
            raise UserError(
                f"step_timeout is {step_timeout}, but a step of {name_of(world)} that hangs inside this process cannot "
                "be stopped: give isolate true as well, which puts each world into a process of its own"
            )
        world.unwrapped.step_timeout = step_timeout  # type: ignore[attr-defined]
    return world


class Isolated(gymnasium.Env[Any, Any]):
    """A world that runs in another process; it plays the same episodes, bit for bit.

    The process dies with this one, by whatever signal. If it dies, hangs or raises, `WorldFailed` is raised, it is
    killed with all that it started, and the next `reset` starts another.

    Args:
        env_id: The world's Gymnasium id; one that the program itself registered needs the form `module:Name-v0`.
        env_args: Arguments that it is made with.
        step_timeout: Seconds that a step may take, a reset ten times as long; None for no limit.

    Attributes:
        pid: Of its process; None while there is none.
        max_steps: As the world has it; None where it does not.

    Raises:
        UserError: The world cannot be made.
    """

    def __init__(self, env_id: str, env_args: dict[str, Any] | None = None, step_timeout: float | None = None) -> None:
        self._env_id, self._env_args, self._step_timeout = env_id, dict(env_args or {}), step_timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Any, Any] | None = None
        try:
            facts = self._start()
        except WorldFailed as error:
            raise UserError(f"cannot make the environment '{env_id}' in a process of its own: {error}") from error
        self.observation_space, self.action_space = facts["observation_space"], facts["action_space"]
        self.metadata, self.render_mode, self.max_steps = facts["metadata"], facts["render_mode"], facts["max_steps"]
        self.spec = EnvSpec(facts["id"], entry_point=None, max_episode_steps=facts["max_episode_steps"])

    @property
    def pid(self) -> int | None:  # noqa: D102  told above
        return None if self._process is None else self._process.pid

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Starts an episode, in a new process where the last one is gone."""
        if self._process is None:
            self._start()
        limit = None if self._step_timeout is None else RESET * self._step_timeout
        answer: tuple[Any, dict[str, Any]] = self._ask(("reset", (seed, options)), limit)
        return answer

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Goes one step."""
        answer: tuple[Any, Any, Any, Any, Any] = self._ask(("step", action), self._step_timeout)
        return answer

    def render(self) -> Any:
        """What the world renders."""
        return self._ask(("render", None), self._step_timeout)

    def close(self) -> None:
        """Ends the process."""
        if self._connection is not None and self._process is not None:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._connection.send(("close", None))
                self._process.wait(_GOODBYE)
        self._kill()

    def __del__(self) -> None:
        self._kill()

    def _start(self) -> dict[str, Any]:
        self._connection, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            code = f"from lit_align.envs.isolate import serve; serve({number}, {os.getpid()})"
            # `-c` looks for modules where it is started; what else this process knows of goes along.
            known = os.pathsep.join(path or os.getcwd() for path in sys.path)
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=[number],
                start_new_session=True,  # Ctrl-C is for us, who end it
                env={**os.environ, "PYTHONPATH": known},
            )
        facts: dict[str, Any] = self._ask((self._env_id, self._env_args), START)
        return facts

    def _ask(self, question: Any, limit: float | None) -> Any:
        connection = self._connection
        if connection is None:
            raise WorldFailed("its process is gone; the next reset starts another")
        try:
            connection.send(question)
            if not connection.poll(limit):
                self._kill()
                raise WorldFailed(f"it did not answer within {limit:g} s, and its process was killed")
            kind, answer = connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise WorldFailed(f"its process {_end(self._kill(wait=0.5))}") from error
        except BaseException:  # such as Ctrl-C: an answer that nobody took must not be taken for the next one's
            self._kill()
            raise
        if kind == "answer":
            return answer
        self._kill()
        raise UserError(answer) if kind == "mistake" else WorldFailed(answer)

    def _kill(self, wait: float = 0.0) -> int | None:
        """Ends the process and all of its group; gives its exit code if it ends by itself, in so many seconds."""
        process, connection = self.__dict__.get("_process"), self.__dict__.get("_connection")
        self._process = self._connection = None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(wait)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return code


def _end(code: int | None) -> str:
    if code is None:
        return "broke off"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}" + " (often a lack of memory)" * (code == -signal.SIGKILL)
    return f"ended with exit code {code}"


def serve(number: int, parent: int) -> None:
    """The other process: answers questions until there is nobody to ask.

    Args:
        number: Of the socket's file descriptor.
        parent: Process that asks.
    """
    os.set_inheritable(number, False)  # a game that held it too would hide our end
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)  # Linux; for a world that hangs
    if os.getppid() != parent:
        os._exit(1)
    connection: Connection[Any, Any] = Connection(number)
    world: gymnasium.Env[Any, Any] | None = None
    try:
        while True:
            what, given = connection.recv()
            if what == "close":
                break
            try:
                if world is None:
                    world = make(what, **given)
                    answer: Any = _facts(world)
                elif what == "step":
                    answer = world.step(given)
                elif what == "reset":
                    answer = world.reset(seed=given[0], options=given[1])
                else:
                    answer = world.render()
                reply = "answer", answer
            except UserError as error:
                reply = "mistake" if world is None else "failed", str(error)
            except WorldFailed as error:
                reply = "failed", str(error)
            except Exception as error:
                traceback.print_exc()
                reply = "failed", f"raised {type(error).__name__}: {error}"
            connection.send(reply)
    except (EOFError, OSError):  # the other end is gone
        pass
    finally:
        threading.Thread(target=_leave, daemon=True).start()
        if world is not None:
            with contextlib.suppress(Exception):
                world.close()
    os.killpg(os.getpgid(0), signal.SIGKILL)  # whatever the world started


def _leave() -> None:
    """Ends the process even if its world cannot be closed."""
    threading.Event().wait(_GOODBYE)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _facts(world: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: getattr(world, name) for name in ("observation_space", "action_space", "metadata", "render_mode")
    }
    facts["id"] = name_of(world)
    facts["max_episode_steps"] = None if world.spec is None else world.spec.max_episode_steps
    facts["max_steps"] = getattr(world.unwrapped, "max_steps", None)
    return facts
