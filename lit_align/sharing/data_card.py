"""The text of a card of trajectories or of preferences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lit_align.sharing import sections
from lit_align.sharing.facts import mapping, number_or_none, strings, text_or_none
from lit_align.sharing.lineage import Origin
from lit_align.sharing.sections import count
from lit_align.sharing.text import cell, code, command_line, fenced, percent, plain, quoted, table

_COLUMNS = (
    ("episode", "int64", "id of the episode; preferences refer to it"),
    ("step", "int32", "0 to T; the last row of an episode holds its last frame and no action"),
    ("frame", "image", "what was seen"),
    ("vector", "list of float32", "numbers seen beside the pixels or in their place"),
    ("action", "list of uint8", "one class for each action head"),
    ("position", "list of 3 float32", "where the player is; zeros where the world does not tell"),
    ("reward", "float32", "the world's own"),
    ("log_prob", "float32", "of the action under the agent that played; empty for others"),
    ("length", "int32", "T"),
    ("seed", "int64", "the world's seed"),
    ("outcome, reason, player", "string", "how it ended, why, who played"),
    ("terminated, truncated", "bool", "ended by the world, or by a time limit"),
)
_PAIR_COLUMNS = (
    ("chosen, rejected", "int64", "ids of the better and of the worse episode; in no order for a tie"),
    ("dataset", "string", "the trajectories that they are of"),
    ("label", "string", "chosen or tie"),
    ("margin", "float32", "how much better by the rule itself; below 0 where the annotator said the opposite"),
    ("annotator", "string", "who judged"),
    ("created_at", "string", "when, UTC"),
)


def trajectories_body(title: str, address: str, meta: Mapping[str, Any], licence: str | None) -> str:
    """The card of trajectories without its metadata.

    Args:
        title: What they are called.
        address: What `lit-align pull` takes: the Hub id, or the folder.
        meta: `meta.json`.
        licence: Identifier; None where none was chosen.
    """
    world, fps = text_or_none(meta.get("env")), number_or_none(meta.get("fps"))
    told = mapping(meta.get("provenance"))
    episodes = number_or_none(meta.get("episodes")) or 0
    lines = [
        f"- world: {code(world) if world else 'unknown'}{_arguments(meta.get('env_args'))}",
        f"- episodes: {count(episodes)}, env steps: {count(meta.get('steps'))}",
        f"- speed: {f'{fps:g} env steps a second of the world' if fps else 'unknown'}",
        f"- observations: {sections.observations(meta.get('image_size'), meta.get('vector_size'))}",
        f"- played by: {sections.players(meta)}",
        f"- made with: lit_align {_told(told, 'version')}",
        f"- seeds: purpose {_told(told, 'purpose')}, seed {_told(told, 'seed')}",
    ]
    if only := strings(told.get("only")):
        lines.append(f"- kept: episodes that ended {', '.join(code(each) for each in only)}; others were thrown away")
    rows = [
        [cell(name), count(number), percent((number_or_none(number) or 0) / max(1, episodes))]
        for name, number in mapping(meta.get("outcomes")).items()
    ]
    outcomes = table(["outcome", "episodes", "share"], rows, right={1, 2}) if rows else "How they ended is unknown."
    read = [
        "from lit_align import TrajectoryDataset",
        "from lit_align.hub import fetch",
        "",
        f'dataset = TrajectoryDataset(fetch({quoted(address)}, "dataset"))',
        "trajectory = dataset[0]",
        "print(trajectory.frames.shape, trajectory.actions.shape, trajectory.outcome)",
    ]
    limits = [
        f"One world, {code(world) if world else 'which is unknown'}, and the players named above; no other play.",
        "Shares are of these episodes; they are counts, no estimates of what the players do.",
    ]
    limits += ["Episodes were chosen by how they ended."] if strings(told.get("only")) else []
    parts = [f"# {plain(title) or 'unnamed'}", f"{sections.trajectories_in_words(meta)}. Made with lit_align."]
    parts += ["## Use it", _pull(address, title), fenced("\n".join(read), "python")]
    parts += ["## What it is", "\n".join(lines), outcomes, sections.actions(meta.get("actions"))]
    parts += [
        "## Columns",
        "A row is a frame, a row group is an episode of T actions and T + 1 frames.",
        _table(_COLUMNS),
    ]
    parts += ["## Limits", "\n".join(f"- {line}" for line in limits)]
    return "\n\n".join([*parts, *sections.licence_and_citation(licence, world)]) + "\n"


def preferences_body(title: str, address: str, one: Origin, licence: str | None) -> str:
    """The card of preferences without its metadata; arguments as in `trajectories_body`."""
    meta = one.meta
    told, rule = mapping(meta.get("provenance")), mapping(meta.get("rule"))
    best, flips = mapping(told.get("best_accuracy")), mapping(told.get("flips"))
    rows = [
        [cell(split), count(number), _share(best.get(split)), count(flips.get(split))]
        for split, number in mapping(meta.get("counts")).items()
    ]
    counts = table(["split", "comparisons", "rule agrees", "labels against the rule"], rows, right={1, 2, 3})
    lines = [
        f"- rule: {code(rule['name']) if text_or_none(rule.get('name')) else 'unknown'}{_ranking(rule)}",
        f"- annotator: {sections.annotator(told)}",
        f"- ties: {'kept' if told.get('ties') else 'left out'}",
        f"- made with: lit_align {_told(told, 'version')}, seed {_told(told, 'seed')}",
    ]
    compared = sections.data_lines(one.parents) or ["- the trajectories that are compared: unknown"]
    read = [
        "from lit_align.data.preferences import read_preferences",
        "from lit_align.hub import fetch",
        "",
        f'meta, splits = read_preferences(fetch({quoted(address)}, "dataset"))',
        'print(splits["train"].chosen, splits["train"].rejected)',
    ]
    judged = "A rule stood in for people." if mapping(told.get("annotator")) else "Who judged is not told."
    limits = [
        f"{judged} What people would have preferred was not asked.",
        "Pairs of one split share episodes, so that they are not independent; the splits share none.",
    ]
    parts = [f"# {plain(title) or 'unnamed'}", f"{sections.pairs_in_words(one)}. Made with lit_align."]
    parts += ["## Use it", _pull(address, title), fenced("\n".join(read), "python")]
    parts += ["## What it is", counts, "\n".join(lines), "## Data", "\n".join(compared)]
    parts += ["## Columns", _table(_PAIR_COLUMNS), "## Limits", "\n".join(f"- {line}" for line in limits)]
    world = sections.world_of(one.parents)
    return "\n\n".join([*parts, *sections.licence_and_citation(licence, world)]) + "\n"


def _pull(address: str, title: str) -> str:
    return fenced(command_line(["lit-align", "pull", address, "--out", title]), "bash")


def _table(columns: tuple[tuple[str, str, str], ...]) -> str:
    rows = [[", ".join(cell(name) for name in names.split(", ")), kind, meaning] for names, kind, meaning in columns]
    return table(["column", "type", "meaning"], rows)


def _arguments(given: Any) -> str:
    shown = [f"{code(name)} {code(value)}" for name, value in mapping(given).items()]
    return f", made with {', '.join(shown)}" if shown else ""


def _ranking(rule: Mapping[str, Any]) -> str:
    if text_or_none(rule.get("score")):
        return f", the function {code(rule['score'])}"
    ranks = rule.get("ranking")
    groups = [", ".join(code(each) for each in strings(rank)) for rank in ranks] if isinstance(ranks, list) else []
    return f": first {', then '.join(groups)}" if groups else ""


def _told(provenance: Mapping[str, Any], key: str) -> str:
    value = provenance.get(key)
    return "unknown" if value is None else plain(value)


def _share(value: Any) -> str:
    number = number_or_none(value)
    return "unknown" if number is None else percent(number)
