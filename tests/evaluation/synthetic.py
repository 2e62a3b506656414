"""Made-up play on the island: routes, outcomes, frames and a whole run folder, drawn from a seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_align.evaluation.episodes import Episodes
from lit_align.evaluation.results import agent_result, build, write
from lit_align.evaluation.video import film_strip, write_mp4

PADS = {"left": (-1300.0, 800.0), "middle": (0.0, 1200.0), "right": (1300.0, 800.0)}
SPAWN = (0.0, -1500.0)
PLAN = {
    "outline": [[2150 * np.cos(a), 2150 * np.sin(a)] for a in np.linspace(0, 2 * np.pi, 33)[:-1]],
    "solids": [{"name": "rock", "points": [[300, 300], [500, 300], [400, 500]]}],
    "pads": {name: [*place, 120.0] for name, place in PADS.items()},
    "spawn": [*SPAWN, 140.0],
}
# Roughly what the paper's agents do, so that a drafted report looks like a real one.
MIX = {
    "pretrain": (12, 37, 8, 43),
    "finetune": (32, 33, 23, 12),
    "scratch": (24, 27, 18, 31),
    "rest_left": (62, 14, 9, 15),
    "align_left": (96, 1, 0, 3),
    "rest_right": (11, 16, 58, 15),
    "align_right": (1, 1, 94, 4),
}
FAILURES = ("shadow_boxing", "fell", "timeout", "strayed", "stuck")


@dataclass
class Episode:
    """What `Episodes.of` reads."""

    id: int
    seed: int
    outcome: str
    reason: str
    positions: np.ndarray


def route(rng: np.random.Generator, outcome: str, reason: str) -> np.ndarray:
    """A walk (T+1, 3) float32 from the spawn to a pad, or to nowhere in the manner of `reason`."""
    start = np.array(SPAWN) + rng.normal(0, 45, 2)
    if outcome in PADS:
        goal, steps = np.array(PADS[outcome]) + rng.normal(0, 30, 2), int(rng.integers(52, 72))
    elif reason == "fell":
        angle = rng.uniform(0, 2 * np.pi)
        goal, steps = 2200 * np.array([np.cos(angle), np.sin(angle)]), int(rng.integers(30, 90))
    else:
        goal, steps = rng.normal(0, 700, 2) - (0, 200), 120
    t = np.linspace(0, 1, steps + 1)[:, None]
    side = np.array([start[1] - goal[1], goal[0] - start[0]])
    path = start + t * (goal - start) + np.sin(np.pi * t) * side * rng.normal(0, 0.12)
    wobble = np.cumsum(rng.normal(0, 9 if outcome in PADS else 40, (steps + 1, 2)), axis=0) * np.minimum(t, 1 - t) * 2
    return np.concatenate([path + wobble, np.zeros((steps + 1, 1))], axis=1).astype(np.float32)


def episodes(agent: str = "pretrain", count: int = 60, seed: int = 0) -> Episodes:
    """Made-up episodes of an agent, in the shares of `MIX`."""
    rng = np.random.default_rng([seed, len(agent), sum(map(ord, agent))])
    weights = np.array(MIX[agent]) / sum(MIX[agent])
    rows = []
    for number in range(count):
        outcome = str(rng.choice(["left", "middle", "right", "none"], p=weights))
        reason = "" if outcome != "none" else str(rng.choice(FAILURES, p=(0.25, 0.15, 0.3, 0.2, 0.1)))
        reason = reason or "reached"
        rows.append(Episode(number, 1000 + number, outcome, reason, route(rng, outcome, reason)))
    return Episodes.of(rows)


def frames(steps: int = 12, size: int = 64, colour: tuple[int, int, int] = (40, 90, 60)) -> np.ndarray:
    """A made-up view (T, H, W, 3) uint8: ground of one colour under a sky, with a bar that moves."""
    out = np.zeros((steps, size, size, 3), np.uint8)
    out[:, : size // 2] = (110, 120, 130)
    out[:, size // 2 :] = colour
    for t in range(steps):
        place = (t * size) // steps
        out[t, size // 4 : size // 2, place : place + 4] = (250, 180, 60)
    return out


def evaluation_folder(root: Path, agent: str, count: int = 60, videos: bool = True) -> None:
    """What `lit-align evaluate --out` leaves."""
    played = episodes(agent, count)
    folder = root / f"eval_{agent}"
    counts = {name: played.outcomes.count(name) for name in ("left", "middle", "right", "none")}
    reasons = {text: played.reasons.count(text) for text in sorted(set(played.reasons))}
    entry = agent_result(
        counts, seed=0, temperature=1.0, reasons=reasons, train_frames=1_200_000, train_seconds=310.0,
        parameters=1_458_998, episode_seeds=[int(s) for s in played.seeds],
    )  # fmt: skip
    write(build("LitAlign/Jumppads-v0", {agent: entry}), folder / "results.json")
    played.save(folder / "episodes.npz")
    if not videos:
        return
    index = []
    chosen = {(played.outcomes[i], played.reasons[i]): i for i in range(len(played))}
    for (outcome, reason), i in chosen.items():
        name = f"{outcome}-{played.seeds[i]}"
        write_mp4(folder / "videos" / f"{name}.mp4", frames(), 8.75)
        film_strip(folder / "videos" / f"{name}.png", [frames()])
        index.append(
            {"file": f"{name}.mp4", "strip": f"{name}.png", "outcome": outcome, "reason": reason,
             "seed": int(played.seeds[i]), "steps": int(played.lengths[i])}
        )  # fmt: skip
    (folder / "videos" / "videos.json").write_text(json.dumps(index))


def metrics(path: Path, columns: dict[str, np.ndarray]) -> None:
    """A metrics.csv as Lightning's CSVLogger writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    text = [",".join(columns)] + [",".join("" if np.isnan(v) else f"{v:.6g}" for v in row) for row in rows]
    path.write_text("\n".join(text) + "\n")


