"""Where model weights come from: a local folder, a hub name, or the embedded default. See `weights_table`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from soir_qdrant.errors import WeightsError
from soir_qdrant.models import embedded
from soir_qdrant.models.cache import Origin, digest_of

EMBEDDED = "embedded"
WHOLE = "embedded-12"  # with the last block, which its fine-tuning changed


PACKAGED = {
    EMBEDDED: (embedded.ORIGIN, embedded.ONNX_SHA256, embedded.BLOCKS),
    WHOLE: (embedded.WHOLE_ORIGIN, embedded.WHOLE_SHA256, embedded.ALL_BLOCKS),
}  # where they come from, their sha256, and how many blocks they have


@dataclass(frozen=True, slots=True)
class Weights:
    """path: a `transformers` folder, or a hub name where `local` is false. sha256: hex digest of the
    file the weights came from, or the hub name."""

    path: str
    local: bool
    sha256: str
    origin: Origin


def resolve(name: str = EMBEDDED) -> Weights:
    """Find weights by name.

    Args:
        name: "embedded", "embedded-12", a folder with `config.json`, or a hub name such as "facebook/dinov2-base".

    Raises:
        WeightsError: the folder is incomplete or damaged, or a download or conversion failed.
    """
    if name in PACKAGED:
        origin, sha256, blocks = PACKAGED[name]
        return Weights(str(embedded.checked_folder(blocks)), True, sha256, origin)
    path = Path(name).expanduser()
    if path.exists():
        origin = Origin(path.name, "a local folder", "as the folder says", "")
        return Weights(str(path), True, digest_of(_files_of(path)), origin)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(
            f"no weights {name!r}: it is neither 'embedded', nor a folder here, nor a hub name like "
            "'facebook/dinov2-base'"
        )
    return Weights(name, False, name, Origin(name, f"model hub: {name}", "as the hub's model card says", ""))


def origin_of(name: str = EMBEDDED) -> tuple[Origin, str]:
    """Where weights come from, and their sha256 as in `Weights`. Fetches nothing.

    Args:
        name: as `resolve` takes it.

    Raises:
        WeightsError: as `resolve`, but for what it would have to fetch.
    """
    if name in PACKAGED:
        return PACKAGED[name][:2]
    weights = resolve(name)
    return weights.origin, weights.sha256


def fetch(name: str = EMBEDDED) -> Path:
    """Put weights on this machine, for use without a network. Returns the folder they lie in.

    Args:
        name: as `resolve` takes it; a folder is returned as it is.

    Raises:
        WeightsError: they cannot be fetched, or are not what they should be.
    """
    weights = resolve(name)
    if weights.local:
        return Path(weights.path)
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        safe = any(file.endswith(".safetensors") for file in list_repo_files(name))
        tensors = "*.safetensors" if safe else "pytorch_model*.bin"
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.txt", "*.model", tensors]))
    except (OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"{name} could not be fetched from the hub ({reason}): see that it is reached and that its terms "
            "are accepted, or give a folder saved by `save_pretrained`"
        ) from error


def _files_of(folder: Path) -> list[Path]:
    """The files that `transformers` will load: others beside them are an error, as they would be taken for
    what is loaded."""
    if not (folder / "config.json").is_file():
        raise WeightsError(f"{folder}: no config.json there; give a folder saved by `save_pretrained`")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"{folder}: no *.safetensors there; save the model with `save_pretrained`")
    parts = [file for file in files if file.name.startswith("model-")]
    whole = [file for file in files if file.name == "model.safetensors"]
    if (whole or parts) != files:
        strange = ", ".join(file.name for file in files if file not in (whole or parts))
        raise WeightsError(
            f"{folder}: {strange} is not what `transformers` loads from there: leave model.safetensors alone "
            "in the folder (or its parts, model-00001-of-....safetensors)"
        )
    return files
