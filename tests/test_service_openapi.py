"""Requests made from the OpenAPI, right ones and wrong ones: each must be answered as the OpenAPI says."""

import pytest
from browser import running
from hypothesis import HealthCheck, given, settings
from qdrant_client import QdrantClient
from service_app import fill

# Not checked: that whatever fits the schema is accepted. Bytes that are no image fit it, and ids that do not exist.
EXAMPLES = 10  # of each operation
ENDLESS = "/events$"  # of a job: the answer comes in parts


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
