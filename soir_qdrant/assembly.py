"""Settings, and a runtime where models are served, to a pipeline: the one place where parts are put together,
for the command line as for everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soir_qdrant.errors import ConfigError
from soir_qdrant.qdrant.schema import stored_fingerprint

if TYPE_CHECKING:
    from qdrant_client import models

    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime

OF_0_1 = "b7f79eca1c18"  # digest of the projection that shipped with version 0.1


def make_pipeline(settings: Settings | str | None, runtime: Runtime | None = None) -> Pipeline:
    """The pipeline of these settings.

    Args:
        settings: or the name of their profile. None: those of the runtime, else of the default profile.
        runtime: where the models run; None is here. Its models are looked at now, others when first needed.

    Raises:
        ConfigError: for an unknown profile, and for a runtime whose models are not those of the settings.
        ServerError: where the runtime's server does not answer.
    """
    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline

    if isinstance(settings, str):
        settings = Settings.for_profile(settings)
    return runtime.pipeline(settings) if runtime else Pipeline(settings)


def profile_of(info: models.CollectionInfo | None) -> str | None:
    """The profile that goes on with a collection, where that is not the default one of today: "embedded-0.1", where
    version 0.1 filled it with its own default. info: of the collection, None where there is none."""
    theirs = (stored_fingerprint(info) if info else None) or {}
    return "embedded-0.1" if theirs.get("whitening") == OF_0_1 else None


def served_pipeline(
    pipeline: Pipeline | None, profile: str | None, runtime: Runtime | None
) -> Pipeline | None:
    """The pipeline that is there from the start: one that was handed in, or one on a runtime, which is to say
    at once what it lacks. Raises ConfigError where both are given."""
    if pipeline is not None and runtime is not None:
        raise ConfigError("give a pipeline or a runtime: `runtime.pipeline(settings)` is a pipeline")
    return make_pipeline(profile, runtime) if runtime else pipeline
