"""What `TextPerturbation` needs of a model that matches images and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from soir_qdrant.rerank.q_perturbation.hooks import Site
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings

PAPER = PerturbSettings(scale=8.0, mean=True, contribution=0.99, crossing=False)  # its figures on Flickr30K


class Matcher(Protocol):
    """A model that says how well an image and a sentence belong together: `Blip2Matcher`, `CoCaMatcher`,
    `InternVLMatcher`, or your own.

    Attributes:
        name: what messages call a search with it, `rerank="name"`.
        sites: the cross-attentions whose queries are perturbed while `score` runs.
    """

    @property
    def name(self) -> str: ...

    @property
    def sites(self) -> Sequence[Site]: ...

    def query(self, text: str) -> Any:
        """One sentence, as `score` takes it."""
        ...

    def score(self, image: Image.Image, query: Any) -> float:
        """How well they belong together; the larger, the better.

        Args:
            image: RGB. It is squeezed, not cropped: the patches lie over all of it.
            query: of `query`.
        """
        ...


def unit(rows: Tensor) -> Tensor:
    """The one descriptor of a batch of one, [1, E], as unit length [E] in float32."""
    return F.normalize(rows.float()[0], dim=-1)
