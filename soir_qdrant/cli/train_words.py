"""`soir train words`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
        float, typer.Option(min=0, max=1, help="share of the images whose labels are used")
    ] = 1.0,
    prompt: Annotated[
        list[str] | None, typer.Option(help="what a name is put into; repeatable  [default: a photo of a {}]")
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
    import torch

    from soir_qdrant.assembly import make_pipeline
    from soir_qdrant.lab.evaluate.words import embedding, names_of, read_names
    from soir_qdrant.lab.train.progress import contents
    from soir_qdrant.lab.train.words import Plan, examples, train
    from soir_qdrant.models.heads.queries import QueryHead
    from soir_qdrant.pooling.scenes.queries import trained_for

    pipeline, benches = make_pipeline(profile), load_benches(folders, format_)
    classes = [name for name in names_of(benches) if name not in read_names(novel)]
    others = [name for name in read_names(names) if name not in classes]
    embed = embedding(pipeline, tuple(prompt or ("a photo of a {}",)))
    with bar("tokens", sum(len(bench.gallery) for bench in benches)) as advance:
        images = examples(benches, pipeline, classes, tiles, file.with_suffix(".cache"), advance)
    torch.manual_seed(seed)
    plan = Plan(
        epochs=epochs, batch=batch, seed=seed, lr=1e-3, queries=queries, tiles=tiles, labelled=labelled
    )
    head = QueryHead(pipeline.encoder.width, count=queries, layers=plan.layers)
    rows = embed(classes), embed(others)
    with bar("epochs", epochs) as advance:
        data = contents(benches, trained_for(pipeline.encoder, tiles), *classes, "names", *others)
        block = pipeline.encoder.last_block
        train(head, images, block, rows, plan, **beside(file), data=data, report=curve(advance))
    head.save(file, trained_for(pipeline.encoder, tiles))
    announce(
        file,
        f"trained on {len(images)} images, {len(classes)} classes and {len(others)} names without labels",
    )
