"""From a gamepad to the engine's controls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

# Buttons of the pad that do something here; the others are part of the action and change nothing.
JUMP, CROUCH, ATTACK = 0, 1, 7

SPEED = 40.0  # at full stick: 12.9 map units a tic once up to speed
TURN = 6.0  # degrees a tic at full stick
LOOK = 1.5  # degrees a tic at full stick


def controls(action: dict[str, Any]) -> list[float]:
    """What the engine is told for an action of `gamepad_space`.

    Args:
        action: `buttons` `(12,)` of 0 and 1; `left_stick` `(2,)`, right and forward; `right_stick` `(2,)`, turn right
            and look up.

    Returns:
        Forward, right (map speed), turn right, look up (degrees a tic), jump, crouch, attack.

    Raises:
        ValueError: A stick is not a finite number in [-1, 1], a button is not 0 or 1, or a part is missing.
    """
    try:
        right, forward = np.asarray(action["left_stick"]).tolist()
        turn, look = np.asarray(action["right_stick"]).tolist()
        buttons = np.asarray(action["buttons"]).tolist()
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            "the action must be a dict with 'buttons' (12,), 'left_stick' (2,) and 'right_stick' (2,); "
            f"found {sorted(action) if isinstance(action, dict) else type(action).__name__} ({error})"
        ) from error
    for name, value in (("left_stick", right), ("left_stick", forward), ("right_stick", turn), ("right_stick", look)):
        if not -1.0001 <= value <= 1.0001:  # false for NaN as well
            raise ValueError(f"action['{name}'] holds {value}; expected a finite number in [-1, 1]")
    if len(buttons) != 12 or any(b not in (0, 1) for b in buttons):
        raise ValueError(f"action['buttons'] is {buttons}; expected 12 values, each 0 or 1")
    # The engine adds its axes up: without a gate a diagonal would be faster than straight on.
    gate = SPEED / max(1.0, math.hypot(right, forward))
    pressed = [float(buttons[i]) for i in (JUMP, CROUCH, ATTACK)]
    return [forward * gate, right * gate, turn * TURN, look * LOOK, *pressed]
