"""Files to pixels, in a thread beside the one that runs the models: nothing but files and pixels in here.

What is read ahead stays within `ReadOptions.memory`: an eighth of it for the bytes of each of two batches, a
quarter for the pixels of each of two parts; the rest is for the image that is being decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from soir_qdrant.errors import ConfigError, ImageError
from soir_qdrant.images import RawImage, ReadOptions, decode, decoded_bytes, read
from soir_qdrant.ingest.sources import Item
from soir_qdrant.types import LoadedImage


def read_all(items: list[Item], options: ReadOptions) -> tuple[list[Item], float]:
    """The bytes and content hash of each item, and the seconds that it took. The content of what exceeds the
    memory is let go of, and read again when it is decoded."""
    total, budget = 0, options.memory // 8

    def one(item: Item) -> None:
        nonlocal total
        raw = read(item.source, name=item.name, options=options)
        if raw.uri is not None and total + raw.size > budget:
            item.raw = replace(raw, content=None)
            return
        item.raw, item.source = raw, None  # let go of what is not needed any longer
        total += raw.size

    return _each(items, one)


def decode_all(items: list[Item], options: ReadOptions) -> tuple[list[Item], float]:
    """The pixels of each item, and the seconds that it took."""

    def one(item: Item) -> None:
        raw, item.raw = item.raw, None
        if raw is not None:
            whole, enough = _whole(raw, item, options), _enough(item, options)
            item.image = decode(whole, max_pixels=options.max_pixels, enough=enough)
            item.source = None

    return _each(items, one)


def within_budget(items: list[Item], options: ReadOptions) -> Iterator[list[Item]]:
    """The items in lists whose pixels take a quarter of the memory at most (or of one item)."""
    part: list[Item] = []
    total, budget = 0, options.memory // 4
    for item in items:
        size = decoded_bytes(item.raw, _enough(item, options)) if item.raw else 0
        size = budget + 1 if size is None else size  # unknown: by itself
        if part and total + size > budget:
            yield part
            part, total = [], 0
        part.append(item)
        total += size
    if part:
        yield part


def _enough(item: Item, options: ReadOptions) -> int | None:
    """Pixels that are enough of an image. The user's objects may be as small as they like, and are in pixels of the
    whole one."""
    return options.reduce if item.objects is None else None


def decoded(item: Item) -> LoadedImage:
    """The item's image. Raises ImageError where it was not decoded."""
    if item.image is None:
        raise ImageError(f"{item.name} was not decoded")
    return item.image


def _whole(raw: RawImage, item: Item, options: ReadOptions) -> RawImage:
    """An image with its content, read again where that was let go of."""
    if raw.content is not None:
        return raw
    again = read(item.source, name=item.name, options=options)
    if again.sha256 != raw.sha256:
        raise ImageError(f"{item.name} was changed while it was read: add it again")
    return again


def _each(items: list[Item], action: Callable[[Item], None]) -> tuple[list[Item], float]:
    start = time.perf_counter()
    for item in items:
        if item.reason is None:
            try:
                action(item)
            except ConfigError:  # such as a missing package: it holds for all of them
                raise
            except ImageError as error:
                item.reason = str(error)
            except Exception as error:  # no odd file may stop the others
                item.reason = f"{item.name}: {type(error).__name__}: {error}"
    return items, time.perf_counter() - start
