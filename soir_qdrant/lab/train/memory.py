"""Memory that one training step frees is what the next one asks for."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # of glibc's mallopt


def keep_freed() -> None:
    """Let this process keep the memory that it frees.

    glibc gives large blocks back to the kernel, which hands them out anew page by page, zeroed: a third of
    a step on a CPU (docs/how-to/training.md). Other C libraries have no such switch; there this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)
