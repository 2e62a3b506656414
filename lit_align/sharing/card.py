"""The card of an agent, a reward model, trajectories or preferences: README.md, made from what the run left.

What is not known is left out, or said to be unknown. The same folders give the same card.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from lit_align.errors import UserError
from lit_align.files import mapping_of, write_whole
from lit_align.sharing.facts import mapping, number_or_none, shared_name, text_or_none
from lit_align.sharing.hub_rules import check_licence
from lit_align.sharing.lineage import Origin, lineage
from lit_align.sharing.what import MODELS, Shared, find

_log = logging.getLogger("lit_align.run")
NAME = "README.md"
_CURVES = "over_optimisation"


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        text: Of README.md: metadata as YAML, then Markdown.
        files: What it shows: name in the repository -> file on this disk.
    """

    text: str
    files: dict[str, Path] = field(default_factory=dict)


def make_card(
    shared: Shared, repo_id: str | None = None, licence: str | None = "apache-2.0", evaluated: bool = True
) -> Card:
    """Makes the card of something that is shared.

    Args:
        shared: What it is.
        repo_id: `user/name`, as people will load it; None names the folder.
        licence: Identifier of the Hub's list; None where none was chosen yet.
        evaluated: Look for evaluations beside the run, and draw their heatmap.

    Raises:
        ValueError: The Hub knows no such licence, or the folder does not hold what it should.
    """
    check_licence(licence)
    origin = lineage(shared)
    title = shared_name(shared, repo_id)
    address = repo_id or f"{title}/{shared.folder.name}" if shared.kind in MODELS else repo_id or title
    if shared.kind in MODELS:
        return _of_model(shared, origin, title, address, licence, evaluated)
    return _of_data(shared, origin, title, address, licence)


def leave_card(folder: str | Path) -> None:
    """Writes the card into a model's folder when its run ends; whatever goes wrong is a warning, for the run is done.

    Args:
        folder: The run's folder.
    """
    try:
        shared = find(folder)
        write_whole(shared.folder / NAME, make_card(shared, licence=None, evaluated=False).text)
    except Exception as error:  # a card is not worth a run
        _log.warning("no card was written for %s: %s: %s", folder, type(error).__name__, error)


def _of_model(shared: Shared, origin: Origin, title: str, address: str, licence: str | None, evaluated: bool) -> Card:
    from lit_align.sharing.measured import Measured, accuracy_of, measured, pictures
    from lit_align.sharing.metadata import model_head
    from lit_align.sharing.model_card import Told, body

    facts = origin.facts
    if facts is None or not facts.content:
        raise UserError(f"'{shared.folder}' has no config.json that can be read; expected a folder that a stage left")
    of_agent = shared.kind == "agent"
    found = measured(facts, shared.run) if evaluated and of_agent else Measured()
    files: dict[str, Path] = {}
    ended = ""
    if found.evaluations:
        files, ended = pictures(found.evaluations[0])
    told_watch = "" if shared.run is None else mapping_of(shared.run / f"{_CURVES}.json").get("words")
    if shared.run is not None and of_agent and (shared.run / f"{_CURVES}.png").is_file():
        files[f"{_CURVES}.png"] = shared.run / f"{_CURVES}.png"
    watch = text_or_none(told_watch) or ""
    told = Told(title, address, shared.kind, facts, origin, found, licence, files, ended, watch)
    learned = [parent for parent in origin.parents if parent.how == "learned from"]
    started = [parent for parent in origin.parents if parent.how == "started from"]
    accuracy = accuracy_of(facts.info)
    rate = (*accuracy, str(facts.info.get("target", "")), told.world or "") if accuracy and not of_agent else None
    tags = [shared.kind.replace("_", "-"), facts.stage or "", told.world or ""]
    head = model_head(
        title,
        licence,
        tags,
        [parent.repository for parent in started if parent.repository],
        [parent.repository for parent in learned if parent.repository],
        found.evaluations,
        rate,
    )
    return Card(f"---\n{head}\n---\n\n{body(told)}", files)


def _of_data(shared: Shared, origin: Origin, title: str, address: str, licence: str | None) -> Card:
    from lit_align.sharing.data_card import preferences_body, trajectories_body
    from lit_align.sharing.metadata import data_head

    meta = origin.meta
    if not meta:
        raise UserError(f"'{shared.folder}' has no meta.json that can be read; expected trajectories or preferences")
    if shared.kind == "trajectories":
        rows = int((number_or_none(meta.get("steps")) or 0) + (number_or_none(meta.get("episodes")) or 0))
        tags = ["trajectories", "imitation-learning", text_or_none(meta.get("env")) or ""]
        head = data_head(title, licence, tags, rows, {"train": "data/train-*.parquet"}, False)
        return Card(f"---\n{head}\n---\n\n{trajectories_body(title, address, meta, licence)}")
    counts = mapping(meta.get("counts"))
    splits = {str(split): f"data/{split}-*.parquet" for split in counts}
    rows = int(sum(number_or_none(number) or 0 for number in counts.values()))
    by_rule = bool(mapping(mapping(meta.get("provenance")).get("annotator")))
    head = data_head(title, licence, ["preferences"], rows, splits, by_rule)
    return Card(f"---\n{head}\n---\n\n{preferences_body(title, address, origin, licence)}")
