"""Plain line charts as SVG."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 200, 60, 28, 24
COLOURS = ("#00796b", "#9e9e9e", "#c62828", "#1565c0")


@dataclass(frozen=True, slots=True)
class Panel:
    """title; x: of all lines; lines: name -> y."""

    title: str
    x: Any
    lines: dict[str, Any]


def svg(panels: list[Panel], label: str) -> str:
    """Panels, one below the other, each from 0. label: of the x axes."""
    parts = [_panel(panel, i * (HEIGHT + TOP + BOTTOM), label) for i, panel in enumerate(panels)]
    height = len(panels) * (HEIGHT + TOP + BOTTOM)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + 20} {height}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def ticks(largest: float) -> list[float]:
    """Round numbers from 0 to just below the largest."""
    rough = largest / 4
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [i * step for i in range(int(largest / step) + 1)]


def _panel(panel: Panel, top: float, label: str) -> str:
    right, ceiling = float(panel.x[-1]), 1.05 * max(float(np.max(y)) for y in panel.lines.values())
    bottom = top + TOP + HEIGHT
    title = f"{panel.title}, by {label}"
    parts = [f'<text x="{LEFT}" y="{top + 18}" font-weight="bold">{escape(title)}</text>']
    for value in ticks(ceiling):
        y = bottom - value / ceiling * HEIGHT
        parts += [
            f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.0f}" y2="{y:.0f}" stroke="#e0e0e0"/>',
            f'<text x="{LEFT - 6}" y="{y + 4:.0f}" text-anchor="end">{value:g}</text>',
        ]
    for value in ticks(right):
        x = LEFT + value / right * WIDTH
        parts.append(f'<text x="{x:.0f}" y="{bottom + 16:.0f}" text-anchor="middle">{value:g}</text>')
    for i, (name, values) in enumerate(panel.lines.items()):
        points = " ".join(
            f"{LEFT + x / right * WIDTH:.1f},{bottom - y / ceiling * HEIGHT:.1f}"
            for x, y in zip(panel.x, values, strict=True)
        )
        colour = COLOURS[i]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(
            f'<text x="{LEFT + WIDTH - 110 * i}" y="{top + 18}" text-anchor="end" fill="{colour}">{name}</text>'
        )
    return "\n".join(parts)
