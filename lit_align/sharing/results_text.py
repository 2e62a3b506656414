"""What was measured, as tables with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_align.evaluation.returns import in_words as return_in_words
from lit_align.sharing.facts import mapping, number_or_none
from lit_align.sharing.measured import Evaluation, accuracy_of
from lit_align.sharing.sections import count
from lit_align.sharing.text import cell, code, command_line, fenced, percent, plain, span, table

if TYPE_CHECKING:
    from lit_align.sharing.model_card import Told


def agent_results(told: Told) -> list[str]:
    """How an agent's episodes end, beside those it comes from, and under controls."""
    found = told.measured
    if not found.evaluations and not found.controls:
        world = plain(told.world or "ENVIRONMENT")
        words = [
            "lit-align",
            "evaluate",
            told.address,
            "--env",
            world,
            "--episodes",
            200,
            "--out",
            f"eval_{told.title}",
        ]
        how = fenced(command_line(words), "bash")
        return ["It was not evaluated yet. This counts how its episodes end:", how, *_watch(told)]
    parts: list[str] = []
    for one in found.evaluations:
        parts += [_heading(one), outcomes_table(one), *_beside(one)]
    parts += _before(told)
    for one in found.controls:
        parts += [f"As a control: {_heading(one)}", outcomes_table(one)]
    return [*parts, *_watch(told)]


def outcomes_table(one: Evaluation) -> str:
    """How many episodes ended how, with shares and their Wilson 95 % intervals."""
    rows = [
        [cell(name), f"{one.outcomes[name]:,}", percent(rate.value), span(rate.low, rate.high)]
        for name, rate in one.rates.items()
    ]
    return table(["outcome", "episodes", "share", "95 % interval"], rows, right={1, 2, 3})


def _heading(one: Evaluation) -> str:
    kept = " whose seeds are kept for evaluation" if one.entry.get("episode_seeds") else ""
    return f"{one.episodes:,} episodes of {code(one.environment)}{kept} ({plain(one.under, 400)}); Wilson intervals."


def _beside(one: Evaluation) -> list[str]:
    """Length, reasons, recovery and worlds that died, as far as they were counted."""
    words = []
    if one.returned is not None:
        words.append(f"The world's own return is {return_in_words(one.returned)} an episode (mean, 95 % t interval).")
    steps = number_or_none(one.entry.get("mean_steps"))
    words += [f"An episode takes {steps:.0f} env steps on average."] if steps is not None else []
    reasons = mapping(one.entry.get("reasons"))
    if reasons:
        words.append(f"Reasons: {', '.join(f'{code(name)} {count(number)}' for name, number in reasons.items())}.")
    back = mapping(one.entry.get("recovery"))
    if back.get("missed"):
        rate = mapping(back.get("rate"))
        low, high = number_or_none(rate.get("low")), number_or_none(rate.get("high"))
        interval = f" ({span(low, high)})" if low is not None and high is not None else ""
        words.append(
            f"Of {count(back['missed'])} that ran past a pad, {count(back.get('recovered'))} came back{interval}."
        )
    died = number_or_none(one.entry.get("worlds_failed"))
    words += [f"{died:.0f} attempts were thrown away since a world died."] if died else []
    return [" ".join(words)] if words else []


def _before(told: Told) -> list[str]:
    """The same episodes, played by the agents that it comes from."""
    others = told.measured.others
    line = [one.name for one in told.origin.walk() if one.kind == "agent" and one.name in others]
    if not told.measured.evaluations or not line:
        return []
    own = told.measured.evaluations[0]
    names = list(dict.fromkeys([*own.outcomes, *(name for each in line for name in others[each].outcomes)]))
    rows = []
    shown = [*((each, others[each]) for each in line), (told.title, own)]
    paid = any(one.returned is not None for _, one in shown)
    for name, one in shown:
        rates = [f"{percent(r.value)} ({span(*r[1:])})" for r in map(one.rate, names)]
        rates += [return_in_words(one.entry["return"]) if "return" in one.entry else "-"] * paid
        rows.append([cell(name), *rates, f"{one.episodes:,}"])
    head = ["agent", *(cell(name) for name in names), *["return"] * paid, "episodes"]
    beside = table(head, rows, right=set(range(1, len(head))))
    means = ", mean returns with t intervals" * paid
    return [f"Those it comes from, evaluated likewise; shares with Wilson 95 % intervals{means}:", beside]


def _watch(told: Told) -> list[str]:
    if not told.watch:
        return []
    picture = "over_optimisation.png"
    shown = f" ([the curves]({picture}))" if picture in told.files else ""
    return [f"While it was aligned{shown}, in its training episodes:", fenced(_wrapped(told.watch))]


def _wrapped(text: str, width: int = 100) -> str:
    import textwrap

    return textwrap.fill(plain(text, 2000), width)


def reward_results(info: Mapping[str, Any]) -> list[str]:
    """How often a reward model judges held-out comparisons right, and how sure it is."""
    found = accuracy_of(dict(info))
    if found is None:
        return ["Its accuracy was not measured."]
    rate, pairs = found
    rows = [["all", f"{pairs:,}", percent(rate.value), span(rate.low, rate.high)]]
    for name, group in mapping(info.get("by_gap")).items():
        part = accuracy_of(mapping(group))
        if part is not None:
            label = f"gap {cell(name)}"
            rows.append([label, f"{part[1]:,}", percent(part[0].value), span(part[0].low, part[0].high)])
    shown = table(["held-out comparisons", "number", "judged right", "95 % interval"], rows, right={1, 2, 3})
    words = ["Ties left out; Wilson intervals, as if comparisons were independent, though some share an episode."]
    best, error = number_or_none(info.get("best_accuracy")), number_or_none(info.get("ece"))
    words += [f"The labels allow {percent(best)} at the best."] if best is not None else []
    words += [f"Expected calibration error: {error:.3f}."] if error is not None else []
    words += ["A gap is how far apart the two episodes are by the rule."] if len(rows) > 1 else []
    return [shown, " ".join(words)]
