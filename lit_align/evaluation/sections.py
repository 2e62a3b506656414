"""The sections of the report, each a list of HTML parts; what the run does not have is said to be not run."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from lit_align.evaluation import page, paper, prose, style
from lit_align.evaluation.gather import Gathered
from lit_align.evaluation.over_optimisation import in_words
from lit_align.evaluation.pictures import (
    FILMS_EACH,
    choose_films,
    failures,
    headline_agents,
    other_agents,
    pair_films,
    watches,
)
from lit_align.evaluation.results import Rate, rate_of
from lit_align.evaluation.returns import in_words as return_in_words
from lit_align.evaluation.returns import pays


def task_section(found: Gathered) -> list[str]:
    """Return the HTML parts of this section."""
    parts = []
    if "Jumppads" in found.results["environment"]:
        parts.append(page.paragraph(prose.ISLAND))
    for name in [*headline_agents(found)[::-1], *found.films]:
        strips = [one for one in choose_films(found.films.get(name, [])) if one.outcome != "none" and one.strip]
        if strips:
            one = strips[0]
            seen = f"What the agent sees, from the first frame to the last: {style.agent_title(name)}, {one.outcome}."
            caption = escape(seen)
            return [*parts, page.image(f"videos/{name}/{one.strip}", "frames of one episode", caption)]
    return parts or [page.paragraph(f"The world is {escape(found.results['environment'])}.")]


def procedure_section(found: Gathered, drawn: dict[str, int]) -> list[str]:
    """Return the HTML parts of this section."""
    listed = "".join(f"<li><b>{name}</b>: {text}</li>" for name, text in prose.STEPS)
    parts = [f'<ol class="steps">{listed}</ol>']
    if "overview" not in drawn:
        return [*parts, page.absent("Evaluation of the stages")]
    return [
        *parts,
        page.picture(
            "overview", drawn["overview"], "the stages from left to right, with maps and rates", prose.OVERVIEW
        ),
    ]


def results_section(found: Gathered, drawn: dict[str, int]) -> list[str]:
    """Return the HTML parts of this section."""
    if "success" not in drawn:
        return [page.absent("Evaluation")]
    outcomes = list(dict.fromkeys(name for entry in found.results["agents"].values() for name in entry["outcomes"]))
    rows, paid = [], any(pays(entry) for entry in found.results["agents"].values())
    for name in headline_agents(found) + other_agents(found):
        entry = found.results["agents"][name]
        cells = [_share(rate_of(entry, outcome), paper.SUCCESS.get(name, {}).get(outcome)) for outcome in outcomes]
        cells += [*_returned(entry, paid), str(entry["episodes"])]
        rows.append([f"<b>{escape(style.agent_title(name))}</b>", *cells])
    parts = [
        page.picture("success", drawn["success"], "bars of how episodes end for each agent"),
        page.table(["agent", *outcomes, *["return"] * paid, "episodes"], rows),
        page.paragraph(prose.RATES.format(paper=escape(paper.CITATION)), "small"),
    ]
    if paid:
        parts.append(page.paragraph(prose.RETURNS, "small"))
    made = {
        ", ".join(f"{key} {value}" for key, value in entry.get("env_args", {}).items())
        for entry in found.results["agents"].values()
    } - {""}
    parts += [page.paragraph(prose.MADE_WITH.format(arguments=escape(text)), "small") for text in sorted(made)]
    return parts + _controls(found)


def _share(rate: Rate | None, theirs: float | None) -> str:
    if rate is None:
        return "-"
    text = f"<b>{100 * rate['value']:.1f}</b> <small>{100 * rate['low']:.0f}-{100 * rate['high']:.0f}</small>"
    return text + (f"<br><small>paper {theirs:g}</small>" if theirs is not None else "")


def _returned(entry: Mapping[str, Any], paid: bool) -> list[str]:
    """The cell of the world's own return, where a table has such a column; earlier versions did not keep it."""
    if not paid:
        return []
    return [return_in_words(entry["return"]) if "return" in entry else "-"]


