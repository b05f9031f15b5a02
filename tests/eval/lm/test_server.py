"""lm-eval's tasks against a server: the same scores as on the model itself; a server that goes away."""

from __future__ import annotations

import gc
import json
import time

import httpx2
import pytest
from lm_eval.api.instance import Instance

import nano3
from nano3.config.errors import UserError
from nano3.eval.lm.find import find_tasks
from nano3.eval.lm.model import Nano3LM
from nano3.eval.lm.run import Options, run_tasks
from nano3.eval.lm.server import ChatCompletions, Completions
from nano3.eval.store import open_store
from nano3.eval.target import ServerGone, ServerTarget
from nano3.progress import Progress


@pytest.fixture
def url(served):
    """The server's address, once it listens."""
    for _ in range(200):
        try:
            httpx2.get(served + "/health", timeout=5)
            break
        except httpx2.TransportError:
            time.sleep(0.05)
    return served


TASKS = ("nano3_opposites", "nano3_prose", "nano3_arithmetic")


def evaluate(lm, folder, tasks=TASKS, **options):
    """Samples by task and index."""
    scores = []
    with open_store(folder, {}) as store:
        options = Options(limit=3, **options)
        run_tasks(lm, find_tasks(tasks, [], {}), options, store, lambda n: Progress(n, n), scores.extend)
        return {(task, index): row for (task, _, index), row in store.rows.items()}, scores


def numbers(value):
    return [float(part) for part in json.loads(json.dumps(value).replace("[", "").replace("]", "").join("[]"))
            if not isinstance(part, str)]  # fmt: skip


def same(theirs, ours):
    assert theirs.keys() == ours.keys()
    for key, row in ours.items():
        if key[0] == "nano3_arithmetic":
            assert theirs[key]["output"] == row["output"]
        else:
            assert numbers(theirs[key]["output"]) == pytest.approx(numbers(row["output"]), abs=1e-2)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_scores_of_a_server_are_those_of_the_model_that_nano3_trained(
    url, target, lm, tmp_path, monkeypatch, concurrency
):
    monkeypatch.setattr(lm, "stage", "pretrain")
    remote = ServerTarget(url, concurrency=concurrency)
    theirs, _ = evaluate(Completions(remote), tmp_path / "server")
    ours, _ = evaluate(Nano3LM(target.engine), tmp_path / "own")
    same(theirs, ours)
    remote.close()


@pytest.mark.parametrize("prefix", ["auto", "eos"])
def test_scores_of_a_server_with_the_models_folder(url, target, lm, tokenizer, tmp_path, prefix):
    folder = tmp_path / "folder"
    nano3.save(lm, folder)
    tokenizer.save(folder)
    remote = ServerTarget(url, tokenizer=str(folder))
    served = Completions(remote, prefix=prefix, folder=str(folder), max_context=40)
    own = Nano3LM(target.engine, prefix=prefix, max_length=40)
    assert served.prefix_token_id == (tokenizer.eos_id if prefix == "eos" else tokenizer.bos_id)
    same(evaluate(served, tmp_path / "server")[0], evaluate(own, tmp_path / "own")[0])
    assert [note for note in remote.notes if "cut" in note] == own.notes != []
    remote.close()


def test_which_token_a_wanted_prefix_is_must_be_known(url):
    remote = ServerTarget(url)
    with pytest.raises(UserError, match="needs --tokenizer"):
        Completions(remote, prefix="eos")
    with pytest.raises(UserError, match="takes 4096 tokens"):
        Completions(remote, max_context=4095)
    remote.close()


def test_repeats_of_a_sampled_request_differ(url):
    remote = ServerTarget(url)
    settings = {"do_sample": True, "max_gen_toks": 20, "until": []}
    requests = [Instance("generate_until", {}, ("A river", settings), 0, ("t", 0, 3))] * 3
    for lm in (Completions(remote), ChatCompletions(remote)):
        if isinstance(lm, ChatCompletions):
            text = lm.apply_chat_template([{"role": "user", "content": "A river"}])
            requests = [Instance("generate_until", {}, (text, settings), 0, ("t", 0, 3))] * 3
        answers = lm.generate_until(requests)
        assert len(set(answers)) == 3
        assert lm.generate_until(requests) == answers
    remote.close()


