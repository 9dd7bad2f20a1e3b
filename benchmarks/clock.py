"""Times ways to do a thing, beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable


def clock(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each; in turn, so that a drifting machine slows all of them alike."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds + 1):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - begun)
    return {name: sorted(times[1:])[rounds // 2] for name, times in spent.items()}
