"""A text tower that runs elsewhere; its tokenizer is here. No torch in here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from soir_qdrant.contracts import TextTower
from soir_qdrant.errors import WeightsError
from soir_qdrant.models.encoders.words import tokens_of
from soir_qdrant.models.pretrained import quiet
from soir_qdrant.serving.session import Session, of_kind
from soir_qdrant.types import Vector

FOLDER = "tokenizer"  # beside the model's versions


class ServedText(TextTower):
    """`contracts.TextTower` on a served model.

    Args:
        session: of the text tower.
        tokenizer: called when words are first read.

    Raises:
        ConfigError: a session of another kind of model.
    """

    def __init__(self, session: Session, tokenizer: Callable[[], Any]) -> None:
        spec = of_kind(session, "text")
        self._session, self._load_tokenizer = session, tokenizer
        self._names, self._length = [tensor.name for tensor in spec.inputs], spec.fact("length")

    @cached_property
    def tokenizer(self) -> Any:
        """Raises WeightsError where it is not available here."""
        return self._load_tokenizer()

    def encode(self, texts: list[str]) -> Vector:
        """See `TextTower`."""
        tokens = tokens_of(self.tokenizer, texts, self._names, length=self._length)
        rows: Vector = self._session.run(tokens, ["descriptor"])["descriptor"]
        return rows


def save(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer of an exported text tower."""
    tokenizer.save_pretrained(folder)


def load(folder: Path) -> Any:
    """Read one. Raises WeightsError where there is none."""
    with quiet() as transformers:
        try:
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"{folder}: no tokenizer can be read there ({str(error).splitlines()[0]}); `soir export` writes "
                "one beside soir_text"
            ) from error
