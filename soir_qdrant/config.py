"""Settings, and the profiles that name a tested set of them. Importing this loads no model library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from soir_qdrant.errors import ConfigError

SCHEMA = 1  # of the payload and the fingerprint


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSettings(_Frozen):
    """weights: "embedded", a folder or a hub name. adapter: what `soir train encoder` made to be added to
    them: "shipped" (added to the embedded weights alone), a file, or None. input_size: side of a crop in
    pixels. dtype, device: "auto" takes what the machine does fastest (see docs/lab/decisions.md)."""

    weights: str = "embedded"
    adapter: str | None = "shipped"
    input_size: int = Field(224, ge=14)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch: int = Field(32, ge=1)


class CropSettings(_Frozen):
    """margin: added around the box, as a fraction of its longer side. native: cut no less than
    `input_size` pixels of the image, as the paper does, instead of enlarging small objects.
    background: what becomes of the pixels outside the mask."""

    margin: float = Field(0.1, ge=0, le=2)
    native: bool = False
    background: Literal["keep", "blur", "grey"] = "grey"


class DetectorSettings(_Frozen):
    """kind: "embedded" (on the encoder's tokens), "owlv2", or "none" (whole image). weights: of OWLv2.
    head: of the embedded one: "shipped", a file made by `soir train detector`, or None for the one that is
    not trained, which also stands in where the head was trained for another encoder. threshold: least
    score; iou: of the non-maximum suppression; None takes what was measured for each. fitted_iou: of another
    one, among boxes fitted to their masks. most: objects of an image; a calm one has
    fewer, since none is below the threshold."""

    kind: Literal["embedded", "owlv2", "none"] = "embedded"
    weights: str = "google/owlv2-base-patch16-ensemble"
    head: str | None = "shipped"
    threshold: float | None = Field(None, ge=0, le=1)
    iou: float | None = Field(None, ge=0, le=1)
    fitted_iou: float = Field(0.7, ge=0, le=1)
    most: int = Field(100, ge=1)


class SegmenterSettings(_Frozen):
    """kind: "embedded" (on the encoder's tokens), "grabcut", "sam" (transformers), "segment-anything" (its
    own checkpoints), "box" (no masks). weights: of SAM. head: of the embedded one: "shipped", a file made by
    `soir train segmenter`, or None; without one that was trained for the encoder, GrabCut stands in."""

    kind: Literal["embedded", "grabcut", "sam", "segment-anything", "box"] = "embedded"
    weights: str = "facebook/sam-vit-base"
    head: str | None = "shipped"


Feature = Literal["cls", "patches", "patches-1", "patches-2", "patches-3"]


class VectorSettings(_Frozen):
    """How the objects of an image become its one vector.

    features: what describes an object, side by side: "cls", the encoder's descriptor; "patches", the mean
    of the patch tokens under the mask; "patches-1" to "patches-3", the same one to three blocks earlier.
    whitening: "shipped", a file made by `soir calibrate`, or None.
    pooling: "mean", "gmp" (generalized max pooling, with `ridge`), or "mao" (the refined joint token).
    by_score: power of an object's score that it weighs with in "mean" and "gmp"; 0: all weigh the same.
    iterations, lr, alpha: of MaO; the paper's 80 steps are too many (see docs/concepts/refinement.md). blocks: how
    many of the last blocks' maps it adds up.
    """

    features: tuple[Feature, ...] = ("cls", "patches-3", "patches-2", "patches-1", "patches")
    whitening: str | None = "shipped"
    dim: int | None = Field(None, ge=8)
    pooling: Literal["mean", "gmp", "mao"] = "gmp"
    ridge: float = Field(0.3, gt=0)
    by_score: float = Field(0.75, ge=0)
    iterations: int = Field(5, ge=1)
    lr: float = Field(0.1, gt=0)
    alpha: float = Field(0.03, ge=0)
    blocks: int = Field(1, ge=1)


class Settings(_Frozen):
    """Everything that decides what is stored. Make one with `Settings.for_profile`, change with `but`."""

    profile: str = "embedded"
    encoder: EncoderSettings = EncoderSettings()
    crop: CropSettings = CropSettings()
    detector: DetectorSettings = DetectorSettings()
    segmenter: SegmenterSettings = SegmenterSettings()
    vector: VectorSettings = VectorSettings()

    @classmethod
    def for_profile(cls, name: str = "embedded") -> Settings:
        """The settings of a profile: one of PROFILES, or a JSON file of changes to one, such as
        `{"profile": "embedded", "encoder": {"adapter": "mine.safetensors"}}`, its files named from where the
        process runs. Raises ConfigError for an unknown one and for an unknown setting."""
        if name in PROFILES:
            return PROFILES[name]
        if not name.endswith(".json"):
            raise ConfigError(f"profile {name!r}: choose one of {', '.join(PROFILES)}, or give a .json file")
        try:
            changes = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
            base = PROFILES[changes.pop("profile", "embedded")]
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(f"profile {name}: no JSON object of settings there ({error})") from error
        return base.but(**changes)

    def but(self, **changes: dict[str, Any]) -> Settings:
        """A copy with some settings changed: `settings.but(vector={"pooling": "mean"})`.

        Raises ConfigError naming the setting that is unknown or out of range.
        """
        held = self.model_dump()
        for group, values in changes.items():
            if isinstance(held.get(group), dict):
                if not isinstance(values, Mapping):
                    raise ConfigError(f"setting {group}: {values!r} is no object of settings")
                held[group] = {**held[group], **values}
            else:
                held[group] = values
        try:
            return Settings.model_validate(held)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"setting {place}: {first['msg']}") from error


def _reading(name: str, weights: str) -> Settings:
    """A profile whose encoder reads text too: plain crops, described by what texts are compared with."""
    return Settings(
        profile=name,
        encoder=EncoderSettings(weights=weights),
        crop=CropSettings(background="keep"),
        detector=DetectorSettings(kind="owlv2"),
        segmenter=SegmenterSettings(kind="box"),
        vector=VectorSettings(features=("cls",), whitening=None),
    )


PROFILES: dict[str, Settings] = {
    "embedded": Settings(),
    "paper": Settings(
        profile="paper",
        encoder=EncoderSettings(weights="facebook/dinov2-base"),
        crop=CropSettings(margin=0, native=True, background="keep"),
        detector=DetectorSettings(kind="owlv2"),
        segmenter=SegmenterSettings(kind="sam"),
        vector=VectorSettings(
            features=("cls",), whitening=None, pooling="mao", iterations=80, lr=0.1, alpha=0.03
        ),
    ),
    "clip": _reading("clip", "openai/clip-vit-base-patch16"),
    "siglip": _reading("siglip", "google/siglip-base-patch16-224"),
}
