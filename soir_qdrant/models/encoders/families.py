"""Which family a model belongs to, by the `model_type` of its configuration."""

from __future__ import annotations

from soir_qdrant.errors import WeightsError
from soir_qdrant.models.encoders.backbone import Backbone
from soir_qdrant.models.encoders.clip import Clip, MetaClip2
from soir_qdrant.models.encoders.dinov2 import Dinov2, Dinov2Registers
from soir_qdrant.models.encoders.dinov3 import Dinov3
from soir_qdrant.models.encoders.radio import Radio
from soir_qdrant.models.encoders.siglip import Siglip
from soir_qdrant.models.encoders.siglip2 import Siglip2
from soir_qdrant.models.encoders.tipsv2 import Tipsv2
from soir_qdrant.models.pretrained import load_config, load_model
from soir_qdrant.models.weights import Weights

FAMILIES: dict[str, type[Backbone]] = {
    "dinov2": Dinov2,
    "dinov2_with_registers": Dinov2Registers,
    "dinov3_vit": Dinov3,
    "clip": Clip,
    "metaclip_2": MetaClip2,
    "siglip": Siglip,
    "siglip2": Siglip2,
    "tipsv2": Tipsv2,
    "radio": Radio,
}


def load_backbone(weights: Weights) -> Backbone:
    """The vision transformer of these weights.

    Raises:
        WeightsError: they cannot be loaded, or are of a family that is not known.
    """
    kind = load_config(weights).model_type
    family = FAMILIES.get(kind.removesuffix("_vision_model"))
    if family is None:
        raise WeightsError(f"{weights.path}: a {kind} model; known are {', '.join(FAMILIES)}")
    return family(load_model(weights, family.loader))
