"""`soir ingest`, `soir search`, `soir info`: a collection, filled and asked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Column, Table
from rich.text import Text as RichText

import soir_qdrant
from soir_qdrant.cli.console import ProfileOption, WhiteningOption, out, print_json, settings_of
from soir_qdrant.cli.groups import Models, Reading, Server, Target, grouped, models_of, open_ingestor
from soir_qdrant.cli.options import (
    BatchOption,
    JsonOption,
    MaxPixelsOption,
    box_of,
    check_chosen,
    check_not_chosen,
    collection_info,
    collection_names,
    filter_of,
)
from soir_qdrant.cli.storage import Cluster, Storage
from soir_qdrant.images.options import MAX_PIXELS
from soir_qdrant.types import Box, Composed, Hit, IngestReport, Text

if TYPE_CHECKING:
    from soir_qdrant.ingest.ingestor import SoirIngestor
    from soir_qdrant.query import Query
    from soir_qdrant.search.searcher import SoirSearcher


@grouped
def ingest(
    context: typer.Context,
    images: Annotated[
        list[str],
        typer.Argument(
            help="images, folders (read recursively), patterns, addresses such as s3://bucket/photos; - reads "
            "their names from stdin, one a line"
        ),
    ],
    server: Server,
    target: Target,
    models: Models,
    reading: Reading,
    storage: Storage,
    cluster: Cluster,
    on_exists: Annotated[
        Literal["skip", "update", "replace"],
        typer.Option(
            help="stored ones: leave them, make those anew whose image or recipe (heads, thresholds ...) "
            "is another one, or all"
        ),
    ] = "skip",
    batch_size: BatchOption = 8,
    as_json: JsonOption = False,
) -> None:
    """Put images into a collection. Run again after an interruption: what is stored is skipped."""
    from soir_qdrant.ingest.ingestor import summary

    chosen = images[0] if len(images) == 1 and images[0] != "-" else names(images, sys.stdin)
    if cluster.ray:
        if on_exists != "skip":
            raise typer.BadParameter("--ray stores new images: leave --on-exists out")
        report = cluster.ingest(chosen, server, target, models, reading, storage, batch_size)
    else:
        check_not_chosen(context, {"actors", "gpus"}, "goes with --ray")
        ingestor = open_ingestor(server, target, models, reading, **storage.options)
        report = _remembered(ingestor, ingestor.add(chosen, batch_size=batch_size, on_exists=on_exists))
    if as_json:
        print_json(asdict(report))
    else:
        out.print(summary(report), highlight=False)
    raise typer.Exit(1 if report.failed else 0)


def names(arguments: Iterable[str], stdin: Iterable[str]) -> Iterator[str]:
    """What the arguments name, "-" being the lines of stdin."""
    for argument in arguments:
        if argument == "-":
            yield from (name for line in stdin if (name := line.rstrip("\r\n")))
        else:
            yield argument


def _remembered(ingestor: SoirIngestor, report: IngestReport) -> IngestReport:
    """The report; the collection keeps its counts and failures, for the page."""
    from soir_qdrant.qdrant.last_ingest import remember

    remember(ingestor.store, report.counts, report.failed, report.left_out)
    return report


QueryArgument = Annotated[
    str | None,
    typer.Argument(
        help="a crop of one thing; a cut-out PNG; an image with --box; leave it out for --text or --text-in-image"
    ),
]
PromptOption = Annotated[
    list[str] | None,
    typer.Option(help='what --text is put into, such as "a photo of {}"; repeatable, averaged'),
]
ButOption = Annotated[
    str | None,
    typer.Option(help='words that change the thing in QUERY: "a blue mug"; the profile reads text'),
]
InsteadOption = Annotated[str | None, typer.Option(help='with --but, what QUERY shows: "a mug"')]
InImageOption = Annotated[
    str | None,
    typer.Option("--text-in-image", help="words that were read in the image; alone, or with a query"),
]
TextOption = Annotated[str | None, typer.Option(help="words to search with, if the profile reads text")]
BoxOption = Annotated[str | None, typer.Option(help="x0,y0,x1,y1 in pixels: where the thing is in QUERY")]
ExampleOption = Annotated[
    list[Path] | None, typer.Option("--example", help="another image of the same thing; repeatable")
]
NegativeOption = Annotated[
    list[Path] | None, typer.Option("--negative", help="an image of what is not meant; repeatable")
]
FilterOption = Annotated[str | None, typer.Option("--filter", help="a Qdrant filter, as JSON")]
RerankOption = Annotated[
    str,
    typer.Option(
        help="order by all that is stored of the objects; by their codes, vectors (objects) or patches alone; by the "
        "images opened again (image; q-perturbation, which gained nothing over it; with words text-q-perturbation, "
        "blip2 or coca); by another package's name; not at all (none)"
    ),
]
HtmlOption = Annotated[Path | None, typer.Option(help="write a page: the hits, boxes and heat maps")]
PngOption = Annotated[Path | None, typer.Option(help="write the hits as one image")]


TEXT_ALONE = {"text_in_image", "filter_", "limit", "as_json"}  # what a search without a query reads


@grouped
def search(
    context: typer.Context,
    server: Server,
    target: Target,
    models: Models,
    query: QueryArgument = None,
    text: TextOption = None,
    prompt: PromptOption = None,
    but: ButOption = None,
    instead_of: InsteadOption = None,
    text_in_image: InImageOption = None,
    box: BoxOption = None,
    example: ExampleOption = None,
    negative: NegativeOption = None,
    filter_: FilterOption = None,
    limit: Annotated[int, typer.Option(min=1)] = 10,
    rerank: RerankOption = "stored",
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    save_html: HtmlOption = None,
    save_png: PngOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find the images that hold the thing in QUERY, what --text says, or the words of --text-in-image."""
    from soir_qdrant.search.options import SearchOptions
    from soir_qdrant.search.searcher import SoirSearcher
    from soir_qdrant.search.text_in_image import find_text, with_text

    place, conditions = box_of(box), filter_of(filter_)
    if text_in_image and query is None and text is None:
        of_groups = {field.name for group in (Server, Target) for field in fields(group)}
        check_chosen(context, TEXT_ALONE | of_groups, "belongs to a query: give QUERY or --text too")
        reading = SoirSearcher(server.client(), **target.place, **server.requests)
        _print_hits(find_text(reading, text_in_image, limit=limit, filter=conditions), as_json)
        return
    if text_in_image:
        conditions = with_text(text_in_image, conditions)
    options = SearchOptions(limit=limit, filter=conditions, rerank=rerank)
    chosen = _chosen(query, text, prompt, but, instead_of)
    client = server.client()
    pipeline = models_of(models, client, server, target).pipeline()
    searcher = SoirSearcher(
        client, pipeline=pipeline, max_pixels=max_pixels, **target.place, **server.requests
    )
    hits = searcher.search(
        chosen, box=place, examples=example or (), negatives=negative or (), options=options
    )
    _print_hits(hits, as_json)
    if save_html or save_png:
        _save(searcher, chosen, place, hits, save_html, save_png)
        _print_files([] if as_json else [save_html, save_png])


