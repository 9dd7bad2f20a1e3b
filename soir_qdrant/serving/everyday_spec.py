"""What the served detector of everyday things takes and gives. Standard library only; see `spec`."""

from __future__ import annotations

from soir_qdrant.serving.model_spec import ModelSpec, Tensor, facts

EVERYDAY = "soir_everyday"


def everyday(*, side: int, boxes: int = 300) -> ModelSpec:
    """Images made square, five of each photograph, to boxes of things and scores 0..1.

    side: of the square, in pixels. boxes: of an image, x0 y0 x1 y1 as shares of its sides.
    """
    return ModelSpec(
        EVERYDAY,
        "everyday",
        facts(side=side, boxes=boxes),
        (Tensor("images", "UINT8", (side, side, 3)),),
        (Tensor("boxes", "FP32", (boxes, 4)), Tensor("scores", "FP32", (boxes,))),
        max_batch=10,
        usual_batch=5,
        delay_us=500,
    )
