"""`soir evaluate` and `soir evaluate-detector`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from soir_qdrant.cli.console import ProfileOption, WhiteningOption, bar, out, settings_of
from soir_qdrant.cli.groups import Models
from soir_qdrant.cli.options import check_chosen, check_not_chosen

if TYPE_CHECKING:
    from soir_qdrant.config import Settings
    from soir_qdrant.lab.evaluate.bench import Bench
    from soir_qdrant.lab.evaluate.compare import Evaluation

FileOption = Annotated[Path | None, typer.Option("--json", help="also write the figures to a file")]
ResumeOption = Annotated[
    Path | None,
    typer.Option(help="folder that keeps what was computed; else beside --json until it is done"),
]

DatasetOption = Annotated[
    str,
    typer.Option(
        "--dataset",
        "--format",
        help="needle (the folder's own format), or a published set: voxdet, owid, instre, instre-xs, instre-xxs, "
        "permir, ilias; see docs/how-to/evaluation.md",
    ),
]
DistractorsOption = Annotated[
    list[Path] | None,
    typer.Option(help="folder of images that show none of the things, to search among; may be repeated"),
]
OF_WORDS = {"folder", "file", "profile", "words", "novel"}  # what --words reads
WordsOption = Annotated[
    bool, typer.Option("--words", help="search by words: names of labelled objects (COCO), captions.json")
]
NovelOption = Annotated[
    Path | None, typer.Option(help="with --words, names that were not trained on, one a line")
]
OnnxOption = Annotated[
    Path | None, typer.Option(help="folder written by soir export: what its models find, not those here")
]
RowsOption = Annotated[
    str | None,
    typer.Option(
        help="comma-separated: see docs/how-to/evaluation.md; if not given, all but those of the paper, rerank-image "
        "and q-perturbation, which are slow"
    ),
]


def evaluate(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="a folder with annotations.json (see docs/reference/needlebench.md)")
    ],
    objects: Annotated[
        Literal["given", "detected"], typer.Option(help="labelled boxes, or the detector")
    ] = "given",
    file: FileOption = None,
    rows: RowsOption = None,
    resume: ResumeOption = None,
    failures: Annotated[
        Path | None, typer.Option(help="folder for a page of the worst queries, and why they fail")
    ] = None,
    profile: ProfileOption = None,
    whitening: WhiteningOption = None,
    dataset: DatasetOption = "needle",
    distractors: DistractorsOption = None,
    words: WordsOption = False,
    novel: NovelOption = None,
    onnx: OnnxOption = None,
) -> None:
    """Compare ways to search on a labelled folder: mAP, R@1, R@10 in percent. A killed run goes on.

    Rows paper, paper-plain-query and paper-mean say what refinement brings on your labels. The published +19 (VoxDet,
    51.2 to 70.2 zero-shot) is over the global descriptor; the paper has no row for the mean of the crops, and
    zero-shot MaO-DINOv2 is below GSS on INSTRE-XS and XXS in its own tables. Here: docs/lab/refinement.md.

    Examples: soir evaluate bench/dev-2d --rows global,mean,paper-mean,paper,default,chance --json dev.json;
    soir evaluate VoxDet --dataset voxdet --objects detected; soir evaluate bench/dev-2d --onnx models;
    soir evaluate mugs/ --objects detected --distractors photos/ --resume cache
    """
    if words:
        from soir_qdrant.cli.evaluate_words import evaluate_words

        check_chosen(context, OF_WORDS, "is not for --words")
        evaluate_words(folder, profile, novel, file)
        return
    check_not_chosen(context, {"novel"}, "goes with --words")
    from soir_qdrant.lab.evaluate.datasets import load
    from soir_qdrant.lab.evaluate.distractors import among

    bench, models = among(load(folder, dataset), distractors or []), Models(profile, whitening, onnx=onnx)
    done = _run(bench, objects, rows, models, file, resume)
    _print(done, bench, f"{folder.name}: {len(bench.queries)} queries", objects, dataset)
    if failures:
        _write_failures(failures, bench, done, models.settings)


def _run(
    bench: Bench,
    objects: str,
    rows: str | None,
    models: Models,
    file: Path | None,
    resume: Path | None,
) -> Evaluation:
    """Evaluate with a bar, and write the figures to the file."""
    from soir_qdrant.lab.evaluate import report
    from soir_qdrant.lab.evaluate.compare import run

    with (
        report.cache_folder(resume, file) as cache,
        bar(f"evaluate {bench.root.name}", len(bench.gallery) + len(bench.queries)) as advance,
    ):
        done = run(
            bench,
            objects=objects,
            rows=tuple(rows.split(",")) if rows else None,
            settings=models.settings,
            advance=advance,
            cache=cache,
            runtime=models.runtime(),
        )
        if file:
            report.write_json(file, done.results)
    return done


def _write_failures(folder: Path, bench: Bench, done: Evaluation, settings: Settings) -> None:
    from soir_qdrant.lab.evaluate.failures import write

    out.print(f"{write(folder, bench, done, settings)} written", highlight=False, soft_wrap=True)


def _print(done: Evaluation, bench: Bench, title: str, objects: str, dataset: str) -> None:
    from soir_qdrant.lab.evaluate import report
    from soir_qdrant.lab.evaluate.published import SETS

    out.print(report.table(done.results, f"{title}, {len(bench.gallery)} images, objects {objects}"))
    notes = [SETS[dataset].note(bench)] if dataset in SETS else []
    for line in [*report.notes(done.results), *notes]:
        out.print(line, highlight=False)


def evaluate_detector(
    folders: Annotated[list[Path], typer.Argument(help="folders of labelled images, or their JSON files")],
    format_: Annotated[Literal["coco", "needle"], typer.Option("--format")] = "coco",
    profile: ProfileOption = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="so many of each folder, the same ones each time")
    ] = None,
    file: FileOption = None,
    resume: ResumeOption = None,
) -> None:
    """Measure a detector: average recall at 10, 25 and 100 boxes, recall by size, boxes an image."""
    from soir_qdrant.lab.evaluate import report
    from soir_qdrant.lab.evaluate.detection import evaluate_detector as measure
    from soir_qdrant.lab.evaluate.detection import labelled_images

    sets = {str(folder): labelled_images(folder, format_, max_images) for folder in folders}
    settings, results = settings_of(profile, None), {}
    with (
        report.cache_folder(resume, file) as cache,
        bar("evaluate-detector", sum(map(len, sets.values()))) as advance,
    ):
        for name, images in sets.items():
            results[name] = measure(images, settings, advance=advance, cache=cache)
        if file:
            report.write_json(file, results)
    out.print(report.detection_table(results))
    for name, row in results.items():
        out.print(f"{name}: recall by size: {report.by_size(row['by_size'])}", highlight=False)
