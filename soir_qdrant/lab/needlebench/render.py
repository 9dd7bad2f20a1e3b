"""Renders textured meshes with pybullet's software renderer: real viewpoints, exact masks, no GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.needlebench.compose import RGBA, crop_ground, trim
from soir_qdrant.lab.needlebench.sources import Ground, SplitName, locate

LARGEST_TURN = 45.0  # degrees between a query's view and any view in a scene
SMALLEST_TURN = 10.0
RENDER_SIDE = 440  # rendered so, halved for smooth edges
TEXTURE_SIDE = 256

# Meshes with a shape of their own, beside the thousand blobs of random_urdfs.
NAMED: dict[SplitName, tuple[str, ...]] = {
    "dev": ("duck.obj", "objects/mug.obj", "torus/torus.obj", "jenga/jenga.obj", "toys/prism.obj"),
    "test": ("teddy2_VHACD_CHs.obj", "lego/lego.obj", "bunny.obj", "domino/domino.obj", "toys/cylinder.obj"),
}


@dataclass(frozen=True)
class Solid:
    """One textured mesh. texture: what its generator is seeded with; twins share a mesh or a texture."""

    key: str
    mesh: Path
    texture: int
    turn: tuple[float, float, float, float]  # quaternion x, y, z, w of the query's view


def meshes(split: SplitName) -> list[Path]:
    """The .obj files of one split: even blobs for dev, odd ones for test, and a few named shapes."""
    home = locate("pybullet")
    parity = 0 if split == "dev" else 1
    blobs = [home / "random_urdfs" / f"{i:03d}" / f"{i:03d}.obj" for i in range(1000) if i % 2 == parity]
    paths = [path for path in [*(home / name for name in NAMED[split]), *blobs] if path.is_file()]
    if len(paths) < 100:
        raise DatasetError(f"{home}: only {len(paths)} meshes; reinstall pybullet (>= 3.2.6)")
    return paths


class Renderer:
    """Owns one pybullet world and a scratch folder. Use through `open_renderer`."""

    def __init__(self, bullet: Any, client: int, scratch: Path, photos: tuple[Ground, ...]) -> None:
        self._bullet, self._client, self._scratch, self._photos = bullet, client, scratch, photos
        self._meshes: dict[Path, Path] = {}
        self._textures: dict[int, Path] = {}

    def render(self, solid: Solid, turn: NDArray[np.float64], rng: np.random.Generator) -> RGBA:
        """One view under a random light. turn: rotation matrix [3, 3] applied after the solid's own.

        Comes back as uint8 [h, w, 4], trimmed.
        """
        p, client = self._bullet, self._client
        p.resetSimulation(physicsClientId=client)
        shape = p.createVisualShape(p.GEOM_MESH, fileName=str(self._mesh(solid.mesh)), physicsClientId=client)
        rotation = turn @ np.array(p.getMatrixFromQuaternion(solid.turn)).reshape(3, 3)
        body = p.createMultiBody(
            baseVisualShapeIndex=shape, baseOrientation=quaternion(rotation), physicsClientId=client
        )
        texture = p.loadTexture(str(self._texture(solid.texture)), physicsClientId=client)
        p.changeVisualShape(body, -1, textureUniqueId=texture, rgbaColor=[1, 1, 1, 1], physicsClientId=client)
        side = RENDER_SIDE
        light = rng.uniform(-1, 1, 3) + np.array([0.0, -1.2, 1.0])
        frame = p.getCameraImage(
            side,
            side,
            viewMatrix=p.computeViewMatrix([0, -3.2, 0], [0, 0, 0], [0, 0, 1]),
            projectionMatrix=p.computeProjectionMatrixFOV(40, 1.0, 0.1, 10.0),
            lightDirection=list(light * 4),
            lightColor=[1, 1, 1],
            lightAmbientCoeff=float(rng.uniform(0.45, 0.65)),
            lightDiffuseCoeff=float(rng.uniform(0.4, 0.6)),
            lightSpecularCoeff=float(rng.uniform(0.0, 0.25)),
            shadow=0,
            renderer=p.ER_TINY_RENDERER,
            physicsClientId=client,
        )
        rgb = np.asarray(frame[2], np.uint8).reshape(side, side, 4)[..., :3]
        inside = (np.asarray(frame[4]).reshape(side, side) == body).astype(np.float32)
        if not inside.any():
            raise DatasetError(f"{solid.mesh}: the renderer shows nothing of this mesh")
        return _halve(rgb, inside)

    def _mesh(self, source: Path) -> Path:
        if source not in self._meshes:
            target = self._scratch / f"mesh{len(self._meshes)}.obj"
            target.write_text(wrap_mesh(source), encoding="ascii")
            self._meshes[source] = target
        return self._meshes[source]

    def _texture(self, seed: int) -> Path:
        if seed not in self._textures:
            target = self._scratch / f"texture{seed}.png"
            pixels = make_texture(np.random.default_rng([seed, 77]), self._photos)
            cv2.imwrite(str(target), pixels[..., ::-1])
            self._textures[seed] = target
        return self._textures[seed]


@contextmanager
def open_renderer(photos: tuple[Ground, ...]) -> Iterator[Renderer]:
    """A renderer whose textures may take pieces of `photos`; its scratch folder goes with it."""
    try:
        import pybullet
    except ImportError as error:
        raise DatasetError("the 3D track needs pybullet: pip install 'soir-qdrant[bench]'") from error
    client = pybullet.connect(pybullet.DIRECT)
    try:
        pybullet.setPhysicsEngineParameter(enableFileCaching=0, physicsClientId=client)
        with tempfile.TemporaryDirectory(prefix="needle-") as scratch:
            yield Renderer(pybullet, client, Path(scratch), photos)
    finally:
        pybullet.disconnect(client)


def random_turn(rng: np.random.Generator) -> NDArray[np.float64]:
    """Rotation matrix [3, 3] by 10 to 45 degrees about a random axis."""
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    vector = axis * np.deg2rad(rng.uniform(SMALLEST_TURN, LARGEST_TURN))
    return np.asarray(cv2.Rodrigues(vector)[0], np.float64)


def random_quaternion(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """x, y, z, w; uniform over all orientations."""
    q = rng.normal(size=4)
    q /= np.linalg.norm(q)
    return float(q[0]), float(q[1]), float(q[2]), float(q[3])


def quaternion(rotation: NDArray[np.float64]) -> list[float]:
    """x, y, z, w of a rotation matrix [3, 3]."""
    vector = np.asarray(cv2.Rodrigues(rotation)[0], np.float64).ravel()
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 1e-9 else np.zeros(3)
    return [*(axis * np.sin(angle / 2)), float(np.cos(angle / 2))]


def wrap_mesh(source: Path) -> str:
    """The mesh as OBJ text: unit radius about the origin, one texture coordinate pair for each corner.

    The coordinates are a box projection: a face takes the two axes that its normal is least along.
    """
    vertices, faces = _read_obj(source)
    vertices = vertices - (vertices.max(axis=0) + vertices.min(axis=0)) / 2
    vertices = vertices / max(1e-9, float(np.linalg.norm(vertices, axis=1).max()))
    corners = vertices[faces]  # [F, 3, 3]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    normals = normals / np.maximum(length, 1e-12)
    main = np.abs(normals).argmax(axis=1)
    axes = np.array([[1, 2], [0, 2], [0, 1]])[main]  # [F, 2]
    uv = np.take_along_axis(corners, axes[:, None, :].repeat(3, axis=1), axis=2) * 0.5 + 0.5
    lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in corners.reshape(-1, 3)]
    lines += [f"vt {u:.6f} {v:.6f}" for u, v in uv.reshape(-1, 2)]
    lines += [f"vn {x:.6f} {y:.6f} {z:.6f}" for x, y, z in normals]
    for i in range(len(faces)):
        a, n = 3 * i + 1, i + 1
        lines.append(f"f {a}/{a}/{n} {a + 1}/{a + 1}/{n} {a + 2}/{a + 2}/{n}")
    return "\n".join(lines) + "\n"


def is_whole(mesh: Path) -> bool:
    """Whether all its vertices are numbers: one of the package's meshes has none."""
    return bool(np.isfinite(_read_obj(mesh)[0]).all())


