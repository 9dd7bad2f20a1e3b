"""Files to pixels, in a thread beside the one that runs the models: nothing but files and pixels in here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from soir_qdrant.errors import ImageError
from soir_qdrant.images import decode, decoded_bytes, read
from soir_qdrant.ingest.sources import Item
from soir_qdrant.types import LoadedImage

MAX_DECODED = 512 * 2**20  # bytes of pixels that are decoded together


def read_all(items: list[Item], max_pixels: int) -> tuple[list[Item], float]:
    """The bytes and content hash of each item, and the seconds that it took."""

    def one(item: Item) -> None:
        source, item.source = item.source, None  # let go of what is not needed any longer
        item.raw = read(source, name=item.name, max_pixels=max_pixels)

    return _each(items, one)


def decode_all(items: list[Item], max_pixels: int) -> tuple[list[Item], float]:
    """The pixels of each item, and the seconds that it took."""

    def one(item: Item) -> None:
        raw, item.raw = item.raw, None
        if raw is not None:
            item.image = decode(raw, max_pixels=max_pixels)

    return _each(items, one)


def within_budget(items: list[Item], budget: int = MAX_DECODED) -> Iterator[list[Item]]:
    """The items in lists whose pixels take `budget` bytes at most (or of one item); two are decoded at once."""
    part: list[Item] = []
    total = 0
    for item in items:
        size = decoded_bytes(item.raw) if item.raw else 0
        if part and total + size > budget:
            yield part
            part, total = [], 0
        part.append(item)
        total += size
    if part:
        yield part


def decoded(item: Item) -> LoadedImage:
    """The item's image. Raises ImageError where it was not decoded."""
    if item.image is None:
        raise ImageError(f"{item.name} was not decoded")
    return item.image


def _each(items: list[Item], action: Callable[[Item], None]) -> tuple[list[Item], float]:
    start = time.perf_counter()
    for item in items:
        if item.reason is None:
            try:
                action(item)
            except ImageError as error:
                item.reason = str(error)
            except Exception as error:  # no odd file may stop the others
                item.reason = f"{item.name}: {type(error).__name__}: {error}"
    return items, time.perf_counter() - start
