"""`soir evaluate --words`."""

from __future__ import annotations

from pathlib import Path

from soir_qdrant.cli.console import bar, out


def evaluate_words(folder: Path, profile: str | None, novel: Path | None, file: Path | None) -> None:
    """Classes of a folder's COCO labels, and sentences of its captions.json, as far as there are any."""
    from soir_qdrant.assembly import make_pipeline
    from soir_qdrant.lab.evaluate import report
    from soir_qdrant.lab.evaluate import words as by_words
    from soir_qdrant.lab.evaluate.datasets import load

    pipeline = make_pipeline(profile)
    sentences = by_words.captions(folder) if (folder / by_words.CAPTIONS).is_file() else []
    labels = [other for other in folder.glob("*.json") if other.name != by_words.CAPTIONS]
    bench = load(labels[0] if len(labels) == 1 else folder, "coco") if labels or not sentences else None
    images = [image.file for image in bench.gallery] if bench else []
    files = sorted({caption.file for caption in sentences})
    results: dict[str, float] = {}
    with bar(f"evaluate {folder.name}", len(images) + len(files)) as advance:
        if bench:
            scenes = by_words.describe(pipeline, images, advance)
            embed = by_words.embedding(pipeline, ("a photo of a {}",))
            results |= by_words.evaluate_classes(bench, embed, scenes, by_words.read_names(novel))
        if sentences:
            described = by_words.describe(pipeline, files, advance)
            plain = by_words.embedding(pipeline, ("{}",))
            results |= by_words.evaluate_captions(sentences, plain, dict(zip(files, described, strict=True)))
    if file:
        report.write_json(file, results)
    for name, value in results.items():
        out.print(f"{name}: {value:g}", highlight=False)
