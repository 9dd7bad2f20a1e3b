"""Makes `soir_qdrant/data/everyday.onnx`, the detector of everyday things, of a published one (DEIMv2-Femto).

    git clone https://github.com/Kazuhito00/DEIMv2-ONNX-Sample && git -C DEIMv2-ONNX-Sample checkout f88d438
    python benchmarks/everyday.py DEIMv2-ONNX-Sample/model/deimv2_hgnetv2_femto_coco.onnx everyday.onnx

What is changed: it takes images of bytes, answers boxes in shares of them, and keeps its weights in half precision.
Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SHA256 = "c6ad358f"  # of the published file, its first digits
SIDE = 416
ENOUGH = 64  # numbers of a tensor, from which on it is kept in half precision


def with_bytes(graph: onnx.GraphProto) -> None:
    """Images come as uint8 [N, 416, 416, 3], and boxes go as shares of them."""
    del graph.input[:], graph.output[:]
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", SIDE, SIDE, 3]))
    graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["N", "queries", 4]))
    graph.output.append(helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", "queries"]))
    graph.output.append(helper.make_tensor_value_info("kinds", TensorProto.INT64, ["N", "queries"]))
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / 255, np.float32), "one_level"),
            numpy_helper.from_array(np.array([[1, 1]], np.int64), "whole"),
        ]
    )
    first = [
        helper.make_node("Cast", ["images"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "one_level"], ["light"]),
        helper.make_node("Transpose", ["light"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    names = {"images": "planes", "orig_target_sizes": "whole"}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = ["kinds" if name == "labels" else name for name in node.output]
    _insert(graph, first)


def halved(graph: onnx.GraphProto) -> None:
    """Weights in half precision, which are made single again where the model is loaded."""
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and numpy_helper.to_array(tensor).size >= ENOUGH:
            name = tensor.name
            half = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
            casts.append(helper.make_node("Cast", [f"{name}.half"], [name], to=TensorProto.FLOAT))
    _insert(graph, casts)


def _insert(graph: onnx.GraphProto, first: list[onnx.NodeProto]) -> None:
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("published", type=Path, help="deimv2_hgnetv2_femto_coco.onnx")
    parser.add_argument("out", type=Path, help="the file to write")
    args = parser.parse_args()
    data = args.published.read_bytes()
    if not hashlib.sha256(data).hexdigest().startswith(SHA256):
        parser.error(f"{args.published}: not the file that this was written for (sha256 {SHA256}...)")
    model = onnx.load_from_string(data)
    with_bytes(model.graph)
    halved(model.graph)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    onnx.save(model, str(args.out))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
