"""Parts that cards of models and of data share: spaces, data, how it was made, citation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from lit_align.errors import UserError
from lit_align.sharing.facts import Facts, mapping, number_or_none, strings, text_or_none
from lit_align.sharing.lineage import Origin
from lit_align.sharing.scrub import refuse_in_words
from lit_align.sharing.text import cell, code, command_line, fenced, plain, quoted, table, without_paths
from lit_align.sharing.what import MODELS

PIXELS = "RGB frames ({size}, {size}, 3), uint8"
CITATION = """@article{jelley2024aligning,
  title   = {Aligning Agents like Large Language Models},
  author  = {Jelley, Adam and Cao, Yuhan and Bignell, Dave and Storkey, Amos and Devlin, Sam and Rashid, Tabish},
  journal = {arXiv preprint arXiv:2406.04208},
  year    = {2024}
}"""
_TRAINER = ("max_epochs", "max_steps", "max_time", "precision", "strategy", "devices", "num_nodes")
_TRAINER += ("accumulate_grad_batches", "gradient_clip_val")  # type: ignore[assignment]
"""What of the Trainer's settings decides what is learned."""


def observations(image_size: Any, vector_size: Any) -> str:
    """What is seen at every step, in words."""
    seen = [PIXELS.format(size=image_size)] if image_size else []
    seen += [f"a vector of {vector_size} numbers, float32"] if vector_size else []
    return " and ".join(seen) or "unknown"


def actions(space: Any) -> str:
    """An action space as a table: each part, its heads, their classes, what these mean."""
    from lit_align.spaces import ActionCodec

    try:
        heads = ActionCodec.from_dict(mapping(space)).heads
    except UserError:
        return "The action space is unknown."
    rows = []
    for (part, kind, classes, centres, offset), group in groupby(
        heads,
        lambda head: (head.name.rpartition(".")[0] or head.name, head.kind, head.classes, head.centres, head.offset),
    ):
        meaning = {
            "button": "up, pressed",
            "choice": f"{offset} to {offset + classes - 1}",
            "axis": ", ".join(f"{value:.3g}" for value in centres)
            if len(centres) <= 20
            else f"{centres[0]:.3g} to {centres[-1]:.3g} in even steps",
        }[kind]
        rows.append([cell(part or "action"), kind, str(len(list(group))), str(classes), meaning])
    shown = table(["part", "kind", "heads", "classes", "what a class stands for"], rows, right={2, 3})
    return f"An action is one class for each of {len(heads)} heads:\n\n{shown}"


def world_of(origins: Iterable[Origin], told: Any = None) -> str | None:
    """The world that a model acts in: as it says itself, else that of the data nearest to it."""
    if text_or_none(told):
        return str(told)
    found = [text_or_none(one.meta.get("env")) for one in origins]
    return next((world for world in reversed(found) if world), None)


def make_world(world: str, image_size: Any) -> str:
    """The call that makes a world; the island draws frames of any size."""
    size = f", size={image_size}" if "Jumppads" in world and image_size else ""
    return f"make({quoted(world)}{size})"


DATA = ("trajectories", "preferences")
UNKNOWN = "unknown"


def data_lines(origins: Iterable[Origin]) -> list[str]:
    """A line for each data set, with what is not known of it."""
    return [f"- {_data_line(one)}" for one in origins if one.kind in DATA]


def lacks_licence(origins: Iterable[Origin]) -> bool:
    """Whether there is a data set among them whose licence is unknown."""
    return any(one.kind in DATA and (not one.meta or licence_of(one.meta) == UNKNOWN) for one in origins)


def _data_line(one: Origin) -> str:
    name = code(one.repository or one.name) + (f" at {code(one.revision)}" if one.revision else "")
    if not one.meta:
        return f"{name} ({one.kind}): {one.unknown or 'nothing is known of it'}; licence unknown"
    words = pairs_in_words(one) if one.kind == "preferences" else trajectories_in_words(one.meta)
    return f"{name}: {words}; licence {licence_of(one.meta)}"


def licence_of(meta: Mapping[str, Any]) -> str:
    """The licence of data, if they tell one."""
    told = mapping(meta.get("provenance"))
    found = text_or_none(told.get("licence")) or text_or_none(told.get("license"))
    return code(found) if found else UNKNOWN


def trajectories_in_words(meta: Mapping[str, Any]) -> str:
    """How much, of which world, how episodes ended and who played."""
    world = text_or_none(meta.get("env"))
    ended = [f"{code(name)} {count}" for name, count in mapping(meta.get("outcomes")).items()]
    words = [f"{count(meta.get('episodes'))} trajectories, {count(meta.get('steps'))} env steps"]
    words[0] += f" of {code(world)}" if world else " of an unknown world"
    words += [f"ended {', '.join(ended)}"] if ended else []
    return "; ".join([*words, f"played by {players(meta)}"])


def players(meta: Mapping[str, Any]) -> str:
    """Who played, as far as it was told."""
    told = mapping(meta.get("provenance"))
    if agent := text_or_none(told.get("agent")):
        temperature = number_or_none(told.get("temperature"))
        return f"the agent {code(agent)}" + (f" at temperature {temperature:g}" if temperature is not None else "")
    mixture = mapping(told.get("players"))
    shown = [f"{code(name)} {share}" for name, share in mixture.items()]
    if not shown:
        return "players unknown"
    targets = [code(each) for each in strings(told.get("targets"))]
    return f"scripted players {', '.join(shown)}" + (f", who head for {', '.join(targets)} in turn" if targets else "")


