"""The folder for what is downloaded or converted, and what is known of the files in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soir_qdrant.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a set of weights comes from and under which terms."""

    name: str
    source: str
    licence: str
    note: str


def cache_dir() -> Path:
    """The folder for everything that is downloaded or converted: $SOIR_CACHE, else ~/.cache/soir_qdrant.

    Raises ConfigError where neither is known.
    """
    try:
        return Path(os.environ.get("SOIR_CACHE") or Path.home() / ".cache" / "soir_qdrant").expanduser()
    except RuntimeError as error:
        raise ConfigError(
            "there is no home folder to keep models in: name one as SOIR_CACHE=/some/folder"
        ) from error


def digest_of(files: Sequence[Path]) -> str:
    """The hex sha256 of files, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
