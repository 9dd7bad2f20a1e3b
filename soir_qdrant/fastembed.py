"""Our models under qdrant-client's own calls: `register()`, then `models.Image(image=..., model="soir/embedded")`."""

from soir_qdrant.integrations.fastembed import register as register
