"""The command `soir`. Thin: it reads options, calls the library, prints. Loads no model for --help.

Exit codes: 0 done; 1 done, but some images failed; 2 wrong usage; 3 it could not be done (stderr says why).
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

import soir_qdrant
from soir_qdrant.console import ProfileOption, WhiteningOption, bar, err, out
from soir_qdrant.console import settings_of as _settings
from soir_qdrant.errors import SoirError
from soir_qdrant.evaluate import commands as evaluating
from soir_qdrant.train.commands import training

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Find the pictures that hold this one small thing, in Qdrant.",
    epilog="First steps:  soir demo; soir ingest photos/ --path ./db; soir search mug.png --path ./db",
)
app.add_typer(training, name="train")

FolderOption = Annotated[Path | None, typer.Option("--path", help="folder of an embedded Qdrant")]
UrlOption = Annotated[str | None, typer.Option("--url", envvar="QDRANT_URL", help="URL of a Qdrant server")]
KeyOption = Annotated[str | None, typer.Option("--api-key", envvar="QDRANT_API_KEY", help="of the server")]
NameOption = Annotated[str, typer.Option("--collection", help="name of the collection")]
TritonOption = Annotated[
    str | None,
    typer.Option(
        "--triton", envvar="SOIR_TRITON", help="host:port of a Triton that serves the models (gRPC)"
    ),
]
OnnxOption = Annotated[
    Path | None, typer.Option("--onnx", help="folder written by soir export: run its models with onnxruntime")
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON, for scripts")]


def main() -> None:
    """The entry point: errors of this package become one line and exit code 3."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        app()
    except (SoirError, OSError) as error:
        err.print(Text.assemble(("error: ", "red"), str(error)), soft_wrap=True)
        raise SystemExit(3) from None


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"soir_qdrant {soir_qdrant.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    pass


@app.command(epilog="Example:  soir ingest photos/ --path ./needles --collection shelves")
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
    from soir_qdrant.ingest import SoirIngestor, summary

    ingestor = SoirIngestor(
        _client(context, path, url, api_key, there=False),
        collection,
        pipeline=_served(_settings(profile, whitening), triton, onnx),
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


@app.command(
    epilog="Example:  soir search room.jpg --box 410,220,470,300 --path ./needles --save-html found.html "
    """--filter '{"must": [{"key": "soir.count", "range": {"gte": 3}}]}'"""
)
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
    from soir_qdrant.search import SoirSearcher

    where, condition = _box(box), _filter(filter_)
    pipeline = _served(_settings(profile, whitening), triton, onnx)
    searcher = SoirSearcher(_client(context, path, url, api_key), collection, pipeline=pipeline)
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
        from soir_qdrant.found import save

        save(searcher, query, where, hits, html=save_html, png=save_png)
        for file in (save_html, save_png):
            if file and not as_json:
                out.print(f"{file} written", highlight=False)


@app.command(epilog="Example:  soir info --path ./needles --collection shelves")
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
    from soir_qdrant.vision.weights import cache_dir, resolve

    settings = _settings(profile, whitening)
    weights = resolve(settings.encoder.weights)
    told: dict[str, Any] = {
        "version": soir_qdrant.__version__,
        "cache": str(cache_dir()),
        "settings": settings.model_dump(),
        "weights": {**asdict(weights.origin), "sha256": weights.sha256},
    }
    if path or url:
        client = _client(context, path, url, api_key)
        names = [collection] if collection else [c.name for c in client.get_collections().collections]
        told["collections"] = {name: _held(client, name) for name in names}
    if as_json:
        out.print_json(json.dumps(told, default=str))
        return
    for key, value in told.items():
        text = json.dumps(value, indent=2, default=str) if isinstance(value, dict) else value
        out.print(Text.assemble((key, "bold"), f" {text}"))


@app.command(epilog="Example:  soir calibrate photos/ --out my.safetensors, then --whitening my.safetensors")
def calibrate(
    folders: Annotated[list[Path], typer.Argument(help="folders of pictures; labelled objects are used")],
    file: Annotated[Path, typer.Option("--out", help="file to write")],
    profile: ProfileOption = "embedded",
    dim: Annotated[int | None, typer.Option(min=8, help="components kept; all if not given")] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="start from nothing, not from the profile's whitening")
    ] = False,
) -> None:
    """Refit the whitening on pictures of your own: no labels needed, a few hundred objects or more."""
    from soir_qdrant.calibrate import calibrate as fit
    from soir_qdrant.calibrate import count_pictures, pictures_of

    pipeline = _pipeline(profile, None)
    total = sum(count_pictures(folder) for folder in folders)
    found = (item for folder in folders for item in pictures_of(folder))
    with bar("calibrate", total) as advance:
        whitening, count, bad = fit(found, pipeline, dim=dim, alone=alone, advance=advance)
    whitening.save(file)
    for line in bad:
        err.print(Text.assemble(("skipped: ", "yellow"), line))
    out.print(f"{file}: {whitening.dim} components from {count} objects of {total} pictures")
    if pipeline.prior is None and not alone:
        err.print("this encoder has no whitening to start from: it wants many thousand objects")
    raise typer.Exit(1 if bad else 0)


