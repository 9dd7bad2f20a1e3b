"""A code: the first numbers of an object's vector, small enough for the payload.

Four bits a number, two numbers a byte, in base64 after the mark "4:". The levels are -7 to 7, and a level stands for
its power of 1.5: small numbers, of which there are many, lie closer together than large ones. Codes without the mark
are those of version 0.1, a byte a number. What codes are worth: docs/concepts/search.md.
"""

from __future__ import annotations

import base64

import numpy as np

from soir_qdrant.types import Vector

MARK = "4:"
TOP = 7  # the highest level
POWER = 1.5  # 1 would space the levels evenly
MARGIN = 0.05  # by how much more alike a look that is turned must be; see docs/concepts/search.md
_LEVELS = np.arange(16) - (TOP + 1)  # of each four bits
_VALUES = (np.sign(_LEVELS) * np.abs(_LEVELS) ** POWER).astype(np.float32)  # and what they stand for
_PAIRS = np.stack([np.repeat(_VALUES, 16), np.tile(_VALUES, 16)], axis=1)  # float32 [256, 2], of each byte


def encode(row: Vector, count: int) -> str:
    """The code of the first `count` numbers of a vector, float32 [D]: half as many bytes, and a third for base64."""
    head = np.asarray(row[:count], np.float32)
    shares = np.abs(head) / max(float(np.abs(head).max(initial=0.0)), np.finfo(np.float32).tiny)
    levels = np.sign(head) * np.rint(TOP * shares ** (1 / POWER))
    nibbles = np.zeros(len(head) + len(head) % 2, np.uint8)  # 0 is no level: it fills the last byte
    nibbles[: len(head)] = levels + TOP + 1
    return MARK + base64.b64encode((nibbles[::2] << 4 | nibbles[1::2]).tobytes()).decode()


def decode(code: str) -> Vector:
    """The numbers of a code, float32 [count], up to a factor."""
    if not code.startswith(MARK):
        return np.frombuffer(base64.b64decode(code), np.int8).astype(np.float32)
    packed = np.frombuffer(base64.b64decode(code[len(MARK) :]), np.uint8)
    values = _PAIRS[packed].ravel()
    return values[:-1] if len(packed) and not packed[-1] & 15 else values


def cosines(codes: Vector, query: Vector) -> Vector:
    """How like each object is to a query, float32 [k], -1..1.

    Args:
        codes: float32 [k, c], as `decode` gives them.
        query: float32 [D], or [L, D] of the query as it is and then turned. The most alike look counts, and those that
            are turned count for `MARGIN` less.
    """
    looks = np.atleast_2d(query)[:, : codes.shape[1]]
    lengths = np.linalg.norm(codes, axis=1)[:, None] * np.linalg.norm(looks, axis=1)
    alike = codes @ looks.T / np.maximum(lengths, 1e-6)
    alike[:, 1:] -= np.float32(MARGIN)
    best: Vector = alike.max(axis=1)
    return best
