"""Small learnt parts that belong to one encoder: which of them the settings mean, and whether it fits."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeVar

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.tokens import AFTER

DATA = Path(str(resources.files("soir_qdrant") / "data"))


class Fitted(Protocol):
    """fitted_for: the encoder that it was learnt on; see `trunk`."""

    @property
    def fitted_for(self) -> str: ...


Part = TypeVar("Part", bound=Fitted)


def fitting(
    named: str | None, setting: str, load: Callable[[Path], Part], wanted: str, part: str = ""
) -> Part | None:
    """The part that the settings name; None where they want none, or the shipped one is of another encoder.

    named: "shipped", a file, or None. setting: its name, such as "detector.head". wanted: what it must be fitted for.
    part: name of the shipped file and of the command that makes one; empty: what is before the setting's dot. Raises
    ConfigError where the user's file is of another encoder.
    """
    if named is None:
        return None
    part = part or setting.partition(".")[0]
    trained = load(DATA / f"{part}.safetensors" if named == "shipped" else Path(named).expanduser())
    if trained.fitted_for == wanted:
        return trained
    if named == "shipped":
        return None
    raise ConfigError(
        f"{setting} {named!r} was trained for {trained.fitted_for!r}, and the encoder is {wanted!r}: train one "
        f"with `soir train {part}`, or set {setting} to None"
    )


def trunk(fingerprint: str) -> str:
    """An encoder's fingerprint without what detector and segmenter do not see: the size of its crops, what reads
    textures, and an adapter of blocks that come after the tokens which they read."""
    return re.sub(r"~[0-9a-f]{8}", "", untouched(fingerprint.rpartition("/")[0], AFTER))


def untouched(fingerprint: str, blocks: int) -> str:
    """An encoder's fingerprint without an adapter that changes none but its last `blocks` blocks (see
    `Adapter.name`)."""
    added = re.search(r"\+[0-9a-f]{8}\.(\d+)(?=/|$)", fingerprint)
    if added is None or int(added[1]) > blocks:
        return fingerprint
    return fingerprint[: added.start()] + fingerprint[added.end() :]
