"""The verbs of `lit-align`, and how one is run. Nothing heavy is imported until a verb is chosen."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from lit_align.errors import UserError, did_you_mean

STAGES = {
    "pretrain": "learn to act as recorded players do",
    "finetune": "go on with the good episodes only, or the best-ranked ones (ReST)",
    "reward": "learn what is preferred from comparisons (Bradley-Terry)",
    "prefer": "learn to act as is preferred, straight from comparisons (DPO, CPL)",
    "align": "online RL in the environment on a reward model",
}
"""Verbs that train: `lit-align VERB fit|validate|test`."""

COMMANDS = {
    "collect": "an agent or a scripted player plays; trajectories are saved",
    "compare": "make preferences between trajectories from a rule",
    "score": "a reward model ranks trajectories",
    "evaluate": "outcomes with intervals, seeds saved",
    "report": "the page with charts, heatmaps and videos",
    "study": "the numbers of many runs in one file, with figures",
    "play": "watch an agent, in a window or as a video",
    "push": "what a run left goes to the Hugging Face Hub, with its card",
    "pull": "an agent, a reward model, trajectories or preferences come from the Hub",
    "serve": "an agent acts for games in any language, over a WebSocket or a Unix socket",
    "export": "the agent or reward model of a checkpoint as a folder, or an agent as ONNX",
}
"""Verbs that are a function `run(...)` in `lit_align.commands.VERB`."""

LISTS = {"runs": "which runs there are, how far they came and how they ended"}
"""Verbs that answer at once: `run_command` and `check_command` in `lit_align.commands.VERB`."""

PIPELINE = {"pipeline": "the whole recipe, resumable, one progress line a stage"}

ALONE = ("serve", *LISTS)
"""Verbs that leave no folder, and are no stage of a pipeline."""

VERBS = {**PIPELINE, **STAGES, **COMMANDS, **LISTS}


def run_verb(argv: list[str]) -> None:
    """Runs `lit-align ARGV`.

    Args:
        argv: the verb and its arguments, without the program's name.

    Raises:
        UserError: if what was asked for cannot be done.
    """
    _action(argv, "run")(argv[1:])


def check_verb(argv: list[str]) -> None:
    """Raises a UserError if `argv` would not parse: unknown verbs, keys and values, without touching any data."""
    _action(argv, "check")(argv[1:])


def _action(argv: list[str], what: str) -> Callable[[list[str]], None]:
    verb = argv[0] if argv else ""
    if verb in STAGES:
        stage = importlib.import_module("lit_align.commands.stage")
        action = getattr(stage, f"{what}_stage")
        return lambda rest: action(verb, rest)
    if verb in COMMANDS:
        function = importlib.import_module("lit_align.commands.function")
        module = f"lit_align.commands.{verb}"
        return lambda rest: getattr(function, f"{what}_function")(verb, importlib.import_module(module).run, rest)
    if verb in PIPELINE or verb in LISTS:
        module = importlib.import_module(f"lit_align.commands.{verb}")
        return getattr(module, f"{what}_command")
    raise UserError(
        f"there is no verb {verb!r}{did_you_mean(verb, VERBS)}\nverbs: {', '.join(VERBS)} (`lit-align --help`)"
    )
