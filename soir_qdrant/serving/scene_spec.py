"""What the model of whole scenes takes and gives. Standard library only; see `spec`."""

from __future__ import annotations

from soir_qdrant.serving.model_spec import ModelSpec, Tensor, facts

SCENE = "soir_scene"


def scene(*, dim: int, row_dim: int = 0, reads_text: bool = False) -> ModelSpec:
    """An image in, its objects and vectors out: the whole way, on the server.

    image: the bytes of its file. boxes: in pixels, after EXIF rotation. masks: of each box rounded outwards to whole
    pixels, one bit a pixel, in one row. detected: 0 where the whole image stands in for objects. patches: of all
    objects, one after the other, a bit for each of the `row_dim` numbers; counts: of each object. texts: what was read
    outside of the objects, and on each of them, or null, as a JSON array in UTF-8.
    """
    optional = {"row_dim": row_dim, "reads_text": int(reads_text)}
    patches = (Tensor("patches", "UINT8", (-1, row_dim // 8)), Tensor("counts", "INT64", (-1,)))
    return ModelSpec(
        SCENE,
        "scene",
        facts(dim=dim, **{name: value for name, value in optional.items() if value}),
        (Tensor("image", "UINT8", (-1,)),),
        (
            Tensor("boxes", "FP32", (-1, 4)),
            Tensor("scores", "FP32", (-1,)),
            Tensor("masks", "UINT8", (-1,)),
            Tensor("detected", "UINT8", (1,)),
            Tensor("vectors", "FP32", (-1, dim)),
            Tensor("vector", "FP32", (dim,)),
            *(patches if row_dim else ()),
            *((Tensor("texts", "UINT8", (-1,)),) if reads_text else ()),
        ),
    )
