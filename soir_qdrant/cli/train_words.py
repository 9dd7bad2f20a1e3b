"""`soir train words`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from soir_qdrant.cli.console import bar
from soir_qdrant.cli.train import (
    FoldersArgument,
    FormatOption,
    OutOption,
    SeedOption,
    announce,
    beside,
    curve,
    load_benches,
    training,
)

if TYPE_CHECKING:
    from soir_qdrant.lab.evaluate.bench import Bench
    from soir_qdrant.lab.train.words import Plan
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.types import Vector

NAMES = "one a line"


@training.command(
    epilog="Example:  soir train words coco/ --novel novel.txt --names names.txt --out words.safetensors"
)
def words(
    folders: FoldersArgument,
    file: OutOption,
    profile: Annotated[str, typer.Option(help="whose encoder reads words")] = "sum-clip",
    format_: FormatOption = "auto",
    novel: Annotated[Path | None, typer.Option(help=f"names whose labels are not used, {NAMES}")] = None,
    names: Annotated[Path | None, typer.Option(help=f"names to learn from without labels, {NAMES}")] = None,
    labelled: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="share of the images whose labels are used; the others' classes are learnt as --names are",
        ),
    ] = 1.0,
    prompt: Annotated[
        list[str] | None, typer.Option(help="what a name is put into; repeatable (default: a photo of a {})")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
    batch: Annotated[int, typer.Option(min=1, help="images at once")] = 32,
    queries: Annotated[int, typer.Option(min=1, help="vectors of an image, or of a tile")] = 16,
    tiles: Annotated[int, typer.Option(min=1, max=8, help="along each side of an image")] = 1,
    seed: SeedOption = 0,
) -> None:
    """Learn queries for whole images beside a frozen encoder, from named boxes and from names alone. Goes on
    where it was interrupted, to the same result. Use it with a profile of your own, a JSON file with
    `{"profile": "sum-clip", "scene": {"head": FILE}}`."""
    from soir_qdrant.assembly import make_pipeline
    from soir_qdrant.lab.evaluate.words import embedding, names_of, read_names
    from soir_qdrant.lab.train.words import Plan

    pipeline, benches = make_pipeline(profile), load_benches(folders, format_)
    classes = [name for name in names_of(benches) if name not in read_names(novel)]
    others = [name for name in read_names(names) if name not in classes]
    prompts = tuple(prompt or ("a photo of a {}",))
    embed = embedding(pipeline, prompts)
    plan = Plan(
        epochs=epochs, batch=batch, seed=seed, lr=1e-3, queries=queries, tiles=tiles, labelled=labelled
    )
    embeddings = {name: embed([name])[0] for name in classes + others}
    _train(file, pipeline, benches, embeddings, classes, plan, prompts)


def _train(
    file: Path,
    pipeline: Pipeline,
    benches: list[Bench],
    embeddings: dict[str, Vector],
    classes: list[str],
    plan: Plan,
    prompts: tuple[str, ...],
) -> None:
    """embeddings: of the classes and of the names without labels, in these prompts."""
    import numpy as np
    import torch

    from soir_qdrant.lab.train.progress import contents
    from soir_qdrant.lab.train.words import examples, train
    from soir_qdrant.models.heads.queries import QueryHead
    from soir_qdrant.pooling.scenes.queries import trained_for

    others = [name for name in embeddings if name not in classes]
    rows = tuple(
        np.array([embeddings[name] for name in some], np.float32).reshape(len(some), pipeline.dim)
        for some in (classes, others)
    )
    fitted_for = trained_for(pipeline.encoder, plan.tiles)
    with bar("tokens", sum(len(bench.gallery) for bench in benches)) as advance:
        images = examples(benches, pipeline, classes, plan.tiles, file.with_suffix(".cache"), advance)
    torch.manual_seed(plan.seed)
    head = QueryHead(pipeline.encoder.width, count=plan.queries, layers=plan.layers)
    with bar("epochs", plan.epochs) as advance:
        data = contents(benches, fitted_for, *classes, "names", *others, "prompts", *prompts)
        block = pipeline.encoder.last_block
        train(head, images, block, (rows[0], rows[1]), plan, **beside(file), data=data, report=curve(advance))
    head.save(file, fitted_for)
    announce(
        file,
        f"trained on {len(images)} images, {len(classes)} classes and {len(others)} names without labels",
    )
