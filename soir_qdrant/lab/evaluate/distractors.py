"""Images that show none of the things that are searched for, beside those that do: how a search does among many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from soir_qdrant.errors import DatasetError
from soir_qdrant.images import SUFFIXES
from soir_qdrant.lab.evaluate.bench import Bench, GalleryImage


def distractors(folder: Path) -> list[GalleryImage]:
    """The images of a folder and of those in it, without objects, in the order of their paths."""
    files = sorted(file.resolve() for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
    return [GalleryImage(file, None, [], exhaustive=False) for file in files]


def among(bench: Bench, folders: Sequence[Path]) -> Bench:
    """The same benchmark, the images of these folders in its gallery too, but for those that are there already and
    for its queries, by their paths.

    Raises:
        DatasetError: where a folder has none.
    """
    gallery = {image.file.resolve(): image for image in bench.gallery}
    queries = {query.file.resolve() for query in bench.queries}
    for folder in folders:
        others = distractors(folder.expanduser().resolve())
        if not others:
            raise DatasetError(f"{folder}: no images there to search among")
        for image in others:
            if image.file not in queries:
                gallery.setdefault(image.file, image)
    return replace(bench, gallery=list(gallery.values()))
