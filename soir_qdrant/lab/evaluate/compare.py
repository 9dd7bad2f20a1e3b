"""`soir evaluate`: the ways to search for a small thing side by side, on any folder with labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError, DatasetError
from soir_qdrant.geometry.boxes import intersection_over_union
from soir_qdrant.lab.evaluate.bench import Bench
from soir_qdrant.lab.evaluate.collect import Collected, collect
from soir_qdrant.lab.evaluate.metrics import (
    average_precision,
    box_shares,
    chance_precision,
    chance_recall,
    image_size,
    placed,
    ranking,
    recall_at,
    recall_by_size,
)
from soir_qdrant.lab.evaluate.plain_rows import OF_PAPER, PLAIN
from soir_qdrant.lab.evaluate.searched import SearchResults
from soir_qdrant.pipeline import Pipeline
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import adapt, fit_whitening

if TYPE_CHECKING:
    from soir_qdrant.serving.runtime import Runtime

ROWS = {  # what a table calls them; in its order
    "global-untuned": "whole image, untuned encoder",
    "global": "whole image, this encoder",
    "mean": "mean of the objects",
    "paper-mean": "mean of the objects, as in the paper",
    "paper-plain-query": "MaO as in the paper, plain queries",
    "paper": "MaO as in the paper",
    "default": "one vector",
    "calibrated": "one vector, calibrated",
    "search": "search()",
    "rerank-codes": "search(rerank='codes')",
    "rerank-objects": "search(rerank='objects')",
    "rerank-image": "search(rerank='image')",
    "q-perturbation": "search(rerank='q-perturbation')",
    "objects": "every object's vector",
    "chance": "chance",
}
SLOW = (*OF_PAPER, "rerank-image", "q-perturbation")  # left out unless they are asked for
DEFAULT_ROWS = tuple(name for name in ROWS if name not in SLOW)
SIZES = {"<1%": (0.0, 0.01), "1-2%": (0.01, 0.02), ">2%": (0.02, 1.0)}
Ranks = list[NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `run` returns. results: see `evaluate`; collected: what they were made of; ranks: of each row, the
    gallery in its order for every query."""

    results: dict[str, dict[str, Any]]
    collected: Collected
    ranks: dict[str, Ranks]


def evaluate(
    bench: Bench,
    *,
    objects: str = "given",
    rows: Sequence[str] | None = None,
    settings: Settings | None = None,
    advance: Callable[[], None] = lambda: None,
    cache: Path | None = None,
    runtime: Runtime | None = None,
) -> dict[str, dict[str, Any]]:
    """Compare ways to search on a labelled folder. docs/how-to/evaluation.md has every definition.

    Args:
        bench: the labelled folder.
        objects: "given", the labelled boxes and masks, or "detected".
        rows: some of `ROWS`; None is those of `DEFAULT_ROWS` that these settings have.
        settings: of the pipeline; None is the default profile.
        advance: called once per image and query.
        cache: folder that keeps what was ingested of each image, so that the same call goes on where it was
            killed; None keeps nothing.
        runtime: where the models run, to see what an export costs; None is here.

    Returns:
        row -> {"mAP", "R@1", "R@10", "by_size"}, in percent; "encoder" of rows with one of their own; of
        searches through Qdrant also "localised",
        0..1, and "ms_per_candidate". "ingest" -> {"core_seconds", "boxes"}, both per image. Where objects are
        "detected", "detector" -> {"recall@0.5", "boxes", "by_size"}, recalls 0..1, boxes per image.

    Raises:
        ConfigError: there is no such row, or none with these settings.
        DatasetError: the folder has no queries, or an image cannot be ingested.
    """
    done = run(
        bench, objects=objects, rows=rows, settings=settings, advance=advance, cache=cache, runtime=runtime
    )
    return done.results


