"""The model of Triton's Python backend for whole scenes: the pipeline, on the models of the same server.

`soir export` puts a copy into soir_scene. It needs soir_qdrant in the server's Python, and no torch.
"""

import os
import sys
from pathlib import Path
from typing import Any

# Some builds of the backend start Python isolated, which ignores PYTHONPATH.
sys.path += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]

import numpy as np
import triton_python_backend_utils as pb

from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.serving.scene_server import FILE, SceneServer


class ModelFailed(Exception):
    """What another model answered instead of outputs."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = error


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        folder = Path(args["model_repository"]) / args["model_version"]
        self.server = SceneServer(folder / FILE, infer)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        image = np.from_dlpack(pb.get_input_tensor_by_name(request, "image"))
        names = request.requested_output_names()
        try:
            scene = self.server.scene(image.tobytes(), patches="patches" in names)
        except ModelFailed as failed:  # with its status: a full queue is worth another attempt
            return pb.InferenceResponse(error=failed.error)
        except (ConfigError, WeightsError) as error:  # of the export: no image would escape it
            return pb.InferenceResponse(error=pb.TritonError(str(error)))
        except Exception as error:  # of this image: its client goes on with the others
            return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        return pb.InferenceResponse([tensor(name, scene[name]) for name in names])


def infer(name: str, inputs: Any, outputs: Any) -> dict[str, Any]:
    request = pb.InferenceRequest(
        model_name=name,
        requested_output_names=list(outputs),
        inputs=[tensor(key, array) for key, array in inputs.items()],
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU),
    )
    response = request.exec()
    if response.has_error():
        raise ModelFailed(response.error())
    arrays = {key: np.from_dlpack(pb.get_output_tensor_by_name(response, key)) for key in outputs}
    return {key: array.copy() for key, array in arrays.items()}


def tensor(name: str, array: Any) -> Any:
    """By DLPack, which wants it contiguous and writable; see python_backend.py."""
    array = np.ascontiguousarray(array)
    return pb.Tensor.from_dlpack(name, array if array.flags.writeable else array.copy())
