"""The model of Triton's Python backend: runs the model.onnx beside it through onnxruntime, on the CPU.

`soir export` puts a copy into each version folder. It needs onnxruntime and NumPy in the server's Python,
and nothing of soir_qdrant.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

# Some builds of the backend start Python isolated, which ignores PYTHONPATH.
sys.path += [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p not in sys.path]

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        about = {k: v["string_value"] for k, v in config.get("parameters", {}).items()}
        file = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("SOIR_THREADS", "0"))  # 0: all cores
        # Models share the cores: one that waits in a loop for work takes them from the others.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        carried = self.session.get_modelmeta().custom_metadata_map
        for key in ("soir_spec", "soir_fingerprint"):
            if carried.get(key) != about.get(key):
                raise pb.TritonModelException(
                    f"{file}: {key} is {carried.get(key)}, and the configuration says {about.get(key)}: "
                    "they come from two exports"
                )
        self.batched = int(config.get("max_batch_size", 0)) > 0
        self.inputs = [item["name"] for item in config["input"]]

    def execute(self, requests: list[Any]) -> list[Any]:
        """Requests that ask for the same outputs, and whose inputs fit together, run as one batch."""
        answers: list[Any] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}
        # DLPack both ways: with NumPy 2, `as_numpy` reads wrong numbers in older backends, and
        # `pb.Tensor(name, array)` writes none.
        read = [
            {name: np.from_dlpack(pb.get_input_tensor_by_name(request, name)) for name in self.inputs}
            for request in requests
        ]
        for i, (request, arrays) in enumerate(zip(requests, read, strict=True)):
            shapes = tuple(a.shape[1:] for a in arrays.values()) if self.batched else i
            groups.setdefault((tuple(request.requested_output_names()), shapes), []).append(i)
        for (outputs, _), members in groups.items():
            joined = {n: np.concatenate([read[i][n] for i in members]) for n in self.inputs}
            try:
                arrays = self.session.run(list(outputs), joined)
            except Exception as error:
                for i in members:
                    answers[i] = pb.InferenceResponse(error=pb.TritonError(str(error)))
                continue
            start = 0
            for i in members:
                stop = start + len(read[i][self.inputs[0]])
                # A whole answer is sent as it is; a part is copied, as DLPack wants it contiguous.
                parts = [a if len(members) == 1 else a[start:stop].copy() for a in arrays]
                answers[i] = pb.InferenceResponse(
                    [pb.Tensor.from_dlpack(n, p) for n, p in zip(outputs, parts, strict=True)]
                )
                start = stop
        return answers
