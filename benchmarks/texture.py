"""The part of the projection that ships for textures, fitted on looks at things and set beside one fitted by
`soir train projection`.

python benchmarks/texture.py photos/train photos/coco bench/fit-2d-0 bench/fit-3d-0 bench/inv-0 \\
    --projection projection.safetensors --out whitening.safetensors

Labelled boxes under their masks, and random windows: what `soir train texture` learns from, and its cache, where
--cache names that. No labels of things are needed: PCA whitens. What is kept of each part, and how much the second
weighs, was measured (docs/lab/real-photographs.md). The first columns are of both, so that codes, which are a vector's
first numbers, are.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.cli.console import bar
from soir_qdrant.components import SHIPPED
from soir_qdrant.config import Settings, VectorSettings
from soir_qdrant.geometry.crops import SURROUNDINGS
from soir_qdrant.geometry.resize import resized
from soir_qdrant.lab.calibrate import Moments
from soir_qdrant.lab.evaluate.datasets import AUTO, load
from soir_qdrant.lab.train.surfaces import BOX, SIDE, Looks, looks, weights_of
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.features import sizes
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening, whitening_of

BATCH = 32
SHRINK = 0.1
OBJECT, SURFACE = 640, 384  # columns of the projection, and of textures
FRONT, CODES = 192, 256  # of the first so many columns, those that are the projection's
SHARE = 6**-0.5  # of the texture in a row: one of six features of the same length
WEIGHT = 0.7  # length of the texture's part for 1 of the object's


def moments(examples: Looks, pipeline: Pipeline) -> Moments:
    """Of the textures, unit rows."""
    collected, side = Moments(), pipeline.encoder.texture_size
    around = round((SIDE - BOX * (1 + 2 * SURROUNDINGS)) / 2)
    with bar("textures", len(examples)) as advance:
        for start in range(0, len(examples), BATCH):
            middles = [
                look[around:-around, around:-around] for look in examples.pixels[start : start + BATCH]
            ]
            surfaces = np.stack([resized(np.asarray(middle), side, side) for middle in middles])
            collected.add(normalize(pipeline.encoder.texture(surfaces[..., :3], weights_of(surfaces))))
            for _ in middles:
                advance()
    return collected


def of_objects(projection: Whitening, rows: int) -> Whitening:
    """Its part for the features that are not the texture, `rows` numbers; all of one that has no parts."""
    if projection.lengths is None:
        return projection
    columns, scale = projection.lengths == 1, np.float32(np.sqrt(1 - SHARE**2))
    return Whitening(
        projection.mean[:rows] / scale,
        projection.matrix[:rows, columns] * scale,
        projection.variance[columns],
        projection.fitted_for,
    )


def beside(projection: Whitening, texture: Whitening, fitted_for: str) -> Whitening:
    """One projection of the first's features and, last, the texture."""
    rows = len(projection.mean)
    matrix: NDArray[np.float32] = np.zeros((rows + len(texture.mean), OBJECT + SURFACE), np.float32)
    first, second = projection.truncated(OBJECT), texture.truncated(SURFACE)
    matrix[:rows, :OBJECT] = first.matrix / np.sqrt(1 - SHARE**2)
    matrix[rows:, OBJECT:] = second.matrix / SHARE
    lengths = np.repeat(np.float32([1, WEIGHT]), [OBJECT, SURFACE])
    front = [*range(FRONT), *range(OBJECT, OBJECT + CODES - FRONT)]
    order = [*front, *(i for i in range(OBJECT + SURFACE) if i not in front)]
    mean = np.concatenate([projection.mean * np.sqrt(1 - SHARE**2), texture.mean * SHARE])
    variance = np.concatenate([first.variance, second.variance])
    return Whitening(
        np.asarray(mean, np.float32), matrix[:, order], variance[order], fitted_for, lengths[order]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="COCO or NeedleBench folders")
    parser.add_argument(
        "--projection", default=SHIPPED, type=Path, help="of the other features (the shipped one's part)"
    )
    parser.add_argument("--head", default="shipped", help="of `soir train texture`")
    parser.add_argument("--profile", default="embedded", help="whose encoder they are of")
    parser.add_argument("--cache", type=Path, help="of `soir train texture` (default: beside --out)")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args()
    projection = Whitening.load(options.projection)
    settings = Settings.for_profile(options.profile).but(
        encoder={"texture": options.head},
        vector={"whitening": None, "features": VectorSettings().features},
    )
    pipeline = Pipeline(settings)
    if _plain(projection.fitted_for) != _plain(pipeline.whitened):
        parser.error(
            f"--projection was fitted for {projection.fitted_for!r}, and --profile's is {pipeline.whitened!r}"
        )
    others = sum(sizes(settings.vector.features, pipeline.encoder)[:-1])
    benches = [load(folder, AUTO) for folder in options.folders]
    with bar("looks", sum(len(bench.gallery) + len(bench.queries) for bench in benches)) as advance:
        examples = looks(benches, pipeline, options.cache or options.out.with_suffix(".cache"), advance)
    textures = moments(examples, pipeline)
    texture = whitening_of(textures.mean, textures.covariance, SURFACE, SHRINK)
    beside(of_objects(projection, others), texture, pipeline.whitened).save(options.out)
    print(f"{options.out}: of {textures.count} textures, beside {options.projection}")


def _plain(fitted_for: str) -> str:
    """The encoder and its crops, without what reads textures, and the features."""
    return re.sub(r"~[0-9a-f]{8}", "", fitted_for.rpartition(" ")[0])


if __name__ == "__main__":
    main()
