"""What a push would upload: every file, its size and where it comes from, checked before anything is sent."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from lit_align import hub
from lit_align.errors import UserError
from lit_align.sharing.scrub import refuse_secrets, relative, scrub
from lit_align.sharing.what import Shared

TEXTS = (".json", ".md", ".yaml", ".yml", ".csv", ".txt")
PICTURES = (".png", ".jpg", ".gif", ".mp4")


@dataclass(frozen=True)
class Item:
    """A file that goes up.

    Attributes:
        name: In the repository, such as `data/train-00000.parquet`.
        content: The file on this disk, or its bytes where they were changed.
        origin: Where it comes from, for people.
    """

    name: str
    content: Path | bytes
    origin: str

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Plan:
    """What a push uploads, in one commit.

    Attributes:
        shared: What it is.
        items: The files, the card first.
        left: Files in the folder that stay here.
        changed: Files in which absolute paths were made relative.
    """

    shared: Shared
    items: list[Item]
    left: list[str]
    changed: list[str]

    @property
    def card(self) -> str:
        """The text of README.md."""
        content = next(item.content for item in self.items if item.name == "README.md")
        assert isinstance(content, bytes)
        return content.decode()

    def lines(self) -> list[str]:
        """The files, one a line: name, size, origin."""
        width = max(len(item.name) for item in self.items)
        lines = [f"{item.name:<{width}}  {_size(item.size):>9}  {item.origin}" for item in self.items]
        lines.append(f"{len(self.items)} files, {_size(sum(item.size for item in self.items))}")
        if self.changed:
            lines.append(f"absolute paths are made relative in: {', '.join(self.changed)}")
        if self.left:
            lines.append(f"stays here: {', '.join(self.left)}")
        return lines


def make_plan(
    shared: Shared, repo_id: str, licence: str = "apache-2.0", card: str | None = None, trajectories: str | None = None
) -> Plan:
    """Finds out what goes up, and reads all of it as the one who pulls it will.

    Args:
        shared: What to share.
        repo_id: `user/name`, for the card.
        licence: For the card.
        card: File to take as the card, in place of one that is made.
        trajectories: Of preferences: the data set on the Hub with the trajectories that were compared.

    Raises:
        ValueError: It cannot be read, or something that looks like a secret is in it.
    """
    names = check(shared)
    text, pictures = _card(shared, repo_id, licence, card)
    described = _described(shared.folder / names[0], trajectories)
    texts = {"README.md": (text, card or "made from the run"), names[0]: (described, str(shared.folder / names[0]))}
    items, changed = [], []
    for name, path in pictures.items():
        if path.suffix in TEXTS:
            texts[name] = (path.read_text(), str(path))
    for name, (text, origin) in texts.items():
        clean = _clean(name, text)
        refuse_secrets(clean, name)
        changed += [name] if clean != text else []
        items.append(Item(name, clean.encode(), origin))
    items += [Item(name, shared.folder / name, str(shared.folder / name)) for name in names[1:]]
    items += [Item(name, path, str(path)) for name, path in pictures.items() if name not in texts]
    sent = {*texts, *names, *pictures, hub.SOURCE}
    there = sorted(str(path.relative_to(shared.folder)) for path in shared.folder.rglob("*") if not path.is_dir())
    return Plan(shared, items, [name for name in there if name not in sent], changed)


def check(shared: Shared) -> list[str]:
    """Reads what is there as its users will; returns its files' names, the JSON that describes it first.

    Raises:
        ValueError: It cannot be read.
    """
    from lit_align.data.preferences import read_preferences
    from lit_align.data.trajectories import read_meta
    from lit_align.models.agent import Agent
    from lit_align.models.reward import RewardModel

    if shared.kind == "trajectories":
        shards = list(read_meta(shared.folder).shards)
        odd = [name for name in shards if not re.fullmatch(r"data/[\w.-]+\.parquet", name)]
        if odd:
            raise UserError(f"meta.json names the shard {odd[0]!r}; expected data/NAME.parquet")
        return ["meta.json", *shards]
    if shared.kind == "preferences":
        meta, _ = read_preferences(shared.folder)
        return ["meta.json", *(f"data/{split}-00000.parquet" for split in meta.counts)]
    (Agent if shared.kind == "agent" else RewardModel).load(shared.folder)
    return ["config.json", "model.safetensors"]


def _card(shared: Shared, repo_id: str, licence: str, given: str | None) -> tuple[str, dict[str, Path]]:
    """The card's text, and the files it shows by their names in the repository."""
    if given is not None:
        try:
            return Path(given).read_text(), {}
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--card {given} cannot be read: {error}; expected a Markdown file") from error
    from lit_align.sharing.card import make_card

    made = make_card(shared, repo_id, licence)
    for name in made.files:
        if Path(name).suffix not in (*TEXTS, *PICTURES) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"the card shows {name!r}; expected a relative name that ends in {', '.join(PICTURES)}")
    return made.text, dict(made.files)


def _described(path: Path, trajectories: str | None) -> str:
    """The text of `config.json` or `meta.json`; preferences name the trajectories that were compared."""
    text = path.read_text()
    content = json.loads(text)
    named = content.get("trajectories")
    if named is None or path.name != "meta.json":
        if trajectories is not None:
            raise UserError("--trajectories is for preferences, which name the trajectories that were compared")
        return text
    if trajectories is not None:
        hub.split_id(trajectories)
    elif source := hub.source_of(path.parent / named):
        trajectories = "@".join(source)
    # What is relative to a folder here means nothing there but its name: one who pulls both lays them side by side.
    content["trajectories"] = trajectories or (named if hub.is_id(named) else f"../{Path(named).name}")
    return json.dumps(content, indent=2) + "\n"


def _clean(name: str, text: str) -> str:
    """The text without places on this machine; JSON stays as it was written if there are none."""
    if not name.endswith(".json"):
        return relative(text)
    try:
        content = json.loads(text)
    except ValueError:
        return relative(text)
    clean = scrub(content)
    return text if clean == content else json.dumps(clean, indent=2) + "\n"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