def run(
    bench: Bench,
    *,
    objects: str,
    rows: Sequence[str] | None,
    settings: Settings | None = None,
    advance: Callable[[], None] = lambda: None,
    cache: Path | None = None,
    runtime: Runtime | None = None,
) -> Evaluation:
    """`evaluate`, with what the results were made of."""
    settings = settings or Settings.for_profile()
    rows = rows_of(rows, settings)
    if objects not in ("given", "detected"):
        raise ConfigError(f"objects {objects!r}: choose 'given' or 'detected'")
    if not bench.queries:
        raise DatasetError(f"{bench.root}: no queries, so that there is nothing to evaluate")
    collected = collect(bench, settings, rows, objects == "given", advance, cache=cache, runtime=runtime)
    ranks, areas = _rankings(collected, settings, rows), _areas(bench)
    scored = {name: _scored(bench, order, areas) for name, order in ranks.items()}
    for name, result in collected.searches.items():
        scored[name]["localised"] = _localised(bench, result)
        if result.ms:
            scored[name]["ms_per_candidate"] = round(float(np.median(result.ms)), 3)
    for name, encoder in collected.encoders.items():
        scored[name]["encoder"] = encoder
    if "chance" in rows:
        scored["chance"] = _chance(bench)
    results = {name: scored[name] for name in ROWS if name in scored}
    boxes = float(np.mean([len(items) for items in collected.objects]))
    results["ingest"] = {
        "core_seconds": round(float(np.mean(collected.seconds)), 3),
        "boxes": round(boxes, 2),
    }
    if objects == "detected":
        results["detector"] = _detection(bench, collected)
    return Evaluation(results, collected, ranks)


def rows_of(named: Sequence[str] | None, settings: Settings) -> Sequence[str]:
    """The rows to compute. Raises ConfigError for those that are none, or none with these settings."""
    closed = (
        settings.vector.pooling != "mao"
    )  # of other object vectors, no other image vector without refinement
    if named is None:
        return [name for name in DEFAULT_ROWS if closed or name != "calibrated"]
    if unknown := sorted(set(named) - set(ROWS)):
        raise ConfigError(f"no row {', '.join(unknown)}: choose rows out of {', '.join(ROWS)}")
    if "calibrated" in named and not closed:
        raise ConfigError("row 'calibrated' needs pooling 'gmp' or 'mean'; leave it out with --rows")
    return named


def _rankings(collected: Collected, settings: Settings, rows: Sequence[str]) -> dict[str, Ranks]:
    """Each row's order of the gallery for every query, int [n]."""
    ranks: dict[str, Ranks] = {}
    for name in PLAIN:
        if name in rows:
            scores = np.stack(collected.query_plain[name]) @ np.stack(collected.plain[name]).T
            ranks[name] = [ranking(row) for row in scores]
    ranks |= {name: result.ranks for name, result in collected.searches.items()}
    pipeline = Pipeline(settings)
    if "calibrated" in rows:
        ranks["calibrated"] = _calibrated(collected, pipeline)
    if "objects" in rows:
        white = pipeline.whitening or normalize
        queries = np.stack(collected.query_vectors)
        best = np.stack([(queries @ white(some).T).max(1) for some in collected.rows], 1)
        ranks["objects"] = [ranking(row) for row in best]
    return ranks


def _calibrated(collected: Collected, pipeline: Pipeline) -> Ranks:
    """As `default`, with the whitening refitted on the gallery's own objects."""
    rows = np.concatenate(collected.rows)
    whole = rows[rows.all(1)]  # faint objects have no texture
    prior = pipeline.prior
    if prior is None:
        white = fit_whitening(whole)
    else:
        white = adapt(prior, whole.mean(0), np.cov(whole, rowvar=False), len(whole))
    pooled = pool(pipeline, white(rows), collected)
    return [ranking(row) for row in white(np.stack(collected.query_rows)) @ pooled.T]


