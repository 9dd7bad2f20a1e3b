"""Text-to-image recall of BLIP-2 with and without Q-Perturbation: the paper's table, on a user's own data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from soir_qdrant.errors import DatasetError, WeightsError
from soir_qdrant.rerank.perturb import PerturbSettings
from soir_qdrant.rerank.vl import blip2, perturbed

SMALL = 0.1  # of the picture: the paper's "small" are pictures whose largest box covers less
PAPER = PerturbSettings(scale=8.0, mean=True, contribution=0.99, crossing=False)  # its figures on Flickr30K
Words = dict[str, Tensor]  # input_ids, attention_mask: int [T, L]


@dataclass(frozen=True, slots=True, eq=False)
class Captioned:
    """A picture with its sentences. boxes: float [k, 4] in pixels; size: width, height."""

    file: Path
    captions: list[str]
    boxes: Tensor
    size: tuple[int, int]

    @property
    def largest(self) -> float:
        """Share of the picture that its largest box covers, 0..1; 1 where there is none."""
        sides = (self.boxes[:, 2:] - self.boxes[:, :2]).clamp(min=0)
        return float(sides.prod(1).max()) / (self.size[0] * self.size[1]) if len(sides) else 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Matcher:
    """A `transformers` Blip2ForImageTextRetrieval and what feeds it. pixels: pictures -> float [B, 3, S, S],
    squeezed, not cropped. words: sentences -> `Words`."""

    model: Any
    pixels: Callable[[list[Image.Image]], Tensor]
    words: Callable[[list[str]], Words]

    @classmethod
    def load(cls, weights: str, device: str = "auto") -> Matcher:
        """weights: a folder or hub name, such as Salesforce/blip2-itm-vit-g-coco. Raises WeightsError."""
        import transformers

        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.float16 if device.startswith("cuda") else torch.float32
        try:
            processor = transformers.AutoProcessor.from_pretrained(weights)
            model = transformers.Blip2ForImageTextRetrieval.from_pretrained(weights, dtype=dtype)
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{weights}: no BLIP-2 for retrieval could be loaded ({str(error).splitlines()[0]}). Give a "
                "folder with model and processor, or a hub name such as Salesforce/blip2-itm-vit-g-coco"
            ) from error
        model = model.to(device).eval()

        def pixels(pictures: list[Image.Image]) -> Tensor:
            return torch.as_tensor(
                processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
            ).to(device, dtype)

        def words(texts: list[str]) -> Words:
            made = processor.tokenizer(
                texts, padding="max_length", max_length=35, truncation=True, return_tensors="pt"
            )
            return {name: made[name].to(device) for name in ("input_ids", "attention_mask")}

        return cls(model, pixels, words)

    def see(self, pictures: Sequence[Captioned]) -> Tensor:
        """The vision tower's tokens [B, N, D]."""
        return self.look([_open(picture.file) for picture in pictures])

    def look(self, images: list[Image.Image]) -> Tensor:
        """The same of pictures that are open."""
        seen: Tensor = self.model.vision_model(pixel_values=self.pixels(images))[0]
        return seen

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
        """Tokens of one picture [1, N, D], T sentences -> the logits [T] that they belong together."""
        count = len(words["input_ids"])
        queries = self.model.query_tokens.expand(count, -1, -1)
        mask = torch.cat([words["attention_mask"].new_ones(queries.shape[:2]), words["attention_mask"]], 1)
        # The Q-Former keeps float32. Cast by itself, the expanded picture would become `count` pictures.
        tokens = tokens.to(self.model.qformer.layernorm.weight.dtype)
        out = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=words["input_ids"], query_embeds=queries),
            query_length=queries.shape[1],
            attention_mask=mask,
            encoder_hidden_states=tokens.expand(count, -1, -1),
        )[0]
        logits: Tensor = self.model.itm_head(out[:, : queries.shape[1]].to(self.model.itm_head.weight))
        return logits.mean(1)[:, 1]


def load(
    folder: str | Path, captions: str = "test.json", boxes: str = "flickr30k_entities/Annotations"
) -> list[Captioned]:
    """The pictures of FOLDER/captions, a list of {"image": file below FOLDER, "caption": [sentences]} as
    LAVIS publishes for Flickr30K and COCO, with the boxes of FOLDER/boxes/<stem of the picture>.xml, the
    layout of Flickr30K Entities; a picture without such a file has no boxes. Raises DatasetError."""
    root = Path(folder).expanduser()
    source = root / captions
    try:
        entries = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{source}: not readable as JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise DatasetError(f'{source}: give a list of {{"image": file, "caption": [sentences]}}')
    if not (root / boxes).is_dir():
        raise DatasetError(f"{root / boxes}: no such folder; name that of the boxes' XML files with --boxes")
    return [_captioned(root, source, root / boxes, entry, i) for i, entry in enumerate(entries)]


