"""The trained heads to export, each compared with what the detector and the segmenter here say of photographs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from soir_qdrant.config import Settings, TokenHeadSettings, TokenUnetSettings
from soir_qdrant.kinds import Parts
from soir_qdrant.models.detectors import everyday, token_head
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.heads.masks import CELLS, SIDE
from soir_qdrant.models.segmenters import token_unet
from soir_qdrant.models.segmenters.windows import Window, box_planes, sampled_tokens, window, window_image
from soir_qdrant.models.token_grid import from_tiles, tiled_grid
from soir_qdrant.serving import spec
from soir_qdrant.serving.check_images import backgrounds, photographs
from soir_qdrant.serving.export_part import DTYPES, Part
from soir_qdrant.serving.head_files import detector_head, segmenter_head
from soir_qdrant.serving.head_graphs import TokenHeadGraph, TokenUnetGraph
from soir_qdrant.serving.served_detector import looks
from soir_qdrant.types import RGB

AREA = 252 * 364  # pixels at which the checks look at an image
# shares of an image
BOXES = np.array([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.7], [0.0, 0.4, 0.2, 1.0], [0.5, 0, 0.6, 0.2]])

Places = NDArray[np.int64]


def heads_of(settings: Settings, encoder: ViTEncoder, precision: spec.Precision) -> Iterator[Part]:
    """Detector and segmenter, where the settings have trained heads for the encoder."""
    parts = Parts(settings.but(encoder={"device": "cpu", "dtype": "float32"}), lambda: encoder)
    head = detector_head(settings, encoder.fingerprint)
    if head is not None and isinstance(settings.detector, TokenHeadSettings):
        detector = token_head.make(settings.detector, parts)
        assert isinstance(detector, token_head.LearnedDetector)
        yield _detector(detector, encoder, head, precision)
        if settings.detector.everyday:
            yield _everyday()
    head = segmenter_head(settings, encoder.fingerprint)
    if head is not None and isinstance(settings.segmenter, TokenUnetSettings):
        segmenter = token_unet.make(settings.segmenter, parts)
        assert isinstance(segmenter, token_unet.LearnedSegmenter)
        yield _segmenter(segmenter, encoder, head)


def _detector(
    detector: token_head.LearnedDetector,
    encoder: ViTEncoder,
    fingerprint: str,
    precision: spec.Precision,
) -> Part:
    model = spec.token_head(patch=encoder.patch, dim=encoder.width)
    inputs, (width, height) = looks(backgrounds()[0], model, AREA)
    tiles = {"rows": _halves(height), "columns": _halves(width)}

    def arrays(inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
        return tuple(inputs[tensor.name] for tensor in model.inputs)

    def expected(fitted: RGB, small: RGB, rows: Places, columns: Places) -> tuple[NDArray[Any], ...]:
        grid = from_tiles(encoder, fitted, rows, columns)
        size = (grid.shape[1], grid.shape[0])
        scores, boxes = token_head.named(detector.network, (grid, small), size)
        best = np.sort(np.argsort(-scores, kind="stable")[: spec.BEST_CELLS])
        rest = spec.BEST_CELLS - len(best)
        return (
            np.pad(boxes[best], ((0, rest), (0, 0)), constant_values=1),
            np.pad(scores[best], (0, rest)),
            grid,
        )

    return Part(
        model,
        TokenHeadGraph(encoder, detector.network, DTYPES[precision]),
        fingerprint,
        [arrays(inputs), arrays(inputs | tiles)],
        expected,
        precision,
        lambda: (arrays(looks(image, model)[0]) for image in photographs()),
    )


def _everyday() -> Part:
    """In float32, whatever the others are."""
    images = everyday.looks(backgrounds()[0])

    def expected(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        return tuple(everyday.session().run(everyday.OUTPUTS, {"images": images}))

    return Part(
        spec.everyday(side=everyday.SIDE),
        everyday.FILE,
        everyday.fingerprint(),
        [(images[:1],), (images,)],
        expected,
    )


def _halves(length: int) -> Places:
    """Two tiles that overlap: no size of the example may be 1, or the export takes it for fixed."""
    side = length // 2 + 2
    return np.array([[0], [length - side]]) + np.arange(side)


def _segmenter(segmenter: token_unet.LearnedSegmenter, encoder: ViTEncoder, fingerprint: str) -> Part:
    image = backgrounds()[0]
    head, shape = segmenter.head, image.shape
    corners = BOXES * np.tile(shape[1::-1], 2)
    boxes = [(float(a), float(b), float(c), float(d)) for a, b, c, d in corners]
    windows: list[Window] = [window(box, shape) for box in boxes]
    grid = tiled_grid(encoder, image, AREA)
    at = np.array(windows, np.float64)
    inside = (np.array(boxes).reshape(-1, 2, 2) - at[:, None, :2]) * (SIDE / at[:, None, 2:])
    places = at[:, [0, 1, 2, 2]] / np.tile(shape[1::-1], 2)
    pixels = np.stack([window_image(image, each, SIDE) for each in windows])
    whole = (
        grid[None],
        pixels[None],
        places[None].astype(np.float32),
        inside.reshape(1, -1, 4).astype(np.float32),
    )
    two = (np.stack([grid, grid]), *(x.reshape(2, 2, *x.shape[2:]) for x in whole[1:]))

    def expected(
        _: NDArray[Any], looked_at: NDArray[Any], *_others: NDArray[Any]
    ) -> tuple[NDArray[Any], ...]:
        count = looked_at.shape[0] * looked_at.shape[1]
        sampled = sampled_tokens(grid, shape, windows[:count], CELLS)
        planes = np.stack([box_planes(box, w, SIDE) for box, w in zip(boxes, windows, strict=True)])
        small = looked_at.reshape(count, SIDE, SIDE, 3)
        with torch.inference_mode():
            logits = head(*(torch.from_numpy(x) for x in (small, planes[:count], sampled)))
        return (logits.sigmoid().reshape(*looked_at.shape[:2], SIDE, SIDE).numpy(),)

    return Part(
        spec.token_unet(dim=encoder.width, side=SIDE),
        TokenUnetGraph(head),
        fingerprint,
        [whole, two],
        expected,
    )
