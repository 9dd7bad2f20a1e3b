"""`soir train`: everything that is trained on labelled folders. Loads no model for --help."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from soir_qdrant.cli.console import ProfileOption, bar, err, out
from soir_qdrant.cli.options import StartOption, check_not_chosen

if TYPE_CHECKING:
    from soir_qdrant.lab.evaluate.bench import Bench
    from soir_qdrant.lab.train.views import Views
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.pooling.whitening import Whitening

training = typer.Typer(no_args_is_help=True, help="Learn from labelled folders.")

FoldersArgument = Annotated[
    list[Path],
    typer.Argument(help="labelled folders, for a segmenter with masks (see docs/reference/needlebench.md)"),
]
OutOption = Annotated[Path, typer.Option("--out", help="file to write; beside it a state, a log, a cache")]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        help="auto (needle or coco, by what is there), needle, coco, voxdet, owid, instre or permir; see "
        "docs/how-to/evaluation.md",
    ),
]
BlocksOption = Annotated[int, typer.Option(min=1, max=4, help="how many of the last ones are tuned")]
CacheOption = Annotated[
    Path | None,
    typer.Option(help="keeps the views, for encoder and projection (default: beside --out)"),
]
SeedOption = Annotated[int, typer.Option(help="of everything that is random")]


@training.callback()
def _begin() -> None:
    from soir_qdrant.lab.train.memory import keep_freed

    keep_freed()


@training.command(
    epilog="Example:  soir train projection bench/dev-2d bench/dev-3d --out projection.safetensors"
)
def projection(
    context: typer.Context,
    folders: FoldersArgument,
    file: OutOption,
    profile: ProfileOption = None,
    format_: FormatOption = "auto",
    dim: Annotated[int, typer.Option(min=8, help="components kept; with --start as many as that has")] = 1024,
    blocks: BlocksOption = 2,
    cache: CacheOption = None,
    start: Annotated[
        str | None,
        typer.Option(
            help="a projection to go on from, a file or shipped: a few dozen things are then enough"
        ),
    ] = None,
    weight: Annotated[
        float, typer.Option(min=0, help="with --start: how strongly what differs here is divided out")
    ] = 1.0,
) -> None:
    """Learn what the same thing looks like twice: the projection that whitens. Use it with --whitening."""
    from soir_qdrant.lab.train.projection import fit, go_on
    from soir_qdrant.lab.train.tail import Tail
    from soir_qdrant.lab.train.views import local

    if start is None:
        check_not_chosen(context, {"weight"}, "goes with --start")
    else:
        check_not_chosen(context, {"dim"}, "is START's: leave it out")
    pipeline = _pipeline(profile)
    first = None if start is None else _starting_projection(start, pipeline)
    views = _views(load_benches(folders, format_), pipeline, blocks, cache or file.with_suffix(".cache"))
    tail = Tail(local(pipeline), pipeline.settings.vector.features, blocks=blocks, rank=0)
    with bar("projection", len(views)) as advance:
        if first is None:
            whitening, rows = fit(views, tail, dim=dim, fitted_for=pipeline.whitened, advance=advance)
        else:
            whitening, rows = go_on(views, tail, first, weight=weight, advance=advance)
    whitening.save(file)
    out.print(f"{file}: {whitening.dim} components from {rows.all.count} views of {rows.things} things")


@training.command(
    epilog="Example:  soir train detector bench/fit-2d-* bench/fit-3d-* --out detector.safetensors"
)
def detector(
    context: typer.Context,
    folders: FoldersArgument,
    file: OutOption,
    profile: ProfileOption = None,
    format_: FormatOption = "auto",
    epochs: Annotated[int, typer.Option(min=1)] = 24,
    start: StartOption = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="of what was trained in the weights written; the rest is START's"),
    ] = 1.0,
    lr: Annotated[float, typer.Option(min=0, help="of AdamW, at its highest")] = 2e-3,
    unknown: Annotated[
        list[str] | None,
        typer.Option(help="a kind, such as person, whose boxes are neither objects nor background"),
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="keeps the tokens (default: beside --out)")] = None,
    seed: SeedOption = 0,
) -> None:
    """Learn what an object looks like to this encoder: the head of the embedded detector. Run again after an
    interruption: it goes on, to the same result. Use it with `Settings...but(detector={"head": FILE})`.

    With --start and --share 0.5 the weights written are the mean of both heads: what START knew is kept, and
    the new folders are learnt (arXiv 2109.01903)."""
    from soir_qdrant.lab.train import detector as head
    from soir_qdrant.lab.train.looks import examples

    if start is None:
        check_not_chosen(context, {"share"}, "goes with --start")
    elif share < 1 and start.resolve() == file.resolve():
        raise typer.BadParameter("--out is --start: give another file, the mean is of both")
    looks, benches = partial(examples, unknown=unknown or ()), load_benches(folders, format_)
    options = {"epochs": epochs, "seed": seed, "lr": lr}
    _train_head(head, looks, options, benches, profile, file, start, cache, str(unknown))
    if start is not None and share < 1:
        head.average(file, start, share)


@training.command(
    epilog="Example:  soir train segmenter bench/fit-2d-* bench/fit-3d-* --out segmenter.safetensors"
)
def segmenter(
    folders: FoldersArgument,
    file: OutOption,
    profile: ProfileOption = None,
    format_: FormatOption = "auto",
    epochs: Annotated[int, typer.Option(min=1)] = 6,
    start: StartOption = None,
    lr: Annotated[float, typer.Option(min=0, help="of AdamW, at its highest")] = 2e-3,
    seed: SeedOption = 0,
) -> None:
    """Learn which pixels of a box are the object: the head of the embedded segmenter. Goes on where it was
    interrupted, to the same result. Use it with `Settings...but(segmenter={"head": FILE})`."""
    from soir_qdrant.lab.train import segmenter as head

    options = {"epochs": epochs, "seed": seed, "lr": lr}
    _train_head(head, head.examples, options, load_benches(folders, format_), profile, file, start)


@training.command(
    epilog="Example:  soir train encoder bench/fit-2d-* bench/fit-3d-* --out adapter.safetensors"
)
def encoder(
    folders: FoldersArgument,
    file: OutOption,
    profile: ProfileOption = None,
    format_: FormatOption = "auto",
    blocks: BlocksOption = 2,
    rank: Annotated[int, typer.Option(min=1, help="of what is added to their layers")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="of eight scenes of eight objects each")] = 600,
    lr: Annotated[float, typer.Option(min=0, help="of AdamW, at its highest")] = 1e-3,
    seed: SeedOption = 0,
    cache: CacheOption = None,
) -> None:
    """Tune the profile's encoder further, to tell instances apart, for the pooling that is shipped. Goes on
    where it was interrupted, to the same result. Use it by a profile of your own, a JSON file with
    `{"encoder": {"adapter": FILE}, ...}`, and train the projection for it; with more than two blocks also
    detector and segmenter."""
    import torch

    from soir_qdrant.assembly import make_pipeline
    from soir_qdrant.config import Settings
    from soir_qdrant.errors import ConfigError
    from soir_qdrant.lab.train.encoder import Plan, train
    from soir_qdrant.lab.train.progress import contents
    from soir_qdrant.lab.train.tail import Tail
    from soir_qdrant.lab.train.views import depends_on, local

    settings = Settings.for_profile(profile)
    pipeline = make_pipeline(settings)
    projected, tuned = pipeline.whitening, local(pipeline)
    if projected is None:
        raise ConfigError("the encoder is tuned for the projection of the profile, and this one has none")
    benches = load_benches(folders, format_)
    views = _views(benches, pipeline, blocks, cache or file.with_suffix(".cache"))
    torch.manual_seed(seed)
    tail = Tail(tuned, settings.vector.features, blocks=blocks, rank=rank)
    plan = Plan(steps=steps, blocks=blocks, rank=rank, lr=lr, seed=seed, ridge=settings.vector.ridge)
    with bar("steps", -(-steps // plan.every)) as advance:
        data = contents(benches, tuned.fingerprint, depends_on(pipeline, blocks), projected.digest)
        train(tail, views, projected, plan, **beside(file), data=data, report=curve(advance))
    adapter = tail.adapter(tuned.weights.sha256)
    before = tuned.adapter  # the new one is trained on top of it
    (before.then(adapter) if before else adapter).save(file)
    announce(file, f"trained on {sum(map(len, views))} views")


def _train_head(
    part: Any,
    examples: Any,
    options: dict[str, Any],
    benches: list[Bench],
    profile: str | None,
    file: Path,
    start: Path | None,
    cache: Path | None = None,
    also: str = "",
) -> None:
    """A head on the tokens of the profile's encoder. part: its module; options: of its plan."""
    import torch

    from soir_qdrant.lab.train.progress import contents
    from soir_qdrant.models.compatibility import trunk

    encoder = _pipeline(profile).encoder
    fitted_for = trunk(encoder.fingerprint)
    kind, digest = part.untrained(start, fitted_for)
    plan = part.Plan(start=digest, **options)
    with bar("tokens", sum(len(bench.gallery) for bench in benches)) as advance:
        scenes = examples(benches, encoder, cache or file.with_suffix(".cache"), advance)
    torch.manual_seed(plan.seed)
    head = kind(encoder.width)
    with bar("epochs", plan.epochs) as advance:
        data = contents(benches, fitted_for, also)
        part.train(head, scenes, plan, **beside(file), data=data, report=curve(advance))
    head.save(file, fitted_for)
    announce(file, f"trained on {len(scenes)} scenes")


