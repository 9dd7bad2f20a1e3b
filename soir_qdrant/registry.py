"""Kinds by name: encoders, detectors, segmenters and rerankers, ours and those of other packages.

A kind is what a setting names: `detector={"kind": "mine"}`. Another package offers one by an entry point,
which is loaded when its name is first asked for:

    [project.entry-points."soir_qdrant.detectors"]
    mine = "my_package.detector:MyDetector"
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from soir_qdrant.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Things by name. what: the singular of what they are; the entry-point group is `soir_qdrant.<what>s`."""

    def __init__(self, what: str) -> None:
        self.what = what
        self._known: dict[str, T] = {}

    def register(self, name: str, thing: T) -> T:
        """Make a thing known under a name, in place of what had it before. Returns the thing."""
        self._known[name] = thing
        return thing

    def get(self, name: str) -> T:
        """The thing of this name.

        Raises:
            ConfigError: where nothing has it, naming what is known, or where its package cannot be loaded.
        """
        if name not in self._known:
            self._load(name)
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        """The names that are known, registered or offered by installed packages, sorted."""
        return iter(sorted({*self._known, *(point.name for point in self._points())}))

    def _load(self, name: str) -> None:
        for point in self._points():
            if point.name == name:
                try:
                    self._known.setdefault(name, point.load())
                except Exception as error:
                    raise ConfigError(
                        f"{self.what} {name!r}, offered as {point.value}, cannot be loaded: {error}"
                    ) from error
                return
        raise ConfigError(f"{self.what} {name!r}: choose one of {', '.join(self)}")

    def _points(self) -> list[Any]:
        return list(entry_points(group=f"soir_qdrant.{self.what}s"))
