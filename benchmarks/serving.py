"""The encoder on the CPU: torch, onnxruntime and Triton on the same crops, as ratios to torch in one run.

python benchmarks/serving.py --out build/bench-serving.json

Like with like: torch in float32, as the exports are, all on the same cores. (On CPUs with bfloat16
instructions the package's own choice is bfloat16, which is timed beside it.) Triton is the server that the
tests use, with the Python backend, unless --triton names another; its clients share the cores with it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tritonserver import NoTriton, Triton

from soir_qdrant.config import Settings
from soir_qdrant.models.encoders.vit import ViTEncoder
from soir_qdrant.serving.check_images import real_crops
from soir_qdrant.serving.export import export
from soir_qdrant.serving.onnx import OnnxEncoder
from soir_qdrant.serving.triton import TritonConnection, TritonEncoder
from soir_qdrant.types import Encoding

Encode = Callable[[Any, Any], Encoding]


def exported(folder: Path) -> Path:
    """The embedded encoder's file, exported once."""
    file = folder / "soir_encoder" / "1" / "model.onnx"
    if not file.is_file():
        export(
            Settings.for_profile().but(detector={"kind": "none"}), folder, backend="python", progress=print
        )
    return file


@contextmanager
def triton(url: str | None, models: Path) -> Iterator[str | None]:
    """Of a server that is there, or of one started here; None, and why, where neither can be."""
    if url:
        yield url
        return
    with tempfile.TemporaryDirectory() as scratch:
        try:
            server = Triton(models, Path(scratch) / "log").start()
        except NoTriton as reason:
            print(f"no Triton: {reason}")
            yield None
            return
        try:
            yield server.url
        finally:
            server.kill()


def in_turn(ways: dict[str, Encode], crops: Any, masks: Any, rounds: int) -> dict[str, list[float]]:
    """Seconds of each round, the ways in turn, so that a drifting machine slows all of them."""
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds + 1):
        for name, encode in ways.items():
            begun = time.perf_counter()
            encode(crops, masks)
            if i:  # the first one warms up
                spent[name].append(time.perf_counter() - begun)
    return spent


def under_load(encode: Encode, crops: Any, masks: Any, concurrency: int, requests: int) -> dict[str, float]:
    """Crops per second, and milliseconds of a request, with so many callers at once."""

    def one(_: int) -> float:
        begun = time.perf_counter()
        encode(crops, masks)
        return time.perf_counter() - begun

    begun = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        each = list(pool.map(one, range(max(requests, 2 * concurrency))))
    wall = time.perf_counter() - begun
    p50, p99 = np.percentile(each, [50, 99]) * 1e3
    return {"images_per_s": len(each) * len(crops) / wall, "p50_ms": float(p50), "p99_ms": float(p99)}


def cosine(one: Encoding, other: Encoding) -> float:
    """The least over descriptors and layers."""
    least = 1.0
    for a, b in ((one.descriptor, other.descriptor), (one.layers, other.layers)):
        product = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        least = min(least, float(product.min()))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("build/bench-serving.json"))
    parser.add_argument("--models", type=Path, default=Path("build/models-bench"))
    parser.add_argument("--triton", help="host:port of a server that has these models")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=16, help="per step of the concurrency")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 2, 4, 8, 16])
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # or the server would outlive this process

    file = exported(given.models)
    crops, masks = real_crops(224, 4)
    torch32, torch_auto = ViTEncoder(device="cpu", dtype="float32"), ViTEncoder(device="cpu")
    ways: dict[str, Encode] = {"torch": torch32.encode, "onnx": OnnxEncoder(file).encode}
    if torch_auto.dtype != torch32.dtype:
        ways[f"torch {str(torch_auto.dtype).removeprefix('torch.')}"] = torch_auto.encode
    with triton(given.triton, given.models) as url:
        if url:
            connection = TritonConnection(url, in_flight=max(given.concurrency, default=1), timeout=600)
            ways["triton"] = TritonEncoder(connection).encode
        reference = torch32.encode(crops, masks)
        cosines = {name: cosine(ways[name](crops, masks), reference) for name in ways if name != "torch"}
        spent = in_turn(ways, crops, masks, given.rounds)
        medians = {name: float(np.median(times)) for name, times in spent.items()}
        loads = {
            name: {n: under_load(ways[name], crops, masks, n, given.requests) for n in given.concurrency}
            for name in ("torch", "onnx", "triton")
            if name in ways
        }
        if url:
            connection.close()
    ratios = {name: medians["torch"] / seconds for name, seconds in medians.items()}
    served = [cosines[name] for name in ("onnx", "triton") if name in cosines]
    result = {
        "onnx_cpu_ratio": round(ratios["onnx"], 3),
        "triton_cpu_ratio": round(ratios["triton"], 3) if "triton" in ratios else None,
        "min_cosine": min(served),
        "ratios": ratios,
        "cosines": cosines,
        "load": loads,
        "cores": os.cpu_count(),
        "crops_per_request": len(crops),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2))
    print(f"one caller, {len(crops)} crops a request, as a ratio to torch float32 (more is faster):")
    for name, ratio in ratios.items():
        print(f"  {name:15} {ratio:5.2f}   cosine {cosines.get(name, 1.0):.7f}")
    base = loads["torch"][given.concurrency[0]]["images_per_s"] if given.concurrency else 0.0
    print("callers at once: crops/s as a ratio to one caller of torch, p50 and p99 of a request in ms")
    for name, rows in loads.items():
        for n, row in rows.items():
            print(
                f"  {name:8} {n:3}   {row['images_per_s'] / base:5.2f}  ({row['images_per_s']:.1f}/s)"
                f"   p50 {row['p50_ms']:7.0f}   p99 {row['p99_ms']:7.0f}"
            )
    print(f"{given.out}: {json.dumps({k: result[k] for k in list(result)[:3]})}")


if __name__ == "__main__":
    main()
