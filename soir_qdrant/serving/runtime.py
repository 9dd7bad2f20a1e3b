"""The parts of a pipeline, served: what `OnnxRuntime` and `TritonRuntime` share."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soir_qdrant.config import Settings, TokenHeadSettings, VitSettings
from soir_qdrant.contracts import TEXTURE_LAYER, Detector, Segmenter, TextTower
from soir_qdrant.errors import ConfigError, WeightsError
from soir_qdrant.kinds import SEGMENTERS, Parts, kind_of, make_detector, make_encoder, make_segmenter
from soir_qdrant.models.detectors import everyday
from soir_qdrant.models.encoders.words import load_tokenizer
from soir_qdrant.models.weights import resolve
from soir_qdrant.pooling.features import TEXTURE
from soir_qdrant.serving import last_block as last_blocks
from soir_qdrant.serving import served_text, spec
from soir_qdrant.serving.head_files import detector_head, reads_trunk, segmenter_head
from soir_qdrant.serving.served import ServedEncoder, ServedTrunk
from soir_qdrant.serving.served_detector import ServedDetector
from soir_qdrant.serving.served_masks import ServedMasks
from soir_qdrant.serving.served_segmenter import ServedSegmenter
from soir_qdrant.serving.served_text import ServedText
from soir_qdrant.serving.session import Session, of_kind

if TYPE_CHECKING:
    from soir_qdrant.models.last_block import LastBlock
    from soir_qdrant.pipeline import Pipeline

log = logging.getLogger(__name__)


class Runtime:
    """Where the models run. settings: those of the parts `encoder`, `detector` and `segmenter` when they
    are used by themselves; `pipeline` takes its own. last_block, tokenizer: what was exported beside the encoder and
    the text tower. exports: the folder that `soir export` wrote, where both are. None of them: they are read beside the
    local weights, when they are first needed."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        last_block: str | Path | None = None,
        tokenizer: str | Path | None = None,
        exports: str | Path | None = None,
    ) -> None:
        if exports is not None:
            folder = Path(exports).expanduser()
            last_block = last_block or folder / spec.ENCODER / last_blocks.FILE
            tokenizer = tokenizer or folder / spec.TEXT / served_text.FOLDER
        self.settings = settings or Settings.for_profile()
        self._last_block_file = Path(last_block) if last_block else None
        self._tokenizer_folder = Path(tokenizer) if tokenizer else None

    @property
    def place(self) -> str:
        """Where that is: a folder or an address."""
        raise NotImplementedError

    def session(self, name: str) -> Session:
        """A served model, by its name. Raises ConfigError where it is missing or not what it should be."""
        raise NotImplementedError

    def serves(self, name: str) -> bool:
        """Whether there is a model of that name. Raises ServerError where the server does not answer."""
        raise NotImplementedError

    def pipeline(self, settings: Settings | None = None) -> Pipeline:
        """The pipeline of these settings on the served models, each of which is looked at now.

        What needs no model of its own (heads on the features, GrabCut) runs here. Raises ConfigError where
        the served models are not those of the settings, and ServerError where the server does not answer.
        """
        from soir_qdrant.pipeline import Pipeline

        chosen = settings or self.settings
        pipeline = Pipeline(chosen, **self.parts(chosen))
        if chosen.scene is None and pipeline.encoder.projection != pipeline.projection > 0:
            log.warning(
                "%s was exported without the patches of these settings: objects are stored without them, and "
                "hits ordered by codes alone; export it again, and both are as they are here", spec.ENCODER
            )  # fmt: skip
        return pipeline

    def parts(self, settings: Settings) -> dict[str, Any]:
        """Of a pipeline of these settings: arguments of `Components`. Raises as `pipeline` does."""
        return {
            "detector": self.make_detector(settings),
            "segmenter": self.make_segmenter(settings),
            "encoder": self.make_encoder(settings),
            "text_encoder": self.make_text_encoder(settings),
            "as_named": True,
        }

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

    def make_encoder(self, settings: Settings) -> ServedEncoder:
        """The encoder, with the trunk, where that is served too."""
        session = self.session(spec.ENCODER)
        encoder = ServedEncoder(
            session,
            last_block=lambda: self.last_block(settings, session.fingerprint),
            trunk=self.trunk() if reads_trunk(settings) else None,
            texture=self._texture(session.fingerprint) if TEXTURE in settings.vector.features else None,
            object_only=settings.object_only,
        )
        if encoder.input_size != settings.encoder.input_size:
            raise ConfigError(
                f"{spec.ENCODER} takes crops of {encoder.input_size} pixels, and the setting "
                f"encoder.input_size is {settings.encoder.input_size}: export it for that size, or change "
                "the setting"
            )
        return encoder

    def make_detector(self, settings: Settings) -> Detector | None:
        """A kind that no model is served for runs here, one that reads features on the served trunk."""
        if settings.detector.kind == "owlv2":
            return ServedDetector(self.session(spec.DETECTOR), settings.detector)
        head = detector_head(settings, self.session(spec.ENCODER).fingerprint)
        if head is None:
            return make_detector(settings.detector, Parts(settings, self.trunk))
        session = self._with_head(spec.DETECTOR, head)
        reads = kind_of(SEGMENTERS, settings.segmenter.kind).reads_features
        return ServedDetector(
            session,
            settings.detector,
            source=self.trunk() if reads else None,
            other=self._everyday(settings),
        )

    def make_segmenter(self, settings: Settings) -> Segmenter:
        """A kind that no model is served for runs here, one that reads features on the served trunk."""
        if settings.segmenter.kind == "sam":
            return ServedSegmenter(self.session(spec.SEGMENTER_ENCODER), self.session(spec.SEGMENTER_DECODER))
        head = segmenter_head(settings, self.session(spec.ENCODER).fingerprint)
        if head is None:
            return make_segmenter(settings.segmenter, Parts(settings, self.trunk))
        return ServedMasks(self._with_head(spec.SEGMENTER, head), self.trunk())

    def make_text_encoder(self, settings: Settings) -> TextTower | None:
        """The text tower; None where none is served, or words cannot be compared: then it is what it is here."""
        if settings.vector.features != ("cls",) or not self.serves(spec.TEXT):
            return None
        text, encoder = self.session(spec.TEXT), self.session(spec.ENCODER)
        if text.fingerprint != encoder.fingerprint:
            raise ConfigError(
                f"{spec.TEXT} was exported with {text.fingerprint}, and {spec.ENCODER} is {encoder.fingerprint}: "
                "their vectors cannot be compared; export both from the same weights"
            )
        return ServedText(text, lambda: self.tokenizer(settings))

    def tokenizer(self, settings: Settings) -> Any:
        """Of the text tower: exported with it, else beside the local weights. Raises WeightsError where it is not."""
        if self._tokenizer_folder is not None:
            return served_text.load(self._tokenizer_folder)
        assert isinstance(settings.encoder, VitSettings)
        return load_tokenizer(resolve(settings.encoder.weights))

    def trunk(self) -> ServedTrunk:
        """The trunk alone, of which windows and patches are read."""
        return ServedTrunk(self.session(spec.TRUNK))

    def _texture(self, fingerprint: str) -> Session:
        """The first blocks of the encoder of this fingerprint."""
        session = self.session(spec.TEXTURE)
        if of_kind(session, "texture").fact("skip") != -1 - TEXTURE_LAYER:
            raise ConfigError(f"{spec.TEXTURE} reads another block than this version: export it again")
        if session.fingerprint != fingerprint:
            raise ConfigError(
                f"{spec.TEXTURE} was exported with {session.fingerprint}, and {spec.ENCODER} is {fingerprint}: "
                "export both from the same weights"
            )
        return session

    def _everyday(self, settings: Settings) -> Session | None:
        """The detector of everyday things, where the settings ask for it."""
        if not (isinstance(settings.detector, TokenHeadSettings) and settings.detector.everyday):
            return None
        return self._with_head(spec.EVERYDAY, everyday.fingerprint())

    def _with_head(self, name: str, head: str) -> Session:
        """A model with a trained head, which must be that of the settings."""
        session = self.session(name)
        if session.fingerprint != head:
            raise ConfigError(
                f"{name} was exported with the trained head {session.fingerprint}, and the settings name {head}: "
                "export it again, or name the head that it was exported with"
            )
        return session

    def last_block(self, settings: Settings, fingerprint: str) -> LastBlock:
        """Of the served encoder: from the file that was exported with it, else out of the local weights.

        Raises WeightsError where neither is here, or they are of another encoder.
        """
        if self._last_block_file is not None:
            return last_blocks.load(self._last_block_file, fingerprint)
        on_cpu = settings.but(encoder={"device": "cpu", "dtype": "float32"})
        local = make_encoder(on_cpu.encoder, Parts(on_cpu))
        if local.fingerprint != fingerprint:
            raise WeightsError(
                f"the local weights are {local.fingerprint}, and the encoder that is served is "
                f"{fingerprint}: give last_block the {last_blocks.FILE} that was exported with it"
            )
        return local.last_block
