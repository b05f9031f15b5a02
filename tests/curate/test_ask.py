"""Steps that ask a language model, against a server that answers and fails as it is told to."""

import json
import resource
import threading

import pytest

from nano3.cli.data.curate_report import print_report
from nano3.client.cache import AnswerCache
from nano3.config.errors import UserError
from nano3.curate.ask.answers import is_refusal
from nano3.curate.ask.asker import open_answers

from .conftest import dropped
from .model_server import MODEL

PROMPT = "# Ours.\n\nTurn this text around and give nothing else back:\n\n{text}\n"


@pytest.fixture
def prompt(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return str(path)


def turned(prompt, body):
    """What the scripted model makes of a text."""
    return prompt.split("\n\n", 1)[1][::-1]


def test_answers_take_the_place_of_texts_in_order_and_say_where_they_are_from(curate, model_server, prompt):
    model_server.reply = turned
    texts = [f"text number {i} {'x' * (1 + i % 7)}" for i in range(60)]
    report, kept = curate([("ask", {"prompt": prompt, "temperature": 0.25})], texts, server=model_server.url)
    assert [row["text"] for row in kept] == [text[::-1] for text in texts]
    assert [row["id"] for row in kept] == [f"d{i}" for i in range(60)]
    (asked,) = kept[3]["metadata"]["asked"]
    assert asked["step"] == "01-ask"
    assert asked["model"] == MODEL
    assert asked["parents"] == ["d3"]
    assert asked["sampling"] == {"temperature": 0.25, "top_p": 1.0, "max_tokens": 2048}
    assert list(asked["prompts"]) == [prompt]
    assert len(asked["prompts"][prompt]) == 16
    assert model_server.bodies[0]["temperature"] == 0.25
    assert not any("Ours" in message for message in model_server.prompts)
    assert report.steps[1].account.notes["answers of the model"] == 60


def test_what_a_model_wrote_in_place_of_a_conversation_is_a_document(curate, model_server, prompt, tmp_path):
    model_server.reply = lambda message, body: "two\nlines"
    source = tmp_path / "chats.jsonl"
    source.write_text('{"id": "c", "messages": []}\n')
    _, kept = curate([("ask", {"prompt": prompt})], reader="conversations", paths=[source], server=model_server.url)
    assert [(row["id"], row["text"]) for row in kept] == [("c", "two\nlines")]


def test_as_many_requests_are_under_way_as_may_and_no_more(curate, model_server, prompt):
    all_there = threading.Barrier(4)
    model_server.reply = lambda message, body: f"answer {all_there.wait(timeout=30) and 1}"
    _, kept = curate([("ask", {"prompt": prompt})], [f"t{i}" for i in range(40)], server=model_server.url,
                     ask={"concurrency": 4, "timeout": 60.0, "deadline": 60.0})  # fmt: skip
    assert len(kept) == 40
    assert model_server.most == 4


def test_more_workers_than_requests_make_no_more_requests(curate, model_server, prompt, tmp_path):
    model_server.seconds = 0.05
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text("".join(f'{{"text": "{name} {i}"}}\n' for i in range(8)))
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    _, kept = curate([("ask", {"prompt": prompt})], paths=paths, server=model_server.url, tasks=2, workers=2,
                     ask={"concurrency": 1})  # fmt: skip
    assert len(kept) == 16
    assert model_server.most == 1


def test_a_second_run_sends_nothing(curate, model_server, prompt):
    texts = [f"text {i}" for i in range(20)]
    _, first = curate([("ask", {"prompt": prompt})], texts, server=model_server.url)
    model_server.clear()
    _, second = curate([("ask", {"prompt": prompt})], texts, server=model_server.url, out="other")
    assert first == second
    assert model_server.prompts == []
    curate([("ask", {"prompt": prompt, "temperature": 0.1})], texts, server=model_server.url, out="third")
    assert len(model_server.prompts) == 20


def test_answers_of_a_run_with_many_tasks_are_all_found(tmp_path):
    for i in range(120):
        cache = AnswerCache(tmp_path / f"{i:05d}-of-00120.sqlite")
        cache.put(b"key %d" % i, i, 0.0)
        cache.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        cache = open_answers(tmp_path, 0, 7)
        assert [cache.get(b"key %d" % i) for i in range(120)] == [(i, 0.0) for i in range(120)]
        cache.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_half_a_character_in_an_answer_stops_no_step_behind(curate, model_server, prompt):
    model_server.reply = lambda message, body: "half \ud83d here"
    _, kept = curate([("ask", {"prompt": prompt})] * 2, ["a text"], server=model_server.url)
    assert [row["id"] for row in kept] == ["d0"]
    assert model_server.prompts[-1].endswith("half ? here")


def test_equal_documents_are_asked_about_once(curate, model_server, prompt):
    _, kept = curate([("ask", {"prompt": prompt})], ["the same text"] * 30, server=model_server.url)
    assert len(kept) == 30
    assert len(model_server.prompts) == 1


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "empty answer"),
        ({"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "stop"}, "empty answer"),
        ("<think>I could, but", "empty answer"),
        ("I'm sorry, but I can't help with that request.", "refused by the model"),
        ("Sure. Turn this text around and give nothing else back: a text", "copy of the prompt"),
        ({"message": {"content": "half of"}, "finish_reason": "length"}, "answer cut"),
        (
            {"message": {"content": "half of"}, "finish_reason": "content_filter"},
            "kept back by the provider's filter of contents",
        ),
        ((400, "too long"), "request refused by the server (HTTP 400)"),
    ],
)
def test_answers_of_no_use_drop_the_document_for_a_reason(curate, model_server, prompt, said, reason):
    model_server.reply = lambda message, body: said if "bad" in message else "good"
    report, kept = curate([("ask", {"prompt": prompt})], ["fine", "a bad text", "fine too"], server=model_server.url)
    assert dropped(report, "ask") == {reason: 1}
    assert [row["id"] for row in kept] == ["d0", "d2"]