def _controls(found: Gathered) -> list[str]:
    controls = {n: e for n, e in found.results.get("ablations", {}).items() if isinstance(e, Mapping)}
    blanked = {n: e for n, e in controls.items() if e.get("blank")}
    moved = {n: e for n, e in controls.items() if not e.get("blank") and e.get("env_args")}
    parts = []
    for title, words, entries in (
        ("Control: the same agents with the picture blanked", prose.BLANKED, blanked),
        ("The same agents where they never trained", prose.OTHER_WORLDS, moved),
    ):
        if entries:
            outcomes = list(dict.fromkeys(name for entry in entries.values() for name in entry["outcomes"]))
            paid, rows = any(map(pays, entries.values())), []
            for name, entry in sorted(entries.items()):
                cells = [_share(rate_of(entry, outcome), None) for outcome in outcomes]
                rows.append([escape(name), *cells, *_returned(entry, paid), str(entry["episodes"])])
            table = page.table(["agent", *outcomes, *["return"] * paid, "episodes"], rows)
            parts += [f"<h3>{title}</h3>", page.paragraph(words), table]
    return parts


def routes_section(found: Gathered, drawn: dict[str, int]) -> list[str]:
    """Return the HTML parts of this section."""
    if "heatmaps" not in drawn and "heatmaps-others" not in drawn:
        return [page.absent("Evaluation with positions")]
    parts = [page.picture("heatmaps", drawn["heatmaps"], "maps of visits", prose.ROUTES)] if "heatmaps" in drawn else []
    if "heatmaps-others" in drawn:
        parts.append(
            page.picture(
                "heatmaps-others",
                drawn["heatmaps-others"],
                "maps of visits of the other agents",
                "The steps in between.",
            )
        )
    return parts


def reward_section(found: Gathered, drawn: dict[str, int]) -> list[str]:
    """Return the HTML parts of this section."""
    if "reward-models" not in drawn:
        return [page.absent("Reward model")]
    parts = [
        page.paragraph(prose.REWARD),
        page.picture("reward-models", drawn["reward-models"], "accuracy against number of comparisons"),
    ]
    rows = []
    for target, starts in sorted(found.results["reward_models"].items()):
        for start, sizes in sorted(starts.items()):
            for size, entry in sorted(sizes.items(), key=lambda item: int(item[0])):
                share = f"<b>{100 * entry['accuracy']:.1f} %</b>"
                told = (entry.get("best_accuracy"), entry.get("ece"))
                more = ["" if number is None else f"{100 * number:.1f} %" for number in told]
                rows.append([escape(target), escape(start), f"{int(size):,}", share, *more, f"{entry['pairs']:,}"])
    head = ["target", "started from", "comparisons", "accuracy", "labels allow", "calibration error", "held-out pairs"]
    parts.append(page.table(head, rows))
    return parts


def alignment_section(found: Gathered, drawn: dict[str, int]) -> list[str]:
    """Return the HTML parts of this section."""
    runs = watches(found)
    if "alignment" not in drawn and not runs:
        return [page.absent("Alignment")]
    parts = [page.paragraph(prose.ALIGNMENT)]
    if "alignment" in drawn:
        parts.append(page.picture("alignment", drawn["alignment"], "reward, outcome and KL against steps in the world"))
    if runs:
        parts += ["<h3>Does the reward still mean what it should?</h3>", page.paragraph(prose.OVER_OPTIMISATION)]
    for name, watch in runs.items():
        picture = f"over-optimisation-{name}"
        said = escape(f"{style.agent_title(name)}. {in_words(watch)}")
        parts.append(page.picture(picture, drawn[picture], f"proxy reward, outcomes and KL of {name}", said))
    return parts


def training_section(drawn: dict[str, int]) -> list[str]:
    """Return the HTML parts of this section."""
    names = [name for name in ("training", "reward-training") if name in drawn]
    captions = {
        "training": prose.IMITATION,
        "reward-training": prose.COMPARISONS,
    }
    return [page.picture(name, drawn[name], name, captions[name]) for name in names] or [page.absent("Training")]


def videos_section(found: Gathered) -> list[str]:
    """Return the HTML parts of this section."""
    parts = []
    for name in [name for name in [*headline_agents(found), *other_agents(found)] if name in found.films]:
        films = "".join(page.film(one, f"videos/{name}") for one in choose_films(found.films[name]))
        parts += [f"<h3>{escape(style.agent_title(name))}</h3>", f'<div class="films">{films}</div>']
    return parts or [page.absent("Videos")]


