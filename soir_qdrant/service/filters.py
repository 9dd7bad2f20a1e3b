"""Qdrant's filters, as requests carry them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query
from pydantic import ValidationError
from pydantic_core import from_json
from qdrant_client import models

from soir_qdrant.service.problems import Refusal, invalid

FilterText = Annotated[str | None, Query(max_length=20_000, description="of Qdrant, as JSON")]


def filter_of(value: dict[str, Any] | None) -> models.Filter | None:
    """Qdrant's filter. Raises Refusal for what is none."""
    if value is None:
        return None
    try:
        return models.Filter.model_validate(value)
    except ValidationError as error:
        raise invalid(error, "filter: no filter of Qdrant: ") from error


def filter_of_text(text: str | None) -> models.Filter | None:
    """The same of JSON. Raises Refusal for what is none."""
    try:
        return filter_of(from_json(text) if text else None)
    except ValueError as error:
        raise Refusal(422, f"filter: no JSON ({error})") from error