def test_what_the_model_or_its_server_said_is_shown_with_a_document_that_was_dropped(
    curate, model_server, prompt, monkeypatch, capsys
):
    monkeypatch.setenv("NANO3_API_KEY", "sk-secret")
    said = {"first": "Hm, let me see.", "second": (400, "too long for sk-secret"), "third": '{"verdict": "no"}'}
    model_server.reply = lambda message, body: next((said[word] for word in said if word in message), "yes")
    report, _ = curate([("judge", {})], list(said), server=model_server.url)
    samples = {sample.text: sample.reply for _, _, sample in report.samples()}
    assert samples == {"first": said["first"], "second": "HTTP 400: too long for ***", "third": said["third"]}
    print_report(report, 1)
    assert "first\n──── the reply ────\nHm, let me see." in capsys.readouterr().out


@pytest.mark.parametrize("said", ["I cannot recommend this book enough.", "Sorry about the noise, said the neighbour."])
def test_texts_that_only_sound_like_a_refusal_stay(curate, model_server, prompt, said):
    model_server.reply = lambda message, body: said
    _, kept = curate([("ask", {"prompt": prompt})], ["a"], server=model_server.url)
    assert [row["text"] for row in kept] == [said]


def test_a_cut_answer_is_asked_for_once_more_with_twice_the_tokens(curate, model_server, prompt):
    def reply(message, body):
        long_enough = body["max_tokens"] >= 200
        return {"message": {"content": "whole"}, "finish_reason": "stop" if long_enough else "length"}

    model_server.reply = reply
    _, kept = curate([("ask", {"prompt": prompt, "max_tokens": 100})], ["text"], server=model_server.url)
    assert [row["text"] for row in kept] == ["whole"]
    assert [body["max_tokens"] for body in model_server.bodies] == [100, 200]


@pytest.mark.parametrize(
    "message",
    [
        {"content": "<think>First this.</think>\n\nThe answer."},
        {"content": "First this.\n</think>The answer."},
        {"content": "The answer.", "reasoning_content": "First this."},
        {"content": "The answer.", "reasoning": "First this."},
    ],
)
def test_reasoning_is_no_part_of_the_answer(curate, model_server, prompt, message):
    model_server.reply = lambda text, body: {"message": message, "finish_reason": "stop"}
    _, kept = curate([("ask", {"prompt": prompt})], ["text"], server=model_server.url)
    assert [row["text"] for row in kept] == ["The answer."]


def test_an_answer_that_names_the_tag_of_reasoning_stays_whole(curate, model_server, prompt):
    message = {"content": "Templates write </think> behind it.", "reasoning_content": "First this."}
    model_server.reply = lambda text, body: {"message": message, "finish_reason": "stop"}
    _, kept = curate([("ask", {"prompt": prompt})], ["text"], server=model_server.url)
    assert [row["text"] for row in kept] == [message["content"]]


def test_a_server_that_refuses_everything_ends_the_run_with_its_words(curate, model_server, prompt, monkeypatch):
    monkeypatch.setenv("NANO3_API_KEY", "sk-secret")
    model_server.reply = lambda message, body: (400, "top_p is unknown to sk-secret")
    with pytest.raises(UserError, match=r"refuses \(HTTP 400: top_p is unknown to \*\*\*\)"):
        curate([("ask", {"prompt": prompt})], ["a", "b"], server=model_server.url)
    assert model_server.keys[0] == "Bearer sk-secret"


def test_no_part_of_a_key_is_left_where_a_servers_words_are_cut(curate, model_server, prompt, monkeypatch):
    monkeypatch.setenv("NANO3_API_KEY", "sk-secret-of-many-letters")
    model_server.reply = lambda message, body: (400, f"{'x' * 285} sk-secret-of-many-letters")
    with pytest.raises(UserError, match=r"x \*\*\*") as error:
        curate([("ask", {"prompt": prompt})], ["a"], server=model_server.url)
    assert "sk-" not in str(error.value)


