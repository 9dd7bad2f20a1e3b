"""`soir weights list`, `fetch`, `push`: what models the profiles use, putting them here, sending trained parts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from soir_qdrant.cli.console import out, print_json
from soir_qdrant.cli.options import JsonOption

weights = typer.Typer(no_args_is_help=True, help="The weights of the profiles: what, whose, where.")


@weights.command(name="list", epilog="Example:  soir weights list")
def show(as_json: JsonOption = False) -> None:
    """List the weights that are known by name: their terms, their size, and whether they are here."""
    from soir_qdrant.models.weights_table import TABLE, here

    rows = [{**asdict(known), "here": here(known)} for known in TABLE]
    if as_json:
        print_json(rows)
        return
    table = Table("name", "for", "licence", "MB", "sha256", "here")
    for row in rows:
        pinned = ", ".join(sha[:12] for sha in row["sha256"].values()) or "not pinned"
        table.add_row(
            row["name"],
            row["used_for"],
            row["licence"],
            f"{row['megabytes']:g}",
            pinned,
            "yes" if row["here"] else "no",
        )
    out.print(table)


@weights.command(epilog="Example:  soir weights fetch --profile paper")
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="as settings name them, such as embedded")] = None,
    profile: Annotated[
        str | None, typer.Option(help="fetch all that this profile needs; without names: embedded")
    ] = None,
) -> None:
    """Put weights on this machine, checked, so that no network is needed afterwards."""
    from soir_qdrant.config import Settings
    from soir_qdrant.models.weights import fetch as get

    wanted = list(names or [])
    if profile or not wanted:
        settings = Settings.for_profile(profile or "embedded")
        for part in (settings.encoder, settings.detector, settings.segmenter):
            wanted += [value for name, value in part if name == "weights"]
    for name in dict.fromkeys(wanted):
        out.print(f"{name}: {get(name)}", highlight=False, soft_wrap=True)


@weights.command(
    epilog="Example:  soir weights push me/shelves --profile mine.json, then --profile hub:me/shelves"
)
def push(
    repo: Annotated[str, typer.Argument(help="owner/name on the hub; made if need be")],
    profile: Annotated[str, typer.Option(help="JSON file of settings that names the trained files")],
    licence: Annotated[str, typer.Option(help="of the trained parts")] = "apache-2.0",
    private: Annotated[bool, typer.Option("--private", help="where the repository is new")] = False,
    folder: Annotated[Path | None, typer.Option(help="write the folder here, and send nothing")] = None,
) -> None:
    """Send trained parts to a hub: the settings, the safetensors files that they name, and a card."""
    from soir_qdrant import hub
    from soir_qdrant.config import Settings

    Settings.for_profile(profile)  # a wrong setting is said before anything is sent
    changes = Settings.changes_of(profile)
    with TemporaryDirectory() as temporary:
        files = hub.write(folder or Path(temporary), changes, name=repo, licence=licence)
        if folder is None:
            address = hub.push(Path(temporary), repo, private=private)
            out.print(f"{address}: {', '.join(file.name for file in files)}", highlight=False, soft_wrap=True)
        else:
            out.print(f"{folder}: {', '.join(file.name for file in files)}", highlight=False, soft_wrap=True)
