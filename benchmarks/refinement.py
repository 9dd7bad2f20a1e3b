"""What refinement brings, and where: over the whole image's descriptor, and over the mean of the same crops.

    python benchmarks/refinement.py --set 2d bench/inv-1 20 --set photographs dev-things /6 --cache build/refinement

A set is a folder of `soir evaluate` and which of its scenes: "all", "/6" (every sixth), or "20" (those of its first
queries' things, up to 20). Queries are those that show something of these scenes. Objects are the labelled ones, masks
theirs, else the segmenter's; a query's mask is the segmenter's, or its alpha.

Rows: chance; the whole image; the plain mean of the crops' descriptors; MaO's joint token, and one token a crop
averaged, after each number of steps, with plain and with refined queries; the vector that ships (its own crops and
features, tuned encoder). mAP in percent; behind it the difference from the mean of the same crops and its standard
error over the queries, paired. Spaces: "raw"; "centred", less the mean of single crops' tokens after as many steps;
"whitened" by the principal components of these. No label is used.

With --objects-ask every labelled object of the scenes is a query, in place of the set's own: its scene is left out, and
right are the others that show its thing. These are many more, and take no more time.

What was computed lies in the cache image by image: a killed run goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from refinement_tokens import VARIANTS as ALL
from refinement_tokens import Tokens

from soir_qdrant.images import load as load_image
from soir_qdrant.lab.evaluate.bench import Bench, BenchQuery, GalleryImage
from soir_qdrant.lab.evaluate.collect import labelled
from soir_qdrant.lab.evaluate.datasets import load
from soir_qdrant.lab.evaluate.metrics import average_precision, chance_precision, ranking
from soir_qdrant.lab.evaluate.report import beside, markdown, write_json, write_text
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import fit_whitening

SPACES = ("raw", "centred", "whitened")
Rows = dict[str, np.ndarray]  # row -> average precision of each query


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--set", nargs=3, action="append", required=True, metavar=("NAME", "DIR", "SCENES"))
    parser.add_argument("--variants", nargs="+", default=list(ALL), choices=list(ALL))
    parser.add_argument("--spaces", nargs="+", default=["raw"], choices=SPACES)
    parser.add_argument("--objects-ask", action="store_true", help="instead of the queries")
    parser.add_argument("--steps", type=int, default=80, help="of the joint token, and of queries")
    parser.add_argument("--crop-steps", type=int, default=20, help="of one token a crop")
    parser.add_argument("--cache", type=Path, default=Path("build/refinement"))
    parser.add_argument("--out", type=Path, default=Path("build/refinement.md"))
    chosen = parser.parse_args()
    limits = (chosen.steps, chosen.crop_steps)
    results: dict[str, dict[str, Rows]] = {}
    for variant in chosen.variants:
        for name, folder, rule in chosen.set:
            bench = sample(load(Path(folder), "needle"), rule)
            tokens = Tokens(ALL[variant], chosen.cache, limits)
            rows = (by_objects if chosen.objects_ask else measure)(bench, tokens, chosen.spaces)
            results.setdefault(variant, {})[name] = rows
            write_text(chosen.out, report(results))
            write_json(chosen.out.with_suffix(".json"), as_lists(results))
            print(report({variant: {name: rows}}), flush=True)


def sample(bench: Bench, rule: str) -> Bench:
    """The scenes that the rule names, and the queries that have an answer in them."""
    n = len(bench.gallery)
    if rule == "all":
        chosen = set(range(n))
    elif rule.startswith("/"):
        chosen = set(range(0, n, int(rule[1:])))
    else:
        chosen = set()
        for query in bench.queries:
            if len(chosen) < int(rule):
                chosen |= set(bench.relevant(query))
    part = replace(bench, gallery=[bench.gallery[i] for i in sorted(chosen)])
    return replace(part, queries=[query for query in bench.queries if part.relevant(query)])


@dataclass(slots=True)
class Looks:
    """Of S images: whole [S, D], joint by step [S, D], crops by step [K, D], scene_of [K], ours [S, dim]; of Q queries:
    whole [Q, D], crops by step [Q, D], ours [Q, dim]. Unit rows."""

    whole: np.ndarray
    crops: dict[int, np.ndarray]
    joint: dict[int, np.ndarray]
    scene_of: np.ndarray
    ours: np.ndarray | None


def measure(bench: Bench, tokens: Tokens, spaces: list[str]) -> Rows:
    """The average precision of every query, by row."""
    images = looks(tokens.image(load_image(e.file), labelled(e)) for e in progress(bench.gallery))
    queries = looks(tokens.query(load_image(q.file)) for q in progress(bench.queries))
    wanted = [set(bench.relevant(query)) for query in bench.queries]
    rows = {"chance": np.array([chance_precision(len(some), len(bench.gallery)) for some in wanted])}
    rows["whole image"] = precisions(queries.whole, images.whole, wanted)
    for space in spaces:
        ways = compared(images, queries, space)
        rows |= {name: precisions(q, g, wanted) for name, q, g in ways}
    if images.ours is not None and queries.ours is not None:
        rows["the vector that ships"] = precisions(queries.ours, images.ours, wanted)
    return rows


def by_objects(bench: Bench, tokens: Tokens, spaces: list[str]) -> Rows:
    """The same for every labelled object that is in other images too."""
    images = looks(tokens.image(load_image(e.file), labelled(e)) for e in progress(bench.gallery))
    shown = [image.instances for image in bench.gallery]
    listed = [name for names in shown for name in names]
    others = [
        {i for i, names in enumerate(shown) if name is not None and name in names} - {own}
        for name, own in zip(listed, images.scene_of, strict=True)
    ]
    asking = np.array([bool(some) for some in others])
    wanted, own = [some for some in others if some], images.scene_of[asking]
    n = len(bench.gallery) - 1
    rows = {"chance": np.array([chance_precision(len(some), n) for some in wanted])}
    for space in spaces:
        for name, q, g in compared(images, images, space):
            rows[name] = precisions(q[asking], g, wanted, own)
    return rows


def looks(some: Iterator[dict[str, np.ndarray]]) -> Looks:
    listed = list(some)

    def by_step(name: str) -> dict[int, np.ndarray]:
        keys = [key for key in listed[0] if key.startswith(f"{name}-")]
        return {int(key.rpartition("-")[2]): np.concatenate([one[key] for one in listed]) for key in keys}

    counts = [len(one["crops-0"]) for one in listed]
    ours = np.concatenate([one["ours"] for one in listed]) if "ours" in listed[0] else None
    whole = np.concatenate([one["whole"] for one in listed])
    return Looks(whole, by_step("crops"), by_step("joint"), np.repeat(np.arange(len(listed)), counts), ours)


def compared(images: Looks, queries: Looks, space: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Way and number of steps, queries and images in one of SPACES; no steps are the mean of the crops."""
    fitted_on = images.crops[0]
    plain = moved(queries.crops[0], fitted_on, space)
    yield f"mean, {space}|0", plain, pooled(moved(fitted_on, fitted_on, space), images.scene_of)
    for step, token in images.joint.items():
        if step not in queries.crops:
            continue
        own = images.crops.get(step, queries.crops[step])
        joint, refined = moved(token, own, space), moved(queries.crops[step], own, space)
        if space == "raw":
            yield f"joint token, plain query|{step}", plain, joint
        yield f"joint token, {space}|{step}", refined, joint
        if step in images.crops:
            mean = pooled(moved(images.crops[step], own, space), images.scene_of)
            yield f"token per crop, {space}|{step}", refined, mean


