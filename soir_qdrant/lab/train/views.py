"""Views of labelled things, as the tokens that enter the tuned blocks: computed once, kept on disk."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant import images as image_io
from soir_qdrant.contracts import TEXTURE_CELLS, TEXTURE_LAYER
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.geometry.crops import SURROUNDINGS, Crops
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.train.progress import place_of
from soir_qdrant.models.compatibility import untouched
from soir_qdrant.models.encoders.vit import LAYERS, ViTEncoder
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.features import TEXTURE
from soir_qdrant.types import Box, Detections, LoadedImage

INDEX = "views.json"  # written last: views that have it are whole
JITTER = 0.07  # standard deviation of a box's sides, as a share of its width or height


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Views of equally many patches, as `Tail` reads them. rows: where in what was asked for each belongs.
    tokens: bfloat16 [B, N, D]; before: float32 [B, L, D]; weights: float32 [B, M]; texture: float32 [B, T]; see
    `Views`."""

    rows: Tensor
    tokens: Tensor
    before: Tensor
    weights: Tensor
    texture: Tensor

    def to(self, device: torch.device) -> Group:
        """A copy on another device."""
        return Group(
            *(x.to(device) for x in (self.rows, self.tokens, self.before, self.weights, self.texture))
        )


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """n views of a folder, view i of M_i patches and N_i tokens (those and the encoder's prefix).

    Attributes:
        tokens: int16 [sum of N_i, D], the bits of bfloat16, entering the first tuned block.
        before: float16 [n, L, D], masked patch means after the blocks before it.
        weights: float16 [sum of M_i], of the patches.
        texture: float16 [n, T], see `Encoder.texture`; T is 0 where that is no feature.
        patches: int64 [n], M_i. prefix: tokens before the patches.
        things, scenes: [n], what is seen, and where. query: bool [n].
    """

    tokens: NDArray[np.int16]
    before: NDArray[np.float16]
    weights: NDArray[np.float16]
    texture: NDArray[np.float16]
    patches: NDArray[np.int64]
    prefix: int
    things: NDArray[np.str_]
    scenes: NDArray[np.str_]
    query: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.things)

    def take(self, rows: Sequence[int]) -> list[Group]:
        """Some of the views, in groups of equally many patches."""
        wanted = np.asarray(rows, np.int64)
        starts = np.concatenate([[0], np.cumsum(self.patches)])
        groups = []
        for count in np.unique(self.patches[wanted]).tolist():
            place = np.flatnonzero(self.patches[wanted] == count)
            mine = wanted[place]
            first = (starts[mine] + mine * self.prefix)[:, None] + np.arange(count + self.prefix)
            tokens = torch.from_numpy(self.tokens[first]).view(torch.bfloat16)
            weights = self.weights[starts[mine][:, None] + np.arange(count)]
            before = torch.from_numpy(self.before[mine]).float()
            texture = torch.from_numpy(self.texture[mine]).float()
            shares = torch.from_numpy(weights).float()
            groups.append(Group(torch.from_numpy(place), tokens, before, shares, texture))
        return groups


def views(
    benches: Sequence[Bench],
    pipeline: Pipeline,
    blocks: int,
    cache: Path,
    advance: Callable[[], None] = lambda: None,
) -> list[Views]:
    """Every labelled instance under its true mask, and as the ingestor would see it that detected it: from a
    box that sits as badly as a detector's, fitted to the segmenter's mask; and the queries. A file set per
    folder in `cache`, 200 kB a view for ViT-S at 224 px.

    blocks: how many of the last ones are tuned, at most LAYERS; what an adapter did to those is not in the
    views. Raises ConfigError for an encoder that does not run here.
    """
    view_sets = []
    for bench in benches:
        place = place_of(cache, bench, f"last {blocks}", depends_on(pipeline, blocks))
        if not (place / INDEX).is_file():
            _write(bench, pipeline, blocks, place, advance)
        else:
            for _ in range(len(bench.gallery) + len(bench.queries)):
                advance()
        view_sets.append(_read(place))
    return view_sets


