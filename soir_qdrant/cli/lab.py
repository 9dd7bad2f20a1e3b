"""`soir demo`, `soir needle`, `soir evaluate-vl`: pictures to measure with, and tables of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table

from soir_qdrant.cli.console import bar, out, print_json
from soir_qdrant.cli.options import JsonOption, check_chosen

if TYPE_CHECKING:
    from soir_qdrant.lab.needlebench.sources import Sources


def demo(
    folder: Annotated[Path, typer.Option("--out", help="where to write index.html")] = Path("build/demo"),
    show: Annotated[
        bool, typer.Option("--open/--no-open", help="open the page, where there is a browser")
    ] = True,
) -> None:
    """Ingest the photographs that ship into embedded Qdrant, search, and write a page of what was found."""
    from soir_qdrant.lab.demo import run

    run(folder, show=show)


def needle(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="where to write it")],
    split: Annotated[Literal["dev", "test"], typer.Option()] = "dev",
    track: Annotated[Literal["2d", "3d"], typer.Option(help="cut-outs, or rendered meshes")] = "2d",
    scenes: Annotated[int, typer.Option(min=1)] = 200,
    targets: Annotated[int, typer.Option(min=1)] = 60,
    seed: Annotated[int, typer.Option()] = 0,
    shipped: Annotated[bool, typer.Option(help="only what ships; else fetched by npm and apt")] = False,
    invented: Annotated[
        bool, typer.Option(help="things and grounds that nobody has seen, to train on; others for each seed")
    ] = False,
    crowded: Annotated[
        bool, typer.Option(help="scenes of targets alone, each target in many, as in VoxDet")
    ] = False,
    shelves: Annotated[
        bool, typer.Option(help="dense rows of invented products, and emblems on photographs, to train on")
    ] = False,
    retaken: Annotated[
        Path | None,
        typer.Option(help="a COCO folder: its photographs, and each thing again as another camera takes it"),
    ] = None,
    marks: Annotated[
        Path | None,
        typer.Option(help="a COCO folder: its photographs with invented emblems and words printed on things"),
    ] = None,
    designs: Annotated[int, typer.Option(min=0, help="with --marks: so many, each on many of them")] = 0,
    fonts: Annotated[Path | None, typer.Option(help="with --marks: a folder of fonts")] = None,
    rooms: Annotated[
        Path | None,
        typer.Option(help="a folder of Sweet Home 3D's catalogues: rooms rendered with them, to train on"),
    ] = None,
    things: Annotated[Path | None, typer.Option(help="your own: cut-outs, one object each")] = None,
    grounds: Annotated[Path | None, typer.Option(help="your own: photographs to lay them on")] = None,
) -> None:
    """Generate a NeedleBench: labelled scenes with small objects in photographs."""
    from soir_qdrant.lab.needlebench.needle import generate

    chosen: dict[str, Any] = {"shelves": shelves, "retaken": retaken, "marks": marks, "designs": designs}
    special = _to_train_on(context, folder, scenes, seed, rooms=rooms, fonts=fonts, **chosen)
    if special is not None:
        out.print(f"{special}: written")
        return
    if invented and (shipped or things is not None or (split, track) != ("dev", "2d")):
        raise typer.BadParameter("--invented is cut-outs to train on: --split dev --track 2d, and no others")
    sources = _sources(things, grounds, seed=seed, invented=invented, shipped=shipped)
    chosen = {"split": split, "track": track, "scenes": scenes, "targets": targets}
    written = generate(folder, **chosen, seed=seed, sources=sources, crowded=crowded)
    out.print(f"{written}: {scenes} scenes, {targets} queries")


def _to_train_on(
    context: typer.Context,
    folder: Path,
    scenes: int,
    seed: int,
    *,
    shelves: bool,
    retaken: Path | None,
    marks: Path | None,
    designs: int,
    fonts: Path | None,
    rooms: Path | None,
) -> Path | None:
    """The folder, written as one of these says; None where none does."""
    from soir_qdrant.lab.evaluate.datasets import load
    from soir_qdrant.lab.needlebench import marks as prints
    from soir_qdrant.lab.needlebench import retaken as photographs
    from soir_qdrant.lab.needlebench import rooms as rendered
    from soir_qdrant.lab.needlebench import shelves as rows
    from soir_qdrant.lab.needlebench.lettering import fonts_in

    if marks is None and (designs or fonts is not None):
        raise typer.BadParameter("--designs and --fonts are of --marks: give its folder too")
    if shelves:
        check_chosen(context, {"folder", "shelves", "scenes", "seed"}, "is not for --shelves")
        return rows.generate(folder, scenes=scenes, seed=seed)
    if retaken is not None:
        check_chosen(context, {"folder", "retaken", "seed"}, "is not for --retaken")
        return photographs.generate(folder, load(retaken, "coco"), seed=seed)
    if marks is not None:
        check_chosen(context, {"folder", "marks", "designs", "fonts", "scenes", "seed"}, "is not for --marks")
        files = [] if fonts is None else fonts_in(fonts)
        photos = load(marks, "coco")
        return prints.generate(folder, photos, scenes=scenes, seed=seed, designs=designs, fonts=files)
    if rooms is not None:
        check_chosen(context, {"folder", "rooms", "scenes", "seed"}, "is not for --rooms")
        return rendered.generate(folder, rooms, scenes=scenes, seed=seed)
    return None


def _sources(
    things: Path | None, grounds: Path | None, *, seed: int, invented: bool, shipped: bool
) -> Sources:
    """The images that scenes are made of."""
    from soir_qdrant.lab.needlebench.invent import invented as invent
    from soir_qdrant.lab.needlebench.sources import Sources

    if things is not None and shipped:
        raise typer.BadParameter("--things are your own, --shipped those that ship: choose one")
    if (things is None) != (grounds is None):
        raise typer.BadParameter("--things and --grounds go together")
    if things is not None and grounds is not None:
        return Sources.folders(things, grounds)
    if invented:
        return invent(seed, fetch=True)
    return Sources.shipped() if shipped else Sources.full(fetch=True)


def evaluate_vl(
    folder: Annotated[
        Path, typer.Argument(help="the images, sentences and boxes: see docs/concepts/q-perturbation.md")
    ],
    weights: Annotated[str, typer.Option(help="BLIP-2 for retrieval: a folder or hub name")],
    captions: Annotated[str, typer.Option(help="JSON below FOLDER, as LAVIS publishes it")] = "test.json",
    boxes: Annotated[str, typer.Option(help="XML files below FOLDER")] = "flickr30k_entities/Annotations",
    scale: Annotated[float, typer.Option(help="alpha")] = 8.0,
    contribution: Annotated[float, typer.Option(help="share of the energy a subspace holds")] = 0.99,
    itm: Annotated[bool, typer.Option(help="rescore the best by image-text matching, as the paper")] = True,
    top: Annotated[int, typer.Option(min=1, help="images rescored for each sentence")] = 64,
    batch: Annotated[int, typer.Option(min=1)] = 16,
    device: Annotated[str, typer.Option()] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Q-Perturbation's table: text-to-image R@1/5/10 of BLIP-2, without and with it."""
    from dataclasses import replace

    from soir_qdrant.lab.evaluate.text_recall import evaluate as measure
    from soir_qdrant.lab.evaluate.text_recall import load
    from soir_qdrant.rerank.q_perturbation.blip2 import Blip2Matcher
    from soir_qdrant.rerank.q_perturbation.matcher import PAPER

    images = load(folder, captions, boxes)
    matcher = Blip2Matcher.load(weights, device)
    settings = replace(PAPER, scale=scale, contribution=contribution)
    rows = {"blip2": None, "q-perturbation": settings}
    with bar("evaluate-vl", len(images) * len(rows) * (1 + itm)) as advance:
        results = {
            name: measure(matcher, images, operator, itm=itm, top=top, batch=batch, advance=advance)
            for name, operator in rows.items()
        }
    if as_json:
        print_json(results)
        return
    columns = list(results["blip2"])
    table = Table("", *columns, title=f"{folder.name}: text to image, percent")
    for name, recall in results.items():
        table.add_row(name, *(f"{recall[column]:g}" for column in columns))
    out.print(table)
