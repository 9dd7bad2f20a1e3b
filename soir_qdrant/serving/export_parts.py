"""What there is to export for some settings: each model, the inputs it is compared on, and torch's word."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from soir_qdrant.components import Components
from soir_qdrant.config import Owlv2Settings, SamSettings, Settings
from soir_qdrant.contracts import TEXTURE_CELLS, TEXTURE_LAYER
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.geometry.patches import Batch, batches, patch_weights
from soir_qdrant.kinds import Parts, make_encoder
from soir_qdrant.models.detectors.owlv2 import Owlv2Detector
from soir_qdrant.models.encoders.backbone import IMAGENET, OPENAI
from soir_qdrant.models.encoders.text import TextEncoder
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.models.encoders.words import tokens_of
from soir_qdrant.models.padding import padded
from soir_qdrant.models.segmenters.sam import SamSegmenter
from soir_qdrant.models.token_grid import AREA
from soir_qdrant.models.tokens import AFTER, LAYER, gridded
from soir_qdrant.models.weights import Weights, resolve
from soir_qdrant.pooling.features import TEXTURE
from soir_qdrant.pooling.patches import Projected
from soir_qdrant.serving import graphs, spec
from soir_qdrant.serving.check_images import backgrounds, labelled_crops, photographs, real_crops, resized
from soir_qdrant.serving.export_heads import heads_of
from soir_qdrant.serving.export_part import DTYPES, Part
from soir_qdrant.serving.head_files import reads_trunk
from soir_qdrant.serving.pixels import fitted, shrunk
from soir_qdrant.serving.served_detector import GREY
from soir_qdrant.serving.spec import Precision
from soir_qdrant.serving.text_spec import text as text_spec
from soir_qdrant.types import RGB

log = logging.getLogger(__name__)

TEXTS = ["a mug", "a red mug of tea beside a blue one", "coffee"]  # what a text tower is compared on


def parts(settings: Settings, precision: Precision) -> Iterator[Part]:
    """What there is to export for these settings. Loads the weights one model after the other.

    Raises:
        ConfigError: an encoder of another package, or one whose last block is not taken apart.
    """
    on_cpu = settings.but(encoder={"device": "cpu", "dtype": "float32"})
    encoder = make_encoder(on_cpu.encoder, Parts(on_cpu))
    if not isinstance(encoder, ViTEncoder):
        raise ConfigError(f"encoder.kind {settings.encoder.kind!r}: only the kind 'vit' can be exported")
    if reads_trunk(settings):
        yield _of_trunk(encoder, precision)
    yield from heads_of(settings, encoder, precision)
    components = Components(on_cpu, encoder=encoder)
    yield _of_encoder(encoder, components, precision)
    if TEXTURE in settings.vector.features:
        yield _of_texture(encoder)
    yield from _of_text(components)
    if isinstance(settings.detector, Owlv2Settings):
        yield _of_owlv2(settings.detector, precision)
    if isinstance(settings.segmenter, SamSettings):
        yield from _of_sam(settings.segmenter, precision)


def _of_trunk(encoder: ViTEncoder, precision: Precision) -> Part:
    sides = [(18 * encoder.patch, 25 * encoder.patch), (25 * encoder.patch, 18 * encoder.patch)]
    looks = [
        np.stack([resized(image, side) for image in backgrounds()[:n]])
        for side, n in zip(sides, (1, 2), strict=True)
    ]

    def expected(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        return (encoder.features(images, [LAYER]).reshape(len(images), -1, encoder.width),)

    return Part(
        spec.tokens(patch=encoder.patch, dim=encoder.width, skip=AFTER - 1),
        graphs.TokensGraph(encoder, DTYPES[precision]),
        encoder.fingerprint,
        [(look,) for look in looks],
        expected,
        precision,
        lambda: ((gridded(image, encoder.patch, AREA)[0][None],) for image in photographs()),
    )


def _of_encoder(encoder: ViTEncoder, components: Components, precision: Precision) -> Part:
    """components: of the settings, whose projection of patches, where they have one, is part of the graph."""
    side = encoder.input_size // encoder.patch
    projection = components.patch_projection if components.has_patches else None
    assert not isinstance(projection, Projected)

    def expected(
        crops: NDArray[np.uint8], patches: NDArray[np.int64], weights: NDArray[np.float32]
    ) -> tuple[NDArray[Any], ...]:
        answer = encoder.encode_batch(crops, Batch(np.arange(len(crops)), patches, weights), True, False)
        outputs = tuple(x.numpy() for x in answer[:3] if x is not None)
        if projection is None:
            return outputs
        early = encoder.trunk(crops, skip=AFTER - 1, patches=patches)[-1][:, encoder.prefix_tokens :]
        return *outputs, projection(early.numpy())

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
            row_dim=projection.dim if projection else 0,
            projection=components.projection if projection else 0,
        ),
        graphs.EncoderGraph(encoder, DTYPES[precision], projection),
        encoder.fingerprint,
        [(crops[batch.rows], batch.patches, batch.weights) for batch in (whole, parts)],
        expected,
        precision,
        lambda: (_whole(crop, side) for crop in labelled_crops(encoder.input_size)),
    )


def _of_texture(encoder: ViTEncoder) -> Part:
    """In float32: a few blocks."""
    size = encoder.texture_size
    crops, masks = real_crops(encoder.input_size)
    surfaces = np.stack([resized(crop, (size, size)) for crop in crops])
    small = np.stack([cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) for mask in masks])
    weights = patch_weights(small, TEXTURE_CELLS)
    return Part(
        spec.texture(size=size, cells=TEXTURE_CELLS, dim=encoder.texture_dim, skip=-1 - TEXTURE_LAYER),
        graphs.TextureGraph(encoder),
        encoder.fingerprint,
        [(surfaces[:1], weights[:1]), (surfaces, weights)],
        lambda some, of_them: (encoder.texture(some, of_them),),
    )


def _whole(crop: RGB, side: int) -> tuple[NDArray[Any], ...]:
    """The inputs of one crop, all of whose patches are looked at alike."""
    patches = np.arange(side * side)[None]
    return crop[None], patches, np.full(patches.shape, 1 / patches.size, np.float32)


def _of_text(components: Components) -> Iterator[Part]:
    """The text tower, in float32, where there is one whose words can be compared."""
    try:
        text = components.text_encoder
    except WeightsError as error:
        log.warning("%s is not exported: %s", spec.TEXT, error)
        return
    if not isinstance(text, TextEncoder):
        return
    names = text.tower.inputs

    def expected(*tokens: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        inputs = {name: torch.from_numpy(array) for name, array in zip(names, tokens, strict=True)}
        with torch.inference_mode():
            rows = getattr(text.model(**inputs), text.tower.output)
        return (torch.nn.functional.normalize(rows, dim=-1).numpy(),)

    every = tokens_of(text.tokenizer, TEXTS, names, length=text.length)
    yield Part(
        text_spec(length=text.length, dim=components.encoder.dim, mask=int("attention_mask" in names)),
        graphs.TextGraph(text),
        components.encoder.fingerprint,
        [tuple(every[name][:count] for name in names) for count in (1, len(TEXTS))],
        expected,
    )


def _of_owlv2(settings: Owlv2Settings, precision: Precision) -> Part:
    detector = Owlv2Detector(settings.weights, device="cpu", dtype="float32")
    pixels = graphs.Pixels(OPENAI, torch.float32)
    images = np.stack([padded(image, detector.size, GREY) for image in backgrounds()[:2]])

    def expected(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            each = [detector.forward(pixels(torch.from_numpy(image[None]))) for image in images]
        return np.stack([boxes for boxes, _ in each]), np.stack([scores for _, scores in each])

    return Part(
        spec.owlv2(size=detector.size, patch=int(detector.model.config.vision_config.patch_size)),
        graphs.Owlv2Graph(detector.model, DTYPES[precision]),
        fingerprint_of(resolve(settings.weights)),
        [(images[:1],), (images,)],
        expected,
        precision,
        lambda: ((padded(image, detector.size, GREY)[None],) for image in photographs()),
    )


def _of_sam(settings: SamSettings, precision: Precision) -> Iterator[Part]:
    segmenter = SamSegmenter(settings.weights, device="cpu")
    model, size = segmenter.model, segmenter.size
    facts = {
        "size": size,
        "channels": int(model.config.vision_config.output_channels),
        "grid": int(model.config.prompt_encoder_config.image_embedding_size),
    }
    fingerprint = fingerprint_of(resolve(settings.weights))
    pixels = graphs.Pixels(IMAGENET, torch.float32)

    def whole(image: RGB) -> RGB:
        return shrunk(image, fitted(image.shape[0], image.shape[1], size), size)

    images = np.stack([whole(image) for image in backgrounds()[:2]])

    def embeddings(images: NDArray[np.uint8]) -> tuple[NDArray[Any], ...]:
        with torch.inference_mode():
            return (model.get_image_embeddings(pixels(torch.from_numpy(images))).numpy(),)

    yield Part(
        spec.sam_encoder(**facts),
        graphs.SamEncoderGraph(model, DTYPES[precision]),
        fingerprint,
        [(images[:1],), (images,)],
        embeddings,
        precision,
        lambda: ((whole(image)[None],) for image in photographs()),
    )
    yield _of_sam_decoder(model, facts, fingerprint, embeddings(images[:1])[0])


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
    )


def fingerprint_of(weights: Weights) -> str:
    """Of a detector or segmenter: the name of its weights and twelve digits of their hash."""
    return f"{weights.origin.name}@{weights.sha256[:12]}"
