"""Queries that are trained on the tokens of whole images: what benchmarks/scene_queries.py measures.

The encoder stays as it is. Queries look at the detector's tokens through a small decoder; the attention of each takes
the place of the mask in our mean of patch tokens, and a read-out, which begins as that part of the projection, takes
the mean into the space of our vectors. Loss: InfoNCE, as in stage A, between the vector of a labelled thing (as another
image shows it, where there is one) and the soft best of an image's vectors, against other images and other things.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from soir_qdrant import images as image_io
from soir_qdrant.config import Settings
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.cache import ArrayCache
from soir_qdrant.lab.evaluate.collect import RecordingPipeline, labelled
from soir_qdrant.lab.evaluate.metrics import average_precision, ranking
from soir_qdrant.lab.train.progress import Progress, train_epochs
from soir_qdrant.models.token_grid import AREA, tiled_grid
from soir_qdrant.types import LoadedImage, Scene, SceneObject, Vector

COUNTS = (8, 16, 32)  # queries: the first 8, and the first 16, are trained to do without the others
WIDTH, LAYERS, HEADS = 96, 2, 3  # of the decoder
FEATURE = "patches-3"  # of crops, after the block that the detector's tokens come from
THINGS = 8  # labelled ones of a training image that are described
POSITIVES = 4  # of them at a step
OTHERS = 1024  # things that an image's vectors are not to be like, at a step
DRAWN = 768  # tokens of an image at a step, of some 1,800
PASSES = 5  # over the images between two measurements
TEMPERATURE = 0.05


class Looks:
    """The default pipeline, with the detector's tokens of each image; all is kept on disk."""

    def __init__(self, cache: Path) -> None:
        self.pipeline = RecordingPipeline(Settings.for_profile(), (), cache=cache / "ingested")
        self.tokens = ArrayCache(cache / "tokens", self.pipeline.encoder.fingerprint)

    def described(self, image: LoadedImage, objects: list[SceneObject] | None = None) -> Scene:
        """What is stored of the image. objects: instead of those that are detected."""
        return self.pipeline.scenes([image], [objects])[0]

    def whole(self, image: LoadedImage) -> Vector:
        """The vector of the whole image as one object, float32 [D_out]."""
        box = (0.0, 0.0, float(image.width), float(image.height))
        return self.pipeline.scenes([image], [[SceneObject(box)]])[0].vector

    def grid(self, image: LoadedImage) -> NDArray[np.float16]:
        """The detector's tokens, normalised as the encoder does at its end: [h, w, D]."""
        stored = self.tokens.load(image.sha256[:24])
        if stored is None:
            raw = torch.from_numpy(tiled_grid(self.pipeline.encoder, image.rgb, AREA))
            stored = {"grid": self.pipeline.encoder.last_block.norm(raw).half().numpy()}
            self.tokens.save(image.sha256[:24], stored)
        return stored["grid"]


@dataclass(frozen=True)
class Examples:
    """Labelled images. tokens: float16 [h, w, D]; folder: its number. Of all things: vectors, float32 [T, D_out];
    image, int64 [T]; boxes, [T, 4], as shares of the image; label, int64 [T]: which thing, or which kind where that is
    not known; views: numbers of the same thing in other images. shown: bool [images, labels], what each shows."""

    tokens: list[Tensor]
    folder: list[int]
    vectors: Tensor
    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    label: NDArray[np.int64]
    views: list[NDArray[np.int64]]
    shown: NDArray[np.bool_]

    def of(self, image: int) -> NDArray[np.int64]:
        """The things of an image."""
        return np.flatnonzero(self.image == image)

    def another(self, thing: int, rng: np.random.Generator) -> int:
        """A view of the thing: in another image, where there is one."""
        return int(rng.choice(self.views[thing])) if len(self.views[thing]) else thing


def examples(benches: Sequence[Bench], looks: Looks, max_images: int) -> Examples:
    """Some images of each folder, with some of their labelled things, always the same ones."""
    tokens, rows, boxes = list[Tensor](), list[Vector](), list[NDArray[Any]]()
    folder, image, things, listed = list[int](), list[int](), list[tuple[str, bool]](), list[set[str]]()
    for number, bench in enumerate(benches):
        rng = np.random.default_rng(0)
        labelled_images = [entry for entry in bench.gallery if entry.objects]
        for i in track(sorted(rng.permutation(len(labelled_images))[:max_images]), bench.root.name):
            entry = labelled_images[i]
            order = np.sort(rng.permutation(len(entry.objects))[:THINGS])
            loaded, objects = image_io.load(entry.file), labelled(entry)
            scene = looks.described(loaded, [objects[j] for j in order])
            names = [item.instance or item.name or "" for item in entry.objects]
            things += [(names[j], entry.objects[j].instance is not None) for j in order]
            image += [len(tokens)] * len(order)
            folder.append(number)
            tokens.append(torch.from_numpy(looks.grid(loaded)))
            rows.append(scene.object_vectors)
            boxes.append(entry.boxes[order] / ([scene.width, scene.height] * 2))
            listed.append(set(names))
    labels = {name: i for i, name in enumerate(sorted(set.union(*listed)))}
    label, place = np.array([labels[name] for name, _ in things]), np.array(image)
    views = [
        np.flatnonzero((label == label[t]) & (place != place[t])) if same else np.zeros(0, np.int64)
        for t, (_, same) in enumerate(things)
    ]
    shown = np.array([[name in names for name in labels] for names in listed])
    vectors = torch.from_numpy(np.concatenate(rows))
    return Examples(tokens, folder, vectors, place, np.concatenate(boxes), label, views, shown)


