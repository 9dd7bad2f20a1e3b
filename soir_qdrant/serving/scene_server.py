"""The server's end of `soir_scene`: the pipeline, on the models beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from soir_qdrant.components import WHITENINGS
from soir_qdrant.config import Settings
from soir_qdrant.images import load
from soir_qdrant.models.artifacts import write_whole
from soir_qdrant.serving import spec
from soir_qdrant.serving.runtime import Runtime
from soir_qdrant.serving.scene import packed
from soir_qdrant.serving.session import Arrays, T, U, in_batches

FILE = "scene.json"
TRAINED = (("detector", "head"), ("segmenter", "head"), ("vector", "whitening"))  # settings that name a file
Infer = Callable[[str, Arrays, Sequence[str]], dict[str, NDArray[Any]]]


class SceneServer:
    """Describes images by the models of one server.

    Args:
        file: what `save` wrote.
        infer: runs a model: its name, inputs and outputs.
    """

    def __init__(self, file: Path, infer: Infer) -> None:
        settings, models = read(file)
        sessions = {name: BesideSession(about, infer) for name, about in models.items()}
        self._pipeline = _BesideRuntime(sessions).pipeline(settings)

    def scene(self, data: bytes, *, patches: bool = False) -> dict[str, NDArray[Any]]:
        """What is answered for the file of an image, with those of its objects' patches where they are asked for.
        Raises ImageError for a bad one."""
        return packed(self._pipeline.scenes([load(data)], patches=patches)[0])


class BesideSession:
    """A `session.Session` on a model of the same server. about: what `spec.describe` said of it."""

    def __init__(self, about: Mapping[str, str], infer: Infer) -> None:
        self.spec, self.fingerprint = spec.read(about, f"{FILE} of {spec.SCENE}")
        self._infer = infer

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `session.Session`."""
        return in_batches(
            lambda part: self._infer(self.spec.name, part, outputs),
            inputs,
            outputs,
            self.spec.usual_batch,
        )

    def each(self, action: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """One after the other: the server runs several scenes at once."""
        return [action(item) for item in items]


class _BesideRuntime(Runtime):
    def __init__(self, sessions: Mapping[str, BesideSession]) -> None:
        super().__init__()
        self._sessions = sessions

    def session(self, name: str) -> BesideSession:
        return self._sessions[name]

    def serves(self, name: str) -> bool:
        return name in self._sessions


def save(settings: Settings, models: Mapping[str, Mapping[str, str]], file: Path) -> None:
    """Write what `SceneServer` reads, trained files of the user's own beside it.

    Args:
        settings: of the pipeline.
        models: what `spec.describe` says of each model that was exported, by its name.
        file: to write.
    """
    content: dict[str, Any] = {"settings": settings.model_dump(mode="json"), "models": models}
    file.parent.mkdir(parents=True, exist_ok=True)
    for group, name, value in _files(content["settings"]):
        content["settings"][group][name] = f"{group}.safetensors"
        shutil.copyfile(Path(value).expanduser(), file.with_name(f"{group}.safetensors"))
    write_whole(file, json.dumps(content, indent=2).encode())


def read(file: Path) -> tuple[Settings, dict[str, dict[str, str]]]:
    """The settings and models that `save` wrote, trained files with their places."""
    content = json.loads(file.read_text())
    for group, name, value in _files(content["settings"]):
        content["settings"][group][name] = str(file.with_name(value))
    return Settings.model_validate(content["settings"]), content["models"]


def _files(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Group, setting and value of those that name a file, none that comes with the package."""
    values = ((group, name, settings[group].get(name)) for group, name in TRAINED)
    return [(*place, value) for *place, value in values if value not in (None, *WHITENINGS)]