def test_a_context_that_a_server_does_not_tell_is_noted(url, serve_answers):
    def answer(path, body):
        own = httpx2.get(url + path) if not body else httpx2.post(url + path, json=body, timeout=60)
        reply = own.json()
        if path == "/v1/models":
            del reply["data"][0]["max_model_len"]
        return (400, {"error": {}}) if "chat_template_kwargs" in body else (own.status_code, reply)

    with serve_answers(answer) as between:
        remote = ServerTarget(between, concurrency=1)
        assert Completions(remote).context == 2046
        assert any("2046" in note for note in remote.notes)
        assert Completions(remote, max_context=64).context == 64
        lm = ChatCompletions(remote)
        assert any("chat_template_kwargs" in note for note in remote.notes)
        text = lm.apply_chat_template([{"role": "user", "content": "A river"}])
        requests = [Instance("generate_until", {}, (text, {"max_gen_toks": 20, "until": []}), 0, ("t", 0, 1))]
        assert lm.generate_until(requests) != [""]
        remote.close()


def test_conversations_with_a_server(url, tmp_path):
    remote = ServerTarget(url)
    samples, scores = evaluate(ChatCompletions(remote), tmp_path, tasks=["nano3_arithmetic"], chat=True)
    assert len(samples) == 3
    assert scores[0].n == 3
    remote.close()


def many(n):
    return [Instance("loglikelihood", {}, ("A river", f" of {i}"), i) for i in range(n)]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_server_that_dies_is_told_in_a_few_lines(serve_answers, tokenizer, tmp_path, concurrency, capfd):
    tokenizer.save(tmp_path)
    with serve_answers(lambda path, body: (200, {"data": [{"id": "m", "max_model_len": 100}]})) as url:
        remote = ServerTarget(url, concurrency=concurrency, tokenizer=str(tmp_path))
        lm = Completions(remote, max_retries=2)
    with pytest.raises(ServerGone, match=r"does not answer \(Connection refused, 2 tries\)"):
        lm.loglikelihood(many(40), disable_tqdm=True)
    gc.collect()  # where asyncio tells of tasks that nobody waited for
    assert capfd.readouterr().err == f"{url}: Connection refused; trying again in 1 s\n"
    remote.close()


def test_a_busy_server_is_asked_again_when_it_says(serve_answers, tokenizer, tmp_path, capfd):
    asked = []

    def answer(path, body):
        if not body:
            return 200, {"data": [{"id": "m", "max_model_len": 100}]}
        asked.append(time.monotonic())
        return (429, {}, {"Retry-After": "1.1"}) if len(asked) == 1 else (400, {})

    tokenizer.save(tmp_path)
    with serve_answers(answer) as url:
        remote = ServerTarget(url, tokenizer=str(tmp_path))
        with pytest.raises(UserError, match="HTTP 400"):
            Completions(remote, max_retries=2).loglikelihood(many(1), disable_tqdm=True)
        remote.close()
    assert "trying again in 1.1 s" in capfd.readouterr().err
    assert asked[1] - asked[0] >= 1.1


def test_a_refused_request_is_told_at_once(serve_answers, tokenizer, tmp_path, capfd):
    def answer(path, body):
        return (400, {"error": {"message": "no"}}) if body else (200, {"data": [{"id": "m", "max_model_len": 100}]})

    tokenizer.save(tmp_path)
    with serve_answers(answer) as url:
        remote = ServerTarget(url, tokenizer=str(tmp_path))
        lm = Completions(remote, max_retries=3)
        with pytest.raises(UserError, match="refuses a request: HTTP 400"):
            lm.loglikelihood(many(20), disable_tqdm=True)
        remote.close()
    gc.collect()
    said = capfd.readouterr().err
    assert not [words for words in ("never retrieved", "API request", "Session is closed") if words in said]


def test_a_server_that_goes_away_leaves_what_it_answered(url, serve_answers, tmp_path):
    answered = []

    def answer(path, body):
        if path == "/v1/completions":
            if len(answered) == 4:
                return 503, {"error": {"message": "gone"}}
            answered.append(body)
        own = httpx2.get(url + path) if not body else httpx2.post(url + path, json=body, timeout=60)
        return own.status_code, own.json()

    with serve_answers(answer) as between:
        remote = ServerTarget(between, concurrency=1)
        with pytest.raises(ServerGone, match="does not answer"):
            evaluate(Completions(remote, max_retries=1), tmp_path, tasks=["nano3_opposites"])
        remote.close()
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 4
    remote = ServerTarget(url)
    samples, _ = evaluate(Completions(remote), tmp_path, tasks=["nano3_opposites"])
    assert len(samples) == 3
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 12
    remote.close()
