"""The chat template against the golden renderings: in our sandbox and through transformers, variables in both forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nano3.data.chat.template import ChatTemplate
from nano3.data.tokens.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[2] / "golden"
CASES = [
    pytest.param(case, id=case["name"])
    for name in ("chat_template.json", "chat_grid.json")
    for case in json.loads((FOLDER / name).read_text("utf-8"))
]


@pytest.fixture(scope="module")
def template() -> ChatTemplate:
    return ChatTemplate.default()


@pytest.fixture(scope="module")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What transformers makes of a saved folder."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("model")
    Tokenizer.train(["some words to learn from"], 300).save(folder)
    return AutoTokenizer.from_pretrained(folder)


def forms(case: dict[str, Any]) -> list[dict[str, Any]]:
    """The case's variables each by itself, and in one mapping."""
    return [case["chat_template_kwargs"], {"chat_template_kwargs": case["chat_template_kwargs"]}]


@pytest.mark.parametrize("case", CASES)
def test_in_our_sandbox(template: ChatTemplate, case: dict[str, Any]) -> None:
    for variables in forms(case):
        rendered = template.render(case["messages"], case["tools"], case["add_generation_prompt"], **variables)
        assert rendered == case["expected"]


@pytest.mark.parametrize("case", CASES)
def test_through_transformers(hf_tokenizer: Any, case: dict[str, Any]) -> None:
    for variables in forms(case):
        rendered = hf_tokenizer.apply_chat_template(
            case["messages"],
            tools=case["tools"] or None,
            add_generation_prompt=case["add_generation_prompt"],
            tokenize=False,
            **variables,
        )
        assert rendered == case["expected"]
