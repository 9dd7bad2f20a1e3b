"""A profile of trained parts as a folder, here or on a hub: `profile.json`, the files it names, and a card.

Read where a profile is named: `Settings.for_profile("hub:owner/name")`, or the folder's path. Nothing of a folder is
run, and each file is compared with the sha256 that `profile.json` gives for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from soir_qdrant.errors import ConfigError, WeightsError

PROFILE = "profile.json"
SCHEME = "hub:"
SHIPPED = frozenset({"shipped", "0.1"})  # names of parts that ship with the package
HEADS = {  # settings of files, and what their copies are called
    ("encoder", "adapter"): "encoder",
    ("encoder", "texture"): "texture",
    ("detector", "head"): "detector",
    ("segmenter", "head"): "segmenter",
    ("vector", "whitening"): "vector",
    ("scene", "head"): "scene",
}
CARD = """---
library_name: soir_qdrant
tags: [image-retrieval, instance-retrieval, qdrant]
license: {licence}
---
# {name}

Trained parts for [soir_qdrant](https://github.com/soir-qdrant/soir-qdrant): small object image retrieval for Qdrant.

```python
SoirIngestor(client, "shelves", profile="hub:{name}").add("photos/")
```

{files}
"""


def is_named(name: str) -> bool:
    """Whether the name of a profile is that of a folder of this kind."""
    return name.startswith(SCHEME) or (Path(name).expanduser() / PROFILE).is_file()


def read(name: str) -> dict[str, Any]:
    """The changes of settings that a folder holds, its files by their whole paths.

    Args:
        name: "hub:owner/name", "hub:owner/name@revision", or a folder.

    Raises:
        WeightsError: where the hub does not have it, or a file is not what the folder says.
        ConfigError: where the folder has no profile.
    """
    folder = (
        _fetched(name.removeprefix(SCHEME)) if name.startswith(SCHEME) else Path(name).expanduser().absolute()
    )
    try:
        content = json.loads((folder / PROFILE).read_text(encoding="utf-8"))
        changes, pinned = dict(content["settings"]), dict(content["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{name}: no profile there ({error}); `soir weights push` makes one") from error
    for group, setting, file in _files(changes):
        if file in SHIPPED:
            continue
        path = folder / Path(file).name
        if file not in pinned or not path.is_file() or _sha256(path) != pinned[file]:
            raise WeightsError(f"{name}: {file} is missing or not the file that was pushed: fetch it again")
        changes[group] = {**changes[group], setting: str(path)}
    for place in _local_paths(content["settings"]):
        raise WeightsError(
            f"{name}: {place} is a path of another machine: nothing outside of the folder is read"
        )
    return changes


def write(folder: Path, changes: Mapping[str, Any], *, name: str, licence: str = "apache-2.0") -> list[Path]:
    """Make such a folder of a profile's changes of settings and the files that they name.

    Args:
        folder: where to; made if need be.
        changes: as a JSON file of settings has them.
        name: for the card: of the repository.
        licence: of the trained parts.

    Returns:
        The files written.

    Raises:
        ConfigError: where a file is missing or no safetensors file, none is named, another setting is a path
            of this machine, or the folder holds other things.
    """
    for place in _local_paths(changes):
        raise ConfigError(
            f"{place} is a path of this machine: push that to a hub by itself, and give its name"
        )
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PROFILE).is_file():
        raise ConfigError(f"{folder} holds other things: give a new folder, or one of an earlier push")
    settings = {group: dict(v) if isinstance(v, Mapping) else v for group, v in changes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    pinned, lines = {}, []
    for group, setting, value in _files(settings):
        if value in SHIPPED:
            continue
        source = Path(value).expanduser()
        if source.suffix != ".safetensors" or not source.is_file():
            raise ConfigError(
                f"{group}.{setting} {value!r}: no safetensors file there; give what `soir train` wrote"
            )
        target = folder / f"{HEADS[group, setting]}.safetensors"
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
        settings[group][setting] = target.name
        pinned[target.name] = _sha256(target)
        lines.append(f"- `{target.name}` ({target.stat().st_size / 1e6:.1f} MB): `{group}.{setting}`")
    if not pinned:
        raise ConfigError("no trained file is named in these settings: there is nothing to push")
    content = {"settings": settings, "sha256": pinned}
    (folder / PROFILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    card = CARD.format(name=name, licence=licence, files="\n".join(lines))
    (folder / "README.md").write_text(card, encoding="utf-8")
    return [folder / PROFILE, folder / "README.md", *(folder / file for file in pinned)]


def push(folder: Path, repo: str, *, private: bool = False) -> str:
    """Send a folder of `write` to a hub, with the login of huggingface_hub. Returns its address.

    Args:
        folder: of `write`.
        repo: "owner/name"; it is made if need be.
        private: of a new one.

    Raises:
        WeightsError: where the hub is not reached or refuses it.
    """
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        return str(
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Trained parts").commit_url
        )
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{repo} could not be pushed ({_reason(error)}): log in with `hf auth login`, and see that you may "
            "write there"
        ) from error


def _fetched(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = repo.partition("@")
    try:
        patterns = [PROFILE, "README.md", "*.safetensors"]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{SCHEME}{repo} could not be fetched ({_reason(error)}): see that the hub is reached and its name is right"
        ) from error


def _files(settings: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Group, setting and value of those that name a trained file."""
    for group, setting in HEADS:
        values = settings.get(group)
        value = values.get(setting) if isinstance(values, Mapping) else None
        if isinstance(value, str):
            yield group, setting, value


def _local_paths(settings: Mapping[str, Any]) -> Iterator[str]:
    """Settings, with their values, that are paths but none of a trained file."""
    for group, values in settings.items():
        for setting, value in values.items() if isinstance(values, Mapping) else ():
            if isinstance(value, str) and value.startswith(("/", ".", "~")) and (group, setting) not in HEADS:
                yield f"{group}.{setting} {value!r}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
