"""Settings, and a runtime where models are served, to a pipeline: the one place that joins the parts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soir_qdrant.errors import ConfigError

if TYPE_CHECKING:
    from soir_qdrant.pipeline import Pipeline
    from soir_qdrant.serving.runtime import Runtime


def make_pipeline(profile: str | None, runtime: Runtime | None = None) -> Pipeline:
    """The pipeline of a profile, on the models of a runtime (of its settings, where there is no profile).
    Loads the model library, so only when needed."""
    from soir_qdrant.config import Settings
    from soir_qdrant.pipeline import Pipeline

    settings = Settings.for_profile(profile) if profile else None
    return runtime.pipeline(settings) if runtime else Pipeline(settings)


def served_pipeline(
    pipeline: Pipeline | None, profile: str | None, runtime: Runtime | None
) -> Pipeline | None:
    """The pipeline that is there from the start: one that was given, or one on a runtime, which is to say at
    once what it lacks. Raises ConfigError where both are given."""
    if pipeline is not None and runtime is not None:
        raise ConfigError("give a pipeline or a runtime: `runtime.pipeline(settings)` is a pipeline")
    return make_pipeline(profile, runtime) if runtime else pipeline
