"""The report: a page that tells what a run did to somebody who never saw the code."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lit_align.errors import UserError
from lit_align.evaluation import page, paper, prose, results, sections
from lit_align.evaluation.gather import MARK, Gathered, gather
from lit_align.evaluation.pictures import FILMS_EACH, choose_films, copy_films, draw_all, failures, pair_films
from lit_align.evaluation.results import AgentResult, rate_of
from lit_align.files import beside, replace_folder

LEFT_BY_PIPELINE = ("log.txt", "headline.txt")

Section = tuple[str, str, list[str]]


def build_report(run_folder: Path, out: Path) -> Path:
    """Write `index.html`, its pictures and videos and `results.json`; return the page.

    The folder appears whole: it is built beside `out` and moved there.

    Args:
        run_folder: What a pipeline left; parts may be missing.
        out: Folder of the report; an earlier report there is replaced.

    Raises:
        UserError: There is something else in `out`, or nothing to report in the run's folder.
    """
    out = Path(out)
    _check_free(out)
    found = gather(Path(run_folder))
    if found.is_empty:
        raise UserError(
            f"found nothing to report in {run_folder}; expected the folder of a pipeline, such as outputs/quickstart, "
            "in which each stage has a folder with its results.json, metrics.csv or reward_model/"
        )
    with beside(out) as scratch:
        made = scratch / "report"
        made.mkdir()
        results.write(found.results, made / "results.json")
        drawn = draw_all(found, made)
        for name in found.films:
            chosen = {one.file: one for one in [*choose_films(found.films[name]), *failures(found.films[name])]}
            copy_films(list(chosen.values()), found.film_folders[name], made / "videos" / name)
        for stage in found.paired:
            chosen_pairs = [one for one, _ in pair_films(found, stage)[:FILMS_EACH]]
            copy_films(chosen_pairs, found.paired_folders[stage], made / "videos" / f"paired-{stage}")
        (made / "index.html").write_text(_page(found, drawn), encoding="utf-8")
        (made / MARK).write_text("made by lit-align report, which replaces this folder\n")
        replace_folder(made, out)
    return out / "index.html"


def _check_free(out: Path) -> None:
    """Raise a UserError if the folder holds anything but an earlier report: it will be replaced."""
    if not out.exists() or (out / MARK).is_file():
        return
    if not out.is_dir() or any(path.name not in LEFT_BY_PIPELINE for path in out.iterdir()):
        raise UserError(
            f"found {out}, which is not a report; expected a folder that is new, empty or an earlier report"
        )


def _page(found: Gathered, drawn: dict[str, int]) -> str:
    parts_of_page: list[Section] = [
        ("task", "The task", sections.task_section(found)),
        ("procedure", "The procedure", sections.procedure_section(found, drawn)),
        ("results", "How episodes end", sections.results_section(found, drawn)),
        ("routes", "Where agents go", sections.routes_section(found, drawn)),
        ("reward", "What the reward model knows", sections.reward_section(found, drawn)),
        ("alignment", "Alignment", sections.alignment_section(found, drawn)),
        ("training", "Training", sections.training_section(drawn)),
        ("videos", "Watch them", sections.videos_section(found)),
        ("recovery", "After a miss", sections.recovery_section(found)),
        ("failures", "How the base agent fails", sections.failures_section(found)),
        ("numbers", "How the numbers were made", sections.numbers_section(found)),
    ]
    # A world without pads has no misses to speak of.
    parts_of_page = [part for part in parts_of_page if part[2]]
    links = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in parts_of_page)
    body = [f"<header><h1>{prose.TITLE}</h1>", _lead(found), _tiles(found)]
    body += [f"<nav>{links}</nav></header><main>"]
    for name, title, parts in parts_of_page:
        body += [f"<section>{page.heading(name, title)}", *parts, "</section>"]
    return page.document("lit_align: report of a run", [*body, "</main>", _footer(found)])


def _lead(found: Gathered) -> str:
    return page.paragraph(prose.LEAD.format(environment=escape(found.results["environment"])), "lead")


def _tiles(found: Gathered) -> str:
    agents, tiles = found.results["agents"], []
    may_fail = any("none" in entry["rates"] for entry in agents.values())
    for name, label in (("pretrain", "of the base agent's episodes reach nothing"), ("finetune", "after fine-tuning")):
        if name in agents and may_fail:
            tiles.append(_tile(agents[name], "none", label, name))
    for target in found.targets:
        name = f"align_{target}"
        if name in agents:
            tiles.append(_tile(agents[name], target, f"go {target} when aligned to {target}", name))
    accuracy = _smallest(found.results["reward_models"])
    if accuracy:
        size, share, worst = accuracy
        tiles.append(page.tile(f"{100 * share:.0f} %", f"of unseen pairs judged right after {size} comparisons", worst))
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _tile(entry: AgentResult, outcome: str, label: str, name: str) -> str:
    rate = rate_of(entry, outcome)
    theirs = paper.SUCCESS.get(name, {}).get(outcome)
    note = f"95 %: {100 * rate['low']:.0f} to {100 * rate['high']:.0f}"
    note += f"; the paper: {theirs:g}" if theirs is not None else ""
    return page.tile(f"{100 * rate['value']:.1f} %", label, note, outcome)


def _smallest(models: Mapping[str, Any]) -> tuple[int, float, str] | None:
    """Return the fewest comparisons that every target has with the agent start, the worst accuracy, and all of them."""
    sizes = [set(starts.get("agent", {})) for starts in models.values()]
    shared = set.intersection(*sizes) if sizes else set()
    if not shared:
        return None
    size = min(shared, key=int)
    found = {target: float(starts["agent"][size]["accuracy"]) for target, starts in models.items()}
    return int(size), min(found.values()), ", ".join(f"{target} {100 * v:.0f}" for target, v in sorted(found.items()))


def _footer(found: Gathered) -> str:
    thanks = prose.FREEDOOM if "Jumppads" in found.results["environment"] else ""
    return f'<footer class="small">{thanks}{prose.FOOTER.format(paper=escape(paper.CITATION))}</footer>'