def moved(rows: np.ndarray, fitted_on: np.ndarray, space: str) -> np.ndarray:
    """Unit rows in a space that is fitted on other rows."""
    if space == "centred":
        return normalize(rows - fitted_on.mean(0))
    return fit_whitening(fitted_on)(rows) if space == "whitened" else rows


def pooled(rows: np.ndarray, scene_of: np.ndarray) -> np.ndarray:
    return normalize(np.stack([rows[scene_of == i].mean(0) for i in np.unique(scene_of)]))


def precisions(
    queries: np.ndarray, images: np.ndarray, wanted: list[set[int]], own: np.ndarray | None = None
) -> np.ndarray:
    """The average precision of each query. wanted: its right images; own: an image that is left out."""
    scores = queries @ images.T
    if own is not None:
        scores[np.arange(len(scores)), own] = -np.inf  # last, where it counts for nothing
    hits = [np.isin(ranking(row), list(some)) for row, some in zip(scores, wanted, strict=True)]
    return np.array([average_precision(hit) for hit in hits])


def report(results: dict[str, dict[str, Rows]]) -> str:
    """Of each variant and set: what is refined on no image, and a table with a line for each number of steps."""
    text = ""
    for variant, sets in results.items():
        for name, rows in sets.items():
            alone = [f"{row.removesuffix('|0')} {rows[row].mean():.1f}" for row in rows if _steps(row) == 0]
            ways = list(dict.fromkeys(row.partition("|")[0] for row in rows if _steps(row)))
            steps = sorted({_steps(row) for row in rows} - {0})
            body = [[str(step), *(cell(rows, way, step) for way in ways)] for step in steps]
            text += (
                f"### {ALL[variant].title}: {name}, {len(rows['chance'])} queries\n\n{'; '.join(alone)}.\n\n"
            )
            text += markdown(["steps", *ways], body) + "\n"
    return text


def cell(rows: Rows, way: str, step: int) -> str:
    """mAP, and the difference from the mean of the same crops in the same space."""
    value = rows.get(f"{way}|{step}")
    if value is None:
        return ""
    space = next((space for space in SPACES if way.endswith(f", {space}")), "raw")
    return beside(value, rows[f"mean, {space}|0"])


def _steps(row: str) -> int:
    return int(row.partition("|")[2] or 0)


def as_lists(results: dict[str, dict[str, Rows]]) -> dict[str, dict[str, dict[str, list[float]]]]:
    return {
        variant: {name: {row: v.round(3).tolist() for row, v in rows.items()} for name, rows in sets.items()}
        for variant, sets in results.items()
    }


def progress(items: list[GalleryImage] | list[BenchQuery]) -> Iterator:
    for i, item in enumerate(items):
        if i % 10 == 0:
            print(f"  {i} of {len(items)}", flush=True)
        yield item


if __name__ == "__main__":
    main()
