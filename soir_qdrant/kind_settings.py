"""What each of our own kinds has for settings, beside what all kinds of a part have; and those of OCR."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from soir_qdrant.kinds import DetectorSettings, EncoderSettings, Frozen, SceneSettings, SegmenterSettings


class VitSettings(EncoderSettings):
    """Of `vit`: a vision transformer of `transformers`. weights: "embedded", a folder or a hub name. adapter:
    what `soir train encoder` made to be added to them: "shipped" (added to the embedded weights alone), a
    file, or None. texture: what reads the feature "texture", the same: "shipped", a file made by `soir train texture`,
    or None; without one that was trained for the encoder, it is statistics of an early block."""

    kind: str = "vit"
    weights: str = "embedded"
    adapter: str | None = "shipped"
    texture: str | None = "shipped"


class TokenHeadSettings(DetectorSettings):
    """Of `embedded`: a head on the encoder's features. head: "shipped", a file made by `soir train detector`,
    or None. Without one that was trained for the encoder, `proposals` stands in. scales: areas at which an image is
    looked at, of the usual one; what all looks say is put together. More find more, and each takes its area's
    share of the detector's time again. everyday: whether a small detector of 80 kinds of everyday things has its say
    too (docs/concepts/detector.md)."""

    kind: str = "embedded"
    head: str | None = "shipped"
    scales: tuple[Annotated[float, Field(gt=0, le=8)], ...] = Field((1.0,), min_length=1)
    everyday: bool = False


class Owlv2Settings(DetectorSettings):
    """Of `owlv2`. weights: a folder or a hub name."""

    kind: str = "owlv2"
    weights: str = "google/owlv2-base-patch16-ensemble"


class RfDetrSettings(DetectorSettings):
    """Of `rf-detr`. weights: a folder or a hub name. size: side of the square that an image is resized to."""

    kind: str = "rf-detr"
    weights: str = "Roboflow/rf-detr-base"
    size: int = Field(560, ge=8)


class TokenUnetSettings(SegmenterSettings):
    """Of `embedded`: a head on the encoder's features. head: "shipped", a file made by
    `soir train segmenter`, or None. Without one that was trained for the encoder, `grabcut` stands in."""

    kind: str = "embedded"
    head: str | None = "shipped"


class SamSettings(SegmenterSettings):
    """Of `sam`. weights: a folder or a hub name."""

    kind: str = "sam"
    weights: str = "facebook/sam-vit-base"


class Sam2Settings(SegmenterSettings):
    """Of `sam2`. weights: a folder or a hub name."""

    kind: str = "sam2"
    weights: str = "facebook/sam2.1-hiera-tiny"


class SegmentAnythingSettings(SegmenterSettings):
    """Of `segment-anything`. weights: a checkpoint of that package, such as sam_vit_b_01ec64.pth."""

    kind: str = "segment-anything"
    weights: str


class DenseSettings(SceneSettings):
    """Of `dense`: a vector for each patch. attention: "own": in the last block and the model's pooling each patch
    attends to itself alone, through values and output projections; "all": as the model was trained."""

    kind: str = "dense"
    attention: Literal["own", "all"] = "own"


class ClusterSettings(DenseSettings):
    """Of `cluster`: the means of neighbouring patches that are alike. count: clusters of an image."""

    kind: str = "cluster"
    count: int = Field(16, ge=1)


class SumSettings(SceneSettings):
    """Of `sum`: trained queries that the model's own pooling reads. head: a file made by `soir train words`."""

    kind: str = "sum"
    head: str | None = None


class OcrSettings(Frozen):
    """Text inside images, read for the payload, and on the things in queries (docs/concepts/text.md). threshold: lowest
    score of a line. longest: side in pixels that a larger image is made smaller to; small print wants more, and takes
    longer. object_score: that a line has as an object of its own; 0: lines are none."""

    threshold: float = Field(0.5, ge=0, le=1)
    longest: int = Field(2000, ge=64)
    object_score: float = Field(0.4, ge=0, le=1)
