"""Where things stand in an invented room, its light, and from where it is seen. Lengths are metres; the open side,
which has no wall, is y = 0, and z points up."""

from __future__ import annotations

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from soir_qdrant.lab.needlebench.furniture import Piece, Stock

Point: TypeAlias = tuple[float, float, float]
Colour: TypeAlias = tuple[float, float, float]
Footprint: TypeAlias = tuple[float, float, float, float]  # x0, x1, y0, y1

RECOLOURED = 0.35  # share of the pieces that come in another colour
NORTH, WEST, EAST = 0.0, math.pi / 2, -math.pi / 2  # turns with the back to that wall
SIZES = ((512, 384), (512, 384), (512, 342), (384, 512), (448, 448))  # of the image


@dataclass(frozen=True, slots=True)
class Surface:
    """Of floor, wall, ceiling or rug. texture: an image, laid in pieces of 1 / scale metres; None for one colour."""

    texture: Path | None
    scale: float
    roughness: float
    colour: Colour = (0.8, 0.8, 0.8)


@dataclass(frozen=True, slots=True)
class Room:
    """Its walls: to the west and east, and to the north, of another look perhaps."""

    size: Point
    floor: Surface
    sides: Surface
    north: Surface
    ceiling: Surface
    rug: tuple[Footprint, Surface] | None


@dataclass(frozen=True, slots=True)
class Lamp:
    """A rectangle that shines on a point. power: watts."""

    place: Point
    target: Point
    sides: tuple[float, float]
    power: float
    colour: Colour


@dataclass(frozen=True, slots=True)
class View:
    """What an image of a room is taken with. sky: colour and strength of what shines in at the open side. angle:
    of the wider side, in degrees. size: pixels, width and height."""

    sky: tuple[Colour, float]
    lamps: tuple[Lamp, Lamp]
    place: Point
    target: Point
    angle: float
    size: tuple[int, int]


class World(Protocol):
    """What a room is built in."""

    def build(self, room: Room) -> None:
        """Floor, ceiling and walls."""
        ...

    def put(self, piece: Piece, shade: int, place: Point, turn: float) -> bool:
        """Set a piece down; False where its model cannot be read. shade: 0 as it comes, 1 in another colour."""
        ...

    def top(self, x: float, y: float, below: float) -> float | None:
        """The height of what lies there, below a height; None where it is nothing or not level. What is put down after
        the first question is not looked at."""
        ...


