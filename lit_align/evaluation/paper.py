"""The paper's own figures, to stand beside ours.

Aligning Agents like Large Language Models (Jelley et al., arXiv 2406.04208). Read to 0.1 % from the vector data of the
authors' published figures. The game, the data and the sizes differ from ours: a reference, not a target.
"""

from __future__ import annotations

CITATION = "Jelley et al., Aligning Agents like Large Language Models, arXiv 2406.04208"

# Percent of rollouts that ended so.
SUCCESS: dict[str, dict[str, float]] = {
    "pretrain": {"left": 11.8, "middle": 37.0, "right": 7.6, "none": 43.6},
    "finetune": {"left": 31.9, "middle": 33.3, "right": 23.4, "none": 11.4},
    "align_left": {"left": 98.7, "middle": 0.9, "right": 0.0, "none": 0.4},
    "align_right": {"left": 0.1, "middle": 0.1, "right": 99.8, "none": 0.0},
}

# Test comparison accuracy in percent: number of comparisons -> (mean, lowest, highest) of 20 runs.
REWARD_ACCURACY: dict[str, dict[int, tuple[float, float, float]]] = {
    "agent": {
        50: (91.5, 84.2, 95.2),
        100: (93.7, 90.5, 96.7),
        1_000: (95.9, 93.4, 97.4),
        10_000: (97.3, 95.5, 99.0),
        100_000: (98.8, 98.2, 99.4),
        500_000: (99.1, 98.7, 99.5),
    },
    "random": {
        50: (41.0, 11.5, 72.5),
        100: (31.6, 14.3, 63.2),
        1_000: (28.1, 15.9, 51.1),
        10_000: (27.8, 16.3, 43.1),
        100_000: (34.6, 21.4, 53.4),
        500_000: (31.0, 21.3, 46.9),
    },
}
