"""The YAML at a card's head: what the Hub files a repository under."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from lit_align.evaluation.intervals import Interval
from lit_align.sharing.hub_rules import size_word
from lit_align.sharing.measured import Evaluation
from lit_align.sharing.text import plain

LIBRARY, TASK, PAPER = "lit_align", "reinforcement-learning", "arxiv:2406.04208"
INTERVAL = "Wilson 95 %"


def model_head(
    name: str,
    licence: str | None,
    tags: list[str],
    base_models: list[str],
    datasets: list[str],
    evaluations: list[Evaluation],
    accuracy: tuple[Interval, int, str, str] | None = None,
) -> str:
    """The metadata of an agent or of a reward model as YAML, without the lines around it.

    Args:
        name: Of the model.
        licence: Identifier; None where none was chosen.
        tags: More tags.
        base_models: Hub ids of what it started from.
        datasets: Hub ids of what it learned from.
        evaluations: Of an agent.
        accuracy: Of a reward model on held-out comparisons, how many these are, the rule, and the world.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results = [EvalResult(**result) for one in evaluations for result in _results_of(one)]
    if accuracy is not None:
        rate, pairs, rule, world = accuracy
        results.append(
            EvalResult(
                task_type=TASK,
                task_name="reward model from comparisons",
                dataset_type=plain(world) or "unknown",
                dataset_name=f"held-out comparisons, rule {plain(rule) or 'unknown'}",
                metric_type="accuracy",
                metric_name="untied held-out comparisons judged right",
                metric_value=rate.value,
                metric_args=_interval(rate, pairs),
            )
        )
    data = ModelCardData(
        license=licence,
        library_name=LIBRARY,
        pipeline_tag=TASK,
        tags=_tags(tags),
        base_model=base_models or None,
        datasets=datasets or None,
        model_name=plain(name) or "unnamed" if results else None,
        eval_results=results or None,
    )
    if len(base_models) == 1:
        data["base_model_relation"] = "finetune"
    return data.to_yaml()


def data_head(
    name: str, licence: str | None, tags: list[str], rows: int, splits: Mapping[str, str], made_by_machine: bool
) -> str:
    """The metadata of trajectories or preferences as YAML.

    Args:
        name: Of the data.
        licence: Identifier; None where none was chosen.
        tags: More tags.
        rows: In all files.
        splits: Glob of the files of each split.
        made_by_machine: Whether a rule made the annotations.
    """
    from huggingface_hub import DatasetCardData

    files = [{"split": split, "path": path} for split, path in splits.items()]
    data = DatasetCardData(
        license=licence,
        pretty_name=plain(name) or "unnamed",
        size_categories=[size_word(rows)],
        task_categories=[TASK],
        annotations_creators=["machine-generated"] if made_by_machine else None,
        tags=_tags(tags),
        # Without it `meta.json` beside the data would be taken for data.
        configs=[{"config_name": "default", "data_files": files}],
    )
    return data.to_yaml()


def _tags(more: list[str]) -> list[str]:
    return list(dict.fromkeys(tag for tag in [LIBRARY, *(plain(each) for each in more), PAPER] if tag))


def _results_of(one: Evaluation) -> Iterator[dict[str, Any]]:
    """The shares of an evaluation's outcomes, and its return where that says more, as arguments of `EvalResult`."""
    of_all = {
        "task_type": TASK,
        "task_name": "reinforcement learning",
        "dataset_type": plain(one.environment) or "unknown",
        "dataset_name": plain(one.environment) or "unknown",
        # Evaluations that differ in these are told apart by it.
        "dataset_config": plain(f"{one.episodes} episodes, {one.under}"),
        "dataset_split": "evaluation",
        "dataset_args": _plain_json(one.entry.get("env_args")) or None,
    }
    if (told := one.returned) is not None:
        # As the Hub's leaderboards read it; small returns have more digits than two.
        smallest = told["std"] or abs(told["mean"])
        digits = max(2, 1 - math.floor(math.log10(smallest))) if smallest else 2
        spread = "" if told["std"] is None else f" +/- {told['std']:.{digits}f}"
        between = {"low": told["low"], "high": told["high"], "interval": "t 95 %"} if spread else {}
        yield {
            **of_all,
            "metric_type": "mean_reward",
            "metric_name": "mean_reward",
            "metric_value": f"{told['mean']:.{digits}f}{spread}",
            "metric_args": {**between, "n": one.episodes},
        }
    for outcome, rate in one.rates.items():
        yield {
            **of_all,
            "metric_type": "outcome_rate",
            "metric_name": f"share of episodes that end {plain(outcome) or '(empty)'}",
            "metric_value": rate.value,
            "metric_args": {"outcome": plain(outcome), **_interval(rate, one.episodes)},
        }


def _interval(rate: Interval, count: int) -> dict[str, Any]:
    return {"low": rate.low, "high": rate.high, "interval": INTERVAL, "n": count}


def _plain_json(value: Any) -> Any:
    """A JSON value whose texts are one line each, without numbers that are none."""
    if isinstance(value, Mapping):
        return {plain(key): _plain_json(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain_json(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | bool) or value is None else plain(value)