def pool(pipeline: Pipeline, vectors: NDArray[np.float32], collected: Collected) -> NDArray[np.float32]:
    """Object vectors [K, D] -> image vectors [n, D], by the pooling of the settings (closed forms only)."""
    scene_of = np.repeat(np.arange(len(collected.objects)), [len(items) for items in collected.objects])
    scores = np.array([item.score for items in collected.objects for item in items], np.float32)
    return pipeline.pool(vectors, scene_of, scores)


def _areas(bench: Bench) -> list[dict[str, float]]:
    """Per image, the visible share of each instance (of its box, where there is no mask)."""
    areas = []
    for entry in bench.gallery:
        masks = entry.masks()
        if masks is None:
            shares = box_shares(entry.boxes, image_size(entry.file)).tolist()
        else:
            pixels = next(mask.size for mask in masks if mask is not None)
            boxes = np.prod(entry.boxes[:, 2:] - entry.boxes[:, :2], axis=1) / pixels
            shares = [
                float(box if mask is None else mask.mean()) for box, mask in zip(boxes, masks, strict=True)
            ]
        areas.append({o.instance: s for o, s in zip(entry.objects, shares, strict=True) if o.instance})
    return areas


def _scored(bench: Bench, ranks: Ranks, areas: list[dict[str, float]]) -> dict[str, Any]:
    precision, first, tenth = [], [], []
    sized: dict[str, list[float]] = {name: [] for name in SIZES}
    for query, order in zip(bench.queries, ranks, strict=True):
        relevant = np.isin(order, bench.relevant(query))
        precision.append(average_precision(relevant, len(bench.relevant(query)), bench.depth))
        first.append(recall_at(relevant, 1))
        tenth.append(recall_at(relevant, 10))
        share = np.array([areas[i].get(query.instance, -1.0) for i in order])
        for name, (low, high) in SIZES.items():
            inside = (share >= low) & (share < high)
            if inside.any():  # other sizes of the same thing are neither right nor wrong here
                sized[name].append(average_precision(inside[~relevant | inside]))
    by_size = {name: _mean(values) for name, values in sized.items() if values}
    return {"mAP": _mean(precision), "R@1": _mean(first), "R@10": _mean(tenth), "by_size": by_size}


def _localised(bench: Bench, result: SearchResults) -> float:
    """The share, 0..1, of the relevant hits among the first ten whose box has IoU >= 0.5 with the truth."""
    right = []
    for query, boxes in zip(bench.queries, result.boxes, strict=True):
        for image in set(bench.relevant(query)) & set(boxes):
            true = [o.box for o in bench.gallery[image].objects if o.instance == query.instance]
            right.append(placed(boxes[image], true))
    return round(float(np.mean(right)), 4) if right else 0.0


def _chance(bench: Bench) -> dict[str, Any]:
    n, counts = len(bench.gallery), [len(bench.relevant(query)) for query in bench.queries]
    return {
        "mAP": _mean([chance_precision(c, n) for c in counts]),
        "R@1": _mean([chance_recall(c, n, 1) for c in counts]),
        "R@10": _mean([chance_recall(c, n, 10) for c in counts]),
        "by_size": {},
    }


def _detection(bench: Bench, collected: Collected) -> dict[str, Any]:
    """Share of the labelled objects that some detected box covers with IoU >= 0.5, also by their size."""
    hits, shares = [], []
    for entry, items in zip(bench.gallery, collected.objects, strict=True):
        detected = np.array([item.box for item in items], np.float32).reshape(-1, 4)
        hits.append(intersection_over_union(entry.boxes, detected).max(1, initial=0) >= 0.5)
        shares.append(box_shares(entry.boxes, image_size(entry.file)))
    hit, share = np.concatenate(hits), np.concatenate(shares)
    boxes = sum(len(items) for items in collected.objects) / len(bench.gallery)
    recall = float(hit.mean()) if len(hit) else 0.0
    return {
        "recall@0.5": round(recall, 4),
        "boxes": round(boxes, 2),
        "by_size": recall_by_size(hit, share),
    }


def _mean(values: list[float]) -> float:
    return round(float(np.mean(values)), 2) if values else 0.0
