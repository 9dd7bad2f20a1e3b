"""Tensors on disk, bounded in bytes: what was computed of a candidate need not be computed again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.cache import cache_dir

LIMIT = 2_000_000_000  # bytes; an image with eight objects takes 1.7 MB


class TokenCache:
    """A folder of safetensors files, one per key; the least recently used go first.

    Several processes may share a folder: files appear whole, and one that is gone or damaged is computed
    again. A disk that is full or read-only costs time, no results.

    Args:
        folder: None is $SOIR_CACHE/tokens, or ~/.cache/soir_qdrant/tokens.
        limit: bytes; 0 keeps nothing.

    Raises:
        ConfigError: for a limit below 0.
    """

    def __init__(self, folder: str | Path | None = None, limit: int = LIMIT) -> None:
        if limit < 0:
            raise ConfigError(f"cache limit {limit}: give bytes, or 0 to keep nothing")
        self.folder = Path(folder).expanduser() if folder is not None else cache_dir() / "tokens"
        self.limit = limit

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under the key (hex digits), or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        file = self._file(key)
        try:
            tensors: dict[str, Tensor] = load(file.read_bytes())
            os.utime(file)
        except (OSError, SafetensorError):
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Keep tensors under a key, and forget what was not used for longest where there is no room."""
        from safetensors.torch import save

        data = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
        if len(data) > self.limit:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(self.limit - len(data))
            handle, part = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with os.fdopen(handle, "wb") as out:
                out.write(data)
            Path(part).replace(self._file(key))
        except OSError:
            return

    def _make_room(self, max_bytes: int) -> None:
        files = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in self.folder.glob("*.safetensors"))
        total = sum(size for _, size, _ in files)
        for _, size, file in files:
            if total <= max_bytes:
                return
            file.unlink(missing_ok=True)
            total -= size

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"
