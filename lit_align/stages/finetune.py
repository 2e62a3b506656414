"""Fine-tuning: imitate chosen play.

Curated trajectories make the paper's supervised fine-tuning (section 3.2); with `data.select` the agent's own
best-ranked rollouts make its preference fine-tuning, after ReST (Gulcehre et al. 2023, arXiv 2308.08998). With
`random_init` it is the from-scratch control (appendix E.1).
"""

from __future__ import annotations

from lit_align.stages.base import need_folder
from lit_align.stages.optim import OptimizerConfig
from lit_align.stages.pretrain import Pretrain
from lit_align.stages.training import TrainConfig


class Finetune(Pretrain):
    """The imitation loss of pre-training, on chosen play, starting from an agent.

    Args:
        head_weights: Weights of the loss by action head or group of heads, such as `{buttons: 0.5, right_stick.0: 2}`;
            1 for those not named. Validation counts all heads alike.
        train: What of the network trains, and how it runs.
        optimizer: Optimiser and schedule.
        init_from: Folder of the agent to start from.
        random_init: Take its architecture only: the control without pre-training.
    """

    name = "finetune"

    def __init__(
        self,
        head_weights: dict[str, float] | None = None,
        train: TrainConfig | None = None,
        optimizer: OptimizerConfig | None = None,
        init_from: str | None = None,
        random_init: bool = False,
    ) -> None:
        start = need_folder(init_from, "fine-tuning")
        super().__init__(None, None, head_weights, train, optimizer, start, random_init)
