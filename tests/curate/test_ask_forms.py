"""Answers of a form: servers that hold a model to it, that refuse it, that do not know it, and nano3's own."""

import json

import httpx2
import pytest

from nano3.client.asynchronous import FORM
from nano3.curate.ask.forms import looser
from nano3.curate.ask.step import FORMLESS
from nano3.curate.steps.llm.judge import VERDICT
from nano3.curate.steps.llm.rqa import JUDGEMENT
from nano3.engine.launch import small_tokenizer

from ..serve.conftest import new_engine, running
from .conftest import dropped
from .steps.llm.test_rqa import GOOD, TEXT

TEXTS = [f"text {i}" for i in range(12)]
WORDS_OF_REFUSAL = {
    "openai": (400, "Unknown parameter: 'response_format'."),
    "deepseek": (400, "This response_format type is unavailable now"),
    "pydantic": (422, "[{'type': 'extra_forbidden', 'loc': ['body'], 'msg': 'Extra inputs are not permitted'}]"),
}


def verdict(prompt, body):
    """Yes to texts of an even number, and to requests that only look whether it answers."""
    return json.dumps({"reason": "so", "verdict": "no" if prompt[-1] in "13579" else "yes"})


def judged(curate, server, out="out", **ask):
    report, kept = curate([("judge", {})], TEXTS, server=server.url, out=out, ask=ask)
    return report, [row["id"] for row in kept]


def test_verdicts_are_asked_for_as_json_of_their_form(curate, model_server):
    model_server.reply = verdict
    report, ids = judged(curate, model_server)
    assert ids == [f"d{i}" for i in range(0, 12, 2)]
    for body in model_server.bodies:
        form = body[FORM]["json_schema"]
        assert (body[FORM]["type"], form["strict"]) == ("json_schema", True)
        assert list(form["schema"]["properties"]) == form["schema"]["required"] == ["reason", "verdict"]
        assert form["schema"]["properties"]["verdict"]["enum"] == ["yes", "no"]
        assert form["schema"]["additionalProperties"] is False
    assert FORMLESS not in report.steps[-1].account.notes


@pytest.mark.parametrize("words", WORDS_OF_REFUSAL.values(), ids=WORDS_OF_REFUSAL)
def test_a_server_that_refuses_the_form_is_asked_without_it(curate, model_server, capfd, words):
    model_server.reply = lambda prompt, body: words if FORM in body else verdict(prompt, body)
    report, ids = judged(curate, model_server, concurrency=1)
    assert ids == [f"d{i}" for i in range(0, 12, 2)]
    assert dropped(report, "judge") == {"judged no: about-programming": 6}
    assert report.steps[-1].account.notes[FORMLESS] == 12
    with_form = [FORM in body for body in model_server.bodies]
    assert not any(with_form[-11:]), "it is asked for no more"
    told = capfd.readouterr().err
    assert told.count("left out from now on") == 1
    assert words[1] in told
    model_server.clear()
    report, again = judged(curate, model_server, "again")
    assert again == ids
    assert report.steps[-1].account.notes[FORMLESS] == 12
    assert model_server.prompts == []


def test_a_server_that_takes_no_lengths_gets_a_form_without_them(curate, model_server):
    model_server.reply = lambda prompt, body: (
        (400, "'maxLength' is not permitted") if "maxLength" in json.dumps(body) else verdict(prompt, body)
    )
    report, ids = judged(curate, model_server)
    assert ids == [f"d{i}" for i in range(0, 12, 2)]
    assert model_server.bodies[-1][FORM] == looser(VERDICT)[1][FORM]
    assert FORMLESS not in report.steps[-1].account.notes
    model_server.clear()
    assert judged(curate, model_server, "again")[1] == ids
    assert model_server.prompts == []


def test_a_server_that_does_not_know_the_form_answers_as_it_likes(curate, model_server):
    model_server.reply = lambda prompt, body: f"Here is the JSON:\n```json\n{verdict(prompt, body)}\n```"
    assert judged(curate, model_server)[1] == [f"d{i}" for i in range(0, 12, 2)]


def test_the_metadata_of_documents_have_no_schemas(curate, model_server):
    model_server.reply = lambda prompt, body: json.dumps(GOOD)
    _, kept = curate([("rqa-filter", {})], [TEXT], server=model_server.url)
    assert model_server.bodies[0][FORM] == JUDGEMENT[FORM]
    assert "schema" not in json.dumps(kept)


@pytest.fixture(scope="module", params=[False, True], ids=["at once", "after thinking"])
def nonsense(request):
    """nano3's server with random weights, which closes a thinking part at once where there is one."""
    tokenizer = small_tokenizer(600)
    engine = new_engine(tokenizer)
    (closing,) = tokenizer.encode("</think>", special=True)

    def closes(layer, given, logits):
        logits[..., closing] += 1000.0
        return logits

    if request.param:
        engine.model.lm_head.register_forward_hook(closes)
    with running(engine, base_model=not request.param) as found:
        yield found, request.param


def test_nonsense_of_a_real_server_has_the_form_too(curate, nonsense):
    server, thinks = nonsense
    chats = [{"messages": [{"role": role, "content": text} for role in ("user", "assistant")]} for text in TEXTS[:2]]
    steps = [("judge", {"temperature": 0.7, "passes": 2, "disagreement": "keep"}, TEXTS[:2], "read"),
             ("judge-conversation", {"prompt": "safe"}, chats, "conversations"),
             ("rqa-filter", {}, [TEXT, f"{TEXT} 2"], "read")]  # fmt: skip
    for use, settings, texts, reader in steps:
        report, kept = curate([(use, settings)], texts, reader=reader, server=server.url, out=use,
                              ask={"name": server.model, "timeout": 60.0, "deadline": 60.0})  # fmt: skip
        lost = dropped(report, use)
        assert len(kept) + sum(lost.values()) == 2
        assert not [reason for reason in lost if "reply" in reason or "answer" in reason], lost
    body = {"messages": [{"role": "user", "content": "Is water wet?"}], **VERDICT}
    usage = httpx2.post(f"{server.url}/v1/chat/completions", json=body, trust_env=False).json()["usage"]
    assert (usage["completion_tokens_details"]["reasoning_tokens"] > 0) is thinks
