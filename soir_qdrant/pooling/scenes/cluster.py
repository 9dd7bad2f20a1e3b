"""Cluster: neighbouring patches that are alike, as one vector each (Cluster-CLIP of arXiv 2309.14999)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.contracts import Encoder, SceneEncoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.kind_settings import ClusterSettings
from soir_qdrant.kinds import Parts
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.scenes.dense import DenseEncoder
from soir_qdrant.pooling.scenes.grids import placed
from soir_qdrant.pooling.scenes.source import encoder_of
from soir_qdrant.types import RGB, Regions, SceneObject, Vector


class ClusterEncoder(SceneEncoder):
    """The clusters of an image's dense vectors. Nothing is trained.

    Args:
        encoder: whose patches.
        settings: see `ClusterSettings`.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    name = "cluster"
    fingerprint = ""

    def __init__(self, encoder: Encoder, settings: ClusterSettings) -> None:
        try:
            import sklearn.cluster  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                "scene.kind 'cluster' needs scikit-learn: pip install 'soir-qdrant[words]'"
            ) from error
        self.settings = settings
        self.dense = DenseEncoder(encoder, settings)

    def regions(self, images: list[RGB]) -> list[Regions]:
        """See `SceneEncoder`: `count` regions, fewer where there are fewer patches. A score is how alike the
        patches of a region are: the length of the mean of their unit vectors."""
        regions = []
        for image, grid, whole in zip(images, *self.dense.grids(images), strict=True):
            rows, objects = clustered(grid, self.settings.count, image.shape)
            regions.append(Regions(rows, objects, whole))
        return regions


def clustered(grid: Vector, count: int, shape: tuple[int, ...]) -> tuple[Vector, tuple[SceneObject, ...]]:
    """The clusters of a grid of vectors: unit rows [k, D], and where each one is.

    Args:
        grid: float32 [h, w, D], unit rows.
        count: clusters, at most.
        shape: H, W, ... of the image.
    """
    labels = cluster_map(grid, count)
    cells = [labels == i for i in range(int(labels.max()) + 1)]
    means = np.stack([grid[cell].mean(0) for cell in cells])
    objects = tuple(
        placed(cell, shape, float(np.linalg.norm(mean))) for cell, mean in zip(cells, means, strict=True)
    )
    return normalize(means), objects


def cluster_map(grid: Vector, count: int) -> NDArray[np.int64]:
    """The cluster of each patch, int64 [h, w]: Ward's agglomerative clustering, where only neighbours merge.

    Args:
        grid: float32 [h, w, D], unit rows.
        count: clusters, at most as many as patches.
    """
    from sklearn.cluster import AgglomerativeClustering
    from sklearn.feature_extraction.image import grid_to_graph

    h, w, _ = grid.shape
    if h * w == 1:
        return np.zeros((h, w), np.int64)
    ward = AgglomerativeClustering(min(count, h * w), connectivity=grid_to_graph(h, w), linkage="ward")
    labels: NDArray[np.int64] = ward.fit_predict(grid.reshape(h * w, -1)).astype(np.int64).reshape(h, w)
    return labels


def make(settings: ClusterSettings, parts: Parts) -> ClusterEncoder:
    """The kind `cluster`."""
    return ClusterEncoder(encoder_of(parts), settings)