class SceneQueries(nn.Module):
    """k queries that look at the tokens of an image. part, shift: float32 [D, D_out] and [D_out], of the projection.
    compete: each token is shared out among the queries, as in slot attention (arXiv 2006.15055)."""

    def __init__(self, part: Vector, shift: Vector, *, compete: bool = False) -> None:
        super().__init__()
        self.compete = compete
        self.queries = nn.Parameter(torch.randn(COUNTS[-1], WIDTH))
        self.narrow, self.place = nn.Linear(len(part), WIDTH), nn.Linear(16, WIDTH)
        layer = nn.TransformerDecoderLayer(
            WIDTH, HEADS, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.memory_norm = nn.LayerNorm(WIDTH)
        self.decoder = nn.TransformerDecoder(layer, LAYERS, nn.LayerNorm(WIDTH))
        self.ask, self.answer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.read = nn.Linear(*part.shape)
        with torch.no_grad():
            self.read.weight.copy_(torch.from_numpy(part.T))
            self.read.bias.copy_(torch.from_numpy(shift))
        group = torch.searchsorted(torch.tensor(COUNTS), torch.arange(COUNTS[-1]), right=True)
        self.register_buffer("later", group[None] > group[:, None], persistent=False)

    def forward(self, tokens: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Unit rows [B, k, D_out], and the attention of each query, [B, k, N].

        Args:
            tokens: [B, N, D]. cells: [B, N, 2], where each lies, as shares of the image.
        """
        angles = (cells[..., None] * np.pi * 2.0 ** torch.arange(4)).flatten(2)
        memory = self.memory_norm(
            self.narrow(tokens) + self.place(torch.cat([angles.sin(), angles.cos()], -1))
        )
        queries = self.queries.expand(len(tokens), -1, -1)
        decoded = self.decoder(queries, memory, tgt_mask=self.later)
        likeness = (self.ask(decoded) @ self.answer(memory).mT).float()
        if self.compete:
            shares = likeness.softmax(1)
            attention = shares / shares.sum(-1, keepdim=True)
        else:
            attention = (likeness / WIDTH**0.5).softmax(-1)
        return self.projected(attention.to(tokens.dtype) @ tokens), attention

    def projected(self, means: Tensor) -> Tensor:
        """Means of tokens, [..., D], in the space of our vectors, unit rows [..., D_out]."""
        return F.normalize(self.read(F.normalize(means, dim=-1)).float(), dim=-1)


def new_head(looks: Looks, *, compete: bool = False) -> SceneQueries:
    """Untrained. Its read-out is the part of the projection for the feature that the detector reads."""
    pipeline = looks.pipeline
    features, width = pipeline.settings.vector.features, pipeline.encoder.width
    assert pipeline.whitening is not None
    rows = slice(*(width * (features.index(FEATURE) + i) for i in range(2)))
    part = pipeline.whitening.matrix[rows]
    torch.manual_seed(0)
    return SceneQueries(part / len(features) ** 0.5, -pipeline.whitening.mean[rows] @ part, compete=compete)


def cells_of(grid: Tensor) -> Tensor:
    """Where each token of [h, w, D] lies, [h * w, 2], x and y as shares."""
    h, w = grid.shape[:2]
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def looked_at(head: SceneQueries, grid: Tensor) -> tuple[Tensor, Tensor]:
    """What the queries say of a whole image: [k, D_out], and their attention, [k, h, w]. grid: [h, w, D]."""
    with torch.inference_mode():
        rows, attention = head(grid.flatten(0, 1)[None].float(), cells_of(grid)[None])
    return rows[0], attention[0].unflatten(1, grid.shape[:2])


@dataclass(frozen=True)
class Training:
    """The loss over some images of `data`."""

    head: SceneQueries
    data: Examples

    def loss(self, images: NDArray[np.int64], rng: np.random.Generator) -> Tensor:
        """InfoNCE of some of their things, each with the image that it is in, for each number of queries."""
        tokens, cells, positives, owner = list[Tensor](), list[Tensor](), list[int](), list[int]()
        for i, image in enumerate(images):
            some, places, visible = self._part(image, rng)
            tokens.append(some)
            cells.append(places)
            for thing in rng.permutation(visible)[:POSITIVES]:
                positives.append(self.data.another(thing, rng))
                owner.append(i)
        inputs = torch.stack(tokens).bfloat16(), torch.stack(cells)
        with torch.autocast("cpu", torch.bfloat16):
            rows, _ = self.head(*inputs)
        others = rng.integers(len(self.data.label), size=OTHERS)
        return self._contrast(rows, images, np.array([*positives, *others]), np.array(owner))

    def _part(self, image: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
        """Tokens of an image, drawn anew, half of the times of a part of it; their cells; the things of that part."""
        grid, things = self.data.tokens[image].flatten(0, 1), self.data.of(image)
        side = 1.0 if rng.random() < 0.5 else rng.uniform(0.6, 1.0)
        low = rng.uniform(0, 1 - side, 2)
        cells = cells_of(self.data.tokens[image])
        shares, centres = cells.numpy(), self.data.boxes[things].reshape(-1, 2, 2).mean(1)
        inside = np.flatnonzero(((shares >= low) & (shares <= low + side)).all(1))
        chosen = torch.from_numpy(rng.choice(inside, DRAWN, replace=len(inside) < DRAWN))
        return grid[chosen], cells[chosen], things[((centres > low) & (centres < low + side)).all(1)]

    def _contrast(
        self, rows: Tensor, images: NDArray[np.int64], things: NDArray[np.int64], owner: NDArray[np.int64]
    ) -> Tensor:
        """rows: [B, k, D_out]. things: the first of them are positives, in the images `owner`; the others are not."""
        count, number = len(owner), torch.arange(len(owner))
        with torch.autocast("cpu", torch.bfloat16):
            logits = (rows @ self.data.vectors[things].T).float() / TEMPERATURE
        shown = torch.from_numpy(self.data.shown[images][:, self.data.label[things]])  # [B, things]
        own = torch.zeros(len(images), len(things), dtype=torch.bool)
        own[owner, number] = True
        logits = logits.masked_fill((shown & ~own)[:, None], -torch.inf)
        total = rows.new_zeros(())
        for k in COUNTS:
            scores = logits[:, :k].logsumexp(1)
            right = scores[owner, number]
            total = total + (scores[:, :count].logsumexp(0) - right).mean()
            others = scores.masked_fill(own, -torch.inf).logsumexp(1)[owner]
            total = total + (torch.logaddexp(others, right) - right).mean()
        return total / len(COUNTS)

    def measure(self, images: NDArray[np.int64]) -> dict[str, float]:
        """The loss on images that are not trained on, and mAP by the best of the queries: of things as another image
        shows them, and of those that only the same image shows."""
        self.head.eval()
        with torch.inference_mode():
            parts = np.array_split(images, max(len(images) // 16, 1))
            losses = [float(self.loss(part, np.random.default_rng(i))) for i, part in enumerate(parts)]
        rows = torch.stack([looked_at(self.head, self.data.tokens[i])[0] for i in images])
        precisions: dict[bool, list[float]] = {True: [], False: []}
        rng = np.random.default_rng(0)
        for thing in np.flatnonzero(np.isin(self.data.image, images)).tolist():
            view = self.data.another(thing, rng)
            rest = images != (self.data.image[view] if view != thing else -1)
            scores = (rows @ self.data.vectors[view]).amax(1).numpy()[rest]
            relevant = self.data.shown[images][rest][:, self.data.label[thing]]
            precisions[view != thing].append(average_precision(relevant[ranking(scores)]))
        named = {"mAP another view": precisions[True], "mAP same image": precisions[False]}
        return {"holdout loss": round(float(np.mean(losses)), 4)} | {
            name: round(float(np.mean(some)), 2) for name, some in named.items() if some
        }


def trained(head: SceneQueries, data: Examples, folders: int, progress: Progress) -> None:
    """Train on the images of the first folders but every tenth, which is measured, as all of the other folders are."""
    images, plan = range(len(data.tokens)), progress.plan
    training = np.array([i for i in images if data.folder[i] < folders and i % plan.holdout])
    rest = np.setdiff1d(images, training)
    work = Training(head, data)
    print(f"{len(training)} images to train on, {len(rest)} to measure, {len(data.label)} things", flush=True)
    train_epochs(
        head,
        progress,
        PASSES * len(training),
        PASSES * len(training) // plan.batch,
        lambda rows, rng: work.loss(training[rows % len(training)], rng),
        lambda: work.measure(rest),
        lambda line: print(line | {"core-minutes": round(time.process_time() / 60, 1)}, flush=True),
        warm=0.02,
    )
