"""What there is to share: a stage's run, a model's folder, trajectories or preferences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_align.errors import UserError
from lit_align.files import mapping_of

Kind = Literal["agent", "reward_model", "trajectories", "preferences"]
MODELS: tuple[Kind, Kind] = ("agent", "reward_model")


@dataclass(frozen=True)
class Shared:
    """Something that can be shared.

    Attributes:
        kind: What it is.
        folder: What goes up.
        run: The run's folder of the stage that left it; None where there is none around it.
    """

    kind: Kind
    folder: Path
    run: Path | None = None

    @property
    def repo_type(self) -> Literal["model", "dataset"]:
        """What the Hub calls it."""
        return "model" if self.kind in MODELS else "dataset"


def find(path: str | Path) -> Shared:
    """What is at `path`.

    Args:
        path: A stage's run folder (with `agent/` or `reward_model/` in it), a model's folder itself, or a folder of
            trajectories or preferences.

    Raises:
        ValueError: Nothing that can be shared is there.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder '{path}'; expected a run's folder, a model's, trajectories or preferences")
    inside = [kind for kind in MODELS if (folder / kind / "config.json").is_file()]
    if len(inside) > 1:
        raise UserError(f"'{path}' holds {' and '.join(inside)}; name one of them: '{folder / inside[0]}'")
    if inside:
        return Shared(inside[0], folder / inside[0], folder)
    content = mapping_of(folder / "config.json")
    for kind in MODELS:
        if content.get("kind") == kind:
            around = folder.absolute().parent
            return Shared(kind, folder, folder.parent if (around / "config.yaml").is_file() else None)
    content = mapping_of(folder / "meta.json")
    if "fps" in content and "actions" in content:
        return Shared("trajectories", folder)
    if "counts" in content and "trajectories" in content:
        return Shared("preferences", folder)
    more = "expected a folder that a stage, 'lit-align collect' or 'lit-align compare' left"
    if (folder / "checkpoints").is_dir():
        more = f"its run has not ended: 'lit-align export {path} --out FOLDER' makes a folder of the last checkpoint"
    raise UserError(f"'{path}' holds neither an agent, a reward model, trajectories nor preferences; {more}")
