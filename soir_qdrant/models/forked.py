"""A process that was forked after models were loaded, as the workers of gunicorn --preload and of DataLoader are.

The threads that torch and OpenCV had do not exist in such a child, and work that is handed to them never ends. So
a child computes with one thread, from its first moment; a worker that is to use more loads its models itself.
What cannot go on in a child (onnxruntime, a channel to Triton) raises at once.
"""

from __future__ import annotations

import os
import sys

from soir_qdrant.errors import ConfigError

_of_opencv = 1  # threads, before a fork


def _stop_threads() -> None:
    """OpenCV's, while they can still be joined: in a child even to give them up never ends."""
    global _of_opencv
    if "cv2" in sys.modules:
        _of_opencv = sys.modules["cv2"].getNumThreads()
        sys.modules["cv2"].setNumThreads(1)


def _start_threads() -> None:
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(_of_opencv)


def _compute_alone() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing is forked
    os.register_at_fork(before=_stop_threads, after_in_parent=_start_threads, after_in_child=_compute_alone)


class Owner:
    """The process that opened something.

    Args:
        what: it was, for the message.
    """

    def __init__(self, what: str) -> None:
        self._what, self._pid = what, os.getpid()

    def check(self) -> None:
        """Raises ConfigError in a process that was forked from that one."""
        if self._pid != os.getpid():
            raise ConfigError(
                f"{self._what} was opened before this process was forked, and would wait for ever here: open it in "
                "each worker, after the fork (docs/reliability.md)"
            )
