"""Configuration files: the shipped ones changed in every way, checked as a command checks them before it begins."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import yaml

import lit_align.commands.stage  # noqa: F401  the first case is not to pay for it
from lit_align.commands import STAGES, VERBS, check_verb
from lit_align.pipeline import commands_of, load_pipeline
from tools.fuzz import _mutate

SECONDS = 30.0
ROOT = Path(__file__).parents[2]
FUNCTIONS = {
    "evaluate": {"agents": ["outputs/a/agent"], "episodes": 20, "out": "outputs/e", "env_args": {"size": 64}},
    "collect": {"out": "outputs/c", "players": {"goal": 3, "wander": 1}, "episodes": 10, "only": ["left"]},
    "compare": {"trajectories": "outputs/c", "out": "outputs/p", "comparisons": 5, "rule": {"ranking": [["left"]]}},
}
"""What verbs that are functions take."""
SNIPPETS = (
    *_mutate.TEXTS,
    "base: quickstart.yaml\n", "base: [1]\n", "base: .\n", "stages:\n", "stages: {a: {run: collect}}\n",
    "run: pipeline\n",
    "needs: [nothing]\n", "threads: 0\n", "jobs: -1\n", "args: {out: x}\n", "config: missing.yaml\n", "out: ${out}\n",
    "a: &a [*a]\n", "b: &b {<<: *b}\n", "<<: {model: 1}\n", "? [x, y]\n: z\n", "--- \n", "...\n", "%YAML 9.9\n---\n",
    "!!python/object/apply:os.getcwd []", "!!binary aGk=", "!!set {a, b}", "!!timestamp 2020-99-99", "!x y",
    "model: {backbone: {width: 1e9}}\n", "trainer: {callbacks: [{class_path: nothing.At.All}]}\n",
    "trainer: {callbacks: {class_path: lightning.pytorch.callbacks.Timer, init_args: {x: 1}}}\n",
    "trainer: {logger: [1]}\n", "data: null\n", "model: []\n", "seed: 1\nseed: 2\n", "{a: 1, a: 2}",
    "[" * 400, "{a: " * 300,
    "- " * 300, "9" * 5000, "-.inf", "0b111", "1:2:3:4", "~: ~\n", "true: 1\n", "1: 2\n", "3.5: x\n", "null: x\n",
)  # fmt: skip


@cache
def given() -> list[tuple[str, Path, str]]:
    """Shipped configurations: the verb that reads each, its path and its text."""
    found: list[tuple[str, Path, str]] = []
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        text = path.read_text()
        top = yaml.safe_load(text) or {}
        if "stages" in top or "base" in top:
            found.append(("pipeline", path, text))
        elif path.stem in STAGES:
            found.append((path.stem, path, text))
        elif "trainer" in top or "model" in top:
            found.append(("pretrain", path, text))
    stages = [each for each in found if each[0] != "pipeline"]
    functions = [(verb, ROOT / f"{verb}.yaml", yaml.safe_dump(content)) for verb, content in FUNCTIONS.items()]
    # One of each sort as often as another; checking a stage takes the longest.
    return [*stages, *functions * 4, *(each for each in found if each[0] == "pipeline")]


def bomb(rng: random.Random) -> str:
    """Aliases of aliases: a few lines that stand for billions of values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    levels = rng.choice((3, 10, 30))
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, levels)]
    key = rng.choice(("model", "stages", "out", "agents", "env_args", "data", "z"))
    return "\n".join([*lines, f"{key}: *a{levels - 1}"]) + "\n"


def changed(rng: random.Random, text: str) -> bytes:
    """A configuration with something wrong in it."""
    how = rng.randrange(20)
    if how < 8:
        content: Any = _mutate.tree(rng, yaml.safe_load(text), ("stages", "run", "args", "base", "model", "trainer"))
        with contextlib.suppress(yaml.YAMLError, ValueError, RecursionError):  # what cannot be written as YAML
            return _mutate.encoded(rng, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
    if how < 16:
        return _mutate.encoded(rng, _mutate.text(rng, text, SNIPPETS))
    if how == 16:
        return bomb(rng).encode() + (text.encode() if rng.random() < 0.5 else b"")
    if how == 17:
        return rng.choice((b"", b"\n", b"---\n", b"null\n", b"# nothing\n", b"\t\n", b"[]\n", b"{}\n", b"7\n"))
    if how == 18:
        return rng.randbytes(rng.choice((1, 30, 3000)))
    return _mutate.data(rng, text.encode())


def one(rng: random.Random) -> None:
    """A file that some verb is given as `--config`, alone or over a good one."""
    verb, path, text = rng.choice(given())
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch, _quiet(), _in(scratch):
        file = Path(scratch) / "c.yaml"
        file.write_bytes(changed(rng, text))
        first = ["--config", str(path)] if path.is_file() and rng.random() < 0.3 else []
        if verb == "pipeline":
            pipeline = load_pipeline([*first[1:], str(file)], [], VERBS)
            pipeline.fingerprints()
            commands_of(pipeline.stages.values())
        else:
            check_verb([verb, *(["fit"] if verb in STAGES else []), *first, "--config", str(file)])


@contextlib.contextmanager
def _in(folder: str) -> Any:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _quiet() -> Any:
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
