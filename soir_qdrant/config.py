"""Settings, and the profiles that name a tested set of them. Importing this loads no model library."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from soir_qdrant import hub
from soir_qdrant.errors import ConfigError
from soir_qdrant.kind_settings import ClusterSettings as ClusterSettings
from soir_qdrant.kind_settings import DenseSettings as DenseSettings
from soir_qdrant.kind_settings import OcrSettings as OcrSettings
from soir_qdrant.kind_settings import Owlv2Settings as Owlv2Settings
from soir_qdrant.kind_settings import RfDetrSettings as RfDetrSettings
from soir_qdrant.kind_settings import Sam2Settings as Sam2Settings
from soir_qdrant.kind_settings import SamSettings as SamSettings
from soir_qdrant.kind_settings import SegmentAnythingSettings as SegmentAnythingSettings
from soir_qdrant.kind_settings import SumSettings as SumSettings
from soir_qdrant.kind_settings import TokenHeadSettings as TokenHeadSettings
from soir_qdrant.kind_settings import TokenUnetSettings as TokenUnetSettings
from soir_qdrant.kind_settings import VitSettings as VitSettings
from soir_qdrant.kinds import (
    DETECTORS,
    ENCODERS,
    SCENES,
    SEGMENTERS,
    DetectorSettings,
    EncoderSettings,
    Frozen,
    Kind,
    SceneSettings,
    SegmenterSettings,
    register_detector,
    register_encoder,
    register_scene,
    register_segmenter,
    settings_of,
)
from soir_qdrant.registry import Registry

SCHEMA = 1  # of the payload and the fingerprint
KINDS: dict[str, Registry[Kind]] = {
    "encoder": ENCODERS,
    "detector": DETECTORS,
    "segmenter": SEGMENTERS,
    "scene": SCENES,
}
OPTIONAL = {"scene", "ocr"}  # groups of settings that may be None


class CropSettings(Frozen):
    """margin: around the box, as a fraction of its longer side. native: cut no less than `input_size` pixels, as the
    paper does. background: what becomes of pixels outside the mask; "drop" is grey too, and leaves patches that show
    nothing of the object out of the encoder. full_score: score from which an object fills its crop; of a fainter one,
    score / full_score of its size is shown, half at least. texture_score: from which its texture is read, if any.
    query_turns: a query is also looked at turned by so many degrees, both ways. query_lights: and, as it stands, lit
    from either side in place of as it is: docs/concepts/search.md."""

    margin: float = Field(0.1, ge=0, le=2)
    native: bool = False
    background: Literal["keep", "blur", "grey", "drop"] = "grey"
    full_score: float = Field(0, ge=0, le=1)
    texture_score: float = Field(0, ge=0, le=1)
    query_turns: tuple[Annotated[float, Field(gt=0, le=180)], ...] = Field((), max_length=8)
    query_lights: bool = False


Feature = Literal["cls", "patches", "patches-1", "patches-2", "patches-3", "texture"]
WITHOUT_TEXTURE: tuple[Feature, ...] = ("cls", "patches-3", "patches-2", "patches-1", "patches")


class VectorSettings(Frozen):
    """How the objects of an image become its one vector.

    features: what describes an object, side by side: "cls", the encoder's descriptor; "patches", the mean of the patch
    tokens under the mask; "patches-1" to "patches-3", the same one to three blocks earlier; "texture", what early
    blocks say of the stretched box under the mask (`Encoder.texture`).
    whitening: "shipped", "0.1" (that version's, for features without "texture"), a file of `soir calibrate`, or None.
    pooling: "mean", "gmp" (generalized max pooling, with `ridge`: the larger, the nearer to the mean), or "mao" (the
    refined joint token). by_score: power of an object's score that it weighs with in "mean" and "gmp"; 0: all alike.
    refine_query: with "mao", whether a query's own token is refined too, under its own mask, as the paper's authors
    do: what all refined tokens share is then on both sides.
    iterations, lr, weight_decay, alpha: of MaO; the paper's 80 steps are too many (docs/concepts/refinement.md).
    blocks: how many of the last blocks' maps it adds up. upsample: compare maps with masks at the crop's resolution,
    as the paper does, not on the grid of patches. normalise: min-max of maps of one "crop", or over the "batch" of an
    image's crops, as the authors' code has it. token: one for all crops ("joint"), or one "per-crop", which are
    the object vectors then, and their mean the image's.
    """

    features: tuple[Feature, ...] = (*WITHOUT_TEXTURE, "texture")
    whitening: str | None = "shipped"
    dim: int | None = Field(None, ge=8)
    pooling: Literal["mean", "gmp", "mao"] = "gmp"
    ridge: float = Field(0.3, gt=0)
    by_score: float = Field(0.75, ge=0)
    refine_query: bool = True
    iterations: int = Field(5, ge=1)
    lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    alpha: float = Field(0.03, ge=0)
    blocks: int = Field(1, ge=1)
    upsample: bool = False
    normalise: Literal["crop", "batch"] = "crop"
    token: Literal["joint", "per-crop"] = "joint"

    @property
    def refines_crops(self) -> bool:
        """Whether every crop has a refined token of its own."""
        return self.pooling == "mao" and self.token == "per-crop"

    @property
    def refines_queries(self) -> bool:
        """Whether a query is its refined token."""
        return self.pooling == "mao" and self.refine_query


DEFAULT_PROFILE = "embedded"


class Settings(Frozen):
    """Everything that decides what is stored. Make one with `Settings.for_profile`, change with `but`; `Settings()`
    alone is no profile. encoder, detector, segmenter: of a kind each. scene: a scene encoder, in place of detector
    and crops. ocr: None reads no text."""

    profile: str = DEFAULT_PROFILE
    encoder: SerializeAsAny[EncoderSettings] = VitSettings()
    crop: CropSettings = CropSettings()
    detector: SerializeAsAny[DetectorSettings] = TokenHeadSettings()
    segmenter: SerializeAsAny[SegmenterSettings] = TokenUnetSettings()
    vector: VectorSettings = VectorSettings()
    scene: SerializeAsAny[SceneSettings] | None = None
    ocr: OcrSettings | None = None

    @field_validator(*KINDS, mode="before")
    @classmethod
    def _of_their_kind(cls, value: Any, info: ValidationInfo) -> Any:
        optional = value is None and info.field_name in OPTIONAL
        return None if optional else settings_of(KINDS[str(info.field_name)], value)

    @classmethod
    def for_profile(cls, name: str | None = None) -> Settings:
        """The settings of a profile.

        Args:
            name: one of PROFILES (None: the default one); a JSON file of changes to one, such as `{"profile":
                "embedded", "encoder": {"adapter": "mine.safetensors"}}`, files named from where the process runs;
                or what `soir weights push` wrote, "hub:owner/name" or a folder.

        Raises:
            ConfigError: for an unknown profile or setting.
            WeightsError: for trained parts that are not what was pushed.
        """
        name = name or DEFAULT_PROFILE
        if name in PROFILES:
            return PROFILES[name]
        if hub.is_named(name):
            return cls._changed(hub.read(name), name)
        return cls._changed(cls.changes_of(name), name)

    @classmethod
    def changes_of(cls, name: str) -> dict[str, Any]:
        """What a JSON file of settings says. Raises ConfigError where it is none."""
        if not name.endswith(".json"):
            raise ConfigError(f"profile {name!r}: choose one of {', '.join(PROFILES)}, or give a .json file")
        try:
            return dict(json.loads(Path(name).expanduser().read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"profile {name}: no JSON object of settings there ({error})") from error

    @staticmethod
    def _changed(changes: dict[str, Any], name: str) -> Settings:
        base = changes.pop("profile", DEFAULT_PROFILE)
        if not isinstance(base, str) or base not in PROFILES:
            raise ConfigError(
                f"profile {name}: changes a profile {base!r}; choose one of {', '.join(PROFILES)}"
            )
        return PROFILES[base].but(**changes)

    @property
    def object_only(self) -> bool:
        """Whether the encoder leaves out patches that show nothing of the object; "mao" refines on all."""
        return self.crop.background == "drop" and self.vector.pooling != "mao"

    def but(self, **changes: dict[str, Any] | None) -> Settings:
        """A copy with some settings changed: `settings.but(vector={"pooling": "mean"})`.

        Another kind of detector, say, keeps what all kinds share and takes its own defaults for the rest.

        Raises:
            ConfigError: for a setting that is unknown or out of range; it names it.
        """
        groups: dict[str, Any] = dict(self)
        for group, values in changes.items():
            before = groups.get(group)
            if values is None and group in OPTIONAL:
                groups[group] = None
            elif isinstance(before, BaseModel) and not isinstance(values, Mapping):
                raise ConfigError(f"setting {group}: {values!r} is no object of settings")
            elif group in KINDS:
                groups[group] = settings_of(KINDS[group], values, before)
            elif isinstance(before, BaseModel) and isinstance(values, Mapping):
                groups[group] = {**before.model_dump(), **values}
            else:
                groups[group] = values
        try:
            return Settings.model_validate(groups)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"setting {place}: {first['msg']}") from error


MODELS = "soir_qdrant.models"
register_encoder("vit", f"{MODELS}.encoders.vit:make", VitSettings)
register_detector("embedded", f"{MODELS}.detectors.token_head:make", TokenHeadSettings, reads_features=True)
register_detector("proposals", f"{MODELS}.detectors.proposals.detector:make", reads_features=True)
register_detector("owlv2", f"{MODELS}.detectors.owlv2:make", Owlv2Settings)
register_detector("rf-detr", f"{MODELS}.detectors.rf_detr:make", RfDetrSettings)
register_detector("none", lambda *_: None)
register_segmenter("embedded", f"{MODELS}.segmenters.token_unet:make", TokenUnetSettings, reads_features=True)
register_segmenter("grabcut", f"{MODELS}.segmenters.grabcut:make")
register_segmenter("box", f"{MODELS}.segmenters.box:make")
register_segmenter("sam2", f"{MODELS}.segmenters.sam2:make", Sam2Settings)
register_segmenter("sam", f"{MODELS}.segmenters.sam:make", SamSettings)
register_segmenter("segment-anything", f"{MODELS}.segmenters.segment_anything:make", SegmentAnythingSettings)
register_scene("dense", "soir_qdrant.pooling.scenes.dense:make", DenseSettings)
register_scene("cluster", "soir_qdrant.pooling.scenes.cluster:make", ClusterSettings)
register_scene("sum", "soir_qdrant.pooling.scenes.queries:make", SumSettings)


READING = {  # profiles whose encoder reads text too
    "clip": ("openai/clip-vit-base-patch16", 224),
    "siglip": ("google/siglip-base-patch16-224", 224),
    "siglip2": ("google/siglip2-base-patch16-224", 224),
    "metaclip2": ("facebook/metaclip-2-worldwide-s16", 224),
    "tipsv2": ("google/tipsv2-b14", 448),
}


def _reading(name: str, scene: SceneSettings | None = None) -> Settings:
    """A profile of READING: plain crops, described by what texts are compared with; or a scene encoder."""
    weights, size = READING[name]
    return Settings(
        profile=f"{scene.kind}-{name}" if scene else name,
        encoder=VitSettings(weights=weights, input_size=size),
        crop=CropSettings(background="keep"),
        detector=DetectorSettings(kind="none") if scene else Owlv2Settings(),
        segmenter=SegmenterSettings(kind="box"),
        vector=VectorSettings(features=("cls",), whitening=None),
        scene=scene,
    )


EMBEDDED = Settings(
    crop=CropSettings(
        background="drop", full_score=0.45, texture_score=0.3, query_turns=(30, 90), query_lights=True
    ),
    detector=TokenHeadSettings(iou=0.65, scales=(1, 0.4), everyday=True),
    vector=VectorSettings(ridge=2),
    ocr=OcrSettings(),
)
PROFILES: dict[str, Settings] = {
    "embedded": EMBEDDED,
    "embedded-0.1": Settings(
        profile="embedded-0.1", vector=VectorSettings(features=WITHOUT_TEXTURE, whitening="0.1")
    ),
    "fast": EMBEDDED.but(detector={"threshold": 0.35}, ocr=None).model_copy(update={"profile": "fast"}),
    "paper": Settings(
        profile="paper",
        encoder=VitSettings(weights="facebook/dinov2-base"),
        crop=CropSettings(margin=0, native=True, background="keep"),
        detector=Owlv2Settings(),
        segmenter=SamSettings(),
        vector=VectorSettings(
            features=("cls",), whitening=None, pooling="mao", iterations=80, weight_decay=0, upsample=True
        ),
    ),
    "dinov3": Settings(
        profile="dinov3",
        encoder=VitSettings(weights="facebook/dinov3-vits16-pretrain-lvd1689m"),
        detector=DetectorSettings(kind="proposals"),
        segmenter=SegmenterSettings(kind="grabcut"),
        vector=VectorSettings(features=WITHOUT_TEXTURE, whitening=None),
    ),
    "modern": Settings(
        profile="modern",
        encoder=VitSettings(weights="facebook/dinov3-vitb16-pretrain-lvd1689m"),
        detector=RfDetrSettings(),
        segmenter=Sam2Settings(),
        vector=VectorSettings(features=WITHOUT_TEXTURE, whitening=None),
    ),
    **{name: _reading(name) for name in READING},
    **{f"cluster-{name}": _reading(name, ClusterSettings()) for name in ("clip", "siglip2", "tipsv2")},
    **{f"sum-{name}": _reading(name, SumSettings()) for name in ("clip", "siglip2", "tipsv2")},
}
