"""What cannot be meant by the options of `align`, and networks that do not fit the world: found before play begins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lit_align.errors import UserError
from lit_align.models.agent import Agent
from lit_align.models.reward import RewardModel

if TYPE_CHECKING:
    from lit_align.stages.align import Align


def wrong_options(align: Align) -> list[str]:
    """A message for each option, or pair of options, that does not fit."""
    errors = []
    if not (align.temperature > 0 and (align.clip is None or align.clip > 0)):
        errors.append(
            f"model.temperature is {align.temperature} and model.clip {align.clip}; expected more than 0 (null for no "
            "clipping)"
        )
    if not (0 < align.gamma <= 1 and 0 <= align.gae_lambda <= 1):
        errors.append(f"model.gamma is {align.gamma} and model.gae_lambda {align.gae_lambda}; expected 0 to 1")
    if align.gamma != 1 and align.estimator != "ppo":
        errors.append(
            f"model.gamma is {align.gamma}, and {align.estimator} does not discount: leave it out, or set "
            "model.estimator to ppo"
        )
    if not (align.value_coefficient > 0 and (align.value_clip is None or align.value_clip > 0)):
        errors.append(
            f"model.value_coefficient is {align.value_coefficient} and model.value_clip {align.value_clip}; expected "
            "more than 0 (null for no clipping)"
        )
    if align.estimator != "ppo" and (align.gae_lambda, align.value_coefficient, align.value_clip) != (0.95, 0.5, None):
        errors.append(
            f"model.gae_lambda is {align.gae_lambda}, model.value_coefficient {align.value_coefficient} and "
            f"model.value_clip {align.value_clip}, and {align.estimator} has no value head: leave them out, or set "
            "model.estimator to ppo"
        )
    if align.min_std < 0 or (align.min_std > 0 and not align.scale_advantages):
        errors.append(
            f"model.min_std is {align.min_std} and model.scale_advantages {align.scale_advantages}; expected 0 or "
            "more, and more than 0 only where advantages are scaled"
        )
    if not 0 <= align.pessimism < math.inf:
        errors.append(f"model.pessimism is {align.pessimism}; expected 0 or more")
    if not all(math.isfinite(weight) for weight in align.sources.values()):
        errors.append(f"model.rewards is {align.sources}; expected a finite weight for each source")
    return errors + _wrong_kl(align)


def _wrong_kl(align: Align) -> list[str]:
    told = f"model.kl {align.kl}, model.kl_target {align.kl_target}, model.max_kl {align.max_kl}"
    if not align.has_reference and (align.kl != 0 or align.kl_target is not None or align.max_kl is not None):
        return [
            f"model.reference is none, and {told}: without a reference there is no KL; expected model.kl 0 and the "
            "others null"
        ]
    if not (align.kl >= 0 and (align.max_kl is None or align.max_kl >= 0)):
        return [f"{told}: expected a coefficient of 0 or more and a budget of 0 or more"]
    if align.kl_target is not None and not (align.kl_target > 0 and align.kl > 0):
        return [f"{told}: a coefficient that is steered starts above 0; expected more than 0 of both"]
    return []


def check_networks(
    init_from: str, agent: Agent, reference: Agent | None, models: Mapping[str, RewardModel], data: Any
) -> None:
    """Raises UserError unless all networks see what the world of the data module shows, and act on what it takes."""
    taken = agent.codec.of(data.codec.space)
    if agent.codec != taken:
        raise UserError(f"the agent of '{init_from}' acts on {agent.codec}; {data.env} takes {taken}")
    if reference is not None and reference.codec != agent.codec:
        raise UserError(f"the reference acts on {reference.codec}, the agent on {agent.codec}; they must be the same")
    networks: dict[str, Agent | RewardModel] = {"agent": agent}
    if reference is not None:
        networks["reference"] = reference
    networks |= {f"reward model {name}" if len(models) > 1 else "reward model": m for name, m in models.items()}
    for what, network in networks.items():
        sees = (network.config.image_size, network.config.vector_size)
        if sees != (data.image_size, data.vector_size):
            raise UserError(
                f"the {what} sees {sees[0]} pixels and a vector of {sees[1]} numbers, {data.env} shows "
                f"{data.image_size} and {data.vector_size}: make the world show that (the island takes "
                "--data.env_args '{size: N}') or retrain"
            )
