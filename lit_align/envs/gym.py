"""Making a world from its Gymnasium id and reading what it shows, with errors that say what to do."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

import lit_align.envs  # noqa: F401  registers our own worlds
from lit_align.errors import UserError, did_you_mean
from lit_align.imports import import_named

# Where the worlds of a namespace come from: the module that registers them, and what to install.
_PLUGINS = {
    "ale": ("ale_py", "ale-py"),
    "minigrid": ("minigrid", "minigrid"),
    "babyai": ("minigrid", "minigrid"),
    "miniworld": ("miniworld", "miniworld"),
    "procgen": ("procgen", "procgen"),
    "vizdoom": ("vizdoom.gymnasium_wrapper", "vizdoom"),
}


def make(env_id: str, **kwargs: Any) -> gymnasium.Env[Any, Any]:
    """Makes any world that Gymnasium knows or can import.

    Args:
        env_id: Such as `LitAlign/Jumppads-v0`; `module:Name-v0` imports the module first, which is installed, or lies
            in the working directory.
        **kwargs: Passed to the world.

    Returns:
        The world, without Gymnasium's order and checker wrappers: they cost time at every step.

    Raises:
        UserError: There is no such id, the package that brings it is missing, or an argument does not fit.
    """
    _load_plugin(env_id)
    try:
        return gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except ModuleNotFoundError as error:
        raise UserError(f"the environment '{env_id}' needs a package that is missing: {error}") from error
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"the environment '{env_id}' lacks a package: {error}") from error
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"there is no environment '{env_id}'{_meant(env_id)}") from error
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        given = f" with {kwargs}" if kwargs else ""
        raise UserError(f"cannot make the environment '{env_id}'{given}: {error}") from error


@dataclass(frozen=True)
class Observations:
    """What a world shows at every step: pixels, a vector of numbers, or both.

    Attributes:
        world: The world's name, said in errors.
        image_size: Height and width of its frames in pixels; 0 if it shows none.
        vector_size: Numbers in its vector; 0 if it shows none.
        keyed: Whether they come as a dict with the keys `pixels` and `vector`.
    """

    world: str
    image_size: int = 0
    vector_size: int = 0
    keyed: bool = False

    @classmethod
    def of(cls, world: gymnasium.Env[Any, Any]) -> Observations:
        """Reads a world's observation space.

        It may be `Box` uint8 (S, S, 3): pixels; `Box` of floats (V,): a vector; or a `Dict` of these with the keys
        `pixels` and `vector`.

        Raises:
            UserError: It is another one.
        """
        space, name = world.observation_space, name_of(world)
        keyed = isinstance(space, spaces.Dict)
        parts = dict(space.spaces) if isinstance(space, spaces.Dict) else {_kind(space): space}
        if not parts or any(not _kind(part) or key != _kind(part) for key, part in parts.items()):
            raise UserError(
                f"the environment {name} shows {space}; expected pixels, Box uint8 (S, S, 3), or a vector, Box of "
                "floats (V,), or a Dict of both with the keys 'pixels' and 'vector': change it by a wrapper, such as "
                "those of gymnasium.wrappers"
            )
        shapes = {key: part.shape or () for key, part in parts.items()}
        return cls(name, *(shapes[key][0] if key in shapes else 0 for key in ("pixels", "vector")), keyed=keyed)

    def split(self, observation: Any) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """An observation as its frame `(S, S, 3)`, uint8, and its vector `(V,)`, float32; S or V may be 0.

        The frame is the world's own array, the vector a copy.

        Raises:
            UserError: It is not what the observation space says, or holds a value that is not finite.
        """
        frame: NDArray[Any] = np.zeros((0, 0, 3), np.uint8)
        vector: NDArray[Any] = np.zeros(0, np.float32)
        try:
            if self.image_size:
                frame = np.asarray(observation["pixels"] if self.keyed else observation)
            if self.vector_size:
                with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found below
                    vector = np.array(observation["vector"] if self.keyed else observation, np.float32)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            keys = f" with the keys {sorted(observation)}" if isinstance(observation, dict) else ""
            raise UserError(
                f"the environment {self.world} showed a {type(observation).__name__}{keys}; expected {self}"
                + " under the keys 'pixels' and 'vector'" * (self.image_size > 0 and self.vector_size > 0)
            ) from error
        if frame.dtype != np.uint8 or frame.shape != (self.image_size, self.image_size, 3):
            raise UserError(
                f"the environment {self.world} showed pixels {frame.shape}, {frame.dtype}; its observation space says "
                f"{(self.image_size, self.image_size, 3)}, uint8"
            )
        if vector.shape != (self.vector_size,):
            raise UserError(
                f"the environment {self.world} showed a vector of shape {vector.shape}; its observation space says "
                f"{(self.vector_size,)}"
            )
        if not np.isfinite(vector).all():
            at = int(np.flatnonzero(~np.isfinite(vector))[0])
            raise UserError(
                f"the environment {self.world} showed a vector whose number {at} is {vector[at]}; "
                "expected finite numbers"
            )
        return frame, vector

    def __str__(self) -> str:
        pixels = f"{(self.image_size, self.image_size, 3)}, uint8"
        vector = f"a vector of {self.vector_size} numbers"
        return " and ".join(text for text, size in ((pixels, self.image_size), (vector, self.vector_size)) if size)


def fps_of(world: gymnasium.Env[Any, Any]) -> float:
    """Steps that the world makes in a second; 10 where it does not say."""
    return float((world.metadata or {}).get("render_fps") or 10.0)


def name_of(world: gymnasium.Env[Any, Any]) -> str:
    """The world's Gymnasium id, or its class where it has none."""
    return world.spec.id if world.spec is not None else type(world.unwrapped).__name__


