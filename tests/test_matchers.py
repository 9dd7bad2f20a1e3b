"""Hits of a text query, ordered by CoCa and InternVL-G with Q-Perturbation: tiny models with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import painted
from PIL import Image
from qdrant_client import QdrantClient
from safetensors.torch import save_file
from test_hooks import CrossAttention
from test_text_recall import Reading
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.ingest.ingestor import SoirIngestor
from soir_qdrant.rerank import CoCaMatcher, InternVLMatcher, TextPerturbation
from soir_qdrant.rerank.q_perturbation import coca
from soir_qdrant.rerank.q_perturbation.matcher import PAPER
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings, perturb, regions
from soir_qdrant.search.searcher import SoirSearcher

pytestmark = pytest.mark.slow


@pytest.fixture
def searcher(tmp_path: Path) -> SoirSearcher:
    """Of three files; the objects that are stored of each are its rectangles."""
    for i in range(3):
        rectangles = [((4, 4, 24, 20), (250, 80 * i, 0)), ((40, 30, 70, 55), (0, 80 * i, 250))]
        Image.fromarray(painted(*rectangles[: 2 - i % 2])).save(tmp_path / f"{i}.png")
    client = QdrantClient(":memory:")
    SoirIngestor(client, pipeline=Reading()).add(tmp_path, progress=False)
    return SoirSearcher(client, pipeline=Reading())


def stored(hit: Any) -> tuple[Image.Image, Tensor]:
    """The image of a hit, and the boxes of its objects."""
    boxes = [item["box"] for item in hit.payload["soir"]["objects"]]
    return Image.open(hit.uri), torch.tensor(boxes, dtype=torch.float32)


def heads(x: Tensor, count: int) -> Tensor:
    """[n, D] -> [heads, n, d]."""
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


class TestCoCa:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> str:
        """A model of the package's own class, as `local-dir:` has it: 32 pixels in patches of 8."""
        try:
            from open_clip.coca_model import CoCa
        except (ImportError, RuntimeError) as error:  # torchvision of another build dies with a RuntimeError
            pytest.skip(
                f"open_clip_torch, with the torchvision of this torch: the extra coca has it ({error})"
            )
        torch.manual_seed(0)
        text = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
        config = {
            "embed_dim": 16,
            "vision_cfg": {
                "image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8,
                "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True,
            },
            "text_cfg": {**text, "embed_cls": True, "output_tokens": True},
            "multimodal_cfg": text,
        }  # fmt: skip
        network = CoCa(**config)
        with torch.no_grad():
            for parameter in network.visual.attn_pool.parameters():
                parameter.normal_(std=0.5)
        root = tmp_path / "coca"
        root.mkdir()
        save_file(
            {k: v.contiguous() for k, v in network.state_dict().items()}, root / "open_clip_model.safetensors"
        )
        whole = {
            "model_cfg": {**config, "custom_text": True},
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
        }
        (root / "open_clip_config.json").write_text(json.dumps(whole))
        return f"local-dir:{root}"

    def test_hits_are_ordered_by_the_model_itself(self, searcher: SoirSearcher, folder: str) -> None:
        """The score is that of a pooler that is written out here, with perturbed queries."""
        matcher = CoCaMatcher.load(folder)
        hits = searcher.search(text="a red mug", rerank=TextPerturbation(matcher))
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        visual = matcher.model.visual
        pool = visual.attn_pool
        weights = (pool.attn.q_proj_weight, pool.attn.k_proj_weight, pool.attn.v_proj_weight)
        with torch.inference_mode():
            words = matcher.model.encode_text(matcher.words(["a red mug"]))[0]
            for hit in hits:
                image, boxes = stored(hit)
                squeezed = (
                    np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 127.5 - 1
                )
                tokens = visual.transformer(visual._embeds(torch.from_numpy(squeezed).permute(2, 0, 1)[None]))
                patches, asking = pool.ln_k(tokens)[0], pool.ln_q(pool.query)
                q, k, v = (
                    heads(F.linear(x, w, b), 2)
                    for x, w, b in zip(
                        (asking, patches, patches), weights, pool.attn.in_proj_bias.chunk(3), strict=True
                    )
                )
                moved = perturb(q, *regions(k, boxes, image.size, (4, 4), PAPER))
                mixed = (moved @ k.transpose(-1, -2) / 8**0.5).softmax(-1) @ v
                pooled = visual.ln_post(pool.attn.out_proj(mixed.transpose(0, 1).flatten(1)))[0]
                expected = F.cosine_similarity(pooled @ visual.proj, words, dim=0)
                assert hit.score == pytest.approx(float(expected), abs=1e-5)

    def test_without_perturbation_it_is_the_model_as_it_is(self, searcher: SoirSearcher, folder: str) -> None:
        matcher = CoCaMatcher.load(folder)
        plain, zero, strong = (
            {
                hit.uri: hit.score
                for hit in searcher.search(text="a red mug", rerank=TextPerturbation(matcher, settings))
            }
            for settings in (None, PerturbSettings(scale=0.0), PAPER)
        )
        with torch.inference_mode():
            words = matcher.model.encode_text(matcher.words(["a red mug"]))[0]
            own = {
                uri: float(matcher.model.encode_image(matcher.pixels(Image.open(uri))[None])[0] @ words)
                for uri in plain
            }
        assert plain == zero == pytest.approx(own)
        assert all(abs(strong[uri] - plain[uri]) > 1e-4 for uri in plain)

    def test_its_name_loads_the_published_weights(
        self, searcher: SoirSearcher, folder: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(coca, "MODEL", folder)  # for no hub can be reached
        hits = searcher.search(text="a red mug", rerank="coca")
        own = searcher.search(text="a red mug", rerank=TextPerturbation(CoCaMatcher.load(folder)))
        assert [(hit.id, hit.score) for hit in hits] == [(hit.id, hit.score) for hit in own]
        with pytest.raises(ConfigError, match=r'rerank="coca" needs words, and this query is an image'):
            searcher.search(painted(), rerank="coca")

    def test_what_cannot_be_loaded_is_named(self, folder: str) -> None:
        with pytest.raises(WeightsError, match="local-dir:/nowhere, None: no CoCa could be loaded"):
            CoCaMatcher.load("local-dir:/nowhere")
        config = Path(folder.removeprefix("local-dir:")) / "open_clip_config.json"
        whole = json.loads(config.read_text())
        whole["model_cfg"]["vision_cfg"]["attentional_pool"] = False
        config.write_text(json.dumps(whole))
        with pytest.raises(WeightsError, match="no CoCa could be loaded"):
            CoCaMatcher.load(folder)


def test_coca_without_its_package_says_what_to_install(
    searcher: SoirSearcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ConfigError, match=r"soir-qdrant\[coca\]"):
        searcher.search(text="a red mug", rerank="coca")


class Layer(nn.Module):
    """What `qllama` perturbs lies in here."""

    def __init__(self) -> None:
        super().__init__()
        self.cross_attn = CrossAttention()

    def forward(self, words: Tensor, patches: Tensor | None) -> Tensor:
        return (
            words if patches is None else words + self.cross_attn(words, patches).transpose(1, 2).flatten(2)
        )


class InternVL(nn.Module):
    """The names and the layout of InternVL-G, whose code is in no package."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.config = transformers.PreTrainedConfig(force_image_size=None)
        self.config.vision_config = transformers.PreTrainedConfig(image_size=32)
        self.vision_model = nn.Conv2d(3, 6, 8, 8)
        self.qllama = nn.ModuleList([Layer(), Layer()])
        self.query_tokens = nn.Parameter(torch.randn(1, 3, 8))
        self.clip_projector = nn.Module()
        self.clip_projector.cross_attn = nn.Linear(6, 5)  # of the same name, and not perturbed
        self.clip_projector2 = nn.Linear(8, 5)
        self.words = nn.Embedding(10, 8)
        self.text_projection = nn.Parameter(torch.randn(8, 5))

    def encode_image(self, image: Tensor, mode: str) -> Tensor:
        assert mode == "InternVL-G"
        patches = self.vision_model(image).flatten(2).transpose(1, 2)
        read = self.query_tokens
        for layer in self.qllama:
            read = layer(read, patches)
        both = self.clip_projector.cross_attn(patches.mean(1)), self.clip_projector2(read.mean(1))
        return F.normalize(both[0], dim=-1) + F.normalize(both[1], dim=-1)

    def encode_text(self, text: Tensor) -> Tensor:
        ends = (text > 0).sum(1) - 1
        return self.words(text)[torch.arange(len(text)), ends] @ self.text_projection + text.sum(
            1, keepdim=True
        )


def tokenizer(eos: bool = True) -> Any:
    words = {w: i for i, w in enumerate(["<pad>", "<unk>", "</s>", "summarize", ":", "a", "red", "mug"])}
    fast = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    if eos:
        fast.post_processor = processors.TemplateProcessing("$A </s>", None, [("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    )


class TestInternVL:
    def test_hits_are_ordered_by_the_model_itself(self, searcher: SoirSearcher) -> None:
        """The score is that of cross-attentions that are written out here, with perturbed queries."""
        model = InternVL().eval()
        hits = searcher.search(text="a red mug", rerank=TextPerturbation(InternVLMatcher(model, tokenizer())))
        assert len(hits) == 3
        with torch.inference_mode():
            words = model.encode_text(torch.tensor([[3, 4, 5, 6, 7, 2, 0]]))[
                0
            ]  # "summarize:a red mug", its end
            for hit in hits:
                image, boxes = stored(hit)
                squeezed = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
                pixels = (torch.from_numpy(squeezed) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
                    [0.229, 0.224, 0.225]
                )
                patches = model.vision_model(pixels.permute(2, 0, 1)[None])[0].flatten(1).T
                read = model.query_tokens[0]
                for layer in model.qllama:
                    site = layer.cross_attn
                    keyed = site.norm2(patches)
                    q, k, v = (
                        heads(x, 2)
                        for x in (site.q_proj(site.norm1(read)), site.k_proj(keyed), site.v_proj(keyed))
                    )
                    moved = perturb(q, *regions(k, boxes, image.size, (4, 4), PAPER))
                    mixed = (moved @ k.transpose(-1, -2) / 2).softmax(-1) @ v
                    read = read + mixed.transpose(0, 1).flatten(1)
                parts = model.clip_projector.cross_attn(patches.mean(0)), model.clip_projector2(read.mean(0))
                whole = sum(F.normalize(part, dim=0) for part in parts)
                assert hit.score == pytest.approx(float(F.cosine_similarity(whole, words, dim=0)), abs=1e-5)

    def test_without_perturbation_it_is_the_model_as_it_is(self) -> None:
        matcher = InternVLMatcher(InternVL().eval(), tokenizer())
        image = Image.fromarray(painted(((4, 4, 24, 20), (250, 0, 0))))
        with torch.inference_mode():
            rows = matcher.model.encode_image(matcher._pixels(image), mode="InternVL-G")[0]
            own = float(F.cosine_similarity(rows, matcher.query("a mug"), dim=0))
            assert matcher.score(image, matcher.query("a mug")) == pytest.approx(own, abs=1e-6)

    def test_a_tokenizer_that_ends_no_sentence_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="add_eos_token=True"):
            InternVLMatcher(InternVL(), tokenizer(eos=False))
        with pytest.raises(ConfigError, match="is it an InternVL-G"):
            InternVLMatcher(nn.Linear(2, 2), tokenizer())
