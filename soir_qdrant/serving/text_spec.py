"""What a served text tower takes and gives. Standard library only; see `spec`."""

from __future__ import annotations

from soir_qdrant.serving.model_spec import ModelSpec, Tensor, facts

TEXT = "soir_text"


def text(*, length: int, dim: int, mask: int) -> ModelSpec:
    """The text tower of an encoder: tokens, which the client makes of words, to unit descriptors.

    length: tokens of a text, padded. dim: of the descriptor. mask: 1 where padding is marked.
    """
    names = ("input_ids", *(["attention_mask"] if mask else []))
    return ModelSpec(
        TEXT,
        "text",
        facts(length=length, dim=dim, mask=mask),
        tuple(Tensor(name, "INT64", (length,)) for name in names),
        (Tensor("descriptor", "FP32", (dim,)),),
        max_batch=32,
        usual_batch=4,
        delay_us=500,
    )
