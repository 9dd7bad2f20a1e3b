"""BLIP-2 as it matches images and sentences: what it reads of each, and how well they belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from soir_qdrant.errors import WeightsError
from soir_qdrant.rerank.q_perturbation.hooks import Site, blip2

WEIGHTS = "Salesforce/blip2-itm-vit-g-coco"
Words: TypeAlias = dict[str, Tensor]  # input_ids, attention_mask: int [T, L]


@dataclass(frozen=True, slots=True, eq=False)
class Blip2Matcher:
    """`rerank="blip2"`: a `transformers` Blip2ForImageTextRetrieval and what feeds it.

    Attributes:
        model: in evaluation mode.
        pixels: images -> float [B, 3, S, S], squeezed, not cropped.
        words: sentences -> `Words`.
        itm: a score is the similarity (ITC) plus the logit of matching (ITM); False is the similarity alone.
    """

    name: ClassVar[str] = "blip2"

    model: Any
    pixels: Callable[[list[Image.Image]], Tensor]
    words: Callable[[list[str]], Words]
    itm: bool = True

    @classmethod
    def load(cls, weights: str, device: str = "auto") -> Blip2Matcher:
        """The model with its own processor.

        Args:
            weights: a folder or hub name, such as Salesforce/blip2-itm-vit-g-coco.
            device: "auto" takes a GPU where there is one, in half precision.

        Raises:
            WeightsError: for weights that cannot be loaded.
        """
        import transformers

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        try:
            processor = transformers.AutoProcessor.from_pretrained(weights, trust_remote_code=False)
            model = transformers.Blip2ForImageTextRetrieval.from_pretrained(weights, dtype=dtype)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{weights}: no BLIP-2 for retrieval could be loaded ({str(error).splitlines()[0]}). Give a "
                "folder with model and processor, or a hub name such as Salesforce/blip2-itm-vit-g-coco"
            ) from error
        model = model.to(device).eval()

        def pixels(images: list[Image.Image]) -> Tensor:
            tensors = processor.image_processor(images=images, return_tensors="pt")
            return torch.as_tensor(tensors["pixel_values"]).to(device, dtype)

        def words(texts: list[str]) -> Words:
            tensors = processor.tokenizer(
                texts, padding="max_length", max_length=35, truncation=True, return_tensors="pt"
            )
            return {name: tensors[name].to(device) for name in ("input_ids", "attention_mask")}

        return cls(model, pixels, words)

    @property
    def sites(self) -> list[Site]:
        """All cross-attentions of the Q-Former."""
        return blip2(self.model)

    def query(self, text: str) -> tuple[Words, Tensor]:
        """One sentence: its words, and its unit descriptor [E]."""
        words = self.words([text])
        return words, self.read(words).float()[0]

    def score(self, image: Image.Image, query: tuple[Words, Tensor]) -> float:
        """The ITC similarity, and where `itm` the ITM logit beside it."""
        words, row = query
        tokens = self.image_tokens([image])
        similarity = float((self.describe(tokens).float()[0] @ row).max())
        return similarity + float(self.match(tokens, words)) if self.itm else similarity

    def image_tokens(self, images: list[Image.Image]) -> Tensor:
        """Images -> the vision tower's tokens [B, N, D]."""
        tokens: Tensor = self.model.vision_model(pixel_values=self.pixels(images))[0]
        return tokens

    def describe(self, tokens: Tensor) -> Tensor:
        """Tokens [B, N, D] -> the query tokens' unit descriptors [B, Q, E] (ITC)."""
        queries = self.model.query_tokens.expand(len(tokens), -1, -1)
        out = self.model.qformer(query_embeds=queries, encoder_hidden_states=tokens)[0]
        return F.normalize(self.model.vision_projection(out.to(self.model.vision_projection.weight)), dim=-1)

    def read(self, words: Words) -> Tensor:
        """Sentences -> unit descriptors [T, E] (ITC)."""
        embedded = self.model.embeddings(input_ids=words["input_ids"])
        out = self.model.qformer(
            query_embeds=embedded, query_length=0, attention_mask=words["attention_mask"]
        )[0]
        return F.normalize(
            self.model.text_projection(out[:, 0].to(self.model.text_projection.weight)), dim=-1
        )

    def match(self, tokens: Tensor, words: Words) -> Tensor:
        """Tokens of one image [1, N, D], T sentences -> the logits [T] that they belong together."""
        count = len(words["input_ids"])
        queries = self.model.query_tokens.expand(count, -1, -1)
        mask = torch.cat([words["attention_mask"].new_ones(queries.shape[:2]), words["attention_mask"]], 1)
        # The Q-Former keeps float32. Cast by itself, the expanded image would become `count` images.
        tokens = tokens.to(self.model.qformer.layernorm.weight.dtype)
        out = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=words["input_ids"], query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=mask,
            encoder_hidden_states=tokens.expand(count, -1, -1),
        )[0]
        logits: Tensor = self.model.itm_head(out[:, : queries.shape[1]].to(self.model.itm_head.weight))
        return logits.mean(1)[:, 1]
