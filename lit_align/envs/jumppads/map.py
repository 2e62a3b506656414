"""The island as a map file for the engine: a PWAD with UDMF text, built from `terrain`.

Every sector is a polygon strictly inside its parent, so the tree of `Area`s is all there is to write. The engine
builds its own nodes from the text.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from lit_align.envs.jumppads import terrain
from lit_align.envs.jumppads.terrain import Point, plan, ring

__all__ = ["SKIES", "build_wad", "plan"]

SKY = 1800
PLAYER = "Castaway"

# Bare fists, and no second in which the keys do nothing.
DECORATE = f"""
actor {PLAYER} : DoomPlayer
{{
    Player.DisplayName "{PLAYER}"
    Player.StartItem "Fist"
    Player.WeaponSlot 1, "Fist"
    ReactionTime 0
}}
"""


@dataclass(frozen=True)
class Sky:
    """What the island lies under; nothing but the picture depends on it.

    Attributes:
        texture: The engine's name for the picture of the sky.
        light: Light on everything that stands under it but the pads, as a share of the day's.
    """

    texture: str
    light: float


# Recordings and training have the day: brown clouds. Dusk has red ones, night has stars; both are darker.
SKIES: dict[str, Sky] = {"day": Sky("SKY1", 1.0), "dusk": Sky("SKY3", 0.75), "night": Sky("SKY4", 0.6)}

GLOW = 255  # pads and their beams give a light of their own under every sky
START, TREE, ENTER_SECTOR, THRUST_UP = 1, 54, 9998, 128


@dataclass
class Area:
    """A polygon of ground, and the areas inside it."""

    points: list[Point]
    floor: int
    flat: str
    wall: str = "RROCK11"
    ceiling: int = SKY
    light: int = 208
    blocks_players: bool = False
    beam: str = ""
    inside: list[Area] = field(default_factory=list)


def _pad(centre: Point) -> Area:
    """A round step, and on it the launching plate, from whose rim a beam of light rises."""
    radius = terrain.PAD_RADIUS
    plate = Area(ring(centre, radius, 12), 32, "AQF044", "AQF044", light=GLOW, beam="PORAN")
    return Area(ring(centre, radius + 45, 12), 16, "AQF043", "AQF043", light=GLOW, inside=[plate])


def island(fenced: bool) -> Area:
    """The whole world: horizon, sea, beach, meadow and what stands on it.

    Args:
        fenced: Nobody can leave the beach for the water.
    """
    things = [Area(m.outline(), m.height, m.top, m.side) for m in (*terrain.SOLIDS, terrain.POND)]
    lookout: list[Area] = []
    for mark in reversed(terrain.LOOKOUT):
        lookout = [Area(mark.outline(), mark.height, mark.top, mark.side, inside=lookout)]
    yard = Area(ring(terrain.SPAWN, 300, 16), 16, "STONEW5", "STONEW5")
    yard.inside = [Area(ring(terrain.SPAWN, 240, 16), 32, "STONEW5", "STONEW5")]
    pads = [_pad(centre) for centre in terrain.PADS.values()]
    meadow = Area(ring((0, 0), terrain.MEADOW, 32), 0, "AQF022", inside=[*things, *lookout, yard, *pads])
    beach = Area(ring((0, 0), terrain.SHORE, 32), -8, "RROCK03", blocks_players=fenced, inside=[meadow])
    sea = Area(ring((0, 0), 5200, 24), terrain.SEA_FLOOR, "FWATER1", inside=[beach])
    # A ring without height, under the sky: the sea runs to an open horizon.
    return Area(ring((0, 0), 5600, 24), terrain.SEA_FLOOR, "FWATER1", ceiling=terrain.SEA_FLOOR, inside=[sea])


def _block(kind: str, **fields: object) -> str:
    def literal(value: object) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return f'"{value}"' if isinstance(value, str) else str(value)

    return f"{kind}{{" + "".join(f"{key}={literal(value)};" for key, value in fields.items()) + "}"


class _Textmap:
    """Collects the numbered parts of a UDMF map, all of it under a share `light` of the day's light."""

    def __init__(self, light: float) -> None:
        self.light = light
        self.parts: dict[str, list[str]] = {"vertex": [], "sector": [], "sidedef": [], "linedef": [], "thing": []}

    def add(self, kind: str, **fields: object) -> int:
        self.parts[kind].append(_block(kind, **fields))
        return len(self.parts[kind]) - 1

    def area(self, area: Area, parent: int | None = None) -> None:
        sector = self.add(
            "sector",
            heightfloor=area.floor,
            heightceiling=area.ceiling,
            texturefloor=area.flat,
            textureceiling="F_SKY1",
            lightlevel=area.light if area.light == GLOW else round(self.light * area.light),
        )
        # Lines share their sides, and defaults go unsaid: the engine reads this text at every new episode.
        middle: dict[str, object] = {"texturemiddle": area.beam} if area.beam else {}
        line: dict[str, object] = {"sidefront": self.add("sidedef", sector=sector, texturebottom=area.wall, **middle)}
        if parent is not None:
            back = self.add("sidedef", sector=parent, texturebottom=area.wall, **middle)
            line |= {"sideback": back, "twosided": True}
        if area.beam:
            line |= {"wrapmidtex": True, "renderstyle": "add", "alpha": 0.4}
        if area.blocks_players or parent is None:
            line["blocking"] = True
        corners = [self.add("vertex", x=x, y=y) for x, y in area.points]
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True):
            self.add("linedef", v1=start, v2=end, **line)
        for child in area.inside:
            self.area(child, sector)

    def thing(self, kind: int, at: Point, **fields: object) -> None:
        self.add("thing", x=at[0], y=at[1], type=kind, **fields, skill3=True, single=True)

    def text(self) -> str:
        return 'namespace = "zdoom";\n' + "\n".join(line for lines in self.parts.values() for line in lines) + "\n"


def textmap(fenced: bool = False, sky: str = "day") -> str:
    """The map as UDMF text."""
    text = _Textmap(SKIES[sky].light)
    text.area(island(fenced))
    text.thing(START, terrain.SPAWN, angle=90)
    for tree in terrain.TREES:
        text.thing(TREE, tree)
    for pad in terrain.PADS.values():
        text.thing(ENTER_SECTOR, pad, special=THRUST_UP, arg0=0, arg1=90, arg2=0, arg3=1)
    return text.text()


def _mapinfo(texture: str) -> str:
    return f"""
gameinfo {{ playerclasses = "{PLAYER}" }}
map MAP01 "Three jumppads" {{ sky1 = "{texture}" allowjump allowcrouch }}
"""


def _lumps(fenced: bool, sky: str) -> Iterator[tuple[str, bytes]]:
    yield "MAPINFO", _mapinfo(SKIES[sky].texture).encode()
    yield "DECORATE", DECORATE.encode()
    yield "MAP01", b""
    yield "TEXTMAP", textmap(fenced, sky).encode()
    yield "ENDMAP", b""


@lru_cache(maxsize=4)
def build_wad(fenced: bool = False, sky: str = "day") -> bytes:
    """The bytes of the PWAD that the engine loads.

    Args:
        fenced: Nobody can leave the beach for the water.
        sky: One of `SKIES`.
    """
    body, directory = b"", b""
    for name, data in _lumps(fenced, sky):
        directory += struct.pack("<ii8s", 12 + len(body), len(data), name.encode())
        body += data
    return b"PWAD" + struct.pack("<ii", len(directory) // 16, 12 + len(body)) + body + directory
