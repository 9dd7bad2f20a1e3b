"""`soir ingest`, `soir search`, `soir info`: a collection, filled and asked."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

import soir_qdrant
from soir_qdrant.cli.console import ProfileOption, WhiteningOption, out, settings_of
from soir_qdrant.cli.options import (
    FolderOption,
    JsonOption,
    KeyOption,
    NameOption,
    OnnxOption,
    TritonOption,
    UrlOption,
    box_of,
    collection_info,
    filter_of,
    open_client,
    served_pipeline,
)


def ingest(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="a picture, or a folder of pictures, read recursively")],
    path: FolderOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    collection: NameOption = "images",
    profile: ProfileOption = "embedded",
    whitening: WhiteningOption = None,
    triton: TritonOption = None,
    onnx: OnnxOption = None,
    on_exists: Annotated[
        Literal["skip", "replace"], typer.Option(help="what to do with stored ones")
    ] = "skip",
    keep_objects: Annotated[
        bool, typer.Option(help="also store every object's vector, for --rerank objects")
    ] = False,
    object_patches: Annotated[
        bool, typer.Option(help="also store every object's patches, for --rerank patches")
    ] = False,
    quantization: Annotated[
        Literal["scalar", "binary"] | None, typer.Option(help="of a new collection, on a server")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures at once; bounds the memory")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Put pictures into a collection. Run again after an interruption: what is stored is skipped."""
    from soir_qdrant.ingest.ingestor import SoirIngestor, summary

    ingestor = SoirIngestor(
        open_client(context, path, url, api_key, there=False),
        collection,
        pipeline=served_pipeline(settings_of(profile, whitening), triton, onnx),
        keep_objects=keep_objects,
        object_patches=object_patches,
        quantization=quantization,
    )
    report = ingestor.add(folder, batch_size=batch_size, on_exists=on_exists)
    if as_json:
        out.print_json(json.dumps(asdict(report)))
    else:
        out.print(summary(report), highlight=False)
    raise typer.Exit(1 if report.failed else 0)


def search(
    context: typer.Context,
    query: Annotated[
        str,
        typer.Argument(
            help="a crop of one thing; a cut-out PNG; any picture with --box; words, if the profile reads"
        ),
    ],
    box: Annotated[
        str | None, typer.Option(help="x0,y0,x1,y1 in pixels: where the thing is in QUERY")
    ] = None,
    example: Annotated[
        list[Path] | None, typer.Option("--example", help="another picture of the same thing; repeatable")
    ] = None,
    negative: Annotated[
        list[Path] | None, typer.Option("--negative", help="a picture of what is not meant; repeatable")
    ] = None,
    path: FolderOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    collection: NameOption = "images",
    profile: ProfileOption = "embedded",
    whitening: WhiteningOption = None,
    triton: TritonOption = None,
    onnx: OnnxOption = None,
    filter_: Annotated[str | None, typer.Option("--filter", help="a Qdrant filter, as JSON")] = None,
    limit: Annotated[int, typer.Option(min=1)] = 10,
    rerank: Annotated[
        Literal["codes", "none", "objects", "patches", "q-perturbation"],
        typer.Option(
            help="order by the objects' codes, not at all, by their vectors, patches, by the pictures"
        ),
    ] = "codes",
    save_html: Annotated[
        Path | None, typer.Option(help="write a page: the pictures found, boxes and heat maps")
    ] = None,
    save_png: Annotated[Path | None, typer.Option(help="write one picture of what was found")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find the pictures that hold the thing in QUERY."""
    from soir_qdrant.search.searcher import SoirSearcher

    where, condition = box_of(box), filter_of(filter_)
    pipeline = served_pipeline(settings_of(profile, whitening), triton, onnx)
    searcher = SoirSearcher(open_client(context, path, url, api_key), collection, pipeline=pipeline)
    hits = searcher.search(
        query,
        box=where,
        examples=example or (),
        negatives=negative or (),
        limit=limit,
        filter=condition,
        rerank=None if rerank == "none" else rerank,
    )
    if as_json:
        rows = [
            {"id": h.id, "score": h.score, "uri": h.uri, "box": h.box, "payload": h.payload} for h in hits
        ]
        out.print_json(json.dumps(rows))
    else:
        table = Table("", "score", "picture", "box x0,y0,x1,y1")
        for rank, hit in enumerate(hits, 1):
            place = ",".join(f"{v:.0f}" for v in hit.box) if hit.box else "-"
            table.add_row(str(rank), f"{hit.score:.3f}", str(hit.uri or hit.id), place)
        out.print(table if hits else "nothing found", highlight=False)
    if save_html or save_png:
        from soir_qdrant.report.hit_report import save

        save(searcher, query, where, hits, html=save_html, png=save_png)
        for file in (save_html, save_png):
            if file and not as_json:
                out.print(f"{file} written", highlight=False)


def info(
    context: typer.Context,
    path: FolderOption = None,
    url: UrlOption = None,
    api_key: KeyOption = None,
    collection: Annotated[str | None, typer.Option("--collection")] = None,
    profile: ProfileOption = "embedded",
    whitening: WhiteningOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the profile, its weights and their licences, and what a collection holds."""
    from soir_qdrant.models.weights import cache_dir, resolve

    settings = settings_of(profile, whitening)
    weights = resolve(settings.encoder.weights)
    told: dict[str, Any] = {
        "version": soir_qdrant.__version__,
        "cache": str(cache_dir()),
        "settings": settings.model_dump(),
        "weights": {**asdict(weights.origin), "sha256": weights.sha256},
    }
    if path or url:
        client = open_client(context, path, url, api_key)
        names = [collection] if collection else [c.name for c in client.get_collections().collections]
        told["collections"] = {name: collection_info(client, name) for name in names}
    if as_json:
        out.print_json(json.dumps(told, default=str))
        return
    for key, value in told.items():
        text = json.dumps(value, indent=2, default=str) if isinstance(value, dict) else value
        out.print(Text.assemble((key, "bold"), f" {text}"))
