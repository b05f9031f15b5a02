"""A trainer's weights in place of those that are served, and log-probabilities as rollouts need them."""

import math
import threading
import time

import pytest
import torch

from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling, ThinkingBudget
from nano3.model.hf.folder import fill, load, save
from nano3.model.lm import LM

from .conftest import new_engine, random_model

PROMPT = list(range(40, 120))


def complete(client, **body):
    return client.post("/v1/completions", json={"prompt": PROMPT, "seed": 3, "max_tokens": 8, "return_token_ids": True,
                                                "logprobs": 0, "ignore_eos": True} | body)  # fmt: skip


def same(drawn, expected):
    """The same tokens, by the same weights: a server rounds by what else it computes."""
    return all(
        ids == wanted and torch.allclose(torch.tensor(got), torch.tensor(log_probs), atol=1e-5, rtol=0)
        for (ids, got), (wanted, log_probs) in zip(drawn, expected, strict=True)
    )


def drawn(answer):
    return [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in answer.json()["choices"]]


@pytest.fixture
def other(tokenizer, tmp_path):
    """A folder with other weights of the served architecture."""
    save(LM(random_model(tokenizer).cfg).init_weights(7), tmp_path / "weights" / "other")
    return tmp_path / "weights" / "other"


def update(client, folder, **more):
    return client.post("/update_weights_from_disk", json={"model_path": str(folder), **more})


def test_new_weights_are_those_of_the_folder(start, tokenizer, other):
    server = start(weights_folder=other.parent)
    with server.client() as client:
        old = complete(client)
        assert old.json()["metadata"] == {"weight_version": ""}
        assert update(client, other, weight_version="run-3").status_code == 200
        assert client.get("/weight_info").json() == {"weight_version": "run-3"}
        new = complete(client)
    assert new.json()["metadata"] == {"weight_version": "run-3"}
    assert new.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0  # states of the old weights are gone
    engine = new_engine(tokenizer)
    engine.model.load_state_dict(load(other).state_dict())
    [[expected]] = run(engine, [Request("a", tuple(PROMPT), Sampling(seed=3, max_tokens=8, ignore_eos=True))])
    [(ids, log_probs)] = drawn(new)
    assert ids == expected.ids != drawn(old)[0][0]
    assert torch.allclose(torch.tensor(log_probs), torch.from_numpy(expected.log_probs), atol=1e-5, rtol=0)


def test_requests_under_way_end_with_the_old_weights_and_later_ones_wait(start, other):
    server = start(weights_folder=other.parent)
    with server.client() as client:
        expected, answers = drawn(complete(client, max_tokens=300)), {}

        def ask(name):
            answers[name] = complete(client, max_tokens=300)

        first = threading.Thread(target=ask, args=("first",))
        first.start()
        while first.is_alive() and not server.stats().running:
            first.join(0.005)
        assert update(client, other, weight_version="new").status_code == 200
        first.join()
        ask("later")
    assert same(drawn(answers["first"]), expected)
    assert not same(drawn(answers["later"]), expected)
    assert answers["first"].json()["metadata"] == {"weight_version": ""}
    assert answers["later"].json()["metadata"] == {"weight_version": "new"}


