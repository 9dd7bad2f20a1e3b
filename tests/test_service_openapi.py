"""Requests made from the OpenAPI, right ones and wrong ones: each must be answered as the OpenAPI says."""

import pytest
from browser import running
from conftest import ColourPipeline
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel
from qdrant_client import QdrantClient
from service_app import fill

pytest.importorskip("fastapi", reason="the extra serve is not installed")
from soir_qdrant.service import schemas, schemas_overview, schemas_search
from soir_qdrant.service.app import create_app

# Not checked: that whatever fits the schema is accepted. Bytes that are no image fit it, and ids that do not exist.
EXAMPLES = 10  # of each operation
ENDLESS = "/events$"  # of a job: the answer comes in parts
PICTURES = {"image/jpeg", "image/png"}
PROBES = {"get /healthz", "get /readyz"}


@pytest.fixture(scope="module")
def described():
    return create_app(QdrantClient(":memory:"), ColourPipeline).openapi()


def each_operation(described):
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            yield f"{method} {path}", operation


def examples(described, part):
    """Of a media type or a schema: its own, or of what it refers to."""
    if "$ref" in part:
        part = described["components"]["schemas"][part["$ref"].rpartition("/")[2]]
    own = [part["example"]] if "example" in part else part.get("examples", [])
    inner = [part[key] for key in ("schema", "items") if key in part]
    inner += [*part.get("anyOf", []), *part.get("properties", {}).values()]
    return own or [shown for one in inner for shown in examples(described, one)]


def test_every_request_and_answer_has_an_example_and_every_parameter_a_word_on_what_it_is(described):
    for name, operation in each_operation(described):
        assert operation["description"], name
        assert all(parameter.get("description") for parameter in operation.get("parameters", [])), name
        bodies = list(operation.get("requestBody", {}).get("content", {}).items())
        for answer in operation["responses"].values():
            bodies += answer.get("content", {}).items()
        for media, body in bodies:
            assert media in PICTURES or examples(described, body), (name, media)


def test_examples_are_what_their_own_models_take():
    shown = 0
    for module in (schemas, schemas_overview, schemas_search):
        for model in vars(module).values():
            if isinstance(model, type) and issubclass(model, BaseModel):
                for example in model.model_config.get("json_schema_extra", {}).get("examples", []):
                    model.model_validate(example)
                    assert not set(example) - set(model.model_fields)
                    shown += 1
    assert shown > 15


def test_errors_are_problem_details_and_nothing_else(described):
    for name, operation in each_operation(described):
        for status, answer in operation["responses"].items():
            if status.startswith(("4", "5")) and name not in PROBES:
                assert answer["content"] == {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                }


@pytest.mark.slow
def test_every_request_gets_an_answer_that_is_described(tmp_path):
    schemathesis = pytest.importorskip(
        "schemathesis", reason="schemathesis is not installed: the extra dev has it"
    )
    checks = pytest.importorskip("schemathesis.specs.openapi.checks")
    client = QdrantClient(":memory:")
    fill(client, tmp_path)
    with running(client, rate=0, writable=True, roots=(tmp_path,)) as origin:
        schema = schemathesis.openapi.from_url(f"{origin}/openapi.json").exclude(path_regex=ENDLESS)
        operations = [result.ok() for result in schema.get_all_operations()]
        assert len(operations) > 15
        for operation in operations:

            @settings(
                max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
            )
            @given(case=operation.as_strategy())
            def check(case):
                case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

            check()
