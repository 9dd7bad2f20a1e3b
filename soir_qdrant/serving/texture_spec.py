"""What a served texture model takes and gives. Standard library only; see `spec`."""

from __future__ import annotations

from soir_qdrant.serving.model_spec import ModelSpec, Tensor, facts

TEXTURE = "soir_texture"


def texture(*, size: int, cells: int, dim: int, skip: int) -> ModelSpec:
    """The first blocks of an encoder, on objects' boxes stretched to squares: see `contracts.Encoder.texture`.

    size, cells: side in pixels, and in patches. dim: of a texture. skip: blocks after the last one that is read.
    """
    return ModelSpec(
        TEXTURE,
        "texture",
        facts(size=size, cells=cells, dim=dim, skip=skip),
        (Tensor("surfaces", "UINT8", (size, size, 3)), Tensor("weights", "FP32", (cells * cells,))),
        (Tensor("texture", "FP32", (dim,)),),
        max_batch=32,
        usual_batch=16,
        delay_us=2000,
    )