class SlowToLoad(Engine):
    """Waits for leave to load weights."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.leave, self.began = threading.Event(), threading.Event()

    def load_weights(self, folder):
        self.began.set()
        assert self.leave.wait(timeout=120)
        return super().load_weights(folder)


def test_the_time_of_a_request_runs_while_it_waits_for_new_weights(start, make_engine, other):
    engine = make_engine(SlowToLoad)
    server = start(engine, weights_folder=other.parent, request_timeout=0.2)
    answers = []
    with server.client() as client:
        loading = threading.Thread(target=lambda: answers.append(update(client, other, weight_version="new")))
        loading.start()
        assert engine.began.wait(60)
        late = complete(client)
        engine.leave.set()
        loading.join()
        assert client.get("/weight_info").json() == {"weight_version": "new"}
    assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    assert answers[0].status_code == 200
    while server.service.thread.unfinished:  # what ran out of time is forgotten
        time.sleep(0.01)


def test_what_cannot_be_loaded_is_refused_in_a_line(start, tokenizer, other, tmp_path):
    cfg = random_model(tokenizer).cfg
    save(LM(cfg.__class__(**{**cfg.__dict__, "d_expert": 16})).init_weights(0), other.parent / "narrow")
    save(random_model(tokenizer), tmp_path / "elsewhere")
    circle = other.parent / "circle"
    circle.symlink_to(circle)
    server = start(weights_folder=other.parent)
    with server.client() as client:
        assert update(client, other, weight_version="good").status_code == 200
        before = drawn(complete(client))
        for path, words in (
            (other.parent / "narrow", "experts"),
            (other.parent / "nothing", "does not exist"),
            (tmp_path / "elsewhere", "--weights-folder"),
            (other.parent / ".." / "elsewhere", "--weights-folder"),
            ("other", "--weights-folder"),
            (f"{other}\0", "--weights-folder"),
            (other.parent / ("a" * 300), "does not exist"),
            (circle / "x", "--weights-folder"),
        ):
            answer = update(client, path, weight_version="x")
            assert answer.status_code == 400, path
            assert words in answer.json()["error"]["message"]
            assert "\n" not in answer.json()["error"]["message"]
        assert client.get("/weight_info").json() == {"weight_version": "good"}
        assert same(drawn(complete(client)), before)


def test_weights_that_came_half_way_have_no_name_and_drop_what_was_kept(start, other, monkeypatch):
    def breaks(model, folder):
        fill(model, folder)
        raise OSError("input/output error")

    server = start(weights_folder=other.parent)
    with server.client() as client:
        assert update(client, other, weight_version="good").status_code == 200
        complete(client)
        monkeypatch.setattr("nano3.engine.engine.fill", breaks)
        answer = update(client, other, weight_version="bad")
        assert answer.status_code == 500
        assert "load again (input/output error)" in answer.json()["error"]["message"]
        assert client.get("/weight_info").json() == {"weight_version": ""}
        after = complete(client).json()
        assert after["metadata"] == {"weight_version": ""}
        assert after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        monkeypatch.undo()
        assert update(client, other, weight_version="again").status_code == 200
        assert client.get("/weight_info").json() == {"weight_version": "again"}


def test_without_the_option_nobody_replaces_weights(client, other):
    assert update(client, other).status_code == 404
    assert client.get("/weight_info").status_code == 404
    assert "metadata" not in complete(client).json()


def test_keys_guard_the_weights(start, other):
    server = start(weights_folder=other.parent, api_keys=("secret",))
    with server.client() as client:
        assert update(client, other).status_code == client.get("/weight_info").status_code == 401
    with server.client(headers={"Authorization": "Bearer secret"}) as client:
        assert update(client, other).status_code == 200


def test_processed_logprobs_are_of_the_distribution_that_was_drawn_from(start, tokenizer):
    server = start(logprobs_mode="processed_logprobs")
    with server.client() as client:
        answer = complete(client, temperature=0.6, top_p=0.9, n=2)
        refused = complete(client, logprobs=2)
    sampling = Sampling(seed=3, max_tokens=8, ignore_eos=True, temperature=0.6, top_p=0.9)
    [outputs] = run(new_engine(tokenizer), [Request("a", tuple(PROMPT), sampling, 2)])
    for (ids, log_probs), output in zip(drawn(answer), outputs, strict=True):
        assert ids == output.ids
        assert torch.allclose(torch.tensor(log_probs), torch.from_numpy(output.sampled_log_probs), atol=1e-5, rtol=0)
        assert abs(torch.tensor(log_probs) - torch.from_numpy(output.log_probs)).max() > 0.05
    assert refused.status_code == 400
    assert "processed_logprobs" in refused.json()["error"]["message"]


@pytest.mark.parametrize("begun", ["<think>\n", "<think>a</think>\n"])
def test_a_thinking_budget_of_a_plain_prompt(start, tokenizer, begun):
    prompt = tokenizer.encode(f"The quick{begun}", special=True)
    with start().client() as client:
        answer = complete(client, prompt=prompt, thinking_token_budget=3, max_tokens=90)
        free = complete(client, prompt=prompt, thinking_token_budget=-1, max_tokens=90)
    budget = ThinkingBudget(3, open=begun == "<think>\n")
    sampling = Sampling(seed=3, max_tokens=90, ignore_eos=True, thinking=budget)
    [[expected]] = run(new_engine(tokenizer), [Request("a", tuple(prompt), sampling)])
    assert drawn(answer)[0][0] == expected.ids
    assert expected.forced.any() == budget.open
    assert (drawn(free) == drawn(answer)) == (not budget.open)
    assert math.isfinite(sum(drawn(answer)[0][1]))
