"""What is stored of each object beside the vector of its image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from soir_qdrant import recipe
from soir_qdrant.errors import ConfigError
from soir_qdrant.types import SceneObject

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.qdrant.collection import Store

CODES = 512  # numbers of each object's vector in the payload; see docs/concepts/search.md
SHORT_CODES = 128  # the same where Qdrant orders by code vectors, and those of the payload only tell the box


@dataclass(frozen=True, slots=True)
class Details:
    """What the user chose; None: as the collection was made, which by default goes by its vectors and the models.

    codes: numbers of each object's vector. patches: whether those of each object are stored.
    """

    codes: int | None = None
    patches: bool | None = None

    def __post_init__(self) -> None:
        if self.codes is not None and self.codes < 0:
            raise ConfigError(f"object_codes {self.codes}: give 0 for none, or how many numbers to keep")

    @property
    def chosen(self) -> dict[str, Any]:
        """What a new collection goes on with."""
        values = {"codes": self.codes, "patches": self.patches}
        return {name: value for name, value in values.items() if value is not None}

    def of(self, store: Store, pipeline: Pipeline) -> tuple[int, bool]:
        """Codes and patches of an open collection. By default patches are stored where they cost no pass of their
        own."""
        default = {"codes": SHORT_CODES if store.code_numbers else CODES, "patches": pipeline.has_patches}
        values = {**default, **store.details, **self.chosen}
        return int(values["codes"]), bool(values["patches"])

    def recipes(
        self, store: Store, pipeline: Pipeline, objects: Iterable[SceneObject] | None, enough: int | None
    ) -> tuple[str, ...]:
        """Short hashes of all that makes a point: of a whole image first, then, where it may be decoded at a reduced
        size, of one that was. Before it is decoded, nobody knows which it is.

        Args:
            store: of an open collection.
            pipeline: that makes the point.
            objects: the user's, for which images are read whole; None: they are detected.
            enough: pixels of an image that are; None reads all images whole.
        """
        codes, patches = self.of(store, pipeline)
        return tuple(
            recipe.of_point(pipeline.recipe, codes=codes, patches=patches, objects=objects, reduced=reduced)
            for reduced in ((None, enough) if enough and objects is None else (None,))
        )
