"""Verbs without torch, for tests of the pipeline: each writes what it got into its `--out`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from lit_align.errors import UserError
from lit_align.pipeline import load_pipeline
from lit_align.progress import Progress
from lit_align.scheduler import run_pipeline

VERBS = ("write", "fail", "train", "hang", "die", "pipeline")


def parse(argv: list[str]) -> tuple[list[str], dict[str, str]]:
    words, options, index = [], {}, 0
    while index < len(argv):
        word = argv[index]
        if word.startswith("--") and "=" in word:
            key, value = word[2:].split("=", 1)
            options[key] = value
        elif word.startswith("--"):
            options[word[2:]] = argv[index + 1]
            index += 1
        else:
            words.append(word)
        index += 1
    return words, options


def check(argv: list[str]) -> None:
    _, options = parse(argv)
    if "typo" in options:
        raise UserError("unknown option --typo")


def cell(config: str, overrides: list[str]) -> None:
    """A pipeline as a stage of another, as `lit-align pipeline` runs one."""
    pipeline = load_pipeline([config], overrides, VERBS)
    progress = Progress(len(pipeline.stages), 8)
    try:
        code = run_pipeline(pipeline, run, check, lambda words: words[0] == "train", progress)
    finally:
        progress.close()
    if code:
        sys.exit(code)


def run(argv: list[str]) -> None:
    words, options = parse(argv)
    if words[0] == "pipeline":
        cell(options.pop("config"), [f"{key}={value}" for key, value in options.items()])
        return
    folder = Path(options["out"])
    sys.stdout.write(f"said by {folder.name}\n")
    subprocess.run(["echo", "said by a child"], check=True)
    began = time.monotonic()
    if "seconds" in options:
        time.sleep(float(options["seconds"]))
    if words[0] == "fail":
        raise ValueError("it went wrong")
    if words[0] == "die":
        os._exit(3)
    folder.mkdir(parents=True, exist_ok=True)
    if words[0] == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        (folder / "pids.json").write_text(json.dumps([os.getpid(), child.pid]))
        time.sleep(600)
    runs = folder.parent / f"runs-{folder.name}"
    runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
    times = {
        "began": began,
        "ended": time.monotonic(),
        "process": os.getpid(),
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    (folder / "options.json").write_text(json.dumps({**options, **times}))
    (folder / "headline.txt").write_text(f"{folder.name} is well")
    if words[0] == "train" and "resume" not in options:
        raise KeyboardInterrupt  # as if the person pressed Ctrl-C in the middle
