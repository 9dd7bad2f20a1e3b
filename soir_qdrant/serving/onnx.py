"""Exported models in this process, through onnxruntime: on the CPU faster than torch, and without it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.models.forked import Owner
from soir_qdrant.serving import last_block, spec
from soir_qdrant.serving.repository import VERSION
from soir_qdrant.serving.runtime import Runtime
from soir_qdrant.serving.served import ServedEncoder
from soir_qdrant.serving.session import Arrays, T, U, in_batches


class OnnxSession:
    """A `session.Session` on one model.onnx.

    file: written by `soir export`. providers: of onnxruntime, in order; None takes the GPU where
    onnxruntime-gpu is installed, else the CPU. threads: 0 for all cores. batch: rows that run at once.
    Raises ConfigError where onnxruntime is missing or the file is not of this version's making,
    WeightsError where it cannot be read.
    """

    def __init__(
        self,
        file: str | Path,
        *,
        providers: Sequence[str] | None = None,
        threads: int = 0,
        batch: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(
                "running exported models here needs onnxruntime: pip install 'soir-qdrant[onnx]' (or "
                "'soir-qdrant[onnx-gpu]')"
            ) from error
        path = Path(file).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such file; `soir export --out DIR` writes one per model")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        here = onnxruntime.get_available_providers()
        chosen = providers or [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in here]
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=list(chosen))
        except Exception as error:  # onnxruntime's errors share no base of their own
            raise WeightsError(
                f"{path}: onnxruntime cannot load it ({str(error).splitlines()[0]})"
            ) from error
        description = dict(self._session.get_modelmeta().custom_metadata_map)
        self.spec, self.fingerprint = spec.read(description, str(path))
        self._owner = Owner(f"{path} in onnxruntime")
        self.batch = batch or max(self.spec.usual_batch, 1)

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> dict[str, NDArray[Any]]:
        """See `session.Session`."""
        self._owner.check()
        size = self.batch if self.spec.max_batch else 0

        def run(part: Arrays) -> dict[str, NDArray[Any]]:
            return dict(zip(outputs, self._session.run(list(outputs), dict(part)), strict=True))

        return in_batches(run, inputs, outputs, size)

    def each(self, action: Callable[[T], U], items: Iterable[T]) -> list[U]:
        """One after the other: one run takes all cores."""
        return [action(item) for item in items]


class OnnxEncoder(ServedEncoder):
    """`contracts.Encoder` on a model.onnx. file: the one of soir_encoder. options: of `OnnxSession`.

    The last block is read from the file that the export wrote beside it, when it is first needed.
    """

    def __init__(self, file: str | Path, **options: Any) -> None:
        session = OnnxSession(file, **options)
        beside = Path(file).expanduser().resolve().parents[1] / last_block.FILE
        super().__init__(session, last_block=lambda: last_block.load(beside, session.fingerprint))


class OnnxRuntime(Runtime):
    """All models of a folder that `soir export` wrote: `SoirIngestor(client, runtime=OnnxRuntime(folder))`.

    folder: the repository. settings: see `Runtime`. options: of `OnnxSession`.
    """

    def __init__(self, folder: str | Path, settings: Settings | None = None, **options: Any) -> None:
        self.folder = Path(folder).expanduser()
        super().__init__(settings, exports=self.folder)
        self._options = options
        self._sessions: dict[str, OnnxSession] = {}

    @property
    def place(self) -> str:
        return str(self.folder.resolve())

    def session(self, name: str) -> OnnxSession:
        if name not in self._sessions:
            self._sessions[name] = OnnxSession(self._file(name), **self._options)
        return self._sessions[name]

    def serves(self, name: str) -> bool:
        return self._file(name).is_file()

    def _file(self, name: str) -> Path:
        return self.folder / name / str(VERSION) / "model.onnx"