@dataclass(slots=True)
class Furnisher:
    """Fills one room. placed: what stands in it, by its middle; tops: places to put small things on."""

    world: World
    stock: Stock
    rng: random.Random
    placed: list[Point] = field(default_factory=list)
    taken: list[Footprint] = field(default_factory=list)
    tops: list[tuple[Footprint, float]] = field(default_factory=list)

    def room(self) -> View:
        """Build and fill it, and say how it is looked at."""
        rng = self.rng
        size = rng.uniform(3, 6), rng.uniform(3, 5), rng.uniform(2.4, 3)
        self.world.build(self._walls(size))
        self._floor(size)
        self._small(size[2])
        self._hanging(size)
        self._on_wall(size)
        return self._view(size)

    def _walls(self, size: Point) -> Room:
        rng, (width, depth, _) = self.rng, size
        floor = self._surface(rng.random() < 0.8, rng.uniform(0.4, 1.2))
        sides = self._surface(rng.random() < 0.15, rng.uniform(0.3, 1))
        north = sides if rng.random() < 0.6 else self._surface(rng.random() < 0.25, rng.uniform(0.3, 1))
        ceiling, rug = self._surface(False, 1.0), None
        if rng.random() < 0.5:
            look = self._surface(rng.random() < 0.7, rng.uniform(0.4, 2))
            w, d = rng.uniform(1, 2.4), rng.uniform(1, 1.8)
            x, y = rng.uniform(0.3, max(0.31, width - w - 0.3)), rng.uniform(0.3, max(0.31, depth - d - 0.3))
            rug = (x, min(x + w, width), y, min(y + d, depth)), look
        return Room(size, floor, sides, north, ceiling, rug)

    def _surface(self, textured: bool, scale: float) -> Surface:
        rng = self.rng
        roughness = rng.uniform(0.3, 0.9)
        if textured:
            return Surface(rng.choice(self.stock.textures), scale, roughness)
        hue, saturation, value = rng.random(), rng.choice([0, 0.05, 0.1, 0.25, 0.5]), rng.uniform(0.25, 0.9)
        return Surface(None, scale, roughness, colorsys.hsv_to_rgb(hue, saturation, value))

    def _put(self, piece: Piece, shade: int, place: Point, turn: float) -> bool:
        done = self.world.put(piece, shade, place, turn)
        if done:
            self.placed.append(place)
        return done

    def _shade(self) -> int:
        return int(self.rng.random() < RECOLOURED)

    def _floor(self, size: Point) -> None:
        """Furniture along the walls, and in the middle."""
        rng, count = self.rng, self.rng.choice([6, 8, 10, 12])
        for piece in rng.sample(self.stock.floor, min(len(self.stock.floor), 60)):
            if len(self.placed) >= count:
                break
            if piece.size[2] > size[2] - 0.1:
                continue
            for _ in range(8):
                turn, place = self._stand(piece, size)
                if not inside(place, size) or meets(place, self.taken):
                    continue
                middle = (place[0] + place[1]) / 2, (place[2] + place[3]) / 2, 0.0
                if self._put(piece, self._shade(), middle, turn):
                    self._occupy(piece, place)
                break

    def _stand(self, piece: Piece, size: Point) -> tuple[float, Footprint]:
        """A turn and a footprint, which may be taken or outside."""
        rng, (w, d, h), (width, depth, _) = self.rng, piece.size, size
        if rng.random() < 0.7 and h > 0.5:
            wall, gap = rng.choice("nnwe"), rng.uniform(0.01, 0.06)
            if wall == "n":
                x = rng.uniform(0, max(width - w, 0))
                return NORTH, (x, x + w, depth - d - gap, depth - gap)
            y = rng.uniform(0.3, max(depth - w, 0.31))
            if wall == "w":
                return WEST, (gap, gap + d, y, y + w)
            return EAST, (width - d - gap, width - gap, y, y + w)
        turn = rng.choice([0, math.pi / 2, math.pi, -math.pi / 2]) + rng.choice(
            [0, 0, rng.uniform(-0.5, 0.5)]
        )
        along, across = abs(math.cos(turn)), abs(math.sin(turn))
        wide, deep = w * along + d * across, w * across + d * along
        x = rng.uniform(0.2, max(width - wide - 0.2, 0.21))
        y = rng.uniform(0.6, max(depth - deep - 0.2, 0.61))
        return turn, (x, x + wide, y, y + deep)

    def _occupy(self, piece: Piece, place: Footprint) -> None:
        x0, x1, y0, y1 = place
        self.taken.append((x0 - 0.02, x1 + 0.02, y0 - 0.02, y1 + 0.02))
        w, d, h = piece.size
        if 0.2 < h < 1.5 and w * d > 0.08:
            self.tops.append((place, h))

    def _small(self, height: float) -> None:
        """Things on tables, beds and shelves."""
        rng, count, done = self.rng, self.rng.choice([3, 6, 9, 12]), list[Footprint]()
        for piece in rng.sample(self.stock.small, 60):
            if len(done) >= count or not self.tops:
                break
            (x0, x1, y0, y1), top = rng.choice(self.tops)
            half = piece.width / 2
            if x1 - x0 < piece.width or y1 - y0 < piece.width:
                continue
            x, y = rng.uniform(x0 + half, x1 - half), rng.uniform(y0 + half, y1 - half)
            place = (x - half, x + half, y - half, y + half)
            if meets(place, done):
                continue
            z = self.world.top(x, y, min(top + 0.4, height - 0.05))
            if z is None or z < 0.05:
                continue
            shade = self._shade()
            turn = rng.uniform(-math.pi, math.pi) if rng.random() < 0.4 else rng.uniform(-0.6, 0.6)
            if self._put(piece, shade, (x, y, z + 0.002), turn):
                done.append(place)

    def _hanging(self, size: Point) -> None:
        rng, (width, depth, height) = self.rng, size
        for piece in rng.sample(self.stock.hanging, min(len(self.stock.hanging), rng.choice([0, 1, 1, 2]))):
            if piece.size[2] < height - 1.3:
                shade = self._shade()
                place = rng.uniform(0.8, width - 0.8), rng.uniform(0.9, depth - 0.6), height - piece.size[2]
                self._put(piece, shade, place, rng.uniform(0, 6))

    def _on_wall(self, size: Point) -> None:
        rng, (width, depth, height) = self.rng, size
        for piece in rng.sample(self.stock.wall, min(len(self.stock.wall), rng.choice([0, 1, 2, 3]))):
            w, d, h = piece.size
            if w > width - 0.2 or h > 1.4:
                continue
            x, z = rng.uniform(0.1, width - w - 0.1), rng.uniform(1.1, max(1.11, height - h - 0.2))
            behind = any(t[0] < x + w and x < t[1] and t[3] > depth - 0.1 for t in self.taken)
            if not behind or z >= 1.5:
                self._put(piece, self._shade(), (x + w / 2, depth - d / 2 - 0.005, z), NORTH)

    def _view(self, size: Point) -> View:
        rng, (width, depth, _) = self.rng, size
        sky = daylight(rng), rng.uniform(0.2, 0.8)
        lamps = self._window(size), self._ceiling(size)
        x = rng.uniform(0.15, 0.85) * width
        place = x, rng.uniform(-1.6, 0.2), rng.uniform(1.0, 1.8)
        target = width / 2 + rng.uniform(-0.9, 0.9), depth * rng.uniform(0.55, 1), rng.uniform(0.4, 1.1)
        if self.placed and rng.random() < 0.45:  # a closer look at one piece
            x, y, z = rng.choice(self.placed)
            target, share = (x, y, max(z, 0.3) + 0.2), rng.uniform(0.1, 0.4)
            x, y, z = (a + share * (b - a) for a, b in zip(place, target, strict=True))
            place = x, y, max(z, 0.9)
        return View(sky, lamps, place, target, rng.uniform(48, 78), rng.choice(SIZES))

    def _window(self, size: Point) -> Lamp:
        rng, (width, depth, _) = self.rng, size
        wall, z, colour, power = rng.choice("wes"), rng.uniform(1.2, 1.8), daylight(rng), rng.uniform(60, 250)
        if wall == "s":
            sides = rng.uniform(1, 2.5), rng.uniform(0.8, 1.6)
            return Lamp((width / 2, 0.03, z), (width / 2, depth, 0.8), sides, power, colour)
        x, other = (0.03, width) if wall == "w" else (width - 0.03, 0.0)
        y = rng.uniform(0.8, depth - 0.8)
        sides = rng.uniform(0.8, 2), rng.uniform(0.8, 1.6)
        return Lamp((x, y, z), (other, depth / 2, 0.8), sides, power, colour)

    def _ceiling(self, size: Point) -> Lamp:
        rng, (width, depth, height) = self.rng, size
        place = width / 2 + rng.uniform(-1, 1), depth / 2 + rng.uniform(-0.5, 0.5), height - 0.02
        sides = rng.uniform(0.3, 2), rng.uniform(0.3, 2)
        return Lamp(place, (width / 2, depth / 2, 0.0), sides, rng.uniform(15, 90), daylight(rng))


def daylight(rng: random.Random) -> Colour:
    """The colour of a light, from warm to cold."""
    t = rng.uniform(-0.35, 0.25)
    return (1 - t, 1.0, 1 + t) if t < 0 else (1 - 0.3 * t, 1.0, 1 + t)


def inside(place: Footprint, size: Point) -> bool:
    """Whether it lies in the room, away from the open side."""
    return place[0] >= 0 and place[1] <= size[0] and place[2] >= 0.5 and place[3] <= size[1]


def meets(place: Footprint, others: Sequence[Footprint]) -> bool:
    """Whether it covers any part of the others."""
    x0, x1, y0, y1 = place
    return any(x0 < other[1] and other[0] < x1 and y0 < other[3] and other[2] < y1 for other in others)
