"""What there is to export for some settings: each model, the inputs it is compared on, and torch's word."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from soir_qdrant.config import Owlv2Settings, SamSettings, Settings
from soir_qdrant.errors import ConfigError
from soir_qdrant.geometry.patches import Batch, batches, patch_weights
from soir_qdrant.kinds import Parts, make_encoder
from soir_qdrant.models.detectors.owlv2 import Owlv2Detector
from soir_qdrant.models.encoders.backbone import IMAGENET, OPENAI
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.segmenters.sam import SamSegmenter
from soir_qdrant.models.tokens import AFTER, LAYER
from soir_qdrant.models.weights import Weights, resolve
from soir_qdrant.serving import graphs, spec
from soir_qdrant.serving.check_images import backgrounds, real_crops, resized
from soir_qdrant.serving.pixels import fitted, padded, shrunk
from soir_qdrant.serving.served_detector import reads_trunk
from soir_qdrant.serving.spec import ModelSpec, Precision, Tolerance


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One model to export. checks: inputs it is compared on, at several batch sizes. expected: what torch
    says in float32."""

    spec: ModelSpec
    graph: nn.Module
    fingerprint: str
    checks: Sequence[tuple[NDArray[Any], ...]]
    expected: Callable[..., tuple[NDArray[Any], ...]]
    tolerance: Tolerance


def parts(settings: Settings, precision: Precision) -> Iterator[Part]:
    """What there is to export for these settings. Loads the weights one model after the other.

    Raises:
        ConfigError: an encoder of another package, or one whose last block is not taken apart.
    """
    dtype = torch.float16 if precision == "fp16" else torch.float32
    on_cpu = settings.but(encoder={"device": "cpu", "dtype": "float32"})
    encoder = make_encoder(on_cpu.encoder, Parts(on_cpu))
    if not isinstance(encoder, ViTEncoder):
        raise ConfigError(f"encoder.kind {settings.encoder.kind!r}: only the kind 'vit' can be exported")
    if reads_trunk(settings):
        yield _of_trunk(encoder, precision, dtype)
    yield _of_encoder(encoder, precision, dtype)
    if isinstance(settings.detector, Owlv2Settings):
        yield _of_owlv2(settings.detector, precision, dtype)
    if isinstance(settings.segmenter, SamSettings):
        yield from _of_sam(settings.segmenter, precision, dtype)


def _of_trunk(encoder: ViTEncoder, precision: Precision, dtype: torch.dtype) -> Part:
    sides = [(18 * encoder.patch, 25 * encoder.patch), (25 * encoder.patch, 18 * encoder.patch)]
    looks = [
        np.stack([resized(image, side) for image in backgrounds()[:n]])
        for side, n in zip(sides, (1, 2), strict=True)
    ]

    def expected(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        return (encoder.features(images, [LAYER]).reshape(len(images), -1, encoder.width),)

    return Part(
        spec.tokens(patch=encoder.patch, dim=encoder.width, skip=AFTER - 1),
        graphs.TokensGraph(encoder, dtype),
        encoder.fingerprint,
        [(look,) for look in looks],
        expected,
        spec.TOLERANCES[precision],
    )


def _of_encoder(encoder: ViTEncoder, precision: Precision, dtype: torch.dtype) -> Part:
    side = encoder.input_size // encoder.patch

    def expected(
        crops: NDArray[np.uint8], masks: NDArray[np.float32], patches: NDArray[np.int64]
    ) -> tuple[NDArray[Any], ...]:
        weights = np.take_along_axis(patch_weights(masks, side), patches, 1)
        answer = encoder.encode_batch(crops, Batch(np.arange(len(crops)), patches, weights), True, False)
        return tuple(x.numpy() for x in answer[:3] if x is not None)

    crops, masks = real_crops(encoder.input_size)
    weights = patch_weights(masks, side)
    whole = next(batches(weights[:1], 1, object_only=False))
    parts = max(batches(weights, len(crops), object_only=True), key=lambda batch: len(batch.rows))
    return Part(
        spec.encoder(
            size=encoder.input_size,
            patch=encoder.patch,
            dim=encoder.width,
            dim_out=encoder.dim,
            cls=encoder.prefix_tokens,
        ),
        graphs.EncoderGraph(encoder, dtype),
        encoder.fingerprint,
        [(crops[batch.rows], masks[batch.rows], batch.patches) for batch in (whole, parts)],
        expected,
        spec.TOLERANCES[precision],
    )


def _of_owlv2(settings: Owlv2Settings, precision: Precision, dtype: torch.dtype) -> Part:
    detector = Owlv2Detector(settings.weights, device="cpu", dtype="float32")
    pixels = graphs.Pixels(OPENAI, torch.float32)
    pictures = np.stack([padded(image, detector.size) for image in backgrounds()[:2]])

    def expected(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            each = [detector.forward(pixels(torch.from_numpy(image[None]))) for image in images]
        return np.stack([boxes for boxes, _ in each]), np.stack([scores for _, scores in each])

    return Part(
        spec.owlv2(size=detector.size, patch=int(detector.model.config.vision_config.patch_size)),
        graphs.Owlv2Graph(detector.model, dtype),
        fingerprint_of(resolve(settings.weights)),
        [(pictures[:1],), (pictures,)],
        expected,
        spec.TOLERANCES[precision],
    )


def _of_sam(settings: SamSettings, precision: Precision, dtype: torch.dtype) -> Iterator[Part]:
    segmenter = SamSegmenter(settings.weights, device="cpu")
    model, size = segmenter.model, segmenter.size
    facts = {
        "size": size,
        "channels": int(model.config.vision_config.output_channels),
        "grid": int(model.config.prompt_encoder_config.image_embedding_size),
    }
    fingerprint = fingerprint_of(resolve(settings.weights))
    pixels = graphs.Pixels(IMAGENET, torch.float32)
    pictures = np.stack(
        [shrunk(im, fitted(im.shape[0], im.shape[1], size), size) for im in backgrounds()[:2]]
    )

    def embeddings(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            return (model.get_image_embeddings(pixels(torch.from_numpy(images))).numpy(),)

    yield Part(
        spec.sam_encoder(**facts),
        graphs.SamEncoderGraph(model, dtype),
        fingerprint,
        [(pictures[:1],), (pictures,)],
        embeddings,
        spec.TOLERANCES[precision],
    )
    yield _of_sam_decoder(model, facts, fingerprint, embeddings(pictures[:1])[0])


def _of_sam_decoder(
    model: Any, facts: dict[str, int], fingerprint: str, embedded: NDArray[np.float32]
) -> Part:
    """embedded: what the encoder says of one image."""

    def masks(embedded: NDArray[Any], boxes: NDArray[Any]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            answer = model(image_embeddings=torch.from_numpy(embedded), input_boxes=torch.from_numpy(boxes))
        best = answer.iou_scores.argmax(-1)[0]
        rows = torch.arange(len(best))
        return answer.pred_masks[:, rows, best].numpy(), answer.iou_scores[:, rows, best].numpy()

    shares = [[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.7], [0.4, 0.4, 0.6, 0.6]]
    boxes = np.array([shares], np.float32) * facts["size"]
    return Part(
        spec.sam_decoder(**facts),
        graphs.SamDecoderGraph(model),
        fingerprint,
        [(embedded, boxes[:, :1]), (embedded, boxes)],
        masks,
        spec.TOLERANCES["fp32"],
    )


def fingerprint_of(weights: Weights) -> str:
    """Of a detector or segmenter: the name of its weights and twelve digits of their hash."""
    return f"{weights.origin.name}@{weights.sha256[:12]}"
