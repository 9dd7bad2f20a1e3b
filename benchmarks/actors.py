"""Ray actors that note what each batch took."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memory import megabytes

from soir_qdrant.scale import Embed


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of one actor: images; when it began and ended, in seconds of time.time(); processors' seconds;
    anonymous megabytes of the actor after it."""

    actor: int
    images: int
    begun: float
    ended: float
    work: float
    megabytes: float


class NotingEmbed(Embed):
    """Writes a line for each batch to notes/PID.jsonl."""

    notes: Path

    @classmethod
    def into(cls, folder: Path) -> type[NotingEmbed]:
        """One that writes there."""
        folder.mkdir(parents=True, exist_ok=True)
        return type("NotingEmbed", (cls,), {"notes": folder})

    def __call__(self, batch: Any) -> Any:
        begun, work = time.time(), time.process_time()
        table = super().__call__(batch)
        values = (os.getpid(), len(batch), begun, time.time(), time.process_time() - work, megabytes()[0])
        with (self.notes / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps(values) + "\n")
        return table


def noted(folder: Path) -> list[Batch]:
    """All batches, by the time of their end."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted((Batch(*json.loads(line)) for line in lines), key=lambda batch: batch.ended)


def pace(batches: list[Batch]) -> tuple[float, float]:
    """Images a second of all actors together, and processors' seconds an image; without the first batch of each actor,
    which loads the models."""
    speed, work, images = 0.0, 0.0, 0
    for actor in {batch.actor for batch in batches}:
        own = [batch for batch in batches if batch.actor == actor]
        later = own[1:] if len(own) > 1 else own
        count = sum(batch.images for batch in later)
        speed += count / (later[-1].ended - later[0].begun)
        work += sum(batch.work for batch in later)
        images += count
    return speed, work / images
