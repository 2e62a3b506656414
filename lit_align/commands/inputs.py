"""What the stages of a pipeline read that no stage of it makes, and that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lit_align.pipeline import Pipeline, StageSpec, flatten, words_of

KEYS = (
    "agent", "agents", "also", "compared", "init_from", "preferences", "reference", "reward_model", "rewards",
    "scores", "trajectories",
)  # fmt: skip
"""Last parts of the options that name a folder or a file that is read."""


def missing_inputs(pipeline: Pipeline, names: Iterable[str], places: Sequence[Path]) -> list[str]:
    """What stages read, those inside cells too, that is not there and that no stage of the pipeline makes.

    Args:
        pipeline: Whose stages they are.
        names: Of the stages that are to run.
        places: Folders of the pipeline's own files: there the file of a missing cell is looked for.

    Returns:
        A message for each: which stage needs it, and which stage of which pipeline leaves it.
    """
    made = [stage.folder for _, stage in _all(pipeline.stages.values())]
    found: dict[str, str] = {}
    for title, stage in _all(pipeline.stages[name] for name in names):
        for key, value in flatten(stage.args):
            if key.split(".")[-1] not in KEYS:
                continue
            for word in words_of(value):
                path = Path(word)
                if _is_path(word) and not path.exists() and not any(path.is_relative_to(folder) for folder in made):
                    found.setdefault(word, f"stage {title} needs {word}, which is not there; {_maker(path, places)}")
    return list(found.values())


def _all(stages: Iterable[StageSpec], above: str = "") -> Iterator[tuple[str, StageSpec]]:
    for stage in stages:
        yield above + stage.name, stage
        if stage.inner is not None:
            yield from _all(stage.inner.stages.values(), f"{above}{stage.name}/")


def _is_path(word: str) -> bool:
    """Whether a word names a file or folder for sure: not `env`, a function, or `user/name` on the Hub."""
    if ":" in word or "/" not in word:
        return False
    path = Path(word)
    return word.startswith((".", "/", "~")) or word.count("/") > 1 or Path(path.parts[0]).is_dir()


def _maker(path: Path, places: Sequence[Path]) -> str:
    """Which stage leaves a path, as folders of stages are laid out: `OUT/STAGE/agent`, `OUT/STAGE/scores.json`."""
    folder = path.parent if path.name in ("agent", "reward_model") or path.suffix else path
    out = folder.parent
    text = f"stage {folder.name} of the pipeline in {out} leaves it"
    kind = re.fullmatch(r"(.+)_(\d+)", out.name)
    files = [place / f"{kind[1]}.yaml" for place in places] if kind else []
    file = next((file for file in files if file.is_file()), None)
    return text if file is None or kind is None else f"{text}: lit-align pipeline --config {file} --seed {kind[2]}"
