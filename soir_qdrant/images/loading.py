"""Images whole: read and decoded."""

from __future__ import annotations

from soir_qdrant.errors import ImageError
from soir_qdrant.images.files import RawImage, Source, read
from soir_qdrant.images.options import MAX_PIXELS, ReadOptions
from soir_qdrant.images.pixels import MIN_SIDE, from_bytes, size_of
from soir_qdrant.types import LoadedImage


def load(
    source: Source | RawImage, *, name: str | None = None, max_pixels: int = MAX_PIXELS, reduce: bool = False
) -> LoadedImage:
    """Read and decode one image.

    source: a path, an address (s3://...), a part of either (clip.mp4#t=12.5, scan.tif#page=2), the bytes of a
    file, a PIL image, a uint8 array in RGB order, [H, W], [H, W, 3] or [H, W, 4], or what `read` made of one.
    name: what to call it in messages. max_pixels: the largest width x height that is decoded. reduce: a larger one is
    decoded at a reduced size, if it is a JPEG file (but a progressive one); see `LoadedImage.here`.

    The result is upright (EXIF rotation applied) and 8-bit RGB: more than 8 bits are scaled, CMYK and palettes
    converted, the first frame taken of an animation. Where pixels are transparent, grey shows through
    and `alpha` holds the opaque ones (alpha >= 128).

    Raises ImageError for a file that is missing, damaged, not an image, larger than max_pixels (before
    its pixels are decoded) or smaller than 8 pixels, and for arrays of another type or shape.
    """
    raw = read(source, name=name, options=ReadOptions(max_pixels=max_pixels))
    enough = max_pixels // 4 + 1 if reduce else None  # sizes are factors of four apart
    return decode(raw, max_pixels=max_pixels, enough=enough)


def decode(raw: RawImage, *, max_pixels: int = MAX_PIXELS, enough: int | None = None) -> LoadedImage:
    """The second half of `load`. enough: pixels from which on a JPEG file is decoded at a reduced size, see
    ReadOptions.reduce; None: never. Raises ImageError for a damaged, too large or too small image."""
    further, full_size = False, None
    if isinstance(raw.content, bytes):
        rgb, alpha, further, full_size = from_bytes(raw.content, raw.name, max_pixels, enough)
    elif raw.content is not None:
        rgb, alpha = raw.content
    else:
        raise ImageError(f"{raw.name} was let go of: read it again")
    height, width = rgb.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ImageError(
            f"{raw.name} is {width}x{height} pixels: nothing can be recognised below {MIN_SIDE}x{MIN_SIDE}; "
            "leave it out or give the original picture"
        )
    if alpha is not None and not alpha.any():
        raise ImageError(
            f"{raw.name} is wholly transparent: leave it out or give it without its alpha channel"
        )
    data = raw.content if isinstance(raw.content, bytes) else None
    return LoadedImage(rgb, raw.name, raw.uri, raw.sha256, alpha, raw.stamp, further, data, full_size)


def decoded_bytes(raw: RawImage, enough: int | None = None) -> int | None:
    """About how many bytes an image takes once it is decoded, as far as its head tells; None where its content was
    let go of. enough: see `decode`."""
    if raw.content is None:
        return None
    if not isinstance(raw.content, bytes):
        return raw.size
    size = size_of(raw.content, enough)
    return 4 * size[0] * size[1] if size else 0
