"""Queries for whole images, trained for words beside a frozen encoder, as FOR does (arXiv 2412.18806).

Two losses: classes that are labelled, and names without labels where they are near one of the image's clusters.
No code of the paper is published: forms and thresholds are ours (docs/concepts/words.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from soir_qdrant.errors import DatasetError
from soir_qdrant.images import load
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage
from soir_qdrant.lab.evaluate.metrics import average_precision, ranking
from soir_qdrant.lab.train.progress import HeadPlan, Progress, place_of, split, train_epochs, write_once
from soir_qdrant.models.heads.queries import QueryHead
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.scenes.cluster import clustered
from soir_qdrant.pooling.scenes.dense import dense_grid
from soir_qdrant.pooling.scenes.grids import Tiles, look
from soir_qdrant.pooling.scenes.queries import read
from soir_qdrant.types import Vector

CLUSTERS = 16  # of an image, that names without labels are compared with
UNKNOWN = -1  # a class that an image may show or not


@dataclass(frozen=True, slots=True)
class Plan(HeadPlan):
    """See `HeadPlan`. queries, layers: of the head. tiles: see `SceneSettings`. temperature: of both losses. pseudo:
    weight of the second loss. labelled: share of the images whose labels are used; in the others, classes are learnt
    as names without labels are. near, far: standard deviations
    above a name's mean similarity over all images from which an image counts as showing it, and up to which
    it counts as not; what is between is ignored."""

    queries: int = 16
    layers: int = 2
    tiles: int = 1
    temperature: float = 0.05
    pseudo: float = 1.0
    labelled: float = 1.0
    near: float = 2.0
    far: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One image. tokens: file of float16 [t * t, N, D], that enter the last block. classes: int8 [C], 1 shown, 0 not,
    UNKNOWN; clusters: float32 [k, D], of its dense vectors."""

    tokens: Path
    classes: NDArray[np.int8]
    clusters: Vector


def examples(
    benches: Sequence[Bench],
    pipeline: Pipeline,
    classes: Sequence[str],
    tiles: int,
    cache: Path,
    advance: Callable[[], None] = lambda: None,
) -> list[Example]:
    """The images of folders. classes: names that are labelled.

    Raises:
        DatasetError: no object has one of the names.
    """
    described = []
    for bench in benches:
        place = place_of(cache, bench, pipeline.encoder.fingerprint, f"{tiles} tiles", labels=False)
        place.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(bench.gallery):
            tokens, clusters = _described(image, pipeline, tiles, place / f"{i}")
            described.append(Example(tokens, _labels(image, classes), clusters))
            advance()
    if not any((example.classes == 1).any() for example in described):
        raise DatasetError("no object of these folders has a name: words are learnt from named boxes (COCO)")
    return described


def _described(image: GalleryImage, pipeline: Pipeline, tiles: int, place: Path) -> tuple[Path, Vector]:
    tokens, clusters = place.with_suffix(".tokens.npy"), place.with_suffix(".clusters.npy")
    if not (tokens.is_file() and clusters.is_file()):
        rgb = load(image.file).rgb
        whole: Tiles = look(pipeline.encoder, [rgb], tiles)
        with torch.inference_mode():
            rows, _ = clustered(dense_grid(whole, "own")[0], CLUSTERS, rgb.shape)
        half = whole.tokens.half().cpu().numpy()
        write_once(tokens, lambda out: np.save(out, half))
        write_once(clusters, lambda out: np.save(out, rows))
    return tokens, np.load(clusters)


def _labels(image: GalleryImage, classes: Sequence[str]) -> NDArray[np.int8]:
    names = {item.name for item in image.objects}
    absent = 0 if image.exhaustive else UNKNOWN
    return np.array([1 if name in names else absent for name in classes], np.int8)


def pseudo_labels(clusters: Sequence[Vector], names: Vector, plan: Plan) -> NDArray[np.int8]:
    """Which images show which names, as far as clusters tell: int8 [images, P], 1, 0 or UNKNOWN.

    Args:
        clusters: float32 [k, D] of each image, unit rows.
        names: float32 [P, D], unit rows: the embeddings of the names.
        plan: near, far.
    """
    similar = np.stack([(rows @ names.T).max(0) for rows in clusters])
    above = (similar - similar.mean(0)) / np.maximum(similar.std(0), 1e-6)
    labels = np.full(above.shape, UNKNOWN, np.int8)
    labels[above >= plan.near], labels[above <= plan.far] = 1, 0
    return labels