def pairs_in_words(one: Origin) -> str:
    """How many comparisons, of what, by which rule and annotator."""
    counts = [f"{count(number)} {plain(split)}" for split, number in mapping(one.meta.get("counts")).items()]
    compared = next((code(parent.name) for parent in one.parents), "unknown trajectories")
    rule = text_or_none(mapping(one.meta.get("rule")).get("name"))
    return (
        f"{' and '.join(counts) or 'an unknown number of'} comparisons between episodes of {compared}, "
        f"rule {code(rule) if rule else 'unknown'}, annotator {annotator(mapping(one.meta.get('provenance')))}"
    )


def annotator(told: Mapping[str, Any]) -> str:
    """Who judged: the kind of synthetic annotator and its parameters; unknown where it is not told."""
    facts = mapping(told.get("annotator"))
    kind = text_or_none(facts.get("kind"))
    more = [f"{plain(name)} {plain(value)}" for name, value in facts.items() if name != "kind"]
    return "unknown" if kind is None else code(kind) + (f" ({', '.join(more)})" if more else "")


def count(value: Any) -> str:
    """A whole number with its thousands apart; `unknown` where it is none."""
    number = number_or_none(value)
    return "unknown" if number is None else f"{number:,.0f}"


def commands(origins: Iterable[Origin], root: Path) -> str:
    """The command of every run in a lineage, the oldest first."""
    lines: list[str] = []
    for one in origins:
        if one.kind in MODELS:
            words = [] if one.facts is None else one.facts.command
            lines.append(f"# {plain(one.name)}{'' if words else ': its command is not known'}")
            refuse_in_words(words, f"the environment.json of {plain(one.name)}")
            lines += [command_line(words, root)] if words else []
    return fenced("\n".join(lines), "bash")


def settings(facts: Facts, root: Path) -> str:
    """The resolved settings that decide what was learned, as YAML."""
    trainer = {name: facts.setting("trainer", name) for name in _TRAINER}
    content = {"model": facts.setting("model"), "data": facts.setting("data"), "trainer": trainer}
    content["seed"] = facts.setting("seed")
    kept = _without_none(content, root)
    return fenced(yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=100), "yaml")


def _without_none(value: Any, root: Path) -> Any:
    if isinstance(value, dict):
        kept = {plain(key): _without_none(each, root) for key, each in value.items() if each is not None}
        return {key: each for key, each in kept.items() if each != {}}
    if isinstance(value, list):
        return [_without_none(each, root) for each in value]
    return plain(without_paths(value, root), 1000) if isinstance(value, str) else value


def machine(facts: Facts) -> list[str]:
    """Versions and hardware of a run, a line each; what is not known is said to be."""
    told = facts.environment
    versions = mapping(told.get("versions")) or mapping(facts.run.get("versions"))
    shown = ", ".join(f"{plain(name)} {plain(version)}" for name, version in versions.items())
    lines = [f"- versions: {shown or 'unknown'}"]
    git = mapping(told.get("git"))
    if commit := text_or_none(git.get("commit")):
        state = {True: ", with changes that are in no commit", False: ""}.get(git.get("dirty"), ", changed or not")  # type: ignore[arg-type]
        lines.append(f"- commit: {code(commit)}{state}")
    hardware = mapping(told.get("hardware"))
    if not hardware:
        return [*lines, "- hardware: unknown"]
    memory = number_or_none(hardware.get("memory"))
    words = [plain(hardware.get("cpu") or "unknown processor"), f"{count(hardware.get('cores'))} cores"]
    words += [f"{memory / 1e9:.0f} GB of memory"] if memory else []
    gpus = hardware.get("gpus")
    names = [plain(mapping(each).get("name", "unknown")) for each in gpus] if isinstance(gpus, list) else []
    words.append(", ".join(f"{len(list(same))} x {name}" for name, same in groupby(names)) or "no GPU")
    processes = number_or_none(told.get("processes"))
    words += [f"{processes:.0f} processes"] if processes and processes > 1 else []
    lines.append(f"- hardware: {', '.join(words)}")
    began, starts = text_or_none(told.get("began")), number_or_none(facts.run.get("starts"))
    if began:
        more = f", the last of {starts:.0f} starts" if starts and starts > 1 else ""
        lines.append(f"- began: {plain(began)[:10]}{more}")
    return lines


def licence_and_citation(licence: str | None, world: str | None) -> list[str]:
    """The last section of a card."""
    told = f"Licence: {code(licence)}." if licence else "Licence: none was chosen yet; `lit-align push` takes one."
    if world and "Jumppads" in world:
        told += " The frames of the island show textures of [Freedoom](https://freedoom.github.io)."
    cite = "The procedure is that of [Aligning Agents like Large Language Models](https://arxiv.org/abs/2406.04208):"
    return ["## Licence and citation", told, cite, fenced(CITATION, "bibtex")]
