"""The last block's weights as one small file, for machines that have the trunk served elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soir_qdrant.errors import WeightsError
from soir_qdrant.models.artifacts import write_whole

if TYPE_CHECKING:
    from soir_qdrant.models.last_block import LastBlock

FILE = "last_block.safetensors"
HEAD = "head."


def save(block: LastBlock, fingerprint: str, file: Path) -> None:
    """Write a last block, in float32. fingerprint: of the encoder it belongs to."""
    from safetensors.torch import save as packed

    tensors = {name: weight.float().cpu().contiguous() for name, weight in block.weights.items()}
    about = {
        "fingerprint": fingerprint,
        "heads": block.heads,
        "eps": block.eps,
        "activation": block.activation,
        "prefix_tokens": block.prefix_tokens,
        "head": None,
    }
    if block.head is not None:
        config: Any = block.head.mlp.config  # type: ignore[union-attr]
        about["head"] = {
            key: getattr(config, key)
            for key in (
                "hidden_size",
                "intermediate_size",
                "num_attention_heads",
                "layer_norm_eps",
                "hidden_act",
            )
        }
        state = block.head.state_dict()
        tensors |= {HEAD + name: weight.float().cpu().contiguous() for name, weight in state.items()}
    write_whole(file, packed(tensors, metadata={"soir": json.dumps(about)}))
    file.chmod(0o644)  # it is served by others


def load(file: Path, fingerprint: str) -> LastBlock:
    """Read one. fingerprint: of the encoder that it must belong to.

    Raises WeightsError where the file is missing, damaged or of another encoder.
    """
    from safetensors import SafetensorError, safe_open

    from soir_qdrant.models.last_block import LastBlock

    try:
        with safe_open(str(file), framework="pt") as stored:
            about = json.loads((stored.metadata() or {})["soir"])
            tensors = dict(zip(stored.keys(), map(stored.get_tensor, stored.keys()), strict=True))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise WeightsError(
            f"{file}: no last block can be read there ({error}); `soir export` writes one beside the encoder"
        ) from error
    if about["fingerprint"] != fingerprint:
        raise WeightsError(
            f"{file} is the last block of {about['fingerprint']}, and the encoder that is served is "
            f"{fingerprint}: take the file that was exported with it"
        )
    head = None
    if about["head"] is not None:
        from transformers import SiglipVisionConfig
        from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

        head = SiglipMultiheadAttentionPoolingHead(SiglipVisionConfig(**about["head"])).eval()
        names = [name for name in tensors if name.startswith(HEAD)]
        head.load_state_dict({name.removeprefix(HEAD): tensors.pop(name) for name in names})
        head.requires_grad_(False)
    prefix = int(about.get("prefix_tokens", about.get("has_cls", 0)))  # has_cls: files of 0.1
    return LastBlock(about["heads"], about["eps"], about["activation"], prefix, tensors, head)