def targets(
    images: Sequence[Example], embeddings: tuple[Vector, Vector], plan: Plan
) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """What images are trained on: int8 [images, C], 1, 0 or UNKNOWN, by labels, and [images, C + P], by clusters.

    The labels of `plan.labelled` of the images are used. There clusters tell of names without labels alone; of
    the other images they tell of classes too.

    Args:
        images, embeddings, plan: see `train`.
    """
    with_labels = np.random.default_rng(plan.seed).permutation(len(images)) < round(
        plan.labelled * len(images)
    )
    labels = np.stack([one.classes for one in images])
    labels[~with_labels] = UNKNOWN
    pseudo = pseudo_labels([one.clusters for one in images], np.concatenate(embeddings), plan)
    pseudo[with_labels, : len(embeddings[0])] = UNKNOWN
    return labels, pseudo


def loss_of(scores: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Each shown class against those that the same image does not show; 0 where there is nothing to tell.

    Args:
        scores: [B, C], similarities. labels: [B, C], 1, 0 or UNKNOWN.
        temperature: of the softmax.
    """
    logits, shown = scores / temperature, labels == 1
    others = logits.masked_fill(labels != 0, -torch.inf).logsumexp(1, keepdim=True)
    losses = F.softplus(others - logits)
    return (losses * shown).sum() / shown.sum().clamp(min=1)


def scores_of(head: QueryHead, block: LastBlock, tokens: Tensor, names: Tensor) -> Tensor:
    """How like each image's most similar query is to each name, [B, C]. tokens: [B, t * t, N, D]; names: [C, D]."""
    rows = F.normalize(read(head, tokens.flatten(0, 1), block)[0], dim=-1)
    scores: Tensor = (rows @ names.T).unflatten(0, tokens.shape[:2]).amax((1, 2))
    return scores


def train(
    head: QueryHead,
    images: Sequence[Example],
    block: LastBlock,
    embeddings: tuple[Vector, Vector],
    plan: Plan,
    *,
    state: Path,
    log: Path,
    data: str = "",
    report: Callable[[dict[str, float]], None] = lambda _: None,
) -> QueryHead:
    """Train in place; returns the head. It goes on where it was killed, to the same result (see `Progress`).

    Args:
        head: of queries.
        images: every `plan.holdout`-th is measured, not trained on.
        block: the encoder's last; it stays as it is.
        embeddings: float32 [C, D] of the classes, [P, D] of the names without labels, unit rows.
        plan: of the training.
        state, log, data, report: see `Progress`, `train_epochs`.
    """
    training, holdout = split(images, plan)
    classes, names = (torch.from_numpy(np.ascontiguousarray(x)) for x in embeddings)
    labels, pseudo = (torch.from_numpy(x) for x in targets(training, embeddings, plan))

    def loss(rows: NDArray[np.int64], _rng: np.random.Generator) -> Tensor:
        scores = scores_of(head, block, _tokens([training[i] for i in rows]), torch.cat([classes, names]))
        by_label = loss_of(scores[:, : len(classes)], labels[rows], plan.temperature)
        by_name = loss_of(scores, pseudo[rows], plan.temperature)
        return by_label + plan.pseudo * by_name

    steps = max(len(training) // plan.batch, 1)
    train_epochs(
        head, Progress(plan, state, log, data), len(training), steps, loss,
        lambda: measure(head, holdout, block, classes), report, warm=0.05,
    )  # fmt: skip
    return head


@torch.no_grad()
def measure(
    head: QueryHead, images: Sequence[Example], block: LastBlock, classes: Tensor
) -> Mapping[str, float]:
    """mAP, in percent, of the classes that some of the images show and some do not."""
    if not images:
        return {}
    head.eval()
    scores = torch.cat([scores_of(head, block, _tokens([one]), classes) for one in images]).numpy()
    labels = np.stack([one.classes for one in images])
    precisions = []
    for i in range(labels.shape[1]):
        sure = labels[:, i] != UNKNOWN
        relevant = labels[sure, i] == 1
        if relevant.any() and not relevant.all():
            precisions.append(average_precision(relevant[ranking(scores[sure, i])]))
    return {"held out mAP": round(float(np.mean(precisions)), 2)} if precisions else {}


def _tokens(images: Sequence[Example]) -> Tensor:
    return torch.from_numpy(np.stack([np.load(one.tokens) for one in images])).float()
