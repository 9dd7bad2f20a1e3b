"""Words as the text towers of `transformers` read them: which there are, and texts as tokens. No torch in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.pretrained import load_config, loading
from soir_qdrant.models.weights import Weights

WHAT = "its text tower"


@dataclass(frozen=True, slots=True)
class Tower:
    """How a text tower is called. loader: its class in `transformers`; output: what of its answer is the
    descriptor; padding: of its tokenizer; inputs: names of its arguments."""

    loader: str
    output: str
    padding: bool | str
    inputs: tuple[str, ...]


TOWERS = {
    "clip": Tower("CLIPTextModelWithProjection", "text_embeds", True, ("input_ids", "attention_mask")),
    # trained on texts padded to one length, the padding not masked
    "siglip": Tower("SiglipTextModel", "pooler_output", "max_length", ("input_ids",)),
    "siglip2": Tower("Siglip2TextModel", "pooler_output", "max_length", ("input_ids",)),
    "metaclip_2": Tower(
        "MetaClip2TextModelWithProjection", "text_embeds", True, ("input_ids", "attention_mask")
    ),
    "tipsv2": Tower("Tipsv2TextModel", "pooler_output", True, ("input_ids", "attention_mask")),
}


def tower_of(weights: Weights) -> Tower | None:
    """The text tower of a model; None for one without. Raises WeightsError."""
    return TOWERS.get(load_config(weights).model_type)


def load_tokenizer(weights: Weights) -> Any:
    """The tokenizer that lies beside a model. Raises WeightsError where there is none."""
    with loading(weights, WHAT) as (transformers, options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(weights.path, **options)
        vocabulary = transformers.AutoConfig.from_pretrained(weights.path, **options).text_config.vocab_size
        if len(tokenizer) < vocabulary // 2:  # of a folder without one, an empty one is made
            raise OSError("its tokenizer is missing")
    return tokenizer


def tokens_of(
    tokenizer: Any,
    texts: list[str],
    names: Sequence[str],
    *,
    length: int,
    padding: bool | str = "max_length",
) -> dict[str, NDArray[np.int64]]:
    """Texts as a tower takes them, int64 [T, n] each. What is longer than `length` tokens is cut off.

    Args:
        tokenizer: of `transformers`.
        texts: words.
        names: of the tower's arguments.
        length: tokens that the model reads.
        padding: "max_length" to all of them; True to the longest text.

    Raises:
        ConfigError: for a text without words.
    """
    if not all(text.strip() for text in texts):
        raise ConfigError("the query text is empty: say what to look for")
    tokens = tokenizer(texts, padding=padding, max_length=length, truncation=True, return_tensors="np")
    return {name: np.asarray(tokens[name], np.int64) for name in names}