def test_keys_are_in_no_file(curate, model_server, prompt, monkeypatch, tmp_path):
    monkeypatch.setenv("NANO3_API_KEY", "sk-secret")
    curate([("ask", {"prompt": prompt})], ["a", "b"], server=model_server.url)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"sk-secret" not in path.read_bytes(), path


def test_a_changed_prompt_or_model_does_not_go_on_in_an_old_folder(curate, model_server, prompt, tmp_path):
    curate([("ask", {"prompt": prompt})], ["a"], server=model_server.url)
    (tmp_path / "prompt.txt").write_text("Another one: {text}")
    from nano3.curate.ask.prompts import read_prompt

    read_prompt.cache_clear()
    with pytest.raises(UserError, match=r"prompt .*prompt\.txt of 01-ask"):
        curate([("ask", {"prompt": prompt})], ["a"], server=model_server.url)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Say {text} and {more}", r"has the field \{more\}; this step fills \{text\}"),
        ("Say nothing", r"lacks the field \{text\}"),
        ("Say {text", r"write \{name\} for a field"),
        ("Say {text!r}", "is no field"),
        ("Say {0}", "is no field"),
        ("# only a comment\n", "no message in it"),
    ],
)
def test_prompts_are_checked_before_anything_is_asked(curate, model_server, tmp_path, text, words):
    path = tmp_path / "own.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=words):
        curate([("ask", {"prompt": str(path)})], ["a"], server=model_server.url)
    assert model_server.prompts == []


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_broke_off_is_asked_for_again(curate, model_server, prompt, reason):
    def reply(message, body):
        broken = message in model_server.prompts[:-1]
        return {"message": {"content": "whole" if broken else "ha"}, "finish_reason": "stop" if broken else reason}

    model_server.reply = reply
    _, kept = curate([("ask", {"prompt": prompt})], ["text"], server=model_server.url)
    assert [row["text"] for row in kept] == ["whole"]
    assert len(model_server.prompts) == 2


def test_braces_in_documents_and_prompts_are_text(curate, model_server, tmp_path):
    path = tmp_path / "braces.txt"
    path.write_text('Answer with {{"a": 1}} of {text}')
    curate([("ask", {"prompt": str(path)})], ["{x} {0} }{"], server=model_server.url)
    assert model_server.prompts == ['Answer with {"a": 1} of {x} {0} }{']


def test_a_model_that_no_one_named_is_asked_for(curate, prompt):
    with pytest.raises(UserError, match="step '01-ask' asks a language model: give --url"):
        curate([("ask", {"prompt": prompt})], ["a"])


def test_two_steps_share_the_places_and_both_say_what_they_asked(curate, model_server, prompt):
    model_server.reply, model_server.seconds = turned, 0.01
    texts = [f"text {i}" for i in range(40)]
    report, kept = curate([("ask", {"prompt": prompt})] * 2, texts, server=model_server.url, ask={"concurrency": 4})
    assert [row["text"] for row in kept] == texts
    assert [one["step"] for one in kept[0]["metadata"]["asked"]] == ["01-ask", "02-ask"]
    assert model_server.most <= 4
    assert json.dumps(report.to_json())


def test_requests_have_the_fields_that_openais_own_client_has(curate, model_server, prompt):
    from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
    from pydantic import TypeAdapter

    curate([("ask", {"prompt": prompt})], ["a text"], server=model_server.url)
    (body,) = model_server.bodies
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(body, strict=True)
    assert set(body) <= set(CompletionCreateParamsNonStreaming.__annotations__)


@pytest.mark.parametrize(
    "said",
    [
        "I'm sorry, but I can't help with that request.", "I cannot assist with this.", "Sorry, I won’t write this.",
        "As an AI language model, I do not write such texts.", "Unfortunately, I'm not able to translate this text.",
        "I apologize, but this request goes against my guidelines.",
        "Unfortunately that is not something I can help with.",
    ],
)  # fmt: skip
def test_refusals_are_known(said):
    assert is_refusal(said)


@pytest.mark.parametrize(
    "said",
    [
        "Unfortunately the algorithm does not help when the list is empty.",
        "Sorry, we cannot provide refunds after 30 days. Write to us.",
        "I'm sorry that I could not write sooner, my dear friend, but the harvest was long.",
        "Unfortunately, the train to Ulm did not continue.",
    ],
)
def test_regrets_of_the_text_itself_are_no_refusals(said):
    assert not is_refusal(said)


def test_a_run_does_not_go_on_with_a_context_that_divides_its_texts_otherwise(curate, model_server, tmp_path):
    model_server.reply = lambda prompt, body: prompt.rpartition("\n\n")[2]
    (tmp_path / "a.jsonl").write_text('{"text": "A page about herons."}\n')

    def cleaned(out, window):
        return curate(
            [("clean-code-page", {})], paths=[tmp_path / "a.jsonl"], out=out, server=model_server.url,
            ask={"window": window},
        )  # fmt: skip

    cleaned("small", 4096)
    cleaned("small", 4096)
    with pytest.raises(UserError, match="the model's context 4096 -> 2048 tokens"):
        cleaned("small", 2048)
    cleaned("large", 100_000)
    cleaned("large", 200_000)
