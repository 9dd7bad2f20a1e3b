"""What ships under which licence: the package's metadata say what the lists beside the files say."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SPDX = {  # what the lists say of a file: how the metadata have it
    r"\bApache-2\.0\b": "Apache-2.0",
    r"\bMIT\b": "MIT",
    r"\bISC\b": "ISC",
    r"\bBSD-2-Clause\b": "BSD-2-Clause",
    r"\bBSD-3-Clause\b": "BSD-3-Clause",
    r"\bCC0\b": "CC0-1.0",
    r"\bCC BY 4\.0\b": "CC-BY-4.0",
    "public domain|no known copyright": "LicenseRef-Public-Domain",
}


def licences(file: Path) -> Iterator[str]:
    """The cells below "licence" of the tables in a file."""
    for table in re.findall(r"(?:^\|.*\|\n)+", file.read_text(), re.M):
        head, _, *rows = [line.strip("|").split("|") for line in table.splitlines()]
        columns = [number for number, name in enumerate(head) if "licence" in name]
        yield from (row[number] for row in rows for number in columns)


def test_the_metadata_name_every_licence_and_the_files_that_have_them():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = set((ROOT / "soir_qdrant").rglob("LICENSES.md"))
    named = {file for pattern in project["license-files"] for file in ROOT.glob(pattern)}
    assert named == {ROOT / "LICENSE", *lists}
    cells = [cell for file in lists for cell in licences(file)]
    assert len(cells) > 150
    shipped = {next(name for words, name in SPDX.items() if re.search(words, cell)) for cell in cells}
    assert set(project["license"].split(" AND ")) == {"Apache-2.0", *shipped}
