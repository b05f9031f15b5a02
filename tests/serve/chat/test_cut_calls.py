"""Tool calls that a limit cut off, and what becomes of them in the next turn."""

import pytest


@pytest.mark.parametrize("arguments", ["{", '["x"]', "42", '{"city": "Par'])
def test_a_session_goes_on_after_a_call_that_was_cut_off(client, arguments):
    call = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": arguments}}
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [call]},
               {"role": "tool", "tool_call_id": "c1", "content": "invalid arguments"}]  # fmt: skip
    body = {"messages": history, "max_tokens": 4}
    assert client.post("/v1/chat/completions", json=body).status_code == 200
    tokens = client.post("/tokenize", json={"messages": history}).json()["tokens"]
    prompt = client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
    assert f"<parameter=arguments>\n{arguments}\n</parameter>" in prompt
