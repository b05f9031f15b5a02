"""lm-eval's API models against a running server: its likelihoods and answers are the model's own."""

from __future__ import annotations

import json
import os

import pytest
import torch

os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from ..plain_decoding import generate

QUESTIONS = [
    {"text": "The lamp in the attic is", "choices": [" on", " broken and old"], "answer": 1},
    {"text": "Two and two make", "choices": [" four", " the number five"], "answer": 0},
    {"text": "A cat", "choices": [" sleeps in the sun", " reads", " is\n  a function"], "answer": 0},
]
BASE = {
    "dataset_path": "json",
    "test_split": "train",
    "doc_to_text": "{{text}}",
    "num_fewshot": 0,
    "metadata": {"version": 1.0},
}


@pytest.fixture
def tokenizer_folder(server, tmp_path):
    server.tokenizer.save(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def evaluate(server, tmp_path, monkeypatch):
    """Runs one task made of QUESTIONS; returns its samples with their answers."""
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))

    def run(model, path, task, *, chat=False, batch_size=1, **arguments):
        files = {"dataset_kwargs": {"data_files": {"train": str(data)}, "cache_dir": str(tmp_path / "cache")}}
        found = simple_evaluate(
            model=model,
            model_args={"model": server.model, "base_url": f"{server.url}{path}", "max_retries": 1} | arguments,
            tasks=[BASE | files | task],
            apply_chat_template=chat,
            batch_size=batch_size,
            log_samples=True,
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )
        (samples,) = found["samples"].values()
        return found, sorted(samples, key=lambda sample: sample["doc_id"])

    return run


def log_likelihood(server, context, continuation):
    """Sum of the model's log-probabilities of a continuation, and whether each of its tokens is the most probable."""
    tokenizer, model = server.tokenizer, server.engine.model
    # As lm-eval does it: the continuation is what the whole has more than the context.
    whole = tokenizer.encode(context + continuation)
    length = len(tokenizer.encode(context))
    with torch.inference_mode():
        table = torch.log_softmax(model(torch.tensor([whole])).float(), -1)[0, length - 1 : -1]
    targets = torch.tensor(whole[length:])
    chosen = table.gather(1, targets[:, None])[:, 0]
    return float(chosen.sum()), bool((table.argmax(-1) == targets).all())


@pytest.mark.parametrize(
    "way",
    [{"tokenized_requests": True, "batch_size": 4}, {"tokenized_requests": False}, {"num_concurrent": 4}],
    ids=["token ids", "text", "concurrent"],
)
def test_log_likelihoods_are_the_models_own(server, evaluate, tokenizer_folder, way):
    task = {"task": "choices", "output_type": "multiple_choice", "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{answer}}", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}  # fmt: skip
    found, samples = evaluate("local-completions", "/v1/completions", task, tokenizer_backend="huggingface",
                              tokenizer=tokenizer_folder, **way)  # fmt: skip
    assert 0 <= found["results"]["choices"]["acc,none"] <= 1
    assert len(samples) == len(QUESTIONS)
    for sample, question in zip(samples, QUESTIONS, strict=True):
        assert len(sample["filtered_resps"]) == len(question["choices"])
        for (value, greedy), choice in zip(sample["filtered_resps"], question["choices"], strict=True):
            expected = log_likelihood(server, question["text"], choice)
            assert float(value) == pytest.approx(expected[0], abs=1e-3)
            assert greedy in (expected[1], str(expected[1]))


GENERATE = {"task": "writing", "output_type": "generate_until", "doc_to_target": "{{choices[0]}}",
            "generation_kwargs": {"until": ["\n\n\n\n"], "max_gen_toks": 8, "temperature": 0.0},
            "metric_list": [{"metric": "exact_match"}]}  # fmt: skip


@pytest.mark.parametrize("backend", ["huggingface", None], ids=["token ids", "text"])
def test_generated_text_is_the_models_own(server, evaluate, tokenizer_folder, backend):
    arguments = {"tokenizer_backend": backend} if backend is None else {
        "tokenizer_backend": backend, "tokenizer": tokenizer_folder, "tokenized_requests": True}  # fmt: skip
    _, samples = evaluate("local-completions", "/v1/completions", GENERATE, **arguments)
    engine = server.engine
    for sample, question in zip(samples, QUESTIONS, strict=True):
        ids = server.tokenizer.encode(question["text"])
        (new,) = generate(engine.model, torch.tensor([ids]), 8, temperature=0, stop_ids=tuple(engine.eos_ids))
        assert sample["resps"][0][0] == server.tokenizer.decode(new, skip_special=True)


def test_chat_completions(server, evaluate):
    found, samples = evaluate("local-chat-completions", "/v1/chat/completions", GENERATE, chat=True)
    assert len(samples) == len(QUESTIONS)
    assert all(isinstance(sample["resps"][0][0], str) for sample in samples)
    assert found["results"]["writing"]["exact_match,none"] == 0
