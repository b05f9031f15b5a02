"""vLLM's own endpoints (vllm/entrypoints/serve/dev of 0.32), on a small server that answers as its source says."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nano3.config.errors import UserError
from nano3.engine.protocol import ServersGoneError, run
from nano3.engine.request import Request, Sampling
from nano3.rl.remote import place
from nano3.rl.remote.engine import RemoteEngine

CHOICE = {"index": 0, "token_ids": [5], "logprobs": {"token_logprobs": [-1]}}
DEV = ("/pause?mode=wait", "/collective_rpc", "/reset_prefix_cache", "/update_weight_version", "/resume")


@contextmanager
def vllm(**answers):
    """A server of one model; `answers`: path without its signs -> (status, body) in place of the usual one, or what
    gives that or None."""
    asked, state = [], {"weight_version": None}

    def usual(path, body):
        if path == "/v1/completions":
            choices = [
                {"index": i, "text": "", "finish_reason": "length", "stop_reason": None, "token_ids": [5, 6 + i],
                 "prompt_token_ids": body["prompt"], "logprobs": {"token_logprobs": [-0.5, -1.5], "tokens": ["", ""]}}
                for i in reversed(range(body["n"]))
            ]  # fmt: skip
            return 200, {"choices": choices, "usage": {"prompt_tokens_details": None}}
        if path == "/update_weight_version":
            state["weight_version"] = body["new_version"]
        return 200, {
            "/v1/models": {"data": [{"id": "served", "owned_by": "vllm", "max_model_len": 512}]},
            "/weight_info": state, "/reset_prefix_cache": {"success": True}, "/collective_rpc": {"results": [None]},
        }.get(path, {})  # fmt: skip

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer(None)

        def do_POST(self):
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append((self.path, json.loads(data) if data else None))
            self.answer(asked[-1][1])

        def answer(self, body):
            path = self.path.partition("?")[0]
            given = answers.get(path.strip("/").replace("/", "_"))
            status, told = (given() if callable(given) else given) or usual(path, body)
            data = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}", asked
    finally:
        served.shutdown()
        served.server_close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(place, "FIRST_WAIT", 0.01)


def test_weights_go_in_between_pause_and_resume(tokenizer, tmp_path):
    with vllm() as (url, asked):
        assert RemoteEngine([url], tokenizer, tmp_path).load_weights(tmp_path / "w") == 1
    assert tuple(path for path, _ in asked) == DEV
    bodies = dict(asked)
    folder = {"weights_path": str(tmp_path / "w")}
    assert bodies["/collective_rpc"] == {"method": "reload_weights", "kwargs": folder}
    assert bodies["/update_weight_version"]["new_version"].endswith("-1")


def test_token_ids_go_out_and_come_back(tokenizer, tmp_path):
    with vllm() as (url, asked):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        [outputs] = run(engine, [Request("a", (40, 41), Sampling(seed=(1 << 64) - 1, max_tokens=2), 2)])
    body = asked[-1][1]
    assert body["prompt"] == [40, 41]
    assert (body["return_token_ids"], body["logprobs"], body["n"], body["seed"]) == (True, 0, 2, -1)
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1, 1, 0, 0)
    assert set(body["stop_token_ids"]) == engine.eos_ids
    assert [output.ids for output in outputs] == [[5, 6], [5, 7]]
    assert [output.sampled_log_probs.tolist() for output in outputs] == [[-0.5, -1.5]] * 2
    assert {output.finish for output in outputs} == {"length"}
    assert engine.max_context == 512


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"collective_rpc": (404, {})}, "VLLM_SERVER_DEV_MODE=1 vllm serve"),
        ({"collective_rpc": (500, {"error": "no such tensor"})}, "no such tensor"),
        ({"reset_prefix_cache": (200, {"success": False})}, "kept its prefix cache"),
        ({"pause": (401, {"error": "Unauthorized"})}, "NANO3_API_KEY"),
    ],
)
def test_a_server_that_does_not_take_weights(tokenizer, tmp_path, answers, words):
    with vllm(**answers) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        with pytest.raises(UserError, match=words) as caught:
            engine.load_weights(tmp_path)
    assert "\n" not in str(caught.value)
    assert ("stays paused" in str(caught.value)) == ("pause" not in answers)


def test_a_server_that_dies_while_it_takes_weights_may_be_paused(tokenizer, tmp_path):
    with vllm(reset_prefix_cache=(503, {"error": "busy"})) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        with pytest.raises(ServersGoneError, match=r"busy.*stays paused"):
            engine.load_weights(tmp_path)


@pytest.mark.parametrize("answer", ["no", []])
def test_a_server_whose_answer_to_weights_is_strange_has_not_taken_them(tokenizer, tmp_path, answer):
    with vllm(reset_prefix_cache=(200, answer)) as (url, asked):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        with pytest.raises(ServersGoneError, match=r"not vLLM's.*stays paused") as caught:
            engine.load_weights(tmp_path)
        assert not engine.parts
    assert "/resume" not in [path for path, _ in asked]
    assert "\n" not in str(caught.value)


UNUSABLE = [
    ({"choices": [{"index": 0, "text": "a", "logprobs": None}]}, "vLLM's form"),
    ({"choices": [CHOICE | {"token_ids": None}]}, "token_ids"),
    ({"choices": [CHOICE | {"prompt_token_ids": [9]}]}, "prompt_token_ids"),
    ({"choices": [CHOICE | {"token_ids": [9999]}]}, "token 9999.*the run's tokenizer"),
]


@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"weight_info": (200, {"weight_version": "other"})}, "the weights other"),
        ({"v1_completions": (503, {"error": "overloaded"})}, "overloaded"),
    ],
)
def test_answers_that_are_not_taken(tokenizer, tmp_path, answers, words):
    with vllm(**answers) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        with pytest.raises(ServersGoneError, match=words) as caught:
            run(engine, [Request("a", (40,), Sampling(max_tokens=2))])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("answer", "words"), UNUSABLE)
def test_a_server_whose_answer_to_the_probe_cannot_be_used_is_lost(tokenizer, tmp_path, answer, words):
    with vllm(v1_completions=(200, answer)) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        [(_, probed)] = engine.parts
        with pytest.raises(ServersGoneError, match=words) as caught:
            run(probed, [Request("a", (40,), Sampling(max_tokens=2))])
    assert "\n" not in str(caught.value)
    assert not engine.parts


@pytest.mark.parametrize(("answer", "words"), UNUSABLE)
def test_a_request_without_a_usable_answer_ends_in_an_error_and_no_server_is_lost(tokenizer, tmp_path, answer, words):
    broken = [answer] * 2
    with (
        vllm(v1_completions=lambda: (200, broken.pop()) if broken else None) as (first, _),
        vllm(v1_completions=lambda: (200, broken.pop()) if broken else None) as (second, _),
    ):
        engine = RemoteEngine([first, second], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        [[wrong]] = run(engine, [Request("a", (40,), Sampling(max_tokens=2))])
        [[right]] = run(engine, [Request("b", (40,), Sampling(max_tokens=2))])
        assert len(engine.parts) == 2
    assert wrong.finish == "error"
    assert [bool(re.search(words, reason)) for reason in re.split("; (?=http)", wrong.error)] == [True, True]
    assert "\n" not in wrong.error
    assert right.ids == [5, 6]


@pytest.mark.parametrize("answer", [[], {"metadata": "none"}])
def test_an_answer_without_an_object_costs_no_server_of_nano3(tokenizer, tmp_path, answer):
    listed = {"data": [{"id": "served", "owned_by": "nano3", "max_model_len": 512}]}
    with vllm(v1_models=(200, listed), v1_completions=(200, answer)) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        [[output]] = run(engine, [Request("a", (40,), Sampling(max_tokens=2))])
        assert len(engine.parts) == 1
    assert output.finish == "error"
    assert "no JSON object where one belongs" in output.error


def test_a_server_is_lost_when_another_answers_what_it_cannot(tokenizer, tmp_path):
    said = []
    with vllm(v1_completions=(200, UNUSABLE[1][0])) as (bad, _), vllm() as (good, _):
        engine = RemoteEngine([bad, good], tokenizer, tmp_path, sequences=2, say=said.append)
        engine.load_weights(tmp_path)
        outputs = run(engine, [Request(f"r{i}", (40,), Sampling(max_tokens=2)) for i in range(9)])
        assert [url for url, _ in engine.parts] == [good]
    assert [output.ids for [output] in outputs] == [[5, 6]] * 9
    [line] = said
    assert bad in line
    assert f"token_ids and token_logprobs do not belong together; vLLM has them from 0.11 on; {good} answers" in line


def test_a_request_that_ran_out_of_time_is_not_sent_again(tokenizer, tmp_path):
    end = threading.Event()
    with vllm(v1_completions=lambda: end.wait(60) and None) as (url, asked):
        engine = RemoteEngine([url], tokenizer, tmp_path, seconds=0.5)
        engine.load_weights(tmp_path)
        with pytest.raises(ServersGoneError, match="no answer in time"):
            run(engine, [Request("a", (40,), Sampling(max_tokens=2))])
        end.set()
    assert [path for path, _ in asked].count("/v1/completions") == 1


def test_a_full_server_is_waited_for(tokenizer, tmp_path):
    full = [(429, {"error": "the queue is full"})] * 6
    with vllm(v1_completions=lambda: full.pop() if full else None) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        [[output]] = run(engine, [Request("a", (40,), Sampling(max_tokens=2))])
    assert output.ids == [5, 6]


def test_a_server_without_versions_is_taken_at_its_word(tokenizer, tmp_path):
    with vllm(update_weight_version=(404, {}), weight_info=(404, {})) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path)
        engine.load_weights(tmp_path)
        [[output]] = run(engine, [Request("a", (40,), Sampling(max_tokens=2))])
    assert output.ids == [5, 6]


def test_every_id_of_the_model_is_drawn(tokenizer, tmp_path):
    many = 2 * tokenizer.vocab_size
    drawn = CHOICE | {"token_ids": [many - 1], "finish_reason": "length"}
    with vllm(v1_completions=(200, {"choices": [drawn]})) as (url, _):
        engine = RemoteEngine([url], tokenizer, tmp_path, vocab_size=many)
        engine.load_weights(tmp_path)
        [[output]] = run(engine, [Request("a", (40,), Sampling(max_tokens=1))])
    assert engine.ids_limit == many
    assert output.ids == [many - 1]


def test_servers_that_draw_from_different_ids_are_not_taken_together(tokenizer, tmp_path):
    listed = {"data": [{"id": "served", "owned_by": "nano3", "max_model_len": 512}]}
    n = tokenizer.vocab_size
    with vllm() as (url, _), vllm(v1_models=(200, listed)) as (ours, _):
        assert RemoteEngine([url, ours], tokenizer, tmp_path, vocab_size=n).ids_limit == n
        assert RemoteEngine([ours], tokenizer, tmp_path, vocab_size=2 * n).ids_limit == n
        listed["data"][0]["ids_limit"] = 2 * n  # nano3 serve --engine vllm
        assert RemoteEngine([url, ours], tokenizer, tmp_path, vocab_size=2 * n).ids_limit == 2 * n
        del listed["data"][0]["ids_limit"]
        with pytest.raises(UserError, match=rf"{url} from {2 * n}, {ours} from {n}.* servers of one kind"):
            RemoteEngine([url, ours], tokenizer, tmp_path, vocab_size=2 * n)


def test_a_thinking_budget_is_refused(tokenizer, tmp_path):
    with vllm() as (url, _), pytest.raises(UserError, match=r"rollout\.thinking_budget: .* nano3 serve"):
        RemoteEngine([url], tokenizer, tmp_path, thinking=True)
