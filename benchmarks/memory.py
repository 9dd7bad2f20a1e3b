"""Memory of processes."""

from __future__ import annotations

from pathlib import Path


def megabytes(process: int | str = "self") -> tuple[float, float]:
    """Anonymous memory, a process' own, and all that is resident, with the pages of files."""
    status = Path(f"/proc/{process}/status").read_text()
    anonymous, resident = (int(status.split(f"{name}:")[1].split()[0]) for name in ("RssAnon", "VmRSS"))
    return anonymous / 1024, resident / 1024