def _meant(env_id: str) -> str:
    """What to write in place of an id that is not registered."""
    module, _, name = env_id.rpartition(":")
    hint = did_you_mean(name, gymnasium.registry)
    if module:
        hint = hint.replace("did you mean ", f"did you mean {module}:")
        return hint or f"; {module!r} was imported, and registers no id like it: see its gymnasium.register"
    return f"{hint or '.'} A world that a package or a module of yours registers is written package:Name-v0"


def _kind(space: spaces.Space[Any]) -> str:
    """`pixels`, `vector`, or an empty string for a space that is neither."""
    if not isinstance(space, spaces.Box):
        return ""
    shape = space.shape
    if space.dtype == np.uint8 and len(shape) == 3 and shape == (shape[0], shape[0], 3) and shape[0]:
        return "pixels"
    return "vector" if np.issubdtype(space.dtype, np.floating) and len(shape) == 1 and shape[0] else ""


def _load_plugin(env_id: str) -> None:
    """Imports the module that an id names, or the package that registers its namespace, if that is known."""
    if env_id in gymnasium.registry or not env_id:
        return
    if ":" in env_id:
        _import_own(env_id, env_id.partition(":")[0])
        return
    name = env_id.split("/")[0] if "/" in env_id else env_id.split("-")[0]
    module, package = _PLUGINS.get(name.lower(), ("", ""))
    if not module:
        return
    try:
        plugin = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"the environment '{env_id}' comes with '{package}': pip install {package}") from error
    if env_id not in gymnasium.registry:
        gymnasium.register_envs(plugin)


def _import_own(env_id: str, module: str) -> None:
    """Imports the module of `module:Name-v0`."""
    try:
        import_named(module)
    except ModuleNotFoundError as error:
        if error.name != module and not module.startswith(f"{error.name}."):  # it is there, and lacks something itself
            raise UserError(f"the environment '{env_id}' needs a package that is missing: {error}") from error
        raise UserError(
            f"the environment '{env_id}' is in a module {module!r}, which is neither installed nor in {Path.cwd()}: "
            "start lit-align in the folder that it lies in, or name that folder in PYTHONPATH"
        ) from error
    except Exception as error:  # whatever the module does when it is imported
        raise UserError(f"cannot import {module!r} of '{env_id}': {type(error).__name__}: {error}") from error
