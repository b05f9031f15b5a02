"""Plain completions over HTTP: every form of prompt, scoring as lm-eval asks for it, streams."""

import json
import math

import pytest
import torch

from ..waiting import wait_until


def complete(client, **body):
    response = client.post("/v1/completions", json={"seed": 3, "max_tokens": 8} | body)
    assert response.status_code == 200, response.text
    return response.json()


def stream(client, **body):
    response = client.post("/v1/completions", json={"seed": 3, "max_tokens": 8, "stream": True} | body)
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def texts(answer):
    return [choice["text"] for choice in answer["choices"]]


def test_text_and_token_ids_are_the_same_prompt(server, client):
    ids = server.tokenizer.encode("The quick")
    text = complete(client, prompt="The quick")
    assert texts(text) == texts(complete(client, prompt=ids)) == texts(complete(client, prompt=[ids]))
    assert text["usage"]["prompt_tokens"] == len(ids)


def test_several_prompts_and_outputs_are_numbered_in_order(client):
    together = complete(client, prompt=["The quick", "brown fox"], n=2)
    assert [choice["index"] for choice in together["choices"]] == [0, 1, 2, 3]
    alone = [complete(client, prompt=prompt, n=2) for prompt in ("The quick", "brown fox")]
    assert texts(together) == texts(alone[0]) + texts(alone[1])


def test_a_stream_adds_up_to_the_whole_answer(client):
    body = {"prompt": ["The quick", "brown fox"], "n": 2, "logprobs": 2, "echo": True}
    whole = complete(client, **body)
    parts = {}
    *chunks, last = stream(client, stream_options={"include_usage": True}, **body)
    for chunk in chunks:
        (choice,) = chunk["choices"]
        part = parts.setdefault(choice["index"], {"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [],
                                                  "text_offset": []})  # fmt: skip
        part["text"] += choice["text"]
        for key, values in choice["logprobs"].items():
            part[key] += values
        part["finish"] = choice["finish_reason"]
    for choice in whole["choices"]:
        part = parts[choice["index"]]
        assert part["text"] == choice["text"]
        assert part["finish"] == choice["finish_reason"]
        assert part["text_offset"] == choice["logprobs"]["text_offset"]
        assert part["tokens"] == choice["logprobs"]["tokens"]
    assert last["usage"] == whole["usage"]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_a_scored_prompt_has_the_models_own_logprobs(server, client, max_tokens):
    ids = server.tokenizer.encode("lazy dog jumps over")
    answer = complete(client, prompt=[ids, ids[:5]], echo=True, logprobs=1, max_tokens=max_tokens, temperature=0)
    expected = server.engine.model(torch.tensor([ids])).float().log_softmax(-1)[0]
    for choice, length in zip(answer["choices"], (len(ids), 5), strict=True):
        found = choice["logprobs"]
        assert len(found["tokens"]) == length + max_tokens
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        for i in range(1, length):
            assert found["token_logprobs"][i] == pytest.approx(expected[i - 1, ids[i]].item(), abs=1e-4)
            best = max(found["top_logprobs"][i].values())
            assert best == pytest.approx(expected[i - 1].max().item(), abs=1e-4)
            assert (found["token_logprobs"][i] == best) == (int(expected[i - 1].argmax()) == ids[i])
        assert choice["text"].startswith(server.tokenizer.decode(ids[:length]))
        assert choice["finish_reason"] == "length"


def test_offsets_point_into_the_text(client):
    choice = complete(client, prompt="über the lazy dog", echo=True, logprobs=0, max_tokens=6)["choices"][0]
    offsets, tokens = choice["logprobs"]["text_offset"], choice["logprobs"]["tokens"]
    assert offsets == sorted(offsets)
    for offset, token in zip(offsets, tokens, strict=True):
        if not token.startswith("bytes:"):
            assert choice["text"][offset : offset + len(token)] == token


def test_token_ids_come_back_on_request(server, client):
    choice = complete(client, prompt="The quick", return_token_ids=True)["choices"][0]
    assert choice["prompt_token_ids"] == server.tokenizer.encode("The quick")
    assert server.tokenizer.decode(choice["token_ids"], skip_special=True) == choice["text"]


def test_an_empty_text_begins_a_document_as_others_do_on_request(server, client):
    assert complete(client, prompt="", return_token_ids=True)["choices"][0]["prompt_token_ids"] == [
        server.tokenizer.eos_id
    ]
    choice = complete(client, prompt="The", return_token_ids=True, add_special_tokens=True)["choices"][0]
    assert choice["prompt_token_ids"] == [server.tokenizer.eos_id, *server.tokenizer.encode("The")]


def test_probabilities_of_zero_can_be_sent(client):
    choice = complete(client, prompt="a", logprobs=100, max_tokens=2)["choices"][0]
    assert all(math.isfinite(value) for top in choice["logprobs"]["top_logprobs"] for value in top.values())


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "empty"),
        ({"prompt": [[]]}, "empty"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10_000_000]}, "10000000"),
        ({"prompt": [3] * 5000}, "4096"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "logprobs": 101}, "logprobs"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "min_tokens": 9}, "min_tokens"),
        ({"prompt": ["a"] * 200, "n": 100}, "20000 outputs"),
    ],
)
def test_a_wrong_field_is_told_in_one_line(client, body, words):
    response = client.post("/v1/completions", json={"max_tokens": 4} | body)
    assert response.status_code == 400, response.text
    message = response.json()["error"]["message"]
    assert words in message
    assert "\n" not in message


def test_one_wrong_prompt_leaves_nothing_running(server, client):
    before = server.stats().output_tokens
    body = {"prompt": [[5], [10_000_000]], "max_tokens": 2000, "ignore_eos": True}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    client.post("/v1/completions", json={"prompt": [5], "max_tokens": 1})
    wait_until(lambda: server.service.thread.unfinished == 0 and server.stats().running == 0, seconds=20)
    assert server.stats().output_tokens - before < 2000, "it ran to its end"


@pytest.mark.parametrize(("keep", "kept"), [(2, [11, 12]), (9, [9, 10, 11, 12]), (None, [9, 10, 11, 12])])
def test_a_prompt_is_cut_at_its_front(client, keep, kept):
    body = {"prompt": [9, 10, 11, 12], "max_tokens": 1, "truncate_prompt_tokens": keep, "return_token_ids": True}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["prompt_token_ids"] == kept
    assert answer["usage"]["prompt_tokens"] == len(kept)


def test_a_prompt_is_cut_to_what_fits(client, server):
    most = server.service.max_context
    body = {"prompt": [9] * (most + 10), "max_tokens": 5, "truncate_prompt_tokens": -1}
    assert client.post("/v1/completions", json=body).json()["usage"]["prompt_tokens"] == most - 5
