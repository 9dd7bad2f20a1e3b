"""InternVL-G as it matches images and sentences. Its code is in no package: the user loads it."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.encoders.backbone import IMAGENET
from soir_qdrant.rerank.q_perturbation.hooks import qllama
from soir_qdrant.rerank.q_perturbation.matcher import unit

MEAN, STD = np.array(IMAGENET, np.float32)
PREFIX, LENGTH = "summarize:", 80  # of the sentences that the model was trained to match


class InternVLMatcher:
    """InternVL-G, such as OpenGVLab/InternVL-14B-224px, which the user loads, for its code comes with its weights.

        model = AutoModel.from_pretrained(name, trust_remote_code=True, dtype=torch.bfloat16).cuda().eval()
        tokenizer = AutoTokenizer.from_pretrained(name, use_fast=False, add_eos_token=True)
        tokenizer.pad_token_id = 0
        searcher.search(text="a red mug", rerank=TextPerturbation(InternVLMatcher(model, tokenizer)))

    Args:
        model: in evaluation mode, with `encode_image` and `encode_text`.
        tokenizer: pads with id 0 and ends sentences with its EOS token, as the model reads them.

    Raises:
        ConfigError: for another model, or a tokenizer that does otherwise.
    """

    name: ClassVar[str] = "internvl"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.sites = model, tokenizer, qllama(model)
        ids = self._ids("a red mug")[0]
        if tokenizer.pad_token_id != 0 or int(ids[ids > 0][-1]) != tokenizer.eos_token_id:
            raise ConfigError(
                "InternVL-G reads sentences that end with EOS and are padded with id 0: load its tokenizer with "
                "add_eos_token=True, and set tokenizer.pad_token_id = 0"
            )
        config = model.config
        self.side = int(config.force_image_size or config.vision_config.image_size)
        self.by_mode = "mode" in inspect.signature(model.encode_image).parameters

    def query(self, text: str) -> Tensor:
        """One sentence -> its unit descriptor [E]."""
        return unit(self.model.encode_text(self._ids(text).to(self.model.query_tokens.device)))

    def score(self, image: Image.Image, query: Tensor) -> float:
        """The cosine of both descriptors; the image's is the sum of what QLLaMA and the tower alone make of it, as the
        model itself has it."""
        pixels = self._pixels(image).to(self.model.query_tokens)
        rows = self.model.encode_image(pixels, **({"mode": "InternVL-G"} if self.by_mode else {}))
        return float(unit(rows) @ query)

    def _pixels(self, image: Image.Image) -> Tensor:
        """float [1, 3, S, S], squeezed."""
        squeezed = image.convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        values = (np.asarray(squeezed, np.float32) / 255 - MEAN) / STD
        return torch.from_numpy(values).permute(2, 0, 1)[None]

    def _ids(self, text: str) -> Tensor:
        """int [1, L]."""
        encoded = self.tokenizer(
            [PREFIX + text], max_length=LENGTH, truncation=True, padding="max_length", return_tensors="pt"
        )
        return torch.as_tensor(encoded["input_ids"])
