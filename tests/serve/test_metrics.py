"""Times between tokens, as the histograms get them."""

import types
from collections import Counter

import pytest
from prometheus_client import generate_latest

from nano3.engine.request import Token, Update
from nano3.serve.metrics import Metrics


def test_tokens_of_one_step_share_the_time_since_the_step_before():
    metrics = Metrics()
    stream = types.SimpleNamespace(submitted=10.0, last_at={}, prompt_tokens=3, produced=Counter())
    metrics.on_update(stream, Update("a", 0, (Token(1, 0.0, 0.0),)), 10.5)
    stream.last_at[0] = 10.5
    metrics.on_update(stream, Update("a", 0, (Token(1, 0.0, 0.0),) * 4, finish="stop"), 10.9)

    def value(name):
        return metrics.registry.get_sample_value(name)

    assert value("nano3_time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value("nano3_inter_token_latency_seconds_count") == 4
    assert value("nano3_inter_token_latency_seconds_sum") == pytest.approx(0.4)
    assert value("nano3_request_latency_seconds_sum") == pytest.approx(0.9)


def test_no_series_says_when_it_was_created_which_would_double_the_text():
    text = generate_latest(Metrics().registry).decode()
    assert "nano3_request_latency_seconds_bucket" in text
    assert "_created" not in text
