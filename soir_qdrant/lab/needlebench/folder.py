"""The folder of a benchmark: made ready, with the recipe of what is written there, and complete only at the end."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from soir_qdrant.errors import DatasetError
from soir_qdrant.lab.evaluate.bench import ANNOTATIONS, Bench
from soir_qdrant.models.artifacts import write_whole

log = logging.getLogger(__name__)

RECIPE = "recipe.json"
PARTS = ("gallery", "queries", "masks")


def prepare(root: Path, recipe: dict[str, Any]) -> bool:
    """Makes the folder ready to be written; False where it is complete already, by the same recipe.

    Raises DatasetError where anything else is in it: nothing is removed but what an interrupted run left."""
    known = root / RECIPE
    if root.exists() and not root.is_dir():
        raise DatasetError(f"{root} is a file; give a folder")
    if root.is_dir() and any(root.iterdir()):
        if not known.is_file():
            raise DatasetError(f"{root} is not empty and not a NeedleBench folder; choose another one")
        if (root / ANNOTATIONS).is_file():
            if _read(known) == recipe:
                return False
            raise DatasetError(f"{root} holds a NeedleBench made with other arguments; choose another folder")
        log.info("%s: an interrupted run, starting over", root)
    write_json(known, recipe)
    for part in PARTS:
        shutil.rmtree(root / part, ignore_errors=True)
        (root / part).mkdir()
    return True


def prepare_beside(root: Path, bench: Bench, recipe: dict[str, Any]) -> bool:
    """`prepare` for a folder made of the photographs of another one.

    Raises DatasetError too where the folder is that of the photographs."""
    if any(entry.file.is_relative_to(root.resolve()) for entry in bench.gallery):
        raise DatasetError(f"{root} holds the photographs themselves; choose another folder to write")
    return prepare(root, recipe)


def labels_digest(bench: Bench, *also: Any) -> str:
    """Sixteen hex digits that name photographs, their labels, and what else is JSON-able."""
    entries = [(e.file.name, [(o.name, *o.box) for o in e.objects]) for e in bench.gallery]
    content = [entries, *also] if also else entries
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def complete(root: Path, gallery: list[dict[str, Any]], queries: list[dict[str, Any]]) -> Path:
    """Writes the annotations, which a folder that is not complete is without. Returns the folder."""
    write_json(root / ANNOTATIONS, {"gallery": gallery, "queries": queries})
    return root


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Whole or not at all."""
    write_whole(path, (json.dumps(data, indent=1) + "\n").encode())


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: not readable as JSON ({error}); choose another folder") from error
