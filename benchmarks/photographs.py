"""Scenes of photographed things on photographs, from packages that nothing was developed on.

    python benchmarks/photographs.py bench/photos
    soir evaluate bench/photos --objects detected

Things: the stamps of Tux Paint that are photographs, with their own alpha. Grounds: photographs among the
wallpapers of MATE, Lomiri and Plasma. Four Debian packages, 315 MB, fetched by apt-get once and kept in the
cache. For measuring alone: nothing may be fitted to it, and no setting chosen by it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from soir_qdrant.lab.needlebench.decode import has_alpha, read_rgba
from soir_qdrant.lab.needlebench.needle import generate
from soir_qdrant.lab.needlebench.sources import Sources, locate

DRAWN = {"cartoon", "clothes", "easter", "flags", "military", "naturalforces", "roadsigns", "symbols"}
LEAST_SIDE, LEAST_COLOURS = 60, 300  # of a photograph: pixels, and colours told apart in steps of 8
GROUNDS = {  # those that are photographs
    "mate": "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood "
    "YellowFlower",
    "lomiri": "Bridge Dragonfly Picture_0B Picture_1A Wine aitzgorri free friends greentock life "
    "picosdeeuropa seeding sunset",
    "plasma": "BytheWater ColdRipple ColorfulCups EveningGlow FallenLeaf Grey Kite OneStandsOut Path "
    "summer_1am",
}
PLACES = {"mate": "nature/{}.jpg", "lomiri": "{}_by_*.jpg", "plasma": "{}/contents/images/2560x1600.jpg"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--queries", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        things, grounds = Path(scratch) / "stamps", Path(scratch) / "wallpapers"
        stamps = locate("stamps", fetch=True)
        for file in filter(_is_photograph, sorted(stamps.rglob("*.png"))):
            _link(file, things / file.relative_to(stamps))
        for source, names in GROUNDS.items():
            for name in names.split():
                (file,) = locate(source, fetch=True).glob(PLACES[source].format(name))
                _link(file, grounds / f"{source}-{name}.jpg")
        sources = Sources.folders(things, grounds)
        generate(
            chosen.folder,
            split="test",
            track="2d",
            scenes=chosen.scenes,
            targets=chosen.queries,
            seed=chosen.seed,
            sources=sources,
        )
    print(f"{chosen.folder}: of {len(sources.test.cutouts)} things and {len(sources.test.grounds)} grounds")


def _is_photograph(file: Path) -> bool:
    if DRAWN & set(file.parts) or "mirror" in file.stem or not has_alpha(file):
        return False
    rgba = read_rgba(file, 256)
    seen = rgba[rgba[..., 3] > 128][:, :3] // 8
    return min(rgba.shape[:2]) >= LEAST_SIDE and len(np.unique(seen, axis=0)) >= LEAST_COLOURS


def _link(file: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.symlink_to(file)


if __name__ == "__main__":
    main()
