"""Making a world from its Gymnasium id, with errors that say what to do."""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium

import lit_align.envs  # noqa: F401  registers our own worlds
from lit_align.errors import UserError, did_you_mean

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
        env_id: Such as `LitAlign/Jumppads-v0`; `module:Name-v0` imports the module first.
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
        hint = did_you_mean(env_id, gymnasium.registry)
        raise UserError(
            f"there is no environment '{env_id}'{hint or '; import its package by writing package:Name-v0'}"
        ) from error
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        given = f" with {kwargs}" if kwargs else ""
        raise UserError(f"cannot make the environment '{env_id}'{given}: {error}") from error


def _load_plugin(env_id: str) -> None:
    """Imports the package that registers the namespace of an id, if it is one that does not register itself."""
    if env_id in gymnasium.registry or ":" in env_id or not env_id:
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