def run_folder(root: Path, count: int = 60, videos: bool = True) -> Path:
    """A whole pipeline's folder, made up."""
    rng = np.random.default_rng(1)
    for agent in MIX:
        evaluation_folder(root, agent, count, videos and agent in ("pretrain", "align_left"))
    step = np.arange(0, 1500, 10.0)
    for stage in ("pretrain", "finetune"):
        loss = 3 + 4 * np.exp(-step / 300) + rng.normal(0, 0.15, len(step))
        held = np.where(step % 200 == 0, loss + 0.1, np.nan)
        metrics(root / stage / "metrics.csv", {"step": step, "train/loss": loss, "val/loss": held})
        said = {"stage": stage, "state": "finished", "seconds": 312.5, "versions": {"torch": "2.13.0"}}
        (root / stage / "run.json").write_text(json.dumps(said))
        (root / ".pipeline").mkdir(exist_ok=True)
    (root / ".pipeline" / "play.json").write_text(json.dumps({"state": "done", "seconds": 61.2}))
    (root / ".pipeline" / "broken.json").write_text(json.dumps({"state": "failed", "seconds": 9999}))
    for target in ("left", "right"):
        n = np.arange(30.0)
        proxy = 2 / (1 + np.exp(-(n - 9) / 4)) - 0.5
        rise = 1 / (1 + np.exp(-(n - 9) / 4)) + rng.normal(0, 0.02, 30)
        metrics(
            root / f"align_{target}" / "metrics.csv",
            {"step": n * 4, "env_steps": n * 6000, "reward/mean": proxy, f"outcome/{target}": 0.3 + 0.65 * rise,
             "policy/kl": 0.4 * n / 30},
        )  # fmt: skip
        models = {
            target: {
                "agent": {"50": {"accuracy": 0.93, "pairs": 300}, "500": {"accuracy": 0.97, "pairs": 300}},
                "random": {"50": {"accuracy": 0.66, "pairs": 300}, "500": {"accuracy": 0.83, "pairs": 300}},
            }
        }
        write(build("LitAlign/Jumppads-v0", {}, models), root / f"reward_{target}" / "results.json")
    return root