def _read_obj(source: Path) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """vertices [V, 3]; faces [F, 3], polygons split into fans."""
    vertices: list[list[float]] = []
    faces: list[list[int]] = []
    for line in source.read_text(encoding="utf-8", errors="replace").splitlines():
        parts = line.split()
        if parts[:1] == ["v"]:
            vertices.append([float(x) for x in parts[1:4]])
        elif parts[:1] == ["f"]:
            ids = [int(part.split("/")[0]) for part in parts[1:]]
            ids = [i - 1 if i > 0 else len(vertices) + i for i in ids]
            faces += [[ids[0], ids[k], ids[k + 1]] for k in range(1, len(ids) - 1)]
    if not vertices or not faces:
        raise DatasetError(f"{source}: a mesh without vertices or faces")
    return np.array(vertices), np.array(faces, np.int64)


def make_texture(rng: np.random.Generator, photos: tuple[Ground, ...]) -> NDArray[np.uint8]:
    """uint8 [256, 256, 3]: half of them a piece of a photograph, the others painted from noise."""
    side = TEXTURE_SIDE
    base = rng.integers(20, 236, (3, 3)).astype(np.float32)
    if photos and rng.random() < 0.5:
        photo = photos[int(rng.integers(len(photos)))].read()
        piece = crop_ground(photo, (side, side), rng).astype(np.float32)
        tint = base[0] / max(1.0, float(base[0].mean()))
        return np.asarray(np.clip(piece * (0.7 + 0.3 * tint), 0, 255), np.uint8)
    yy, xx = np.mgrid[0:side, 0:side].astype(np.float32) / side
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(3, 9)
    along = np.cos(angle) * xx + np.sin(angle) * yy
    across = np.cos(angle) * yy - np.sin(angle) * xx
    pattern = int(rng.integers(4))
    if pattern == 0:
        field = (np.floor(along * pitch * 2) % 2).astype(np.float32)
    elif pattern == 1:
        field = ((np.floor(along * pitch) + np.floor(across * pitch)) % 2).astype(np.float32)
    elif pattern == 2:
        field = (np.hypot(along * pitch % 1 - 0.5, across * pitch % 1 - 0.5) < 0.3).astype(np.float32)
    else:
        field = (_noise(rng, side, 6) > 0.5).astype(np.float32)
    shade = _noise(rng, side, 10)[..., None]
    blend = base[0] * (1 - field[..., None]) + base[1] * field[..., None]
    return np.asarray(np.clip(blend * (0.75 + 0.25 * shade) + base[2] * 0.2 * shade, 0, 255), np.uint8)


def _noise(rng: np.random.Generator, side: int, cells: int) -> NDArray[np.float32]:
    """float32 [side, side] in 0..1: smooth noise of two octaves."""
    coarse = cv2.resize(
        rng.random((cells, cells)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )
    fine = cv2.resize(
        rng.random((cells * 4, cells * 4)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(np.clip(0.7 * coarse + 0.3 * fine, 0, 1), np.float32)


def _halve(rgb: NDArray[np.uint8], inside: NDArray[np.float32]) -> RGBA:
    """Averages 2 x 2 pixels of the object only; the share that is object becomes alpha."""
    half = (RENDER_SIDE // 2, RENDER_SIDE // 2)
    alpha = cv2.resize(inside, half, interpolation=cv2.INTER_AREA)[..., None]
    colour = cv2.resize(rgb * inside[..., None], half, interpolation=cv2.INTER_AREA) / np.maximum(alpha, 1e-4)
    return trim(np.round(np.dstack([np.clip(colour, 0, 255), alpha * 255])).astype(np.uint8))
