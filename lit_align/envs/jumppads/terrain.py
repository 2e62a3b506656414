"""What stands where on the island: plain data.

In the engine's map units, x to the east and y to the north; the player is 32 wide and 56 tall. The island is a round
meadow with a beach. The player starts in a paved yard in the south; three identical jumppads wait in the north, all
about 2750 units away. Nothing stands on the straight lines from the yard to the pads: a walk fails by what the walker
does, not for want of a way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Point = tuple[float, float]

SHORE = 2150.0
MEADOW = 1950.0
SEA_FLOOR = -72
SPAWN: Point = (0.0, -1600.0)
SPAWN_RADIUS = 140.0
SPAWN_HEADING_SPREAD = 60.0  # degrees to either side of north
PAD_RADIUS = 120.0

# Where episodes begin: in the yard; there too, but looking the other way; at one of `ELSEWHERE`.
SPAWNS = ("yard", "away", "elsewhere")
# On open ground between the yard and the pads, to both sides of the straight lines; no other episode begins there.
ELSEWHERE: tuple[Point, ...] = ((-1500, -900), (1500, -1000), (-600, -700), (620, -620), (-800, 100), (850, 150))
ELSEWHERE_RADIUS = 60.0


@dataclass(frozen=True)
class Landmark:
    """Something to walk to or around.

    Attributes:
        name: What it is called in plots and by the scripted players.
        centre: `(x, y)`.
        radius: Half its width.
        height: Height of its top above the meadow; steps higher than 24 cannot be climbed.
        sides: Corners of its outline.
        side: Texture of its walls.
        top: Texture of its top.
        turn: Rotation of the outline, in degrees.
    """

    name: str
    centre: Point
    radius: float
    height: int
    sides: int
    side: str
    top: str
    turn: float = 0.0

    @property
    def solid(self) -> bool:
        """Whether a player cannot walk onto it."""
        return self.height > 24

    def outline(self) -> list[Point]:
        """Its corners, clockwise."""
        return ring(self.centre, self.radius, self.sides, self.turn)


def ring(centre: Point, radius: float, sides: int, turn: float = 0.0) -> list[Point]:
    """Corners of a regular polygon `radius` around `centre`, clockwise, rounded to whole units."""
    angles = [math.radians(turn) - 2 * math.pi * i / sides for i in range(sides)]
    return [
        (float(round(centre[0] + radius * math.cos(a))), float(round(centre[1] + radius * math.sin(a)))) for a in angles
    ]


PADS: dict[str, Point] = {"left": (-1300.0, 800.0), "middle": (0.0, 1200.0), "right": (1300.0, 800.0)}

# What tells one pad from another: seen from the yard each stands right beside its beam.
BEACONS = (
    Landmark("blue tower", (-1585, 690), 150, 560, 4, "PBLUE", "PBLUE", 45),
    Landmark("white column", (-260, 1290), 75, 480, 6, "STONEW5", "STONEW5"),
    Landmark("white column", (260, 1290), 75, 480, 6, "STONEW5", "STONEW5"),
    Landmark("red tower", (1585, 690), 150, 560, 4, "PRED", "PRED", 45),
)

ROCKS = (
    Landmark("rock", (-470, 260), 150, 130, 7, "SP_ROCK1", "RROCK11", 10),
    Landmark("rock", (470, 260), 150, 130, 7, "SP_ROCK1", "RROCK11", 40),
    Landmark("rock", (-1560, -60), 170, 150, 8, "SP_ROCK1", "RROCK11", 5),
    Landmark("rock", (1580, 20), 160, 140, 7, "SP_ROCK1", "RROCK11", 25),
    Landmark("rock", (-640, 1480), 130, 120, 6, "SP_ROCK1", "RROCK11"),
    Landmark("rock", (700, 1480), 140, 130, 7, "SP_ROCK1", "RROCK11"),
)

# The ruin is three walls around a yard, the crates a loose pile.
RUIN = (
    Landmark("ruin", (-1000, -1130), 90, 150, 4, "ZZWOLF11", "ZZWOLF11", 45),
    Landmark("ruin", (-1190, -960), 80, 190, 4, "ZZWOLF11", "ZZWOLF11", 20),
    Landmark("ruin", (-960, -800), 90, 110, 4, "ZZWOLF11", "ZZWOLF11", 65),
)
CRATES = (
    Landmark("crate", (980, -1080), 70, 96, 4, "CRATE1", "CRATOP2", 45),
    Landmark("crate", (1130, -1000), 70, 96, 4, "CRATE1", "CRATOP2", 60),
    Landmark("crate", (1010, -900), 60, 64, 4, "CRATE1", "CRATOP2", 20),
)
POND = Landmark("pond", (-1130, -330), 210, -16, 10, "STONEW5", "FWATER1")
LOOKOUT = tuple(
    Landmark(
        "lookout",
        (1130, -300),
        radius,
        height,
        10,
        "PRED" if height % 32 else "STONEW5",
        "AQF044" if height == 64 else "STONEW5",
    )
    for radius, height in ((250, 16), (200, 32), (150, 48), (100, 64))
)

SOLIDS = BEACONS + ROCKS + RUIN + CRATES
TREES: tuple[Point, ...] = (
    (-195, -760), (200, -860), (-1500, -620), (1560, -560), (-220, 560), (260, 700), (-900, 1250), (980, 1280),
    (-1720, 330), (1740, 330), (0, 1700), (-560, -1560), (640, -1600),
)  # fmt: skip
TREE_RADIUS = 32.0

# Where a player who does not head for a pad may go.
SIGHTS: dict[str, Point] = {
    "ruin": (-1040, -960),
    "pond": POND.centre,
    "crates": (880, -960),
    "lookout": LOOKOUT[0].centre,
    "west rock": (-560, 60),
    "east rock": (560, 60),
    "north beach": (-330, 1880),
    "west beach": (-1980, -300),
    "east beach": (1980, -250),
}


def plan() -> dict[str, object]:
    """The island from above, for plots: plain lists and numbers.

    Returns:
        `outline` (the shoreline) and `meadow` as lists of `[x, y]`; `solids`, `sights` as lists of `{name, points}`;
        `trees` as `[x, y, radius]`;
        `pads` as `{name: [x, y, radius]}`; `spawn` as `[x, y, radius]`; `extent` as `[x0, x1, y0, y1]`. All in map
        units.
    """

    def shape(mark: Landmark) -> dict[str, object]:
        return {"name": mark.name, "points": [list(p) for p in mark.outline()]}

    return {
        "outline": [list(p) for p in ring((0, 0), SHORE, 32)],
        "meadow": [list(p) for p in ring((0, 0), MEADOW, 32)],
        "solids": [shape(mark) for mark in SOLIDS],
        "sights": [shape(mark) for mark in (POND, *LOOKOUT)],
        "trees": [[x, y, TREE_RADIUS] for x, y in TREES],
        "pads": {name: [x, y, PAD_RADIUS] for name, (x, y) in PADS.items()},
        "spawn": [*SPAWN, SPAWN_RADIUS],
        "extent": [-SHORE, SHORE, -SHORE, SHORE],
    }