@torch.inference_mode()
def evaluate(
    matcher: Matcher,
    pictures: Sequence[Captioned],
    settings: PerturbSettings | None,
    *,
    itm: bool = True,
    top: int = 64,
    batch: int = 16,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Text-to-image recall in percent: "R@1", "R@5", "R@10" and, of the sentences of small pictures, "small
    R@1"...; "sentences" and "small sentences" are their numbers.

    settings: of the perturbation; None leaves the model as it is. itm: rescore the `top` pictures of each
    sentence by ITM logit + ITC similarity, as BLIP-2 does; False is ITC alone. batch: pictures, or sentences
    of one picture, at once. advance: called once per picture, twice where there is ITM.
    """
    texts = [text for picture in pictures for text in picture.captions]
    truth = torch.tensor([i for i, picture in enumerate(pictures) for _ in picture.captions])
    words = [matcher.words(texts[i : i + batch]) for i in range(0, len(texts), batch)]
    read = torch.cat([matcher.read(part) for part in words]).float()
    sites, columns = blip2(matcher.model), []

    def during(some: Sequence[Captioned]) -> AbstractContextManager[None]:
        if settings is None:
            return nullcontext()
        return perturbed(sites, [p.boxes for p in some], [p.size for p in some], settings)

    for some in _batches(pictures, batch):
        with during(some):
            seen = matcher.describe(matcher.see(some)).float()
        columns.append((read @ seen.flatten(0, 1).T).unflatten(1, seen.shape[:2]).amax(2).cpu())
        for _ in some:
            advance()
    scores = torch.cat(columns, 1)
    if itm:
        first, scores = scores, torch.full_like(scores, -torch.inf)
        listed = torch.zeros_like(first, dtype=torch.bool)
        listed.scatter_(1, first.topk(min(top, len(pictures)), 1).indices, True)
        joined = {name: torch.cat([part[name] for part in words]) for name in words[0]}
        for i, picture in enumerate(pictures):
            rows = listed[:, i].nonzero()[:, 0]
            if len(rows):
                tokens = matcher.see([picture])
                with during([picture]):
                    logits = [
                        matcher.match(tokens, {n: x[part.to(x.device)] for n, x in joined.items()})
                        for part in rows.split(batch)
                    ]
                scores[rows, i] = first[rows, i] + torch.cat(logits).float().cpu()
            advance()
    return _recalls(scores, truth, torch.tensor([p.largest < SMALL for p in pictures]))


def _recalls(scores: Tensor, truth: Tensor, small: Tensor) -> dict[str, float]:
    """scores: [sentences, pictures]; truth: the picture of each sentence; small: bool per picture."""
    own = scores.gather(1, truth[:, None])
    never = torch.iinfo(torch.long).max  # where it was not listed
    rank = torch.where(torch.isfinite(own[:, 0]), (scores > own).sum(1), never)
    found: dict[str, float] = {}
    for name, chosen in (("", torch.ones_like(truth, dtype=torch.bool)), ("small ", small[truth])):
        ranks = rank[chosen]
        found[f"{name}sentences"] = len(ranks)
        for k in (1, 5, 10) if len(ranks) else ():
            found[f"{name}R@{k}"] = round(100 * float((ranks < k).float().mean()), 2)
    return found


def _captioned(root: Path, source: Path, boxes: Path, entry: Any, number: int) -> Captioned:
    name, captions = (entry.get(k) if isinstance(entry, dict) else None for k in ("image", "caption"))
    captions = [captions] if isinstance(captions, str) else captions
    listed = isinstance(captions, list) and captions and all(isinstance(c, str) for c in captions)
    if not isinstance(name, str) or not listed:
        raise DatasetError(f'{source}: entry {number} needs "image", a file, and "caption", sentences')
    file = root / name
    try:
        with Image.open(file) as picture:
            size = picture.size
    except OSError as error:
        raise DatasetError(f"{file}: not readable as an image ({error}), though {source} names it") from error
    return Captioned(file, list(captions or []), _boxes(boxes / f"{file.stem}.xml"), size)


def _boxes(file: Path) -> Tensor:
    """float [k, 4] in pixels from 0 (the file counts from 1, both ends inside)."""
    if not file.is_file():
        return torch.zeros(0, 4)
    try:
        found = [
            [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in ElementTree.parse(file).iter("bndbox")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{file}: no annotation of Flickr30K Entities ({error})") from error
    return torch.tensor(found).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])


def _open(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return picture.convert("RGB")


def _batches(items: Sequence[Captioned], size: int) -> Iterator[Sequence[Captioned]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
