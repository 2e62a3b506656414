"""Importing a module that a user named: a world's, a reward's, a rule's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType


def import_named(name: str) -> ModuleType:
    """Imports a module; one that is not installed is looked for in the working directory as well, as `python -m` does.

    `lit-align` is a script, and a script's path does not hold the working directory. It is put last, so that it hides
    nothing, only where such a module lies there, and for good: what is imported may import its neighbours later.

    Args:
        name: Such as `package.module`.

    Raises:
        Exception: Whatever the import raises; ModuleNotFoundError if there is no such module in either place.
    """
    first = name.partition(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        here = Path.cwd()
        lies_here = (here / f"{first}.py").is_file() or (here / first).is_dir()
        if error.name != first or not lies_here or str(here) in sys.path:
            raise
    sys.path.append(str(here))
    importlib.invalidate_caches()
    return importlib.import_module(name)
