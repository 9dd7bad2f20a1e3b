"""The command `soir`. Thin: it reads options, calls the library, prints. Loads no model for --help.

Exit codes: 0 done; 1 done, but some images failed; 2 wrong usage; 3 it could not be done (stderr says why).
"""

from __future__ import annotations

import logging
import os
import signal
from typing import Annotated

import typer
from rich.text import Text

import soir_qdrant
from soir_qdrant.cli import collection, evaluate, lab, models, sync
from soir_qdrant.cli.console import err, out, plain, write_anything
from soir_qdrant.cli.mcp import mcp
from soir_qdrant.cli.serve import serve
from soir_qdrant.cli.train import training
from soir_qdrant.cli.train_texture import texture as texture  # registers itself with `training`
from soir_qdrant.cli.train_words import words as words  # registers itself with `training`
from soir_qdrant.cli.weights import weights
from soir_qdrant.errors import SoirError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Find the pictures that hold this one small thing, in Qdrant.",
    epilog="First steps:  soir demo; soir ingest photos/ --path ./db; soir search mug.png --path ./db",
)
app.add_typer(training, name="train")
app.add_typer(weights, name="weights")

app.command(epilog="Example:  soir ingest photos/ --path ./needles --collection shelves")(collection.ingest)
app.command(epilog="Example:  soir sync photos/ --path ./needles --dry-run")(sync.sync)
app.command(epilog="Example:  soir watch photos/ --url http://localhost:6333")(sync.watch)
app.command(
    epilog="Example:  soir search room.jpg --box 410,220,470,300 --path ./needles --save-html found.html "
    """--filter '{"must": [{"key": "soir.count", "range": {"gte": 3}}]}'"""
)(collection.search)
app.command(epilog="Example:  soir info --path ./needles --collection shelves")(collection.info)
app.command(epilog="Example:  soir serve --path ./needles, then open http://127.0.0.1:8000/")(serve)
app.command(
    epilog="Example:  soir mcp --path ./needles --root photos/   (an assistant starts it: docs/how-to/integrations.md)"
)(mcp)
app.command(epilog="Example:  soir explain room.jpg --out room.html")(models.explain)
app.command(epilog="Example:  soir calibrate photos/ --out my.safetensors, then --whitening my.safetensors")(
    models.calibrate
)
app.command(epilog="Example:  soir evaluate bench/test-2d --objects detected --json result.json")(
    evaluate.evaluate
)
app.command(name="evaluate-detector", epilog="Example:  soir evaluate-detector photos/ --max-images 150")(
    evaluate.evaluate_detector
)
app.command(
    name="evaluate-vl",
    epilog="Example:  soir evaluate-vl flickr30k --weights Salesforce/blip2-itm-vit-g-coco",
)(lab.evaluate_vl)
app.command(
    epilog="Example:  soir needle bench/dev-2d --split dev --track 2d --scenes 200; to train on: "
    "soir needle bench/marks --marks photos/coco --scenes 500, soir needle bench/rooms --rooms furniture/"
)(lab.needle)
app.command(epilog="Example:  soir export --out models; tritonserver --model-repository models")(
    models.export
)
app.command(epilog="Example:  soir demo --out build/demo")(lab.demo)


def main() -> None:
    """The entry point: errors of this package become one line and exit code 3."""
    if os.getpid() == 1:  # of a container: no signal ends it that it does not handle
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    write_anything()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("soir_qdrant.ingest.outcome").setLevel(logging.INFO)  # progress without a terminal
    try:
        app()
    except (SoirError, OSError) as error:
        err.print(Text.assemble(("error: ", "red"), plain(str(error))), soft_wrap=True)
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


if __name__ == "__main__":
    main()
