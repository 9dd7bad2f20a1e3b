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
from PIL import Image
from torch import Tensor

from soir_qdrant.errors import DatasetError
from soir_qdrant.rerank.q_perturbation.blip2 import Blip2Matcher
from soir_qdrant.rerank.q_perturbation.hooks import perturbed
from soir_qdrant.rerank.q_perturbation.perturb import PerturbSettings

SMALL = 0.1  # of the picture: the paper's "small" are pictures whose largest box covers less


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
    matcher: Blip2Matcher,
    items: Sequence[Captioned],
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
    truth = torch.tensor([i for i, item in enumerate(items) for _ in item.captions])
    small = torch.tensor([p.largest < SMALL for p in items])
    scoring = _Scoring(matcher, items, settings, batch, advance)
    scores = scoring.itc()
    return _recalls(scoring.with_itm(scores, top) if itm else scores, truth, small)


class _Scoring:
    """Scores of all sentences with all pictures, float [sentences, pictures]. Arguments: see `evaluate`."""

    def __init__(
        self,
        matcher: Blip2Matcher,
        items: Sequence[Captioned],
        settings: PerturbSettings | None,
        batch: int,
        advance: Callable[[], None],
    ) -> None:
        self.matcher, self.items, self.settings = matcher, items, settings
        self.batch, self.advance = batch, advance
        self.sites = matcher.sites
        texts = [text for item in items for text in item.captions]
        self.words = [matcher.words(texts[i : i + batch]) for i in range(0, len(texts), batch)]

    def itc(self) -> Tensor:
        """The similarity of descriptors."""
        texts = torch.cat([self.matcher.read(part) for part in self.words]).float()
        columns = []
        for some in _batches(self.items, self.batch):
            with self._perturbed(some):
                images = self.matcher.describe(self._tokens(some)).float()
            columns.append((texts @ images.flatten(0, 1).T).unflatten(1, images.shape[:2]).amax(2).cpu())
            for _ in some:
                self.advance()
        return torch.cat(columns, 1)

    def with_itm(self, itc: Tensor, top: int) -> Tensor:
        """The matching logit beside it, of the `top` pictures of each sentence; the others score -inf."""
        scores, listed = torch.full_like(itc, -torch.inf), torch.zeros_like(itc, dtype=torch.bool)
        listed.scatter_(1, itc.topk(min(top, len(self.items)), 1).indices, True)
        words = {name: torch.cat([part[name] for part in self.words]) for name in self.words[0]}
        for i, item in enumerate(self.items):
            rows = listed[:, i].nonzero()[:, 0]
            if len(rows):
                tokens = self._tokens([item])
                with self._perturbed([item]):
                    logits = [
                        self.matcher.match(tokens, {n: x[part.to(x.device)] for n, x in words.items()})
                        for part in rows.split(self.batch)
                    ]
                scores[rows, i] = itc[rows, i] + torch.cat(logits).float().cpu()
            self.advance()
        return scores

    def _tokens(self, items: Sequence[Captioned]) -> Tensor:
        return self.matcher.image_tokens([_open(item.file) for item in items])

    def _perturbed(self, some: Sequence[Captioned]) -> AbstractContextManager[None]:
        if self.settings is None:
            return nullcontext()
        return perturbed(self.sites, [p.boxes for p in some], [p.size for p in some], self.settings)


def _recalls(scores: Tensor, truth: Tensor, small: Tensor) -> dict[str, float]:
    """scores: [sentences, pictures]; truth: the picture of each sentence; small: bool per picture."""
    own = scores.gather(1, truth[:, None])
    never = torch.iinfo(torch.long).max  # where it was not listed
    rank = torch.where(torch.isfinite(own[:, 0]), (scores > own).sum(1), never)
    recalls: dict[str, float] = {}
    for name, chosen in (("", torch.ones_like(truth, dtype=torch.bool)), ("small ", small[truth])):
        ranks = rank[chosen]
        recalls[f"{name}sentences"] = len(ranks)
        for k in (1, 5, 10) if len(ranks) else ():
            recalls[f"{name}R@{k}"] = round(100 * float((ranks < k).float().mean()), 2)
    return recalls


def _captioned(root: Path, source: Path, boxes: Path, entry: Any, number: int) -> Captioned:
    name, captions = (entry.get(k) if isinstance(entry, dict) else None for k in ("image", "caption"))
    captions = [captions] if isinstance(captions, str) else captions
    listed = isinstance(captions, list) and captions and all(isinstance(c, str) for c in captions)
    if not isinstance(name, str) or not listed:
        raise DatasetError(f'{source}: entry {number} needs "image", a file, and "caption", sentences')
    file = root / name
    try:
        with Image.open(file) as image:
            size = image.size
    except OSError as error:
        raise DatasetError(f"{file}: not readable as an image ({error}), though {source} names it") from error
    return Captioned(file, list(captions or []), _boxes(boxes / f"{file.stem}.xml"), size)


def _boxes(file: Path) -> Tensor:
    """float [k, 4] in pixels from 0 (the file counts from 1, both ends inside)."""
    if not file.is_file():
        return torch.zeros(0, 4)
    try:
        boxes = [
            [float(box.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in ElementTree.parse(file).iter("bndbox")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DatasetError(f"{file}: no annotation of Flickr30K Entities ({error})") from error
    return torch.tensor(boxes).reshape(-1, 4) - torch.tensor([1.0, 1.0, 0.0, 0.0])


def _open(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")


def _batches(items: Sequence[Captioned], size: int) -> Iterator[Sequence[Captioned]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
