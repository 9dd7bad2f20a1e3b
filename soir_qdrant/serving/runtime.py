"""The parts of a pipeline, served: what `OnnxRuntime` and `TritonRuntime` share."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from soir_qdrant.config import Settings
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.serving import spec
from soir_qdrant.serving.served import ServedDetector, ServedEncoder, ServedSegmenter, ServedTokens, Session
from soir_qdrant.types import Detector, Segmenter

if TYPE_CHECKING:
    from soir_qdrant.models.last_block import LastBlock
    from soir_qdrant.pipeline import Pipeline


class Runtime:
    """Where the models run. settings: those of the parts `encoder`, `detector` and `segmenter` when they
    are used by themselves; `pipeline` takes its own."""

    def __init__(self, settings: Settings | None = None, *, last_block: str | Path | None = None) -> None:
        self.settings = settings or Settings.for_profile()
        self._last_block_file = Path(last_block) if last_block else None

    def session(self, name: str) -> Session:
        """A served model, by its name. Raises ConfigError where it is missing or not what it should be."""
        raise NotImplementedError

    def pipeline(self, settings: Settings | None = None) -> Pipeline:
        """The pipeline of these settings on the served models, each of which is looked at now.

        What needs no model of its own (heads on the tokens, GrabCut) runs here. Raises ConfigError where the
        served models are not those of the settings, and ServerError where the server does not answer.
        """
        from soir_qdrant.pipeline import Pipeline

        held = settings or self.settings
        encoder = self.make_encoder(held, tokens=held.vector.pooling == "mao")
        detector, segmenter = self.make_detector(held), self.make_segmenter(held)
        tokens = ServedTokens(self.session(spec.DETECTOR)) if held.detector.kind == "embedded" else None
        return Pipeline(
            held, detector=detector, segmenter=segmenter, encoder=encoder, tokens=tokens, as_named=True
        )

    @cached_property
    def encoder(self) -> ServedEncoder:
        return self.make_encoder(self.settings)

    @cached_property
    def detector(self) -> Detector | None:
        """None where the settings ask for none: then the whole image is the one object."""
        return self.make_detector(self.settings)

    @cached_property
    def segmenter(self) -> Segmenter:
        return self.make_segmenter(self.settings)

    def make_encoder(self, settings: Settings, *, tokens: bool = True) -> ServedEncoder:
        """tokens: whether `encode` fetches them."""
        session = self.session(spec.ENCODER)
        made = ServedEncoder(
            session, tokens=tokens, last_block=lambda: self.last_block(settings, session.fingerprint)
        )
        if made.input_size != settings.encoder.input_size:
            raise ConfigError(
                f"{spec.ENCODER} takes crops of {made.input_size} pixels, and the setting encoder.input_size "
                f"is {settings.encoder.input_size}: export it for that size, or change the setting"
            )
        return made

    def make_detector(self, settings: Settings) -> Detector | None:
        if settings.detector.kind == "none":
            return None
        return ServedDetector(self.session(spec.DETECTOR), settings.detector)

    def make_segmenter(self, settings: Settings) -> Segmenter:
        if settings.segmenter.kind == "sam":
            return ServedSegmenter(self.session(spec.SEGMENTER_ENCODER), self.session(spec.SEGMENTER_DECODER))
        from soir_qdrant.models.segmenters.factory import make_segmenter

        if (settings.segmenter.kind, settings.detector.kind) != ("embedded", "embedded"):
            return make_segmenter(settings.segmenter)  # no trunk is served that it could look through
        session = self.session(spec.DETECTOR)
        return make_segmenter(settings.segmenter, ServedTokens(session), session.fingerprint)

    def last_block(self, settings: Settings, fingerprint: str) -> LastBlock:
        """Of the served encoder: from the file that was exported with it, else out of the local weights.

        Raises WeightsError where neither is here, or they are of another encoder.
        """
        from soir_qdrant.serving import last_block

        if self._last_block_file is not None:
            return last_block.load(self._last_block_file, fingerprint)
        from soir_qdrant.models.encoders.vit import ViTEncoder

        held = settings.encoder
        local = ViTEncoder(
            held.weights, input_size=held.input_size, device="cpu", dtype="float32", adapter=held.adapter
        )
        if local.fingerprint != fingerprint:
            raise WeightsError(
                f"the local weights are {local.fingerprint}, and the encoder that is served is "
                f"{fingerprint}: give last_block the {last_block.FILE} that was exported with it"
            )
        return local.last_block
