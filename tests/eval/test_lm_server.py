"""lm-eval's tasks against a server: the same scores as on the model itself; a server that goes away."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from nano3.eval.lm import Nano3LM
from nano3.eval.lm_find import find_tasks
from nano3.eval.lm_run import Options, run_tasks
from nano3.eval.lm_server import ChatCompletions, Completions
from nano3.eval.progress import Progress
from nano3.eval.store import open_store
from nano3.eval.target import ServerGone, ServerTarget


@pytest.fixture
def url(served):
    """The server's address, once it listens."""
    for _ in range(200):
        try:
            httpx.get(served + "/health", timeout=5)
            break
        except httpx.TransportError:
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


@pytest.mark.parametrize("concurrency", [1, 4])
def test_scores_of_a_server_are_the_models_own(url, target, tmp_path, concurrency):
    remote = ServerTarget(url, concurrency=concurrency)
    theirs, _ = evaluate(Completions(remote), tmp_path / "server")
    # nano3's server begins texts as its training does.
    ours, _ = evaluate(Nano3LM(target.engine, prefix_token_id=target.tokenizer.eos_id), tmp_path / "own")
    assert theirs.keys() == ours.keys()
    for key, row in ours.items():
        if key[0] == "nano3_arithmetic":
            assert theirs[key]["output"] == row["output"]
        else:
            assert numbers(theirs[key]["output"]) == pytest.approx(numbers(row["output"]), abs=1e-2)
    remote.close()


def test_conversations_with_a_server(url, tmp_path):
    remote = ServerTarget(url)
    samples, scores = evaluate(ChatCompletions(remote), tmp_path, tasks=["nano3_arithmetic"], chat=True)
    assert len(samples) == 3
    assert scores[0].n == 3
    remote.close()


def test_a_server_that_goes_away_leaves_what_it_answered(url, serve_answers, tmp_path):
    answered = []

    def answer(path, body):
        if path == "/v1/completions":
            if len(answered) == 4:
                return 503, {"error": {"message": "gone"}}
            answered.append(body)
        own = httpx.get(url + path) if not body else httpx.post(url + path, json=body, timeout=60)
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
