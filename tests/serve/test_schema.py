"""What the server says about itself: the OpenAPI document, checked by generated requests, and the metrics."""

from __future__ import annotations

import json

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
FEW, MANY = 6, 60
"""Generated requests an operation."""
FEW_TOKENS, FEW_OUTPUTS = 4, 3


def operations(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in schema.get_all_operations()}


def test_its_schemas_have_plain_names(client):
    names = client.get("/openapi.json").json()["components"]["schemas"]
    assert {"ErrorBody", "MessagesError"} <= names.keys()
    assert [name for name in names if "__" in name] == []


def test_the_document_lists_what_is_served(server):
    assert set(operations(server)) >= {
        "POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /v1/messages",
        "POST /v1/messages/count_tokens", "GET /v1/models", "POST /tokenize", "POST /detokenize",
        "GET /health/live", "GET /health/ready", "GET /version",
    }  # fmt: skip


def shorten(body):
    """Keep generated requests from asking for thousands of tokens: what is checked is the form of the answers."""
    if isinstance(body, dict):
        for name, most in {
            "max_tokens": FEW_TOKENS,
            "max_completion_tokens": FEW_TOKENS,
            "max_output_tokens": FEW_TOKENS,
            "n": FEW_OUTPUTS,
        }.items():
            if isinstance(body.get(name), int) and body[name] > most:
                body[name] = most
        if "messages" in body and body.get("max_tokens") is None:
            body["max_tokens"] = FEW_TOKENS
        if isinstance(body.get("prompt"), list):
            del body["prompt"][FEW_OUTPUTS:]
    return body


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_generated_requests_are_answered_as_documented(server, mode, examples):
    for operation in operations(server).values():
        check_operation(server, operation, mode, examples)
    assert httpx2.get(f"{server.url}/health/ready").status_code == 200


def check_operation(server, operation, mode, examples):
    strategy = operation.as_strategy(generation_mode=mode)

    @seed(3)
    @settings(
        max_examples=examples if operation.body else 2,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def run(case):
        case.body = shorten(case.body)
        case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=60)

    try:
        run()
    except Exception as error:
        if type(error).__name__ in ("Unsatisfiable", "SkipTest"):
            # Nothing can be wrong about a request without parameters.
            assert mode is GenerationMode.NEGATIVE
            assert not operation.body
            return
        raise


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"])
def test_streams_are_answered_as_documented(server, path):
    asked = (
        {"prompt": "x"} if path == "/v1/completions" else {"messages": [{"role": "user", "content": "x"}], "input": "x"}
    )
    case = operations(server)[f"POST {path}"].Case(body=asked | {"stream": True, "max_tokens": 3})
    answer = case.call_and_validate(base_url=server.url, checks=CHECKS, timeout=60)
    assert answer.headers["content-type"][0].startswith("text/event-stream")


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'"x"', b"{}", b'{"messages": 3}', b"\xff\xfe", b"[" * 5000]
)
@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
    ],
)
def test_bodies_that_are_no_requests(server, path, body):
    answer = httpx2.post(f"{server.url}{path}", content=body, headers={"content-type": "application/json"})
    assert 400 <= answer.status_code < 500
    error = answer.json()["error"]
    assert error["message"]
    assert error["type"] == "invalid_request_error"


def metrics(server):
    """Every sample of /metrics, by name and labels, as Prometheus reads them."""
    answer = httpx2.get(f"{server.url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_metrics_count_what_happened(server):
    before = metrics(server)
    body = {"prompt": [5, 6, 7], "max_tokens": 4, "n": 2, "ignore_eos": True, "temperature": 1}
    assert httpx2.post(f"{server.url}/v1/completions", content=json.dumps(body)).status_code in (200, 400)
    answer = httpx2.post(f"{server.url}/v1/completions", json=body)
    assert answer.status_code == 200
    after = metrics(server)

    def grown(name, **labels):
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    outputs = grown("nano3_finished_outputs_total", reason="length")
    assert outputs in (2, 4)
    assert grown("nano3_output_tokens_total") == outputs * 4
    assert grown("nano3_time_to_first_token_seconds_count") == outputs
    assert grown("nano3_inter_token_latency_seconds_count") == outputs * 3
    assert grown("nano3_request_latency_seconds_count") == outputs
    assert after["nano3_running", ()] == after["nano3_waiting", ()] == after["nano3_queued", ()] == 0
    assert after["nano3_ready", ()] == 1
    assert 0 < after["nano3_pages", ()] >= after["nano3_pages_used", ()]