@app.command(epilog="Example:  soir explain room.jpg --out room.html")
def explain(
    image: Annotated[Path, typer.Argument(help="a picture")],
    file: Annotated[Path, typer.Option("--out", help="page to write")] = Path("explained.html"),
    box: Annotated[
        list[str] | None, typer.Option("--box", help="x0,y0,x1,y1 of an object, once for each; else detected")
    ] = None,
    profile: ProfileOption = "embedded",
    whitening: WhiteningOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a picture's vector is made of: objects, masks, attention before and after refinement."""
    from soir_qdrant.explain import explain as look
    from soir_qdrant.explain import save
    from soir_qdrant.images import load
    from soir_qdrant.types import SceneObject

    picture, pipeline = load(image), _pipeline(profile, whitening)
    given = [_box(text) for text in box] if box else None
    found = look(pipeline, picture, [SceneObject(b) for b in given if b] if given else None)
    save(file, image.name, picture.rgb, found)
    named = [
        {
            "box": [round(v, 1) for v in one.item.box],
            "similarity": round(one.similarity, 3),
            "to_mean": round(one.to_mean, 3),
            "to_refined": round(one.to_refined, 3),
        }
        for one in found
    ]
    if as_json:
        out.print_json(json.dumps({"page": str(file), "objects": named}))
        return
    table = Table("object", "box", "stored vector", "mean descriptor", "joint token", title="similarity to")
    for i, row in enumerate(named, 1):
        table.add_row(
            str(i), str(row["box"]), *(f"{row[k]:.2f}" for k in ("similarity", "to_mean", "to_refined"))
        )
    out.print(table)
    out.print(f"{file} written", highlight=False)


app.command(epilog="Example:  soir evaluate bench/test-2d --objects detected --json result.json")(
    evaluating.evaluate
)
app.command(name="evaluate-detector", epilog="Example:  soir evaluate-detector photos/ --max-images 150")(
    evaluating.evaluate_detector
)


@app.command(
    name="evaluate-vl",
    epilog="Example:  soir evaluate-vl flickr30k --weights Salesforce/blip2-itm-vit-g-coco",
)
def evaluate_vl(
    folder: Annotated[
        Path, typer.Argument(help="the pictures, sentences and boxes: see docs/q-perturbation.md")
    ],
    weights: Annotated[str, typer.Option(help="BLIP-2 for retrieval: a folder or hub name")],
    captions: Annotated[str, typer.Option(help="JSON below FOLDER, as LAVIS publishes it")] = "test.json",
    boxes: Annotated[str, typer.Option(help="XML files below FOLDER")] = "flickr30k_entities/Annotations",
    scale: Annotated[float, typer.Option(help="alpha")] = 8.0,
    contribution: Annotated[float, typer.Option(help="share of the energy a subspace holds")] = 0.99,
    itm: Annotated[bool, typer.Option(help="rescore the best by image-text matching, as the paper")] = True,
    top: Annotated[int, typer.Option(min=1, help="pictures rescored for each sentence")] = 64,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    device: Annotated[str, typer.Option()] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Q-Perturbation's table: text-to-image R@1/5/10 of BLIP-2, without and with it."""
    from dataclasses import replace

    from soir_qdrant.rerank.vl_table import PAPER, Matcher, load
    from soir_qdrant.rerank.vl_table import evaluate as measure

    pictures = load(folder, captions, boxes)
    matcher = Matcher.load(weights, device)
    settings = replace(PAPER, scale=scale, contribution=contribution)
    rows = {"blip2": None, "q-perturbation": settings}
    with bar("evaluate-vl", len(pictures) * len(rows) * (1 + itm)) as advance:
        results = {
            name: measure(matcher, pictures, held, itm=itm, top=top, batch=batch, advance=advance)
            for name, held in rows.items()
        }
    if as_json:
        out.print_json(json.dumps(results))
        return
    columns = list(results["blip2"])
    table = Table("", *columns, title=f"{folder.name}: text to image, percent")
    for name, found in results.items():
        table.add_row(name, *(f"{found[column]:g}" for column in columns))
    out.print(table)


@app.command(epilog="Example:  soir needle bench/dev-2d --split dev --track 2d --scenes 200")
def needle(
    folder: Annotated[Path, typer.Argument(help="where to write it")],
    split: Annotated[Literal["dev", "test"], typer.Option()] = "dev",
    track: Annotated[Literal["2d", "3d"], typer.Option(help="cut-outs, or rendered meshes")] = "2d",
    scenes: Annotated[int, typer.Option(min=1)] = 200,
    targets: Annotated[int, typer.Option(min=1)] = 60,
    seed: Annotated[int, typer.Option()] = 0,
    shipped: Annotated[
        bool, typer.Option(help="only the pictures that ship; else fetched by npm and apt")
    ] = False,
    invented: Annotated[
        bool, typer.Option(help="things and grounds that nobody has seen, to train on; others for each seed")
    ] = False,
    shelves: Annotated[
        bool, typer.Option(help="dense rows of invented products, and emblems on photographs, to train on")
    ] = False,
    retaken: Annotated[
        Path | None,
        typer.Option(help="a COCO folder: its photographs, and each thing again as another camera takes it"),
    ] = None,
    things: Annotated[
        Path | None, typer.Option(help="your own: a folder of cut-outs, one object each")
    ] = None,
    grounds: Annotated[Path | None, typer.Option(help="your own: photographs to lay them on")] = None,
) -> None:
    """Generate a NeedleBench: labelled scenes with small objects in photographs."""
    if shelves:
        from soir_qdrant.evaluate import shelves as rows

        made = rows.generate(folder, scenes=scenes, seed=seed)
        out.print(f"{made}: {scenes} scenes")
        return
    if retaken is not None:
        from soir_qdrant.evaluate import retaken as photographs
        from soir_qdrant.evaluate.datasets import load

        out.print(f"{photographs.generate(folder, load(retaken, 'coco'), seed=seed)}: written")
        return
    from soir_qdrant.evaluate.invent import invented as invent
    from soir_qdrant.evaluate.needle import generate
    from soir_qdrant.evaluate.sources import Sources

    if (things is None) != (grounds is None):
        raise typer.BadParameter("--things and --grounds go together")
    if invented and (shipped or things is not None or (split, track) != ("dev", "2d")):
        raise typer.BadParameter("--invented is cut-outs to train on: --split dev --track 2d, and no others")
    if things is not None and grounds is not None:
        sources = Sources.folders(things, grounds)
    elif invented:
        sources = invent(seed, fetch=True)
    else:
        sources = Sources.shipped() if shipped else Sources.full(fetch=True)
    made = generate(
        folder, split=split, track=track, scenes=scenes, targets=targets, seed=seed, sources=sources
    )
    out.print(f"{made}: {scenes} scenes, {targets} queries")


@app.command(epilog="Example:  soir export --out models; tritonserver --model-repository models")
def export(
    folder: Annotated[Path, typer.Option("--out", help="the model repository to write")],
    profile: ProfileOption = "embedded",
    backend: Annotated[
        Literal["onnxruntime", "tensorrt", "python"], typer.Option(help="what Triton is to run them with")
    ] = "onnxruntime",
    precision: Annotated[Literal["fp32", "fp16"], typer.Option(help="inside the models")] = "fp32",
    encoder: Annotated[str | None, typer.Option(help="its weights: a folder or a hub name")] = None,
    detector: Annotated[str | None, typer.Option(help="weights of OWLv2")] = None,
    segmenter: Annotated[str | None, typer.Option(help="weights of SAM")] = None,
) -> None:
    """Write the models for NVIDIA Triton and onnxruntime, each compared with torch on real pictures."""
    from soir_qdrant.serving.export import export as write

    given = {"encoder": encoder, "detector": detector, "segmenter": segmenter}
    changes = {part: {"weights": weights} for part, weights in given.items() if weights}
    settings = _settings(profile, None).but(**changes)
    write(
        settings,
        folder,
        backend=backend,
        precision=precision,
        told=lambda line: out.print(line, highlight=False, soft_wrap=True),
    )


@app.command(epilog="Example:  soir demo --out build/demo")
def demo(
    folder: Annotated[Path, typer.Option("--out", help="where to write index.html")] = Path("build/demo"),
    scenes: Annotated[int, typer.Option(min=10, max=60)] = 32,
) -> None:
    """Generate scenes, ingest them into embedded Qdrant, search, and write a page of what was found."""
    from soir_qdrant.demo import run

    run(folder, scenes=scenes)


def _client(
    context: typer.Context, path: Path | None, url: str | None, api_key: str | None, *, there: bool = True
) -> QdrantClient:
    """there: whether a folder must hold a Qdrant already."""
    from soir_qdrant.errors import ConfigError
    from soir_qdrant.transport import connect

    source = context.get_parameter_source("url")
    if path and source is not None and source.name == "COMMANDLINE":
        raise typer.BadParameter("--path and --url: choose one")
    if not path and not url:
        raise typer.BadParameter("say where Qdrant is: --path FOLDER or --url URL (or set QDRANT_URL)")
    if path:
        if there and not (path / "meta.json").is_file():
            raise ConfigError(f"{path}: no embedded Qdrant there; `soir ingest` makes one")
        return connect(path=path)
    return connect(url=url, api_key=api_key)


def _pipeline(profile: str, whitening: Path | None) -> Pipeline:
    from soir_qdrant.pipeline import Pipeline

    return Pipeline(_settings(profile, whitening))


def _served(settings: Settings, triton: str | None, onnx: Path | None) -> Pipeline:
    """The pipeline on the models of a Triton, of a folder of exports, or of this machine.

    $SOIR_TRITON_TOKEN, where it is set, is sent to Triton as a bearer token.
    """
    from soir_qdrant.pipeline import Pipeline

    if triton and onnx:
        raise typer.BadParameter("--triton and --onnx: choose one")
    if triton:
        from soir_qdrant.serving.triton import TritonRuntime

        token = os.environ.get("SOIR_TRITON_TOKEN")
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return TritonRuntime(triton, headers=headers).pipeline(settings)
    if onnx:
        from soir_qdrant.serving.onnx import OnnxRuntime

        return OnnxRuntime(onnx).pipeline(settings)
    return Pipeline(settings)


def _box(text: str | None) -> tuple[float, float, float, float] | None:
    if text is None:
        return None
    try:
        x0, y0, x1, y1 = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"--box {text!r}: give four numbers, x0,y0,x1,y1") from None
    return x0, y0, x1, y1


def _filter(text: str | None) -> Any:
    if text is None:
        return None
    from pydantic import ValidationError
    from qdrant_client import models

    try:
        return models.Filter.model_validate_json(text)
    except ValidationError as error:
        raise typer.BadParameter(f"--filter: no Qdrant filter ({error.errors()[0]['msg']})") from None


def _held(client: QdrantClient, name: str) -> dict[str, Any]:
    from soir_qdrant.errors import CollectionError

    if not client.collection_exists(name):
        raise CollectionError(f"no collection {name!r} there; make one with `soir ingest`")
    held = client.get_collection(name)
    metadata = getattr(held.config, "metadata", None)
    return {"points": client.count(name).count, "metadata": metadata}


if __name__ == "__main__":
    main()
