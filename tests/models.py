"""Tiny models of the real architectures, with random weights: they build in a second and run in none."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def tiny_encoder(folder: Path, kind: str = "dinov2") -> Path:
    """kind: dinov2, clip or siglip."""
    torch.manual_seed(0)
    if kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**SHAPE, mlp_ratio=2))
    elif kind == "clip":
        config = transformers.CLIPVisionConfig(**SHAPE, intermediate_size=48, projection_dim=16)
        model = transformers.CLIPVisionModelWithProjection(config)
    else:
        model = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SHAPE, intermediate_size=48))
    model.save_pretrained(folder)
    return folder


def tiny_owlv2(folder: Path) -> Path:
    from transformers import Owlv2Config, Owlv2ForObjectDetection, Owlv2TextConfig, Owlv2VisionConfig

    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = Owlv2TextConfig(vocab_size=20, max_position_embeddings=8, **small)
    vision = Owlv2VisionConfig(image_size=64, patch_size=16, **small)
    config = Owlv2Config(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    model = Owlv2ForObjectDetection(config).eval()
    with torch.no_grad():  # random heads say 0 or 1: these propose about the patches, with scores between
        model.box_head.dense2.weight *= 1e-3
        model.objectness_head.dense2.weight *= 0.1
    model.save_pretrained(folder)
    return folder


def tiny_sam(folder: Path) -> Path:
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    vision = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 8, "mlp_dim": 64, "window_size": 4, "global_attn_indexes": [1],
        "num_pos_feats": 8,
    }  # fmt: skip
    prompt = {"hidden_size": 16, "image_size": 64, "patch_size": 8, "mask_input_channels": 4}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
               "iou_head_hidden_dim": 16}  # fmt: skip
    config = SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    SamModel(config).eval().save_pretrained(folder)
    return folder
