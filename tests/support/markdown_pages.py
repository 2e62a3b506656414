"""Reading Markdown pages in tests: code blocks, inline code, links, tables; and runs of all stages to compare with."""

from __future__ import annotations

import re
from pathlib import Path

from lit_align.commands import run_verb
from tests.helpers import made_up, record, tiny_agent

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def lines(block: str) -> list[str]:
    """Its commands, continued lines joined, without comments."""
    joined = re.sub(r"\\\n\s*", "", block)
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def codes(text: str) -> list[str]:
    """Inline code."""
    return [code for code in re.findall(r"`([^`\n]+)`", text) if code.strip()]


def inline(page: Path) -> list[str]:
    """Inline code of a page."""
    return codes(prose(page))


def links(page: Path) -> list[str]:
    """Relative links and pictures."""
    text = prose(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|srcset)=\"([^\"]+)\"", text)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(page: Path) -> set[str]:
    """Names of its headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def tables_after(page: Path, marker: str) -> list[tuple[str, list[list[str]]]]:
    """For each marker the word it holds, and the rows of the table that follows."""
    parts = re.split(marker, page.read_text())[1:]
    found = []
    for word, text in zip(parts[::2], parts[1::2], strict=True):
        table = re.match(r"\s*((?:\|.*\n)+)", text)
        assert table, f"no table follows {word}"
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]
        found.append((word, rows[2:]))
    return found


def run_all_stages(folder: Path) -> dict[str, Path]:
    """Each kind of stage for a moment, and its run folder. The world is `LitAlign-test/Light-v0`."""
    agent = str(folder / "start" / "agent")
    tiny_agent().save(agent)
    play = record(folder / "play", [made_up(n, 12, outcome=("left", "right")[n % 2]) for n in range(12)])
    quick = ["--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=1"]

    def fit(verb: str, *argv: str) -> Path:
        out = folder / verb
        run_verb([verb, "fit", "--out", str(out), "--init_from", agent, *quick, *argv])
        return out

    imitated = fit("pretrain", f"--data.trajectories=[{play}]", "--data.batch_size=4", "--data.val_fraction=0.3")
    rule = ["--rule.name=left", "--rule.ranking=[[left], [right]]"]
    run_verb(["compare", "--trajectories", play, "--out", str(folder / "pairs"), *rule, "--comparisons=8"])
    learned = fit("reward", f"--data.preferences={folder / 'pairs'}", "--data.pairs=4")
    preferred = fit("prefer", f"--data.preferences={folder / 'pairs'}", "--data.pairs=4")
    world = ["--data.env=LitAlign-test/Light-v0", "--data.worlds=2", "--data.episodes=4", "--data.minibatches=2"]
    aligned = fit("align", f"--model.reward_model={learned / 'reward_model'}", *world, "--data.validation_episodes=2")
    return {"pretrain": imitated, "reward": learned, "prefer": preferred, "align": aligned}
