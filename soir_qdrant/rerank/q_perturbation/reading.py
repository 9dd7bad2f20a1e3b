"""Q-Perturbation for a query that is an image, on the encoder's own last block. Tensors in, tensors out.

In the vision-and-language models of the paper, learned queries read an image in cross-attention. Here the
query object's CLS token does: in the last block, its vector q_h of every head is moved towards what the keys
of one object of the candidate have in common,

    q'_h = q_h + alpha Phi_h Phi_h^T q_h,

and reads the patches of that object's crop with it, a_h = softmax(q'_h K_h^T / sqrt d). The mean of a_h over
the heads weighs the patch tokens that enter the block, and their mean describes the object as the query sees
it. The block itself is not run: its queries and keys are enough.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from soir_qdrant.errors import ConfigError
from soir_qdrant.models.last_block import LastBlock
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, alphas, perturb
from soir_qdrant.rerank.q_perturbation.subspace import basis, gram

WINNER = PerturbSettings(scale=2.0, rank=1, contribution=None)  # see docs/concepts/q-perturbation.md


@dataclass(frozen=True, slots=True)
class ImagePerturbation:
    """Reads crops of objects with the query object's attention.

    Attributes:
        block: the encoder's last; it needs a CLS token.
        settings: of the perturbation; the "area" that a weighting asks for is the object's share of its crop.

    Raises:
        ConfigError: for a block without CLS.
    """

    block: LastBlock
    settings: PerturbSettings = WINNER

    def __post_init__(self) -> None:
        if not self.block.prefix_tokens:
            raise ConfigError("rerank q-perturbation: this encoder has no CLS token to read with")

    def query(self, tokens: Tensor) -> Tensor:
        """The query's tokens that enter the block, [N, D] -> its CLS token's query per head, [heads, d]."""
        row = self.block.linear(self.block.layer_norm(tokens[:1].float(), "norm1"), "q")
        return self.block.split(row[None])[0, :, 0]

    def prepare(self, tokens: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What of k crops does not depend on the query: their patch tokens, keys and subspaces.

        tokens: [k, N, D], those that enter the block, CLS first. shares: [k, n], 0..1, of each of the n
        patches inside the object. Returns patches [k, n, D] (through the final LayerNorm), keys
        [k, heads, N, d] and bases [k, heads, d, r].
        """
        first = self.block.prefix_tokens
        if tokens.ndim != 3 or shares.shape != (len(tokens), tokens.shape[1] - first):
            raise ConfigError(
                f"tokens {tuple(tokens.shape)}, shares {tuple(shares.shape)}: give [k, N, D] and "
                f"[k, N - {first}]"
            )
        tokens, shares, settings = tokens.float(), shares.float(), self.settings
        patches, keys = self.block.norm(tokens)[:, first:], self.block.keys(tokens)
        grams = [gram(keys[i], shares[i : i + 1])[0] for i in range(len(keys))]
        phi = basis(
            torch.stack(grams),
            contribution=settings.contribution,
            rank=settings.rank,
            crossing=settings.crossing,
        )
        return patches, keys, phi

    def read(self, query: Tensor, prepared: tuple[Tensor, Tensor, Tensor], shares: Tensor) -> Tensor:
        """The k crops as the query sees them, [k, D].

        query: [heads, d]; prepared, shares: of `prepare`.
        """
        patches, keys, phi = prepared
        # One object per crop: the crops are a batch beside the heads, and nothing is to be averaged.
        alpha = alphas(shares.float().mean(1), replace(self.settings, mean=False))
        queries = query.expand(len(phi), -1, -1)[:, :, None]
        moved = perturb(queries, phi[None], alpha[None], keep_norm=self.settings.keep_norm)
        attention = (moved @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        weights = attention[:, :, 0, self.block.prefix_tokens :].mean(1)  # what CLS drew is left out
        weights = weights / weights.sum(1, keepdim=True)
        return torch.einsum("kn,knd->kd", weights, patches)
