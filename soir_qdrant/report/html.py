"""One self-contained HTML page of searches: query, hits with the matched box, attention before and after."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from soir_qdrant.models.artifacts import write_whole
from soir_qdrant.types import RGB, Box

MATCHED, STORED = (34, 197, 94), (148, 163, 184)
# Nothing is fetched or run, whatever a name or label holds.
POLICY = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
STYLE = """
:root { --ink:#0f172a; --soft:#64748b; --line:#e2e8f0; --right:#16a34a; --wrong:#dc2626 }
* { box-sizing:border-box } body { margin:0; font:15px/1.5 system-ui,sans-serif; color:var(--ink); background:#f8fafc }
main { max-width:1180px; margin:0 auto; padding:32px 20px } h1 { font-size:26px; margin:0 0 4px }
p.lead { color:var(--soft); margin:0 0 20px; max-width:75ch }
table { border-collapse:collapse; margin:0 0 24px; background:#fff } td,th { border:1px solid var(--line);
padding:5px 12px; text-align:right } th:first-child,td:first-child { text-align:left }
section { background:#fff; border:1px solid var(--line); border-radius:10px; padding:16px; margin:0 0 18px }
.row { display:flex; gap:14px; flex-wrap:wrap; align-items:flex-start }
figure { margin:0 } figcaption { font-size:12.5px; color:var(--soft); margin-top:4px } img { display:block; border-radius:6px }
.query img { width:150px; height:150px; object-fit:contain; background:#f1f5f9 } .hit { width:222px } .hit img { width:222px }
.map img { width:112px; height:112px } .part img { height:180px } .part:only-child img { height:auto; max-width:720px } .right { color:var(--right); font-weight:600 } .wrong { color:var(--wrong) }
h2 { font-size:15px; margin:0 0 10px } .maps { margin-top:12px; padding-top:12px; border-top:1px dashed var(--line) }
"""


POLICY = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
VERDICTS = {
    True: "<span class=right>✓ holds it</span> · ",
    False: "<span class=wrong>✗ does not</span> · ",
    None: "",
}


@dataclass(frozen=True, slots=True)
class Shown:
    """One hit on the page.

    Attributes:
        image: uint8 [H, W, 3].
        boxes: the stored objects.
        matched: the one that matched best.
        caption: below the image.
        right: whether it holds the thing; None where nobody knows.
    """

    image: RGB
    boxes: list[Box]
    matched: Box | None
    caption: str
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Search:
    """One query on the page. maps: caption and image of each attention map."""

    name: str
    query: RGB
    hits: list[Shown]
    maps: list[tuple[str, RGB]]


@dataclass(frozen=True, slots=True)
class Strip:
    """Images side by side, each with a caption."""

    name: str
    images: list[tuple[str, RGB]]


def write(
    file: Path, title: str, lead: str, figures: list[tuple[str, str]], parts: Sequence[Search | Strip]
) -> None:
    """Write the page, whole or not at all. figures: name and value, for the table at the top."""
    rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in figures)
    body = "".join(_section(part) if isinstance(part, Search) else _strip(part) for part in parts)
    text = (
        f"<!doctype html><html lang=en><meta charset=utf-8>{POLICY}<title>{html.escape(title)}</title>"
        f"<meta name=viewport content='width=device-width'><style>{STYLE}</style><main>"
        f"<h1>{html.escape(title)}</h1><p class=lead>{html.escape(lead)}</p><table>{rows}</table>{body}</main></html>"
    )
    write_whole(file, text.encode(errors="backslashreplace"))  # a file's name may be no UTF-8


def drawn(hit: Shown, width: int = 456) -> RGB:
    """The image at `width`, all stored boxes thin and grey, the matched one thick and green."""
    scale = width / hit.image.shape[1]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    image = cv2.resize(hit.image, None, fx=scale, fy=scale, interpolation=method)
    for box in [*hit.boxes, *([hit.matched] if hit.matched else [])]:
        x0, y0, x1, y1 = (round(v * scale) for v in box)
        same = box == hit.matched
        cv2.rectangle(image, (x0, y0), (x1, y1), MATCHED if same else STORED, 4 if same else 1, cv2.LINE_AA)
    return np.asarray(image, np.uint8)


def heat(crop: RGB, weights: NDArray[np.floating]) -> RGB:
    """A map [S, S], 0..1, laid over its crop, uint8 [S, S, 3]."""
    colours = cv2.applyColorMap((255 * np.clip(weights, 0, 1)).astype(np.uint8), cv2.COLORMAP_INFERNO)
    return np.asarray(
        cv2.addWeighted(crop, 0.45, cv2.cvtColor(colours, cv2.COLOR_BGR2RGB), 0.55, 0), np.uint8
    )


def sheet(query: RGB, hits: Sequence[Shown], *, columns: int = 4, width: int = 400) -> RGB:
    """The query and the hits with their boxes as one image, `columns` tiles of `width` pixels in a row."""
    tiles = [
        _tile(query, "the query", width),
        *(_tile(drawn(hit, width), hit.caption, width) for hit in hits),
    ]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    full = [np.concatenate([_padded(tile, max(len(t) for t in row)) for tile in row], axis=1) for row in rows]
    wide = max(row.shape[1] for row in full)
    return np.concatenate(
        [np.pad(r, ((0, 0), (0, wide - r.shape[1]), (0, 0)), constant_values=255) for r in full]
    )


def _tile(image: RGB, caption: str, width: int) -> RGB:
    """An image as wide as the tile, no taller, above its caption on white."""
    scale = min(width / image.shape[1], width / image.shape[0])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=method)[:width, :width]
    tile = np.full((small.shape[0] + 26, width + 8, 3), 255, np.uint8)
    left = (width - small.shape[1]) // 2
    tile[:-26, left : left + small.shape[1]] = small
    plain = caption.encode("ascii", "replace").decode()  # OpenCV's font has no more
    cv2.putText(tile, plain, (2, len(tile) - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (30, 41, 59), 1, cv2.LINE_AA)
    return tile


def _padded(tile: RGB, height: int) -> RGB:
    return np.pad(tile, ((0, height - len(tile)), (0, 0), (0, 0)), constant_values=255)


def _section(search: Search) -> str:
    hits = "".join(
        f"<figure class=hit>{_image(drawn(hit))}<figcaption>{VERDICTS[hit.right]}{html.escape(hit.caption)}"
        "</figcaption></figure>"
        for hit in search.hits
    )
    maps = "".join(
        f"<figure class=map>{_image(image)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, image in search.maps
    )
    query = f"<figure class=query>{_image(search.query)}<figcaption>the query</figcaption></figure>"
    tail = f"<div class='row maps'>{maps}</div>" if maps else ""
    return f"<section><h2>{html.escape(search.name)}</h2><div class=row>{query}{hits}</div>{tail}</section>"


def _strip(strip: Strip) -> str:
    images = "".join(
        f"<figure class=part>{_image(image)}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, image in strip.images
    )
    return f"<section><h2>{html.escape(strip.name)}</h2><div class=row>{images}</div></section>"


def _image(image: RGB) -> str:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 82]
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1].tobytes()
    return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(data).decode()}'>"
