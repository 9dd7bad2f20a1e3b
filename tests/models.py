"""Tiny models of the real architectures, with random weights: they build in a second and run in none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 5,
    "num_attention_heads": 3,
    "image_size": 32,
    "patch_size": 8,
}


def tiny_vit(kind: str = "dinov2", **config: Any) -> Any:
    """A model of one of FAMILIES in eval mode. config: in place of SHAPE's."""
    torch.manual_seed(0)
    loader, configuration, own = FAMILIES[kind]
    shape = {**SHAPE, **own, **config}
    return getattr(transformers, loader)(getattr(transformers, configuration)(**shape)).eval()


WIDE = {"intermediate_size": 48}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "dinov2": ("Dinov2Model", "Dinov2Config", {"mlp_ratio": 2}),
    "dinov2-registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        {"mlp_ratio": 2, "num_register_tokens": 4},
    ),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig", {**WIDE, "num_register_tokens": 4}),
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**WIDE, "projection_dim": 16}),
    "metaclip2": (
        "MetaClip2VisionModelWithProjection",
        "MetaClip2VisionConfig",
        {**WIDE, "projection_dim": 16},
    ),
    "tipsv2": ("Tipsv2VisionModel", "Tipsv2VisionConfig", {"mlp_ratio": 2}),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", WIDE),
    "siglip2": ("Siglip2VisionModel", "Siglip2VisionConfig", {**WIDE, "num_patches": 16}),
    "radio": ("RadioModel", "RadioConfig", {"mlp_ratio": 2.0, "max_img_size": 64}),
}


def tiny_encoder(folder: Path, kind: str = "dinov2") -> Path:
    """kind: one of FAMILIES."""
    tiny_vit(kind).save_pretrained(folder)
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


def tiny_sam2(folder: Path) -> Path:
    from transformers import Sam2Config, Sam2Model

    torch.manual_seed(0)
    backbone = {
        "hidden_size": 8, "image_size": [64, 64], "blocks_per_stage": [1, 1, 2, 1],
        "embed_dim_per_stage": [8, 16, 32, 64], "num_attention_heads_per_stage": [1, 1, 2, 2],
        "window_size_per_stage": [4, 4, 2, 2], "global_attention_blocks": [3],
        "window_positional_embedding_background_size": [4, 4], "model_type": "sam2_hiera_det_model",
    }  # fmt: skip
    vision = {
        "backbone_config": backbone, "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[16, 16], [8, 8], [4, 4]], "fpn_hidden_size": 32,
    }  # fmt: skip
    prompt = {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 4}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    Sam2Model(config).eval().save_pretrained(folder)
    return folder


def tiny_rf_detr(folder: Path) -> Path:
    from transformers import RfDetrConfig, RfDetrForObjectDetection

    torch.manual_seed(0)
    backbone = {
        "model_type": "rf_detr_dinov2", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": 64, "patch_size": 8, "num_windows": 1, "mlp_ratio": 2,
        "out_features": ["stage1", "stage2"],
    }  # fmt: skip
    config = RfDetrConfig(
        backbone_config=backbone, d_model=16, decoder_layers=1, decoder_ffn_dim=32, num_queries=20,
        decoder_self_attention_heads=2, decoder_cross_attention_heads=2, group_detr=1, c2f_num_blocks=1,
        num_labels=5,
    )  # fmt: skip
    RfDetrForObjectDetection(config).eval().save_pretrained(folder)
    return folder


WORDS = {word: i for i, word in enumerate(["<pad>", "<unk>", "<end>", "a", "red", "mug", "of", "blue"])}
BOTH = {  # kind of both towers -> model, configuration, what its towers have beside the rest
    "clip": ("CLIPModel", "CLIPConfig", {}, {**WIDE, "projection_dim": 16}),
    "metaclip2": ("MetaClip2Model", "MetaClip2Config", {}, {**WIDE, "projection_dim": 16}),
    "siglip": ("SiglipModel", "SiglipConfig", {"projection_size": 24}, WIDE),
    "siglip2": ("Siglip2Model", "Siglip2Config", {"projection_size": 24}, {**WIDE, "num_patches": 16}),
    "tipsv2": ("Tipsv2Model", "Tipsv2Config", {"hidden_size": 24}, {"mlp_ratio": 2}),
}


def tiny_words(folder: Path, kind: str = "clip") -> Any:
    """A whole model with both towers and a tokenizer of eight words, saved as one folder. kind: one of BOTH."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    loader, configuration, own_text, own_vision = BOTH[kind]
    text = {
        "vocab_size": 12, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 6, "eos_token_id": 2,
        "bos_token_id": 0, "pad_token_id": 0, "projection_dim": 16, **own_text,
    }  # fmt: skip
    if kind == "tipsv2":
        del text["projection_dim"]
    both = {"projection_dim": 16} if kind in ("clip", "metaclip2") else {}
    config = getattr(transformers, configuration)(
        text_config=text, vision_config={**SHAPE, **own_vision}, **both
    )
    model = getattr(transformers, loader)(config).eval()
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    return model
