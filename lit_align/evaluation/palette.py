"""Colours, for pictures with and without matplotlib."""

from __future__ import annotations

from dataclasses import dataclass

# The island's landmarks: a blue-topped tower on the left, pale columns in the middle, a red tower on the right.
OUTCOME_COLOURS = {"left": "#3d8bfd", "middle": "#e3a72f", "right": "#e5484d", "none": "#8b95a5"}
SPARE_COLOURS = ("#3d8bfd", "#e3a72f", "#e5484d", "#30a46c", "#8e4ec6", "#12a594", "#f76b15", "#8b95a5")


@dataclass(frozen=True)
class Theme:
    """Colours of a light or a dark picture."""

    name: str
    page: str
    panel: str
    text: str
    muted: str
    grid: str

    @property
    def suffix(self) -> str:
        """Return what comes after a picture's name: nothing for light, `-dark` for dark."""
        return "" if self.name == "light" else f"-{self.name}"


LIGHT = Theme("light", "#ffffff", "#f5f7fa", "#16202e", "#66738a", "#e2e7ee")
DARK = Theme("dark", "#0d1420", "#141d2c", "#e9eef6", "#8d9ab0", "#243044")
THEMES = (LIGHT, DARK)
