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
from soir_qdrant.lab.evaluate.report import markdown, write_json, write_text
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
            rows = measure(bench, Tokens(ALL[variant], chosen.cache, limits), chosen.spaces)
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
        rows |= {f"{name}": precisions(q, g, wanted) for name, q, g in ways}
    if images.ours is not None and queries.ours is not None:
        rows["the vector that ships"] = precisions(queries.ours, images.ours, wanted)
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
    """Row, queries and images in one of SPACES."""
    fitted_on = images.crops[0]
    plain = moved(queries.crops[0], fitted_on, space)
    mark = "" if space == "raw" else f", {space}"
    yield f"mean of the crops{mark}", plain, pooled(moved(fitted_on, fitted_on, space), images.scene_of)
    for step, token in images.joint.items():
        own = images.crops.get(step, queries.crops[step])
        joint, refined = moved(token, own, space), moved(queries.crops[step], own, space)
        if space == "raw":
            yield f"joint token, {step} steps, plain query", plain, joint
        yield f"joint token, {step} steps{mark}", refined, joint
        if step in images.crops:
            mean = pooled(moved(images.crops[step], own, space), images.scene_of)
            yield f"one token a crop, {step} steps{mark}", refined, mean


def moved(rows: np.ndarray, fitted_on: np.ndarray, space: str) -> np.ndarray:
    """Unit rows in a space that is fitted on other rows."""
    if space == "centred":
        return normalize(rows - fitted_on.mean(0))
    return fit_whitening(fitted_on)(rows) if space == "whitened" else rows


def pooled(rows: np.ndarray, scene_of: np.ndarray) -> np.ndarray:
    return normalize(np.stack([rows[scene_of == i].mean(0) for i in np.unique(scene_of)]))


def precisions(queries: np.ndarray, images: np.ndarray, wanted: list[set[int]]) -> np.ndarray:
    orders = [ranking(row) for row in queries @ images.T]
    hits = [np.isin(order, list(some)) for order, some in zip(orders, wanted, strict=True)]
    return np.array([average_precision(hit) for hit in hits])


def report(results: dict[str, dict[str, Rows]]) -> str:
    """A table for each variant: a column for each set."""
    text = ""
    for variant, sets in results.items():
        names = list(dict.fromkeys(name for rows in sets.values() for name in rows))
        columns = ["", *(f"{name} ({len(rows['chance'])} queries)" for name, rows in sets.items())]
        body = [[name, *(cell(rows, name) for rows in sets.values())] for name in names]
        text += f"### {ALL[variant].title}\n\n{markdown(columns, body)}\n"
    return text


def cell(rows: Rows, name: str) -> str:
    if name not in rows:
        return ""
    value, base = rows[name], rows[_base(name)]
    if name in ("chance", _base(name)):
        return f"{value.mean():.1f}"
    gain = value - base
    return f"{value.mean():.1f} ({gain.mean():+.1f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.1f})"


def _base(name: str) -> str:
    """The mean of the same crops in the same space."""
    space = next((space for space in SPACES[1:] if name.endswith(f", {space}")), None)
    return "mean of the crops" + (f", {space}" if space else "")


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
