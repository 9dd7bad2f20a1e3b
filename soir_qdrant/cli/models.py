"""`soir explain`, `soir calibrate`, `soir export`: the pipeline itself."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from soir_qdrant.cli.console import (
    ProfileOption,
    WhiteningOption,
    bar,
    err,
    out,
    plain,
    print_json,
    settings_of,
)
from soir_qdrant.cli.groups import Models
from soir_qdrant.cli.options import JsonOption, MaxPixelsOption, box_of
from soir_qdrant.images.options import MAX_PIXELS


def explain(
    image: Annotated[Path, typer.Argument(help="an image")],
    file: Annotated[Path, typer.Option("--out", help="page to write")] = Path("explained.html"),
    box: Annotated[
        list[str] | None, typer.Option("--box", help="x0,y0,x1,y1 of an object, once for each; else detected")
    ] = None,
    profile: ProfileOption = None,
    whitening: WhiteningOption = None,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    as_json: JsonOption = False,
) -> None:
    """Show what an image's vector is made of: objects, masks, attention before and after refinement."""
    from soir_qdrant.geometry.user_objects import fit_objects
    from soir_qdrant.images import load
    from soir_qdrant.report.explain import explain as look
    from soir_qdrant.report.explain import save
    from soir_qdrant.types import SceneObject

    loaded, pipeline = load(image, max_pixels=max_pixels), Models(profile, whitening).pipeline()
    chosen = [SceneObject(place) for text in box or () if (place := box_of(text))]
    explained = look(pipeline, loaded, fit_objects(chosen, loaded.width, loaded.height) or None)
    save(file, image.name, loaded.rgb, explained)
    named = [
        {
            "box": [round(v, 1) for v in one.item.box],
            "similarity": round(one.similarity, 3),
            "to_mean": round(one.to_mean, 3),
            "to_refined": round(one.to_refined, 3),
        }
        for one in explained
    ]
    if as_json:
        print_json({"page": str(file), "objects": named})
        return
    table = Table("object", "box", "stored vector", "mean descriptor", "joint token", title="similarity to")
    for i, row in enumerate(named, 1):
        table.add_row(
            str(i), str(row["box"]), *(f"{row[k]:.2f}" for k in ("similarity", "to_mean", "to_refined"))
        )
    out.print(table)
    out.print(f"{file} written", highlight=False)


def calibrate(
    folders: Annotated[list[Path], typer.Argument(help="folders of images; labelled objects are used")],
    file: Annotated[Path, typer.Option("--out", help="file to write")],
    profile: ProfileOption = None,
    dim: Annotated[int | None, typer.Option(min=8, help="components kept; all if not given")] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="start from nothing, not from the profile's whitening")
    ] = False,
) -> None:
    """Fit the projection to images of your own: no labels needed, a few hundred objects or more."""
    from soir_qdrant.lab.calibrate import calibrate as fit
    from soir_qdrant.lab.calibrate import count_images, labelled_images

    pipeline = Models(profile).pipeline()
    total = sum(count_images(folder) for folder in folders)
    labelled = (item for folder in folders for item in labelled_images(folder))
    with bar("calibrate", total) as advance:
        whitening, count, bad = fit(labelled, pipeline, dim=dim, alone=alone, advance=advance)
    whitening.save(file)
    for line in bad:
        err.print(Text.assemble(("skipped: ", "yellow"), plain(line)))
    out.print(f"{file}: {whitening.dim} components from {count} objects of {total} images")
    if pipeline.prior is None and not alone:
        err.print("this encoder has no whitening to start from: it wants many thousand objects")
    raise typer.Exit(1 if bad else 0)


def export(
    folder: Annotated[Path, typer.Option("--out", help="the model repository to write")],
    profile: ProfileOption = None,
    whitening: WhiteningOption = None,
    backend: Annotated[
        Literal["onnxruntime", "tensorrt", "python"], typer.Option(help="what Triton is to run them with")
    ] = "onnxruntime",
    precision: Annotated[
        Literal["fp32", "fp16", "int8"],
        typer.Option(help="inside the models; int8 is for onnxruntime on CPUs"),
    ] = "fp32",
    scene: Annotated[
        bool, typer.Option("--scene", help="also the model that describes a whole image in one request")
    ] = False,
    encoder: Annotated[str | None, typer.Option(help="its weights: a folder or a hub name")] = None,
    detector: Annotated[str | None, typer.Option(help="weights of OWLv2")] = None,
    segmenter: Annotated[str | None, typer.Option(help="weights of SAM")] = None,
) -> None:
    """Write the models for NVIDIA Triton and onnxruntime, each compared with torch on photographs."""
    from soir_qdrant.serving.export import export as write

    parts = {"encoder": encoder, "detector": detector, "segmenter": segmenter}
    changes = {part: {"weights": weights} for part, weights in parts.items() if weights}
    settings = settings_of(profile, whitening).but(**changes)
    write(
        settings,
        folder,
        backend=backend,
        precision=precision,
        scene=scene,
        progress=lambda line: out.print(line, highlight=False, soft_wrap=True),
    )