def _write(bench: Bench, pipeline: Pipeline, blocks: int, place: Path, advance: Callable[[], None]) -> None:
    place.mkdir(parents=True, exist_ok=True)
    encoder = local(pipeline)
    listed: list[tuple[str, str, bool]] = []
    counts: list[int] = []
    rng = np.random.default_rng(0)
    with (
        (place / "tokens").open("wb") as tokens,
        (place / "before").open("wb") as before,
        (place / "weights").open("wb") as weights,
        (place / "texture").open("wb") as texture,
    ):

        def put(crops: Crops) -> None:
            if crops.surfaces is not None:
                texture.write(pipeline.texture(crops).astype(np.float16).tobytes())
            for x, means, share in _entering(encoder, crops.pixels, crops.masks, blocks):
                tokens.write(x.to(torch.bfloat16).view(torch.int16).cpu().numpy().tobytes())
                before.write(means.half().cpu().numpy().tobytes())
                weights.write(share.half().cpu().numpy().tobytes())
                counts.append(len(share))

        for entry in bench.gallery:
            instances = [i for i, item in enumerate(entry.objects) if item.instance]
            if instances:
                image, objects = image_io.load(entry.file), labelled(entry)
                boxes = np.array([jittered(objects[i].box, image, rng) for i in instances], np.float32)
                noisy = pipeline.fitted(image.rgb, Detections(boxes, np.ones(len(instances), np.float32)))
                for items in ([objects[i] for i in instances], noisy):
                    put(pipeline.crops([image.rgb], [pipeline.segment(image.rgb, items)]))
                    listed += [(str(entry.objects[i].instance), entry.file.name, False) for i in instances]
            advance()
        for query in bench.queries:
            image = image_io.load(query.file)
            put(pipeline.query_crop(image.rgb, box=query.box, mask=image.alpha))
            listed.append((query.instance, f"?{query.file.name}", True))
            advance()
    if not listed:
        raise DatasetError(
            f"{bench.root}: no object has an instance (docs/how-to/evaluation.md): there is nothing to tell apart"
        )
    shape = {"prefix": encoder.prefix_tokens, "dim": encoder.last_block.dim, "layers": LAYERS - blocks}
    part = place / ".views.part"
    part.write_text(json.dumps(shape | {"patches": counts, "views": listed}))
    part.replace(place / INDEX)


def _entering(
    encoder: ViTEncoder, crops: NDArray[np.uint8], masks: NDArray[np.float32], blocks: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per crop: tokens [N, D], means [L, D] and weights [M]; see `Views`."""
    last = encoder.last_block
    views: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in encoder.batches(masks):
        trunk = encoder.trunk(crops[batch.rows], skip=blocks - 1, patches=batch.patches)
        weights = torch.from_numpy(batch.weights).to(encoder.device)
        means = [last.masked_mean(x, weights) for x in trunk[len(trunk) - (LAYERS - blocks) :]]
        before = torch.stack(means, 1) if means else trunk[-1].new_zeros(len(batch.rows), 0, last.dim)
        views |= zip(batch.rows.tolist(), zip(trunk[-1], before, weights, strict=True), strict=True)
    return [views[i] for i in range(len(crops))]


def local(pipeline: Pipeline) -> ViTEncoder:
    """Its encoder. Raises ConfigError where that is served."""
    if not isinstance(pipeline.encoder, ViTEncoder):
        raise ConfigError(
            "what is learnt is learnt from the encoder's own blocks: give a profile that runs here"
        )
    return pipeline.encoder


def depends_on(pipeline: Pipeline, blocks: int) -> str:
    """What the views depend on, but for the pictures and their labels."""
    settings = pipeline.settings
    encoder = untouched(local(pipeline).fingerprint, blocks)
    masks = pipeline.segmenter.fingerprint or settings.segmenter.model_dump_json()
    of_crops = f"{encoder} {settings.crop.model_dump_json()} {masks} boxes off by {JITTER}, fitted"
    if TEXTURE not in settings.vector.features:
        return of_crops
    return f"{of_crops} texture {TEXTURE_LAYER} {TEXTURE_CELLS} {SURROUNDINGS} under masks"


def _read(place: Path) -> Views:
    index = json.loads((place / INDEX).read_text())
    things, scenes, query = (np.array(column) for column in zip(*index["views"], strict=True))
    n, dim, patches = len(things), index["dim"], np.array(index["patches"], np.int64)
    rows = int(patches.sum()) + n * index["prefix"]
    return Views(
        tokens=np.memmap(place / "tokens", np.int16, "r", shape=(rows, dim)),
        before=np.fromfile(place / "before", np.float16).reshape(n, index["layers"], dim),
        weights=np.fromfile(place / "weights", np.float16),
        texture=_texture(place / "texture", n),
        patches=patches,
        prefix=index["prefix"],
        things=things,
        scenes=np.char.add(f"{place.name}/", scenes),
        query=query.astype(bool),
    )


def _texture(file: Path, count: int) -> NDArray[np.float16]:
    """[n, T]; T is 0 where none was written."""
    rows = np.fromfile(file, np.float16) if file.is_file() else np.zeros(0, np.float16)
    return rows.reshape(count, -1 if len(rows) else 0)


def jittered(box: Box, image: LoadedImage, rng: np.random.Generator, by: float = JITTER) -> Box:
    """A box whose sides are off by `by` of its width or height (a standard deviation), inside the image."""
    x0, y0, x1, y1 = box
    w, h = x1 - x0, y1 - y0
    a, b, c, d = rng.normal(0, by, 4) * (w, h, w, h)
    x0, y0 = max(0.0, x0 + a), max(0.0, y0 + b)
    return x0, y0, min(float(image.width), max(x1 + c, x0 + 8)), min(float(image.height), max(y1 + d, y0 + 8))
