"""What the Hub refuses in a card's metadata, by its documentation and by its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from lit_align.errors import UserError, did_you_mean
from lit_align.sharing.facts import number_or_none

_LICENCES = (
    "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 "
    "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 "
    "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 "
    "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0 "
    "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 grok2-community "
    "h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 "
    "lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 pddl postgresql "
    "unknown unlicense wtfpl zlib other"
)
LICENCES = frozenset(_LICENCES.split())
"""Identifiers that the Hub takes (huggingface.co/docs/hub/repositories-licenses, May 2026); it refuses any other."""
RELATIONS = ("adapter", "merge", "quantized", "finetune")
_SIZES = (
    *((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M")),
    *((1e8, "10M<n<100M"), (1e9, "100M<n<1B"), (1e10, "1B<n<10B"), (1e11, "10B<n<100B"), (1e12, "100B<n<1T")),
)


def size_word(rows: int) -> str:
    """The Hub's word for so many rows, such as `1K<n<10K`."""
    return next((word for limit, word in _SIZES if rows < limit), "n>1T")


def check_licence(licence: str | None) -> None:
    """Raises a UserError for a licence that the Hub would refuse; None is none."""
    if licence is not None and licence not in LICENCES:
        raise UserError(
            f"the licence {licence!r} is none that the Hub knows{did_you_mean(licence.lower(), LICENCES)}; expected an "
            "identifier such as apache-2.0, mit, cc-by-4.0, or other"
        )


def faults(head: Mapping[str, Any], repo_type: str) -> list[str]:
    """What is wrong with a card's metadata; empty where all is well."""
    wrong: list[str] = []
    if head.get("license", "unknown") not in LICENCES:
        wrong.append(f"license is {head['license']!r}")
    wrong += [f"{key} is no list of texts" for key in ("tags", "task_categories") if not _texts(head.get(key, ["x"]))]
    if repo_type == "dataset":
        words = {word for _, word in _SIZES} | {"n>1T"}
        wrong += [f"size_categories holds {word!r}" for word in head.get("size_categories", ()) if word not in words]
        wrong += list(_config_faults(head.get("configs", ())))
    else:
        named = head.get("base_model", [])
        wrong += list(_id_faults("base_model", [named] if isinstance(named, str) else named))
        wrong += list(_id_faults("datasets", head.get("datasets", [])))
        if head.get("base_model_relation", "finetune") not in RELATIONS:
            wrong.append(f"base_model_relation is {head['base_model_relation']!r}")
        for i, each in enumerate(head.get("model-index", ())):
            wrong += list(_index_faults(f"model-index[{i}]", each))
    try:
        json.dumps(head, allow_nan=False)
    except (TypeError, ValueError) as error:
        wrong.append(f"not JSON: {error}")
    return wrong


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) and each for each in value)


def _id_faults(key: str, ids: Any) -> Iterator[str]:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    if not _texts(ids):
        yield f"{key} is {ids!r}"
        return
    for each in ids:
        try:
            validate_repo_id(each)
        except HFValidationError as error:
            yield f"{key}: {error}"


def _config_faults(configs: Any) -> Iterator[str]:
    for config in configs:
        if not isinstance(config.get("config_name"), str) or not config.get("data_files"):
            yield f"configs holds {config!r}"
        for file in config.get("data_files", ()):
            if not all(isinstance(file.get(key), str) for key in ("split", "path")):
                yield f"data_files holds {file!r}"


def _index_faults(where: str, entry: Any) -> Iterator[str]:
    if not isinstance(entry.get("name"), str) or not entry.get("results"):
        yield f"{where} has no name or no results"
    for i, result in enumerate(entry.get("results", ())):
        here, data = f"{where}.results[{i}]", result.get("dataset", {})
        needed = [("task.type", result.get("task", {}).get("type")), ("dataset.type", data.get("type"))]
        needed.append(("dataset.name", data.get("name")))
        yield from (f"{here}.{key} is {text!r}" for key, text in needed if not isinstance(text, str) or not text)
        optional = [(key, data.get(key, "")) for key in ("config", "split", "revision")]
        yield from (f"{here}.dataset.{key} must be a string" for key, text in optional if not isinstance(text, str))
        if not result.get("metrics"):
            yield f"{here} has no metrics"
        for metric in result.get("metrics", ()):
            if not isinstance(metric.get("type"), str) or not metric["type"]:
                yield f"{here}: a metric has the type {metric.get('type')!r}"
            value = metric.get("value")
            if number_or_none(value) is None and not isinstance(value, str):
                yield f"{here}: the metric {metric.get('type')} is {value!r}"
