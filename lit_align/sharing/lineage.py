"""Where a model comes from: base, fine-tuned, reward model, aligned, and the data that each learned from.

What a run reads it names in its `config.yaml`, as its user did; what a model came from, its `config.json` tells. The
two are followed from folder to folder as far as they lie where they lay, or beside the run if all was moved together.
A model that is there but is not the one that was read is not followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_align.files import mapping_of
from lit_align.hub import cache_folder, called, is_id, source_of, split_id
from lit_align.sharing.facts import Facts, facts_of, mapping, strings, text_or_none
from lit_align.sharing.what import MODELS, Kind, Shared

_DEEPEST = 40
"""Generations that are followed."""


@dataclass(frozen=True)
class Origin:
    """Something in a lineage, and what it comes from.

    Attributes:
        how: What it was to the one below it, such as `started from`.
        kind: What it is; `function` for a reward that is none of the package's own things.
        name: Its run's folder, or `user/name` where it was read from the Hub.
        repository: `user/name` on the Hub, if it is known to be there.
        revision: Its commit, tag or branch there.
        stage: That left it.
        fingerprint: Of its architecture and weights (`lit_align.models.folder.fingerprint`).
        facts: Of a model that is there, what it tells of itself.
        meta: Of data that are there, their `meta.json`.
        unknown: What cannot be told of it, and why; empty where all is known.
        parents: What it comes from.
    """

    how: str
    kind: Kind | str
    name: str
    repository: str | None = None
    revision: str | None = None
    stage: str | None = None
    fingerprint: str | None = None
    facts: Facts | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    unknown: str = ""
    parents: tuple[Origin, ...] = ()

    def walk(self) -> Iterator[Origin]:
        """Everything it comes from and itself, the oldest first, each once."""
        seen: set[tuple[str, str, str | None]] = set()
        for one in self._all():
            if one.key not in seen:
                seen.add(one.key)
                yield one

    def _all(self) -> Iterator[Origin]:
        for parent in self.parents:
            yield from parent._all()
        yield self

    @property
    def key(self) -> tuple[str, str, str | None]:
        """Equal for the same thing met twice."""
        return (self.kind, self.name, self.fingerprint)


def lineage(shared: Shared) -> Origin:
    """The lineage of something that is shared."""
    tracer = _Tracer()
    if shared.kind in MODELS:
        return tracer.model("", shared.folder, shared.run, 0)
    return tracer.data("", str(shared.folder), None)


class _Tracer:
    """Follows a lineage; each folder is read and each weights file hashed once."""

    def __init__(self) -> None:
        self._prints: dict[Path, str | None] = {}

    def model(self, how: str, folder: Path, run: Path | None, depth: int, name: str | None = None) -> Origin:
        """A model that is there, and what it comes from."""
        facts = facts_of(folder, run)
        repository, revision = source_of(folder) or (name, None)
        parents: tuple[Origin, ...] = ()
        if depth < _DEEPEST:
            parents = (*self._start(facts, run, depth), *self._rewards(facts, run, depth), *self._read(facts, run))
        return Origin(
            how,
            str(facts.content.get("kind", "agent")),
            name or facts.name,
            repository,
            revision,
            facts.stage,
            self.print_of(folder),
            facts,
            unknown="" if run is not None else "its run's folder is not there, so what it read is not known",
            parents=parents,
        )

    def print_of(self, folder: Path) -> str | None:
        """The fingerprint of a model's folder; None where it cannot be taken."""
        at = folder.absolute()
        if at not in self._prints:
            from lit_align.models.folder import fingerprint

            try:
                self._prints[at] = fingerprint(at)
            except (OSError, ValueError):
                self._prints[at] = None
        return self._prints[at]

    def _start(self, facts: Facts, run: Path | None, depth: int) -> Iterator[Origin]:
        """The model that it started from, and the reference where that is another."""
        told = mapping(facts.info.get("parent"))
        source = text_or_none(facts.setting("init_from"))
        if source is None and not told:
            return
        random = bool(told.get("random_init", facts.setting("random_init")))
        yield self._named(_how_it_began(random), source, told, facts, run, depth)
        reference = text_or_none(facts.setting("model", "reference"))
        if reference not in (None, "none", source):
            yield self._named("was held near", reference, {}, facts, run, depth)

    def _rewards(self, facts: Facts, run: Path | None, depth: int) -> Iterator[Origin]:
        """What an alignment was rewarded by, and who chose the episodes of a preference fine-tuning."""
        named = strings(facts.setting("model", "reward_model")) or list(mapping(facts.setting("model", "rewards")))
        if not named and facts.stage == "align":
            told = text_or_none(facts.info.get("reward_model")) or "not told"
            yield Origin("was rewarded by", "reward_model", told, unknown="only its name is known")
        for source in named:
            if source == "env":
                yield Origin("was rewarded by", "function", "the world's own reward")
            elif ":" in source and not Path(source).exists():
                yield Origin("was rewarded by", "function", source)
            else:
                mark = mapping(facts.info.get("reward_fingerprints")).get(called(source))
                judge = self._named("was rewarded by", source, {"fingerprint": mark} if mark else {}, facts, run, depth)
                yield judge if judge.facts else replace(judge, kind="reward_model")
        scores = text_or_none(facts.setting("data", "select", "scores"))
        if scores is not None:
            found = next((at for at in _places(scores, run) if at.is_file()), None)
            name = "not told" if found is None else str(mapping_of(found).get("reward_model", "not told"))
            beside = None if run is None else run.absolute().parent / name / "reward_model"
            how = "learned from episodes chosen by"
            if beside is not None and (beside / "config.json").is_file():
                yield self.model(how, beside, beside.parent, depth + 1)
            else:
                yield Origin(how, "reward_model", name, unknown="only its name is known")

    def _read(self, facts: Facts, run: Path | None) -> Iterator[Origin]:
        """The data that it learned from."""
        named = [*strings(facts.setting("data", "trajectories")), *strings(facts.setting("data", "also"))]
        pairs = strings(facts.setting("data", "preferences"))
        if pairs:  # `data.trajectories` are theirs then
            named = []
        yield from (self.data("learned from", source, run) for source in named)
        yield from (self.data("learned from", source, run, "preferences") for source in pairs)
        if not facts.config:
            for name in strings(facts.info.get("data")):
                kind = "preferences" if facts.stage == "prefer" else "trajectories"
                yield Origin("learned from", kind, name, unknown="only its name is known")

    def _named(
        self, how: str, source: str | None, told: dict[str, Any], below: Facts, run: Path | None, depth: int
    ) -> Origin:
        """A model by what the run called it, and by what `config.json` told of it."""
        given = text_or_none(told.get("folder"))
        hub = next((each for each in (source, given) if each is not None and is_id(each)), None)
        if hub is not None:
            return self._on_hub(how, hub, told, depth)
        there = [] if source is None else [at for at in _places(source, run) if (at / "config.json").is_file()]
        for at in there:
            if self._is(at, told, below):
                return self.model(how, at, at.parent if (at.parent / "config.yaml").is_file() else None, depth + 1)
        why = "what lies in its folder now is another model" if there else "its folder is not to be found any more"
        return self._told(how, given or _name_in(source), told, why)

    def _on_hub(self, how: str, named: str, told: dict[str, Any], depth: int) -> Origin:
        """A model on the Hub: its id and revision, and what is behind it as far as that is on this disk."""
        name, revision = split_id(named)
        revision = text_or_none(told.get("revision")) or revision
        folder = _cached(name, revision)
        if folder is not None and told.get("fingerprint") in (None, self.print_of(folder)):
            return replace(self.model(how, folder, None, depth + 1, name), repository=name, revision=revision)
        found = self._told(how, name, told, "it is not on this disk; its own card tells more")
        return replace(found, repository=name, revision=revision)

    def _told(self, how: str, name: str, told: dict[str, Any], unknown: str) -> Origin:
        """A model that is not there, by what the one below it tells: also of what came before, if that was told."""
        before = mapping(told.get("parent"))
        parents: tuple[Origin, ...] = ()
        if before:
            older = _how_it_began(bool(before.get("random_init")))
            parents = (self._told(older, str(before.get("folder") or "not told"), before, unknown),)
        return Origin(
            how,
            "agent",
            name,
            text_or_none(told.get("repository")),
            text_or_none(told.get("revision")),
            text_or_none(told.get("stage")),
            text_or_none(told.get("fingerprint")),
            unknown=unknown,
            parents=parents,
        )

    def _is(self, folder: Path, told: dict[str, Any], below: Facts) -> bool:
        """Whether a folder holds the model that was read, as far as that was told."""
        if text_or_none(told.get("fingerprint")) is not None:
            return bool(self.print_of(folder) == told["fingerprint"])
        found = facts_of(folder, None)
        if told and told.get("stage") != found.stage:
            return False
        before, after = found.info.get("train_frames"), below.info.get("train_frames")
        grew = bool(told) and not told.get("random_init") and isinstance(before, int) and isinstance(after, int)
        return not grew or before <= after  # type: ignore[operator]  # an agent has seen all that its start has

    def data(self, how: str, source: str, run: Path | None, kind: Kind = "trajectories") -> Origin:
        """Trajectories or preferences, and for these the trajectories that they compare."""
        if is_id(source):
            name, revision = split_id(source)
            return Origin(how, kind, name, name, revision, unknown="its own card tells more")
        found = next((at for at in _places(source, run) if (at / "meta.json").is_file()), None)
        if found is None:
            return Origin(how, kind, _name_in(source), unknown="its folder is not to be found any more")
        meta = mapping_of(found / "meta.json")
        name = found.absolute().name
        repository, revision = source_of(found) or (None, None)
        if "counts" not in meta:
            return Origin(how, "trajectories", name, repository, revision, meta=meta)
        compared = text_or_none(meta.get("trajectories"))
        parents: tuple[Origin, ...] = ()
        if compared is not None:
            beside = os.path.normpath(found.absolute() / compared)
            on_hub = is_id(compared) and not os.path.exists(beside)
            parents = (self.data("compares", compared if on_hub else beside, run),)
        return Origin(how, "preferences", name, repository, revision, meta=meta, parents=parents)


def _how_it_began(random_init: bool) -> str:
    return "took the architecture, not the weights, of" if random_init else "started from"


def _places(source: str, run: Path | None) -> Iterator[Path]:
    """Where something that a run read may lie: where it lay, and beside the run if all was moved together."""
    yield Path(source)
    parts = [part for part in Path(source).parts if part not in ("/", "..", ".")]
    if run is not None:
        for length in range(1, min(len(parts), 4) + 1):
            yield run.absolute().parent.joinpath(*parts[-length:])


def _name_in(source: str | None) -> str:
    """What a path that leads nowhere called a model or data."""
    parts = [part for part in Path(source or "").parts if part not in ("/", "..", ".", "agent", "reward_model")]
    return parts[-1] if parts else "not told"


def _cached(repo_id: str, revision: str | None) -> Path | None:
    """A model's folder in the Hub's cache; None where it is not there. Asks nobody."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo_id, "config.json", cache_dir=cache_folder(), revision=revision)
    except ValueError:
        return None
    return Path(found).parent if isinstance(found, str) else None
