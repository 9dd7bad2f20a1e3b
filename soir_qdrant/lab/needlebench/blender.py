"""Rooms and pieces rendered by Blender's path tracer, its Python module, on the CPU: real light, exact masks."""

from __future__ import annotations

import math
import os
import random
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.needlebench.furnish import Colour, Lamp, Point, Room, Surface, View
from soir_qdrant.lab.needlebench.furniture import Piece, sized

SAMPLES, ALONE_SAMPLES = 6, 16  # rays a pixel; the denoiser does the rest
WALL = 0.1  # metres
ALONE_SIDE = 320  # pixels of an image of one piece


@dataclass(frozen=True, slots=True, eq=False)
class Render:
    """light: float32 [H, W, 4], linear, and how much of a pixel something covers. ids: int64 [H, W], i + 1 where the
    i-th piece that was put down is seen, else 0."""

    light: NDArray[np.float32]
    ids: NDArray[np.int64]


@dataclass(slots=True)
class Studio:
    """A world (`furnish.World`) that can be rendered. Use through `open_studio`. bpy: Blender. scratch: a folder."""

    bpy: Any
    scratch: Path
    pieces: list[tuple[Piece, int]] = field(default_factory=list)
    standing: Any = None  # what `top` looks at

    def clear(self, seed: int) -> None:
        """Empty the world."""
        self.pieces.clear()
        self.standing = None
        self.bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = self.bpy.context.scene
        scene.render.engine = "CYCLES"
        for name, value in {
            "device": "CPU",
            "seed": seed,
            "samples": SAMPLES,
            "use_adaptive_sampling": False,
            "use_denoising": True,
            "denoiser": "OPENIMAGEDENOISE",
            "denoising_quality": "FAST",
            "denoising_prefilter": "FAST",
            "max_bounces": 2,
            "diffuse_bounces": 1,
            "glossy_bounces": 1,
            "transmission_bounces": 2,
            "transparent_max_bounces": 4,
            "use_fast_gi": True,
            "fast_gi_method": "REPLACE",
            "ao_bounces_render": 1,
            "caustics_reflective": False,
            "caustics_refractive": False,
            "sample_clamp_indirect": 4,
        }.items():
            setattr(scene.cycles, name, value)
        scene.render.image_settings.media_type = "MULTI_LAYER_IMAGE"
        scene.render.image_settings.file_format = "OPEN_EXR_MULTILAYER"
        self.bpy.context.view_layer.use_pass_object_index = True
        world = self.bpy.data.worlds.new("world")
        scene.world, world.use_nodes, world.light_settings.distance = world, True, 3

    def build(self, room: Room) -> None:
        """See `furnish.World`."""
        width, depth, height = room.size
        looks = {name: self._material(getattr(room, name)) for name in ("floor", "sides", "north", "ceiling")}
        self._block((0, 0, -WALL), (width, depth, 0), looks["floor"])
        self._block((0, 0, height), (width, depth, height + WALL), looks["ceiling"])
        self._block((0, depth, 0), (width, depth + WALL, height), looks["north"])
        self._block((-WALL, 0, 0), (0, depth, height), looks["sides"])
        self._block((width, 0, 0), (width + WALL, depth, height), looks["sides"])
        if room.rug is not None:
            (x0, x1, y0, y1), look = room.rug
            self._block((x0, y0, 0), (x1, y1, 0.012), self._material(look))

    def put(self, piece: Piece, shade: int, place: Point, turn: float) -> bool:
        """See `furnish.World`."""
        try:
            item = self._model(piece, shade)
        except RuntimeError:  # as Blender says that it cannot read a file
            item = None
        if item is None:
            return False
        item.location, item.rotation_euler = place, (0, 0, turn)
        self.pieces.append((piece, shade))
        item.pass_index = len(self.pieces)
        return True

    def top(self, x: float, y: float, below: float) -> float | None:
        """See `furnish.World`."""
        if self.standing is None:
            self.bpy.context.view_layer.update()
            self.standing = self.bpy.context.evaluated_depsgraph_get()
        hit, point, normal, *_ = self.bpy.context.scene.ray_cast(self.standing, (x, y, below), (0, 0, -1))
        return float(point.z) if hit and normal.z >= 0.8 else None

    def shot(self, view: View) -> Render:
        """The room, as a view has it."""
        colour, strength = view.sky
        self._sky(colour, strength)
        for lamp in view.lamps:
            self._lamp(lamp)
        self._camera(view.place, view.target, view.angle, near=0.05)
        return self._render(view.size)

    def alone(self, piece: Piece, shade: int) -> Render | None:
        """A piece on nothing, as a shop shows it; None where its model cannot be read."""
        rng = random.Random(zlib.crc32(f"{piece.key}{shade}0".encode()))
        self.clear(0)
        scene = self.bpy.context.scene
        scene.render.film_transparent, scene.cycles.samples = True, ALONE_SAMPLES
        if not self.put(piece, shade, (0, 0, 0), 0.0):
            return None
        self._sky((1, 1, 1), 0.8)
        sides = np.ptp(corners(self.bpy.context.view_layer.objects.active), axis=0)
        reach, z = float(np.linalg.norm(sides)), float(sides[2]) / 2
        azimuth, rise = rng.uniform(-0.7, 0.7), rng.uniform(0.08, 0.45)
        flat = 2.1 * reach * math.cos(rise)
        place = flat * math.sin(azimuth), -flat * math.cos(azimuth), z + 2.1 * reach * math.sin(rise)
        self._camera(place, (0, 0, z), 30, near=reach / 100)
        lamp = rng.uniform(-1, 1) * reach * 1.5, -1.5 * reach, z + 1.8 * reach
        self._lamp(Lamp(lamp, (0, 0, z), (reach, reach), 40 * reach * reach, (1, 1, 1)))
        return self._render((ALONE_SIDE, ALONE_SIDE))

    def _model(self, piece: Piece, shade: int) -> Any:
        """One object of the catalogue's size, its base at z = 0, its middle at 0, 0; None for one without faces."""
        bpy = self.bpy
        bpy.ops.object.select_all(action="DESELECT")
        before = set(bpy.data.objects)
        bpy.ops.wm.obj_import(filepath=str(piece.model))
        meshes = [item for item in bpy.data.objects if item not in before and item.type == "MESH"]
        if not meshes:
            return None
        for item in meshes:
            item.select_set(True)
        bpy.context.view_layer.objects.active = meshes[0]
        if len(meshes) > 1:
            bpy.ops.object.join()
        item = bpy.context.view_layer.objects.active
        item.data.transform(item.matrix_world)
        item.matrix_world.identity()
        points = corners(item)
        if not len(points):
            return None
        item.data.vertices.foreach_set("co", sized(points, piece).ravel())
        item.data.update()
        rng = random.Random(zlib.crc32(f"{piece.key}{shade}".encode()))
        for material in filter(None, item.data.materials):
            self._paint(material, shade, rng)
        return item

    def _paint(self, material: Any, shade: int, rng: random.Random) -> None:
        """Make a material a little rough, and another colour where the shade says so."""
        nodes, links = material.node_tree.nodes, material.node_tree.links
        surface = next((node for node in nodes if node.type == "BSDF_PRINCIPLED"), None)
        if surface is None:
            return
        surface.inputs["Roughness"].default_value = rng.uniform(0.25, 0.8)
        if not shade:
            return
        colour, other = surface.inputs["Base Color"], nodes.new("ShaderNodeHueSaturation")
        other.inputs["Hue"].default_value = rng.choice([0.5, rng.uniform(0.2, 0.8)])
        other.inputs["Saturation"].default_value = rng.uniform(0.5, 1.6)
        other.inputs["Value"].default_value = rng.choice([rng.uniform(0.35, 0.7), rng.uniform(1.2, 1.8)])
        if colour.is_linked:
            links.new(colour.links[0].from_socket, other.inputs["Color"])
        else:
            other.inputs["Color"].default_value = colour.default_value
        links.new(other.outputs["Color"], colour)

    def _material(self, look: Surface) -> Any:
        material = self.bpy.data.materials.new("surface")
        material.use_nodes = True
        nodes, links = material.node_tree.nodes, material.node_tree.links
        surface = next(node for node in nodes if node.type == "BSDF_PRINCIPLED")
        surface.inputs["Roughness"].default_value = look.roughness
        surface.inputs["Base Color"].default_value = (*look.colour, 1)
        if look.texture is not None:
            tile, place, scale = (
                nodes.new(f"ShaderNode{kind}") for kind in ("TexImage", "TexCoord", "Mapping")
            )
            tile.image = self.bpy.data.images.load(str(look.texture), check_existing=True)
            tile.projection, tile.projection_blend = "BOX", 0.1
            scale.inputs["Scale"].default_value = (look.scale,) * 3
            links.new(place.outputs["Object"], scale.inputs["Vector"])
            links.new(scale.outputs["Vector"], tile.inputs["Vector"])
            links.new(tile.outputs["Color"], surface.inputs["Base Color"])
        return material

    def _block(self, low: Point, high: Point, material: Any) -> None:
        middle = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        self.bpy.ops.mesh.primitive_cube_add(size=1, location=middle)
        item = self.bpy.context.active_object
        item.scale = [b - a for a, b in zip(low, high, strict=True)]
        self.bpy.ops.object.transform_apply(scale=True)
        item.data.materials.append(material)

    def _sky(self, colour: Colour, strength: float) -> None:
        background = self.bpy.context.scene.world.node_tree.nodes["Background"]
        background.inputs[0].default_value, background.inputs[1].default_value = (*colour, 1), strength

    def _lamp(self, lamp: Lamp) -> None:
        light = self.bpy.data.lights.new("lamp", "AREA")
        light.shape, light.energy, light.color = "RECTANGLE", lamp.power, lamp.colour
        light.size, light.size_y = lamp.sides
        self._aimed(light, lamp.place, lamp.target)

    def _camera(self, place: Point, target: Point, angle: float, *, near: float) -> None:
        camera = self.bpy.data.cameras.new("camera")
        camera.angle, camera.clip_start = math.radians(angle), near
        self.bpy.context.scene.camera = self._aimed(camera, place, target)

    def _aimed(self, data: Any, place: Point, target: Point) -> Any:
        from mathutils import Vector

        item = self.bpy.data.objects.new("aimed", data)
        self.bpy.context.collection.objects.link(item)
        item.location = place
        item.rotation_euler = (Vector(target) - Vector(place)).to_track_quat("-Z", "Y").to_euler()
        return item

    def _render(self, size: tuple[int, int]) -> Render:
        import OpenEXR

        file, render = self.scratch / "render.exr", self.bpy.context.scene.render
        render.resolution_x, render.resolution_y = size
        render.resolution_percentage, render.filepath = 100, str(file)
        self.bpy.ops.render.render(write_still=True)
        with OpenEXR.File(str(file), separate_channels=True) as read:
            channels = {
                name: np.asarray(c.pixels, np.float32) for p in read.parts for name, c in p.channels.items()
            }
        (index,) = (pixels for name, pixels in channels.items() if "ndex" in name)
        light = [next(channels[name] for name in channels if name.endswith(f"Combined.{c}")) for c in "RGBA"]
        return Render(np.stack(light, axis=-1), np.rint(index).astype(np.int64))


def corners(item: Any) -> NDArray[np.float32]:
    """Those of an object's mesh, float32 [n, 3]."""
    points = np.empty(3 * len(item.data.vertices), np.float32)
    item.data.vertices.foreach_get("co", points)
    return points.reshape(-1, 3)


@contextmanager
def open_studio() -> Iterator[Studio]:
    """Nothing is written to stdout meanwhile. Raises DatasetError where Blender's module is not installed."""
    try:
        import bpy
        import OpenEXR  # noqa: F401  # read at every render
    except ImportError as error:
        raise DatasetError(
            "rendered rooms need Blender as a module: pip install 'soir-qdrant[rooms]', which its wheels let "
            "Python 3.11 do"
        ) from error
    with tempfile.TemporaryDirectory() as scratch, _quiet():
        yield Studio(bpy, Path(scratch))


@contextmanager
def _quiet() -> Iterator[None]:
    """Blender says to stdout what files it reads and writes, thousands of lines: they go nowhere."""
    sys.stdout.flush()
    stdout, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(nowhere)
        os.close(stdout)
