"""vLLM's fields: what cannot be done and would change the answer is refused, the rest is let through."""

import pytest
from pydantic import ValidationError

from nano3.serve.schemas import ChatRequest, CompletionRequest

CHAT, TEXT = {"messages": [{"role": "user", "content": "Hi"}]}, {"prompt": "a"}


@pytest.mark.parametrize(
    "field",
    [{"allowed_token_ids": [1]}, {"bad_words": ["a"]}, {"prompt_logprobs": 0}, {"prompt_logprobs": 1},
     {"skip_special_tokens": False}, {"length_penalty": 2}, {"use_beam_search": True}, {"truncate_prompt_tokens": 0}],
)  # fmt: skip
def test_what_would_change_the_answer_and_cannot_be_done_is_refused(field):
    for schema, body in ((ChatRequest, CHAT), (CompletionRequest, TEXT)):
        with pytest.raises(ValidationError) as caught:
            schema.model_validate(body | field)
        assert next(iter(field)) in str(caught.value.errors()[0]["ctx"])


def test_fields_at_their_usual_values_are_let_through():
    usual = {"allowed_token_ids": None, "bad_words": [], "prompt_logprobs": None, "skip_special_tokens": True,
             "length_penalty": 1.0, "use_beam_search": False, "truncate_prompt_tokens": None}  # fmt: skip
    for schema, body in ((ChatRequest, CHAT), (CompletionRequest, TEXT)):
        schema.model_validate(body | usual)
