"""One ViZDoom engine process: start, play, and never leave anything behind.

The engine is a process of its own that talks through shared memory, and it survives its parent. So each one gets a
folder of its own to work in and a watchdog: a small shell that holds the other end of a pipe, and cleans up when the
pipe closes because the parent is gone, however it went.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import vizdoom
from numpy.typing import NDArray

from lit_align.envs import WorldFailed
from lit_align.envs.jumppads.affinity import SameCore
from lit_align.envs.jumppads.deadline import Deadline
from lit_align.envs.jumppads.map import build_wad
from lit_align.envs.jumppads.orphans import release

RESOLUTIONS = ("160x120", "200x150", "320x240", "400x300", "640x480", "800x600")
PROCESSES = Path("/proc")
START = 60.0
"""Seconds that an engine may take to start, and for a step where nobody says otherwise."""

GONE = 1.0
"""Seconds in which an engine that was killed is gone."""

_BUTTONS = (
    vizdoom.Button.MOVE_FORWARD_BACKWARD_DELTA,
    vizdoom.Button.MOVE_LEFT_RIGHT_DELTA,
    vizdoom.Button.TURN_LEFT_RIGHT_DELTA,
    vizdoom.Button.LOOK_UP_DOWN_DELTA,
    vizdoom.Button.JUMP,
    vizdoom.Button.CROUCH,
    vizdoom.Button.ATTACK,
)
IDLE = [0.0] * len(_BUTTONS)
_VARIABLES = (
    vizdoom.GameVariable.POSITION_X,
    vizdoom.GameVariable.POSITION_Y,
    vizdoom.GameVariable.POSITION_Z,
    vizdoom.GameVariable.ANGLE,
)
_ERRORS = (
    vizdoom.ViZDoomErrorException,
    vizdoom.ViZDoomIsNotRunningException,
    vizdoom.ViZDoomUnexpectedExitException,
    vizdoom.SharedMemoryException,
    vizdoom.MessageQueueException,
)

# Starts the engine inside its own folder (it writes there, and two in one folder fight), and notes who it is.
_LAUNCHER = """#!/bin/sh
cd {folder} || exit 1
echo $$ > pid
last=
for word in "$@"; do
    [ "$last" = +viz_instance_id ] && echo "$word" > instance
    last=$word