def recovery_section(found: Gathered) -> list[str]:
    """Return the HTML parts of this section; none where no world with pads was played."""
    entries = {name: found.results["agents"][name] for name in [*headline_agents(found), *other_agents(found)]}
    controls = found.results.get("ablations", {})
    entries |= {name: entry for name, entry in sorted(controls.items()) if isinstance(entry, Mapping)}
    rows = []
    for name, entry in entries.items():
        told = entry.get("recovery") or {}
        for pad, tally in {"any": told, **told}.items():
            if isinstance(tally, Mapping) and "missed" in tally:
                cells = [escape(pad), str(tally["missed"]), str(tally["recovered"]), _share(tally["rate"], None)]
                rows.append([f"<b>{escape(style.agent_title(name))}</b>", *cells])
    if not rows and not found.paired:
        return []
    head = ["agent", "wanted pad", "went past it", "came back to it", "percent"]
    parts = [page.paragraph(prose.RECOVERY), *([page.table(head, rows)] if rows else [])]
    for stage in found.paired:
        films = [page.film(one, f"videos/paired-{stage}", note) for one, note in pair_films(found, stage)[:FILMS_EACH]]
        parts += [f"<h3>{escape(page.words(stage))}</h3>", f'<div class="films">{"".join(films)}</div>']
    return parts


def failures_section(found: Gathered) -> list[str]:
    """Return the HTML parts of this section."""
    base = "pretrain"
    if base not in found.results["agents"]:
        return [page.absent("Evaluation of the base agent")]
    entry = found.results["agents"][base]
    lost = entry["outcomes"].get("none", 0)
    reasons = {reason: n for reason, n in entry["reasons"].items() if reason != "reached"}
    rows = [
        [escape(page.words(reason)), str(n), f"{100 * n / max(1, lost):.0f} %"]
        for reason, n in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    parts = [page.paragraph(prose.FAILURES.format(lost=lost, episodes=entry["episodes"]))]
    if rows:
        parts.append(page.table(["why", "episodes", "of the failures"], rows))
    films = sorted(failures(found.films.get(base, [])), key=lambda one: -reasons.get(one.reason, 0))
    gallery = "".join(page.film(one, f"videos/{base}", page.words(one.reason)) for one in films)
    return [*parts, f'<div class="films">{gallery}</div>' if gallery else page.absent("Videos of them")]


def numbers_section(found: Gathered) -> list[str]:
    """Return the HTML parts of this section."""
    rows = []
    for name in headline_agents(found) + other_agents(found):
        entry = found.results["agents"][name]
        rows.append(
            [
                f"<b>{escape(style.agent_title(name))}</b>",
                str(entry["episodes"]),
                str(entry["seed"]),
                f"{entry['temperature']:g}",
                page.count(entry["parameters"]),
                page.count(entry["train_frames"]),
                page.duration(entry["train_seconds"]),
                page.count(entry.get("env_steps")),
                str(entry.get("worlds_failed", 0)),
            ]
        )
    head = [
        "agent",
        "episodes",
        "seed",
        "temperature",
        "parameters",
        "frames",
        "learned for",
        "RL steps",
        "played again",
    ]
    parts = [page.table(head, rows)] if rows else [page.absent("Evaluation")]
    parts.append(page.paragraph(prose.NUMBERS, "small"))
    if found.runs:
        timed = {name: float(run["seconds"]) for name, run in found.runs.items() if run.get("seconds") is not None}
        cells = [[escape(name), page.duration(seconds)] for name, seconds in timed.items()]
        cells.append(["<b>all added up</b>", f"<b>{page.duration(sum(timed.values()))}</b>"])
        parts += ["<h3>Time for each stage</h3>", page.table(["stage", "time"], cells)]
    versions = next((run["versions"] for run in found.runs.values() if isinstance(run.get("versions"), Mapping)), None)
    if versions:
        listed = ", ".join(f"{escape(str(name))} {escape(str(number))}" for name, number in versions.items())
        parts.append(page.paragraph(f"Versions: {listed}.", "small"))
    parts += [page.paragraph(f"Note: {escape(note)}", "small") for note in found.notes]
    return parts
