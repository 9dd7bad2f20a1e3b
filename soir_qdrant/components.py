"""What settings name: models, heads and projection, each loaded when first needed."""

from __future__ import annotations

import json
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soir_qdrant import recipe
from soir_qdrant.config import READING, Settings, VitSettings
from soir_qdrant.contracts import Detector, Encoder, SceneEncoder, Segmenter, TextTower
from soir_qdrant.errors import ConfigError
from soir_qdrant.kinds import Parts, make_detector, make_encoder, make_scene_encoder, make_segmenter
from soir_qdrant.pooling.features import features_of, sizes
from soir_qdrant.pooling.patches import (
    READ,
    PatchProjection,
    Projected,
    projection_digest,
    projection_of,
    row_dim,
)
from soir_qdrant.pooling.pool import normalize
from soir_qdrant.pooling.whitening import Whitening
from soir_qdrant.types import Vector

if TYPE_CHECKING:
    from soir_qdrant.models.ocr import TextReader

DATA = Path(str(resources.files("soir_qdrant") / "data"))
SHIPPED = DATA / "whitening.safetensors"
WHITENINGS = {"shipped": SHIPPED, "0.1": DATA / "whitening-0.1.safetensors"}


class Components:
    """What a pipeline is put together from.

    Args:
        settings: see `Settings`; None is the default profile.
        detector, segmenter, encoder, text_encoder: used instead of those that the settings name.
        patch_projection: what makes the patches of late interaction small; None is the whitening's part for them.
        as_named: the models handed in are those that the settings name, running elsewhere. Otherwise the
            recipe notes that others stand in for them.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        detector: Detector | None = None,
        segmenter: Segmenter | None = None,
        encoder: Encoder | None = None,
        text_encoder: TextTower | None = None,
        patch_projection: PatchProjection | None = None,
        as_named: bool = False,
    ) -> None:
        self.settings = settings or Settings.for_profile()
        self._detector, self._segmenter, self._encoder = detector, segmenter, encoder
        self._text_encoder, self._patch_projection = text_encoder, patch_projection
        stand_ins = {} if as_named else {"detector": detector, "segmenter": segmenter}
        self._replaced = {role: part.name for role, part in stand_ins.items() if part is not None}

    @cached_property
    def encoder(self) -> Encoder:
        """What describes crops."""
        if self._encoder is not None:
            return self._encoder
        return make_encoder(self.settings.encoder, Parts(self.settings))

    @cached_property
    def text_encoder(self) -> TextTower | None:
        """The text tower beside the encoder; None where it has none, or objects are not described by the
        descriptor that texts are compared with."""
        if self.settings.vector.features != ("cls",):
            return None
        if self._text_encoder is not None:
            return self._text_encoder
        from soir_qdrant.models.encoders.text import text_encoder

        settings = self.settings.encoder
        return (
            text_encoder(settings.weights, device=settings.device)
            if isinstance(settings, VitSettings)
            else None
        )

    def words_encoder(self, words: str) -> TextTower:
        """The text tower. Raises ConfigError for an encoder without one. words: that are to be encoded."""
        if self.text_encoder is None:
            raise ConfigError(
                f"text {words!r}: this encoder reads no text: give an image of the thing, or take a profile "
                f"that does ({', '.join(READING)})"
            )
        return self.text_encoder

    def text(self, words: str) -> Vector:
        """The vector of words, float32 [dim], unit length. Raises ConfigError for an encoder without text."""
        row: Vector = (self.whitening or normalize)(self.words_encoder(words).encode([words]))[0]
        return row

    @cached_property
    def detector(self) -> Detector | None:
        """What finds objects; None where the whole image is to be the one object."""
        if self._detector is not None:
            return self._detector
        return make_detector(self.settings.detector, self._parts)

    @cached_property
    def segmenter(self) -> Segmenter:
        """What turns boxes into masks."""
        if self._segmenter is not None:
            return self._segmenter
        return make_segmenter(self.settings.segmenter, self._parts)

    @cached_property
    def scene_encoder(self) -> SceneEncoder | None:
        """What describes whole images; None where their objects are detected and cropped."""
        if self.settings.scene is None:
            return None
        return make_scene_encoder(self.settings.scene, self._parts)

    @cached_property
    def text_reader(self) -> TextReader | None:
        """What reads text inside images; None where the settings do not ask for it."""
        if self.settings.ocr is None:
            return None
        from soir_qdrant.models.ocr import TextReader

        return TextReader(self.settings.ocr)

    @property
    def _parts(self) -> Parts:
        return Parts(self.settings, lambda: self.encoder)

    @cached_property
    def query_segmenter(self) -> Segmenter:
        """What cuts queries: they are few, and all depends on each."""
        return self.segmenter.for_queries()

    @cached_property
    def whitening(self) -> Whitening | None:
        """The whitening of the settings: one of the encoder that ships, a file, or none."""
        settings = self.settings.vector
        if settings.whitening is None:
            return None
        path = WHITENINGS.get(settings.whitening) or Path(settings.whitening).expanduser()
        whitening = Whitening.load(path)
        if whitening.fitted_for != self.whitened:
            same = whitening.fitted_for.rpartition(" ")[0] == self.whitened.rpartition(" ")[0]
            features = json.dumps(features_of(whitening.fitted_for))
            cure = f"set vector.features to {features}, " if same else ""
            raise ConfigError(
                f"whitening {settings.whitening!r} was fitted for {whitening.fitted_for!r}, and the settings "
                f"ask for {self.whitened!r}: {cure}fit one with `soir calibrate`, or set vector.whitening to None"
            )
        return whitening.truncated(settings.dim)

    @property
    def prior(self) -> Whitening | None:
        """The whitening to adapt: the file that the settings name, else the one that ships; None where that
        is of another encoder."""
        if self.settings.vector.whitening not in (None, *WHITENINGS):
            return self.whitening
        shipped = Whitening.load(SHIPPED)
        return shipped if shipped.fitted_for == self.whitened else None

    @property
    def whitened(self) -> str:
        """What a whitening has to be fitted for: encoder, crop and features in one line."""
        crop, vector = self.settings.crop, self.settings.vector
        background = "grey" if crop.background == "drop" else crop.background  # one projection serves both
        cut = f"{'native' if crop.native else 'tight'}{crop.margin:g}{background}"
        return f"{self.encoder.fingerprint} {cut} {'+'.join(vector.features)}"

    @property
    def has_patches(self) -> bool:
        """Whether patches of late interaction come with every object, at no cost: `patch_projection` fits, and the
        encoder has them in the pass that describes the object."""
        if self.settings.scene is not None or not self.encoder.reads_patches:
            return False
        if self._patch_projection is not None:
            return not self.encoder.projection
        return self.projection > 0 and self.encoder.projection in (0, self.projection)

    @cached_property
    def projection(self) -> int:
        """Names the whitening's part for patches; see `projection_digest`. 0 where it has none."""
        if self.whitening is None or READ not in self.settings.vector.features:
            return 0
        return projection_digest(self.whitening, self.settings.vector.features, self.encoder)

    @cached_property
    def patch_projection(self) -> PatchProjection | Projected:
        """What makes patches small. Raises ConfigError where the settings have no whitening of them."""
        if self._patch_projection is not None:
            return self._patch_projection
        if self.whitening is None or not self.projection:
            raise ConfigError(
                f'rerank="patches" needs a whitening of the feature "{READ}", and these settings have none: '
                "take the profile embedded, or set vector.features and fit one with `soir calibrate`"
            )
        if self.encoder.projection == self.projection:
            return Projected(row_dim(self.whitening))
        return projection_of(self.whitening, self.settings.vector.features, self.encoder)

    @cached_property
    def dim(self) -> int:
        """Length of the stored vector. Raises ConfigError for a `vector.dim` that no whitening makes."""
        if self.whitening is not None:
            return self.whitening.dim
        settings = self.settings.vector
        dim = sum(sizes(settings.features, self.encoder))
        if settings.dim not in (None, dim):
            raise ConfigError(
                f"vector.dim {settings.dim}: without a whitening vectors have {dim} numbers. Fit one with "
                "`soir calibrate`, or leave vector.dim out"
            )
        return dim

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What two vectors must share to be compared; see `recipe.fingerprint`."""
        digest = self.whitening.digest if self.whitening else None
        encoder = self.encoder.fingerprint
        scene = self.scene_encoder.fingerprint if self.scene_encoder else ""
        return recipe.fingerprint(self.settings, encoder=encoder, whitening=digest, dim=self.dim, scene=scene)

    @cached_property
    def recipe(self) -> dict[str, Any]:
        """Everything that decides what is stored of an image; see `recipe.recipe`."""
        return recipe.recipe(self.settings, self.fingerprint, self._replaced)
