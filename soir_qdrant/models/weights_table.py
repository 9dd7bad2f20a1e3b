"""Every trained or foreign file that our profiles use, as data: whose it is, under which terms, how large."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from soir_qdrant.models import embedded
from soir_qdrant.models.cache import digest_of
from soir_qdrant.models.weights import EMBEDDED, WHOLE

DATA = Path(str(resources.files("soir_qdrant") / "data"))


@dataclass(frozen=True, slots=True)
class Known:
    """Weights that are known by name.

    Attributes:
        name: what a setting says, or a file of this package.
        used_for: what they do here.
        origin: where they come from.
        licence: their terms.
        megabytes: about how much is fetched, or lies in the package.
        revision: of the origin; None takes its newest.
        sha256: of each file that is compared; empty where none is pinned.
    """

    name: str
    used_for: str
    origin: str
    licence: str
    megabytes: float
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


def _hub(name: str, used_for: str, licence: str, megabytes: float) -> Known:
    return Known(name, used_for, f"https://huggingface.co/{name}", licence, megabytes)


def _shipped(file: str, command: str, megabytes: float, sha256: str) -> Known:
    name = f"data/{file}.safetensors"
    return Known(
        name, f"{file}, made by `{command}`", "this package", "Apache-2.0", megabytes, None, {name: sha256}
    )


TABLE: tuple[Known, ...] = (
    Known(
        EMBEDDED,
        "encoder of the profile embedded",
        embedded.ORIGIN.source,
        embedded.ORIGIN.licence,
        90.2,
        embedded.WHEEL.partition("==")[2],
        {embedded.ONNX_IN_WHEEL: embedded.ONNX_SHA256, "tensors": embedded.TENSORS_SHA256},
    ),
    Known(
        WHOLE,
        "the same with all 12 blocks: rows `paper` of `soir evaluate`",
        embedded.WHOLE_ORIGIN.source,
        embedded.WHOLE_ORIGIN.licence,
        90.2,
        embedded.WHEEL.partition("==")[2],
        {embedded.ONNX_IN_WHEEL: embedded.ONNX_SHA256, "tensors": embedded.WHOLE_SHA256},
    ),
    _shipped(
        "encoder",
        "soir train encoder",
        3.5,
        "fb723afa51f2a2af2c89bdb9edb09da4b821d6b88d345051a32bcafd630c0d91",
    ),
    _shipped(
        "detector",
        "soir train detector",
        4.8,
        "b0f272409b9e1ca6ce3f760329c9d74f696b6d1273cab74aa986fb34a78ebd89",
    ),
    _shipped(
        "segmenter",
        "soir train segmenter",
        1.2,
        "4b13555e10b740ed4774b7b006de3d5f264b1e1c72569694343c2ac042de1143",
    ),
    _shipped(
        "texture",
        "soir train texture",
        1.9,
        "8aaf4bccb8b729176cf87195bfab8c7bc91b4abf1b86d4a4465f994910d19559",
    ),
    _shipped(
        "whitening",
        "soir train projection` and `benchmarks/texture.py",
        4.7,
        "2fa39335b047f702d5b0965630c89defeef21668a6d4c1560ee1c5188eebe99d",
    ),
    _shipped(
        "whitening-0.1",
        "soir train projection",
        3.9,
        "6b13bfe5dd11fcf76286c13810691235a3afd7c264b63b50bd1dc8391406d5df",
    ),
    Known(
        "data/everyday.onnx",
        "detector of everyday things, beside ours: DEIMv2-Femto (COCO), made smaller by `benchmarks/everyday.py`",
        "https://github.com/Kazuhito00/DEIMv2-ONNX-Sample",
        "Apache-2.0",
        2.1,
        "f88d4382",
        {"data/everyday.onnx": "09a763bb5602e32f8ff9a1a3a8f7c47d8bf2d4f61a5219708c17b5ac15f13168"},
    ),
    _hub("facebook/dinov2-base", "encoder of the profile paper", "Apache-2.0", 346),
    _hub("google/owlv2-base-patch16-ensemble", "detector owlv2", "Apache-2.0", 620),
    _hub("facebook/sam-vit-base", "segmenter sam", "Apache-2.0", 375),
    _hub(
        "facebook/dinov3-vits16-pretrain-lvd1689m",
        "encoder of the profile dinov3",
        "DINOv3 License (gated)",
        86,
    ),
    _hub(
        "facebook/dinov3-vitb16-pretrain-lvd1689m",
        "encoder of the profile modern",
        "DINOv3 License (gated)",
        343,
    ),
    _hub("Roboflow/rf-detr-base", "detector rf-detr", "Apache-2.0", 128),
    _hub("facebook/sam2.1-hiera-tiny", "segmenter sam2", "Apache-2.0", 156),
    _hub("openai/clip-vit-base-patch16", "encoder of the profile clip", "MIT", 599),
    _hub("google/siglip-base-patch16-224", "encoder of the profile siglip", "Apache-2.0", 813),
    _hub("google/siglip2-base-patch16-224", "encoder of the profile siglip2", "Apache-2.0", 1500),
    _hub("facebook/metaclip-2-worldwide-s16", "encoder of the profile metaclip2", "CC-BY-NC-4.0", 1600),
    _hub("google/tipsv2-b14", "encoder of the profile tipsv2", "Apache-2.0", 790),
)


def ships(known: Known) -> bool:
    """Whether they lie in this package."""
    return known.name.startswith(f"{DATA.name}/")


def here(known: Known) -> bool:
    """Whether they lie on this machine, so that no network is needed."""
    if known.name == EMBEDDED:
        return embedded.folder_of_cache().is_dir()
    if known.name == WHOLE:
        return embedded.folder_of_cache(embedded.ALL_BLOCKS).is_dir()
    if ships(known):
        return True
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(known.name, "config.json"), str)


def damaged(known: Known) -> list[str]:
    """The files of the package that are not those in the table."""
    if not ships(known):
        return []
    return [name for name, sha in known.sha256.items() if digest_of([DATA.parent / name]) != sha]