def _views(benches: list[Bench], pipeline: Pipeline, blocks: int, cache: Path) -> list[Views]:
    from soir_qdrant.lab.train.views import views

    with bar("views", sum(len(bench.gallery) + len(bench.queries) for bench in benches)) as advance:
        return views(benches, pipeline, blocks, cache, advance)


def load_benches(folders: list[Path], layout: str) -> list[Bench]:
    from soir_qdrant.lab.evaluate.datasets import load

    return [load(folder, layout) for folder in folders]


def _starting_projection(start: str, pipeline: Pipeline) -> Whitening:
    """Of a file, or "shipped". Raises ConfigError where it is of another encoder, crop or features."""
    from soir_qdrant.components import SHIPPED
    from soir_qdrant.errors import ConfigError
    from soir_qdrant.pooling.whitening import Whitening

    first = Whitening.load(SHIPPED if start == "shipped" else Path(start))
    if first.fitted_for != pipeline.whitened:
        raise ConfigError(f"--start {start}: fitted for {first.fitted_for}, and this is {pipeline.whitened}")
    return first


def _pipeline(profile: str | None) -> Pipeline:
    """Of a profile, without its projection: that may be what is to be learnt."""
    from soir_qdrant.assembly import make_pipeline
    from soir_qdrant.config import Settings

    return make_pipeline(Settings.for_profile(profile).but(vector={"whitening": None}))


def beside(file: Path) -> dict[str, Path]:
    file.parent.mkdir(parents=True, exist_ok=True)
    return {"state": file.with_suffix(".state"), "log": file.with_suffix(".jsonl")}


def curve(advance: Callable[[], None]) -> Callable[[dict[str, float]], None]:
    def write(line: dict[str, float]) -> None:
        advance()
        err.print(json.dumps(line), highlight=False)

    return write


def announce(file: Path, what: str) -> None:
    out.print(f"{file}: {what}; {file.with_suffix('.jsonl')} has the curve", highlight=False)
