"""Encoders, detectors, segmenters and scene encoders by the name that a setting gives: `detector={"kind": "mine"}`.

Ours are registered in `config`. Another package registers its own where it is imported,

    register_detector("mine", MyDetector, MySettings)

or offers it by an entry point, which is loaded when its name is first asked for:

    [project.entry-points."soir_qdrant.detectors"]
    mine = "my_package:MINE"                      # MINE = Kind(MyDetector, MySettings)

From then on it is a setting like ours: in profiles, in the CLI, in what is stored, in `soir info`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from soir_qdrant.errors import ConfigError
from soir_qdrant.registry import Registry

if TYPE_CHECKING:
    from soir_qdrant.config import Settings
    from soir_qdrant.contracts import Detector, Encoder, FeatureSource, SceneEncoder, Segmenter


class Frozen(BaseModel):
    """Settings: they are not changed, and an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EncoderSettings(Frozen):
    """What the settings of every kind of encoder have.

    kind: a registered name. input_size: side of a crop in pixels. dtype, device: "auto" takes what the
    machine does fastest (see docs/lab/decisions.md). batch: crops that run at once.
    """

    kind: str
    input_size: int = Field(224, ge=8)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    batch: int = Field(32, ge=1)


class DetectorSettings(Frozen):
    """What the settings of every kind of detector have.

    kind: a registered name. threshold: lowest score; iou: of the non-maximum suppression; None takes what was
    measured for each kind. fitted_iou: of another one, among boxes refined to their masks. max_objects: of an
    image (`most` in 0.1, which is still read); a calm one has fewer, since none is below the threshold.
    """

    kind: str
    threshold: float | None = Field(None, ge=0, le=1)
    iou: float | None = Field(None, ge=0, le=1)
    fitted_iou: float = Field(0.7, ge=0, le=1)
    max_objects: int = Field(100, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _names_of_0_1(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "most" not in values:
            return values
        renamed = dict(values)
        renamed["max_objects"] = renamed.pop("most")
        return renamed

    @property
    def limits(self) -> dict[str, Any]:
        """`max_objects`, and `threshold` and `iou` where they are set: keywords of our detectors."""
        values = {"threshold": self.threshold, "iou": self.iou, "max_objects": self.max_objects}
        return {name: value for name, value in values.items() if value is not None}


class SegmenterSettings(Frozen):
    """What the settings of every kind of segmenter have. kind: a registered name."""

    kind: str


class SceneSettings(Frozen):
    """What the settings of every kind of scene encoder have.

    kind: a registered name. tiles: so many along each side of the image are encoded by themselves, each at the
    encoder's input size; more see smaller things. vector: what the image's one vector is, "pooled" of the regions'
    or the model's own descriptor of the "whole" image.
    """

    kind: str
    tiles: int = Field(1, ge=1, le=8)
    vector: Literal["pooled", "whole"] = "pooled"


PartSettings: TypeAlias = EncoderSettings | DetectorSettings | SegmenterSettings | SceneSettings


class Parts:
    """What a part may be made of.

    Attributes:
        settings: all of them.
        device: where models are to run: "auto" or a device of torch.
        dtype: in which precision: the encoder's.
    """

    def __init__(self, settings: Settings, source: Callable[[], FeatureSource] | None = None) -> None:
        self.settings = settings
        self.device = settings.encoder.device
        self.dtype = settings.encoder.dtype
        self._source = source

    @property
    def source(self) -> FeatureSource:
        """The encoder, or its trunk where that is served: whose features of whole images a detector, segmenter
        or scene encoder reads. Loaded when it is first read."""
        if self._source is None:
            raise ConfigError("an encoder is made before there are features to read")
        return self._source()


@dataclass(frozen=True, slots=True)
class Kind:
    """What a name stands for.

    Attributes:
        make: a class or function that is called with the kind's settings and `Parts`, and returns an encoder,
            a detector (or None: no detector), a segmenter or a scene encoder; or where it is, as
            "module:name".
        settings: a pydantic model, a subclass of `EncoderSettings`, `DetectorSettings`, `SegmenterSettings`
            or `SceneSettings`.
        reads_features: whether it reads `Parts.source`. Where models are served, so is the trunk then.
    """

    make: Callable[[Any, Parts], Any] | str
    settings: type[PartSettings]
    reads_features: bool = False

    def __call__(self, settings: PartSettings, parts: Parts) -> Any:
        """Make the part."""
        if isinstance(self.make, str):
            module, _, name = self.make.partition(":")
            return getattr(import_module(module), name)(settings, parts)
        return self.make(settings, parts)


ENCODERS: Registry[Kind] = Registry("encoder")
DETECTORS: Registry[Kind] = Registry("detector")
SEGMENTERS: Registry[Kind] = Registry("segmenter")
SCENES: Registry[Kind] = Registry("scene")
_SHARED: dict[str, type[PartSettings]] = {
    "encoder": EncoderSettings,
    "detector": DetectorSettings,
    "segmenter": SegmenterSettings,
    "scene": SceneSettings,
}


def register_encoder(
    name: str, make: Callable[[Any, Parts], Encoder] | str, settings: type[EncoderSettings] = EncoderSettings
) -> None:
    """Make a kind of encoder known. See `Kind`."""
    ENCODERS.register(name, Kind(make, settings))


def register_detector(
    name: str,
    make: Callable[[Any, Parts], Detector | None] | str,
    settings: type[DetectorSettings] = DetectorSettings,
    *,
    reads_features: bool = False,
) -> None:
    """Make a kind of detector known. See `Kind`."""
    DETECTORS.register(name, Kind(make, settings, reads_features))


def register_segmenter(
    name: str,
    make: Callable[[Any, Parts], Segmenter] | str,
    settings: type[SegmenterSettings] = SegmenterSettings,
    *,
    reads_features: bool = False,
) -> None:
    """Make a kind of segmenter known. See `Kind`."""
    SEGMENTERS.register(name, Kind(make, settings, reads_features))


def register_scene(
    name: str, make: Callable[[Any, Parts], SceneEncoder] | str, settings: type[SceneSettings] = SceneSettings
) -> None:
    """Make a kind of scene encoder known. See `Kind`."""
    SCENES.register(name, Kind(make, settings))


def make_encoder(settings: EncoderSettings, parts: Parts) -> Encoder:
    """The encoder that the settings name. Raises ConfigError or WeightsError where it is not available."""
    encoder: Encoder = kind_of(ENCODERS, settings.kind)(settings, parts)
    return encoder


def make_detector(settings: DetectorSettings, parts: Parts) -> Detector | None:
    """The detector that the settings name; None where the whole image is to be the one object. Raises
    ConfigError or WeightsError where it is not available."""
    detector: Detector | None = kind_of(DETECTORS, settings.kind)(settings, parts)
    return detector


def make_segmenter(settings: SegmenterSettings, parts: Parts) -> Segmenter:
    """The segmenter that the settings name. Raises ConfigError or WeightsError where it is not available."""
    segmenter: Segmenter = kind_of(SEGMENTERS, settings.kind)(settings, parts)
    return segmenter


def make_scene_encoder(settings: SceneSettings, parts: Parts) -> SceneEncoder:
    """The scene encoder that the settings name. Raises ConfigError or WeightsError where it is not available."""
    encoder: SceneEncoder = kind_of(SCENES, settings.kind)(settings, parts)
    return encoder


def kind_of(registry: Registry[Kind], name: str) -> Kind:
    """What a name stands for.

    Raises:
        ConfigError: nothing has that name, or a package offers something under it that is no `Kind`.
    """
    kind = registry.get(name)
    if not isinstance(kind, Kind):
        raise ConfigError(
            f"{registry.what} {name!r} of another package is no soir_qdrant.Kind: its entry point has to "
            "name one, such as MINE = Kind(MyClass, MySettings)"
        )
    return kind


S = TypeVar("S", bound=PartSettings)


def settings_of(registry: Registry[Kind], value: Any, before: S | None = None) -> Any:
    """Settings of a kind out of a dict, which may leave out what is to stay as it was.

    Args:
        registry: of the kinds.
        value: a dict with a "kind", or settings.
        before: those to change; of another kind, what all kinds share is kept.

    Raises:
        ConfigError: an unknown kind or setting, or a value out of range; it names the setting.
    """
    what = registry.what
    if isinstance(value, _SHARED[what]):
        if isinstance(value, kind_of(registry, value.kind).settings):
            return value
        value = value.model_dump(exclude_unset=True)
    values = dict(value)
    if before is not None:
        same = values.get("kind", before.kind) == before.kind
        shared = None if same else set(_SHARED[what].model_fields)
        values = {**before.model_dump(include=shared), **values}
    if not isinstance(values.get("kind"), str):
        raise ConfigError(f"setting {what}.kind: name one of {', '.join(registry)}")
    try:
        return kind_of(registry, values["kind"]).settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"setting {what}.{place} of the kind {values['kind']!r}: {first['msg']}") from error
