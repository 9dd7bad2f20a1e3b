"""`soir train texture`."""

from __future__ import annotations

from typing import Annotated

import typer

from soir_qdrant.cli.console import ProfileOption, bar
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


@training.command(epilog="Example:  soir train texture photos/train bench/fit-3d-* --out texture.safetensors")
def texture(
    folders: FoldersArgument,
    file: OutOption,
    profile: ProfileOption = None,
    format_: FormatOption = "auto",
    steps: Annotated[int, typer.Option(min=1, help="of 128 things, each looked at twice")] = 1500,
    lr: Annotated[float, typer.Option(min=0, help="of AdamW, at its highest")] = 1e-3,
    seed: SeedOption = 0,
) -> None:
    """Learn which surface is the same: the head that reads the feature "texture". Things need no names; where they have
    them, their looks in several places are of one thing. Goes on where it was interrupted, to the same result. Use it
    with `Settings...but(encoder={"texture": FILE})`, and a projection fitted for it (docs/how-to/training.md)."""
    import torch

    from soir_qdrant.assembly import make_pipeline
    from soir_qdrant.config import Settings
    from soir_qdrant.lab.train.progress import contents
    from soir_qdrant.lab.train.surfaces import looks
    from soir_qdrant.lab.train.texture import Plan, train
    from soir_qdrant.lab.train.views import local
    from soir_qdrant.models.heads.texture import TextureHead

    settings = Settings.for_profile(profile).but(encoder={"texture": None}, vector={"whitening": None})
    pipeline, benches = make_pipeline(settings), load_benches(folders, format_)
    encoder = local(pipeline)
    with bar("looks", sum(len(bench.gallery) + len(bench.queries) for bench in benches)) as advance:
        examples = looks(benches, pipeline, file.with_suffix(".cache"), advance)
    torch.manual_seed(seed)
    plan, head = Plan(steps=steps, lr=lr, seed=seed), TextureHead(encoder.width)
    with bar("steps", -(-steps // plan.every)) as advance:
        data = contents(benches, encoder.weights.sha256)
        train(head, examples, encoder, plan, **beside(file), data=data, report=curve(advance))
    head.save(file, encoder.weights.sha256)
    announce(file, f"trained on {len(examples)} looks")