done
exec {program} "$@"
"""

# Waits for the parent's end of the pipe to close, then kills what still is this engine (not a stranger with its
# number) and sweeps up.
_WATCHDOG = """trap '' INT TERM HUP
read _
cd {folder} || exit 0
read pid < pid && read instance < instance && {{
    {{ cat "/proc/$pid/cmdline" || ps -o args= -p "$pid"; }} | grep -qa -e "$instance" && kill -9 "$pid"
    rm -f /dev/shm/ViZDoom*"$instance"
}}
cd / && rm -rf {folder}
"""


@dataclass
class View:
    """What the engine shows after some tics.

    Attributes:
        frame: `(height, width, 3)` uint8 RGB.
        x: Map units to the east.
        y: Map units to the north.
        z: Map units up.
        heading: Degrees, counterclockwise, 0 is east.
    """

    frame: NDArray[np.uint8]
    x: float
    y: float
    z: float
    heading: float


def _tidy(watchdog: subprocess.Popen[bytes] | None, folder: Path) -> None:
    """Lets the watchdog do its work now, and waits for it."""
    if watchdog is not None and watchdog.stdin is not None:
        with contextlib.suppress(OSError):
            watchdog.stdin.close()
        watchdog.wait()
    shutil.rmtree(folder, ignore_errors=True)


def _kill(folder: Path) -> None:
    """Kills the engine that was started in a folder, if it has got so far and is not gone already.

    What it held is released, also if it was somebody else who killed it: a call would wait for it for ever.
    """
    with contextlib.suppress(OSError, ValueError):
        pid, instance = int((folder / "pid").read_text()), (folder / "instance").read_text().strip()
        place = PROCESSES / str(pid)
        with contextlib.suppress(OSError):
            # Else a stranger may have got its number.
            if not PROCESSES.is_dir() or instance.encode() in (place / "cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + GONE
        while place.exists() and time.monotonic() < end:
            time.sleep(0.005)
        release(instance)


class Engine:
    """A ViZDoom engine with the island loaded.

    Args:
        resolution: One of `RESOLUTIONS`.
        fenced: Nobody can leave the beach for the water.
        sky: One of `map.SKIES`.

    Attributes:
        timeout: Seconds that `act` may take, and `new_episode` ten times as long, before the engine counts as hung and
            is killed.

    Raises:
        ValueError: The resolution is not one of `RESOLUTIONS`.
        WorldFailed: The engine did not start.
    """

    def __init__(self, resolution: str = "160x120", fenced: bool = False, sky: str = "day") -> None:
        if resolution not in RESOLUTIONS:
            raise ValueError(f"resolution is {resolution!r}; expected one of {', '.join(RESOLUTIONS)}")
        self.folder = Path(tempfile.mkdtemp(prefix="lit-align-island-"))
        self.pid, self.timeout = 0, START
        self._deadline = Deadline(partial(_kill, self.folder))
        watchdog = None
        try:
            (self.folder / "island.wad").write_bytes(build_wad(fenced, sky))
            self._game = self._configure(resolution)
            watchdog = self._watch()
            self._closer = weakref.finalize(self, _tidy, watchdog, self.folder)
            with self._deadline(START):
                self._game.init()
            self.pid = int((self.folder / "pid").read_text()) if os.name == "posix" else 0
            self._same_core = SameCore(self.pid)
        except (*_ERRORS, OSError, ValueError) as error:
            _tidy(watchdog, self.folder)
            late = f"it took longer than {START:g} s; " * self._deadline.late
            raise WorldFailed(f"the game engine did not start: {late}{str(error) or type(error).__name__}") from error

    def _configure(self, resolution: str) -> vizdoom.DoomGame:
        game = vizdoom.DoomGame()
        game.set_doom_game_path(str(Path(vizdoom.install_path) / "freedoom2.wad"))
        game.set_doom_scenario_path(str(self.folder / "island.wad"))
        game.set_doom_config_path(str(self.folder / "engine.ini"))
        game.set_doom_map("MAP01")
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{resolution.upper()}"))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_available_buttons(list(_BUTTONS))
        game.set_available_game_variables(list(_VARIABLES))
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_console_enabled(False)
        game.set_render_hud(False)
        game.set_render_crosshair(False)
        game.set_render_weapon(True)
        for off in (game.set_render_decals, game.set_render_particles, game.set_render_effects_sprites):
            off(False)
        for off in (game.set_render_messages, game.set_render_corpses, game.set_render_screen_flashes):
            off(False)
        game.set_episode_timeout(0)
        game.set_episode_start_time(1)
        if os.name == "posix":
            game.set_vizdoom_path(str(self._launcher(vizdoom.exe_path)))
        return game

    def _launcher(self, program: str) -> Path:
        path = self.folder / "start"
        path.write_text(_LAUNCHER.format(folder=shlex.quote(str(self.folder)), program=shlex.quote(program)))
        path.chmod(0o700)
        if not os.access(path, os.X_OK):
            raise OSError(f"programs cannot be run from {self.folder.parent}; set TMPDIR to a folder where they can")
        return path

    def _watch(self) -> subprocess.Popen[bytes] | None:
        if os.name != "posix":
            return None
        script = _WATCHDOG.format(folder=shlex.quote(str(self.folder)))
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            ["/bin/sh", "-c", script], stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True
        )

    def new_episode(self, seed: int, x: int, y: int, heading: float) -> View:
        """Starts over, with the player standing still at a place.

        Args:
            seed: Of the engine's own dice.
            x: Map units to the east; the engine takes whole ones.
            y: Map units to the north.
            heading: Degrees, counterclockwise, 0 is east.

        Raises:
            WorldFailed: The engine died.
        """
        try:
            with self._deadline(10 * self.timeout), self._same_core():
                self._game.set_seed(seed)
                self._game.new_episode()
                self._game.send_game_command(f"warp {x} {y}")
                facing = self._game.get_game_variable(vizdoom.GameVariable.ANGLE)
                self._game.make_action([0.0, 0.0, facing - heading, 0.0, 0.0, 0.0, 0.0], 1)
                self._game.make_action(IDLE, 1)
            return self._view()
        except _ERRORS as error:
            raise self._dead(error) from error

    def act(self, controls: list[float], tics: int) -> View:
        """Holds the controls for some tics (35 a second).

        Args:
            controls: Forward, right (map speed, -50 to 50), turn right, look up (degrees a tic), jump, crouch, attack
                (0 or 1).
            tics: How long.

        Raises:
            WorldFailed: The engine died.
        """
        try:
            with self._deadline(self.timeout), self._same_core():
                self._game.make_action(controls, tics)
            return self._view()
        except _ERRORS as error:
            raise self._dead(error) from error

    def _view(self) -> View:
        state = self._game.get_state()
        if state is None:
            raise WorldFailed("the game engine ended the episode by itself; the next reset starts a fresh one")
        return View(state.screen_buffer, *state.game_variables.tolist())

    def _dead(self, error: BaseException) -> WorldFailed:
        self.close()
        what = f"died ({str(error) or type(error).__name__})"
        if self._deadline.late:
            what = f"did not answer within {self._deadline.seconds:g} s and was killed"
        return WorldFailed(f"the game engine {what}; the next reset starts a fresh one")

    def close(self) -> None:
        """Stops the engine and removes what it left; more than once is fine."""
        if self._closer.alive:
            if PROCESSES.is_dir():
                _kill(self.folder)  # first: `close` waits for an engine that hangs, and holds the interpreter's lock
            with contextlib.suppress(*_ERRORS):
                self._game.close()
            self._closer()
