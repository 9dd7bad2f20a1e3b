"""The encoder that a scene encoder reads."""

from __future__ import annotations

from soir_qdrant.contracts import Encoder
from soir_qdrant.errors import ConfigError
from soir_qdrant.kinds import Parts


def encoder_of(parts: Parts) -> Encoder:
    """The encoder of the settings, here or served. Raises ConfigError for a trunk alone, and for settings that
    describe objects by something else than its descriptor."""
    if parts.settings.vector.features != ("cls",):
        raise ConfigError(
            "a scene encoder describes regions by the encoder's own descriptor: set vector.features to "
            '["cls"], as the profiles cluster-clip and sum-clip do'
        )
    if parts.settings.vector.pooling == "mao":
        raise ConfigError(
            'vector.pooling "mao" refines crops, and a scene encoder makes none: take "gmp" or "mean"'
        )
    encoder = parts.source
    if not isinstance(encoder, Encoder):
        raise ConfigError("a scene encoder reads an encoder's last block, and this is a trunk alone")
    return encoder
