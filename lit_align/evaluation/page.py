"""The report's HTML: small pieces that escape what they are given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lit_align.evaluation import style
from lit_align.evaluation.footage import Film

TEMPLATE = Path(__file__).with_name("template.html")

REASONS = {
    "reached": "reached the pad",
    "fell": "fell into the water",
    "shadow_boxing": "shadow-boxed: stood punching the air",
    "stuck": "got stuck, or stood still",
    "strayed": "strayed away from every pad",
    "timeout": "on its way when the time ran out",
}


def words(reason: str) -> str:
    """Return a reason as people say it."""
    return REASONS.get(reason, reason.replace("_", " "))


def document(title: str, body: Iterable[str]) -> str:
    """Return the whole page."""
    page = TEMPLATE.read_text(encoding="utf-8")
    return page.replace("<!--TITLE-->", escape(title)).replace("<!--BODY-->", "\n".join(body))


def paragraph(text: str, kind: str = "") -> str:
    """Return a paragraph; the text may hold HTML of our own."""
    return f'<p class="{kind}">{text}</p>' if kind else f"<p>{text}</p>"


def heading(name: str, text: str) -> str:
    """Return a section's heading that can be linked to."""
    return f'<h2 id="{escape(name)}">{escape(text)}</h2>'


def absent(what: str) -> str:
    """Return the place-holder of a part that the run does not have."""
    return f'<div class="absent">{escape(what)}: not run.</div>'


def picture(name: str, width: int, alt: str, caption: str = "") -> str:
    """Return a figure of `NAME.png`, in dark pages `NAME-dark.png`, at most `width` CSS pixels wide."""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    dark = f'<source srcset="{name}-dark.png" media="(prefers-color-scheme: dark)">'
    light = f'<img src="{name}.png" alt="{escape(alt)}" style="max-width: {width}px" loading="lazy">'
    return f"<figure><picture>{dark}{light}</picture>{note}</figure>"


def image(file: str, alt: str, caption: str = "", kind: str = "") -> str:
    """Return a figure with one picture."""
    note = f"<figcaption>{caption}</figcaption>" if caption else ""
    style_class = f' class="{kind}"' if kind else ""
    return f'<figure{style_class}><img src="{escape(file)}" alt="{escape(alt)}" loading="lazy">{note}</figure>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; cells may hold HTML of our own."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def tile(value: str, label: str, note: str, outcome: str = "") -> str:
    """Return one large number."""
    colour = f' style="border-top-color: {style.OUTCOME_COLOURS[outcome]}"' if outcome in style.OUTCOME_COLOURS else ""
    inside = f"<b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(note)}</small>"
    return f'<div class="tile"{colour}>{inside}</div>'


def film(one: Film, folder: str, note: str = "") -> str:
    """Return one video with its caption; its poster is a picture of its name in the same folder."""
    source = f"{folder}/{one.file}"
    poster = f"{folder}/{Path(one.file).stem}.jpg"
    text = note or f"{one.outcome}: {words(one.reason)}"
    return (
        f'<div class="film"><video src="{escape(source)}" poster="{escape(poster)}" controls muted loop playsinline '
        f'preload="none"></video><p><span class="dot {escape(one.outcome)}"></span>{escape(text)}'
        f"<br><small class='small'>{one.steps} steps, seed {one.seed}</small></p></div>"
    )


def duration(seconds: float | None) -> str:
    """Return `4 min 05 s`; a dash for what is not known."""
    if seconds is None:
        return "-"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return (
        f"{whole // 3600} h {whole % 3600 // 60:02d} min" if whole >= 3600 else f"{whole // 60} min {whole % 60:02d} s"
    )


def count(number: float | None) -> str:
    """Return `1.2M`, `340k` or the number; a dash for what is not known."""
    if number is None:
        return "-"
    if number >= 1e6:
        return f"{number / 1e6:.2f}M"
    return f"{number / 1e3:.0f}k" if number >= 1e4 else f"{number:,.0f}"
