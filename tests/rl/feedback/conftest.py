"""A served judge."""

import pytest

from ..answering_server import server


@pytest.fixture
def judge_server():
    """Serve `answer(text of the last message)`, which gives (status, text); yields the URL and what was asked."""
    return lambda answer: server(lambda messages: answer(messages[-1]["content"]))