def _save(
    searcher: SoirSearcher,
    query: Query,
    box: Box | None,
    hits: list[Hit],
    html: Path | None,
    png: Path | None,
) -> None:
    from soir_qdrant.report.hit_report import save

    save(searcher, query, box, hits, html=html, png=png)


def _chosen(
    query: str | None, text: str | None, prompt: list[str] | None, but: str | None, instead_of: str | None
) -> Query:
    """What is searched for. Raises BadParameter for an option without the one that it belongs to."""
    from soir_qdrant.query import one_query

    if prompt and text is None:
        raise typer.BadParameter("--prompt is what --text is put into: give --text too")
    if but and query is None:
        raise typer.BadParameter("--but changes the thing in QUERY: give an image of it")
    if instead_of and not but:
        raise typer.BadParameter("--instead-of is what --but stands for: give --but too")
    if text and prompt and query is None:
        return Text(text, tuple(prompt))
    one = one_query(query, text)
    return Composed(one, but, instead_of) if but else one


def _print_files(files: Iterable[Path | None]) -> None:
    for file in files:
        if file:
            out.print(f"{file} written", highlight=False)


def _print_hits(hits: list[Hit], as_json: bool) -> None:
    if as_json:
        rows = [
            {"id": h.id, "score": h.score, "uri": h.uri, "box": h.box, "payload": h.payload} for h in hits
        ]
        print_json(rows)
        return
    table = Table("", "score", Column("image", overflow="fold"), "box x0,y0,x1,y1")
    for rank, hit in enumerate(hits, 1):
        place = ",".join(f"{v:.0f}" for v in hit.box) if hit.box else "-"
        table.add_row(str(rank), f"{hit.score:.3f}", str(hit.uri or hit.id), place)
    out.print(table if hits else "nothing found", highlight=False)


@grouped
def info(
    server: Server,
    collection: Annotated[
        str | None, typer.Option("--collection", help="this one alone; default: all")
    ] = None,
    profile: ProfileOption = None,
    whitening: WhiteningOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the profile, its weights and their licences, and what a collection holds."""
    from soir_qdrant.config import KINDS, VitSettings
    from soir_qdrant.models.cache import cache_dir
    from soir_qdrant.models.weights import origin_of
    from soir_qdrant.qdrant.transport import Retry
    from soir_qdrant.rerank.kinds import RERANKERS

    client = server.client() if server.path or server.edge or server.url else None
    if collection and client is None:
        raise typer.BadParameter("--collection: say where it is, with --path, --edge or --url")
    settings = settings_of(profile, whitening)
    about: dict[str, Any] = {
        "version": soir_qdrant.__version__,
        "cache": str(cache_dir()),
        "kinds": {f"{what}s": [*registry] for what, registry in KINDS.items()} | {"rerankers": [*RERANKERS]},
        "settings": settings.model_dump(),
    }
    if isinstance(settings.encoder, VitSettings):
        origin, sha256 = origin_of(settings.encoder.weights)
        about["weights"] = {**asdict(origin), "sha256": sha256}
    if client is not None:
        retry = server.requests.get("retry", Retry(total=30))
        names = [collection] if collection else collection_names(client, retry)
        about["collections"] = {name: collection_info(client, name, retry) for name in names}
    if as_json:
        print_json(about)
        return
    for key, value in about.items():
        text = json.dumps(value, indent=2, default=str) if isinstance(value, dict) else value
        out.print(RichText.assemble((key, "bold"), f" {text}"))
