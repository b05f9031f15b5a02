"""Filters by a question, against a server that answers by rule."""

import json
import math

import pytest

from nano3.cli.data.curate_report import print_report
from nano3.config.errors import UserError
from nano3.curate.steps.llm.judge import conversation_text, shortened, yes_probability

from ...conftest import dropped


def verdict(yes, reason="because"):
    return json.dumps({"reason": reason, "verdict": "yes" if yes else "no"})


def judged(curate, server, texts, **settings):
    report, kept = curate([("judge", {"prompt": "informative"} | settings)], texts, server=server.url)
    return report, [row["id"] for row in kept], kept


def test_documents_are_kept_for_which_the_answer_is_yes(curate, model_server):
    model_server.reply = lambda prompt, body: verdict("good" in prompt.split("The text:")[1])
    report, ids, kept = judged(curate, model_server, ["good one", "bad one", "another good one"])
    assert ids == ["d0", "d2"]
    assert dropped(report, "judge") == {"judged no: informative": 1}
    assert kept[0]["metadata"]["judged"] == {"informative": 1.0}
    assert '"verdict"' in model_server.prompts[0]


def test_a_question_of_ones_own_is_asked(curate, model_server, tmp_path):
    question = tmp_path / "short.txt"
    question.write_text("# Ours.\nIs this short? {form}\n\n{text}\n")
    model_server.reply = lambda prompt, body: f"```json\n{verdict(len(prompt) < 130)}\n```"
    _, ids, _ = judged(curate, model_server, ["short", "long " * 50], prompt=str(question))
    assert ids == ["d0"]


def test_a_question_without_the_field_for_its_form_is_refused(curate, model_server, tmp_path):
    (tmp_path / "q.txt").write_text("Is this short?\n\n{text}\n")
    with pytest.raises(UserError, match=r"lacks the field \{form\}"):
        judged(curate, model_server, ["a"], prompt=str(tmp_path / "q.txt"))


@pytest.mark.parametrize("said", ["yes", "{}", '{"verdict": "maybe"}', "{broken", '{"verdict": true}', "[1]"])
def test_a_reply_without_a_verdict_drops_the_document(curate, model_server, said):
    model_server.reply = lambda prompt, body: said
    report, ids, _ = judged(curate, model_server, ["a"])
    assert ids == []
    (reason,) = dropped(report, "judge")
    assert reason in ("no verdict in the reply", "reply without a JSON object")


@pytest.mark.parametrize(("disagreement", "ids"), [("drop", ["d1"]), ("keep", ["d0", "d1"])])
def test_passes_that_disagree_are_counted(curate, model_server, disagreement, ids):
    seen = []

    def reply(prompt, body):
        text = prompt.split("The text:\n\n")[1]
        seen.append(text)
        return verdict(text == "clear" or (text == "doubtful" and seen.count(text) == 1))

    model_server.reply = reply
    report, kept, _ = judged(
        curate, model_server, ["doubtful", "clear", "bad"], passes=2, disagreement=disagreement, temperature=0.7
    )
    assert kept == ids
    notes = report.steps[-1].account.notes
    assert notes["documents on which the passes disagree"] == 1
    assert notes["answers of the model"] == 6
    reasons = {"judged no: informative": 1} | ({"passes disagree": 1} if disagreement == "drop" else {})
    assert dropped(report, "judge") == reasons


def test_the_share_of_uninformative_tokens_stands_beside_the_published_one(curate, model_server, capsys):
    model_server.reply = lambda prompt, body: verdict("good" in prompt)
    texts = ["good " * 30, "bad bad bad bad bad bad bad bad", "good one"]
    report, kept = curate([("informative", {})], texts, server=model_server.url)
    assert [row["id"] for row in kept] == ["d0", "d2"]
    assert report.shares() == {"01-informative": (8 / 40, 0.106)}
    assert report.to_json()["token_shares"] == {"01-informative": {"dropped": 0.2, "published": 0.106}}
    print_report(report, 0)
    assert (
        "01-informative: dropped 20.0% of words; Nemotron 3 Nano's report: 10.6% of tokens" in capsys.readouterr().out
    )


def choice(**probabilities):
    tokens = [{"token": token, "logprob": math.log(p)} for token, p in probabilities.items()]
    return {"message": {"content": "yes"}, "finish_reason": "stop", "logprobs": {"content": [{"top_logprobs": tokens}]}}


def test_the_likelier_word_decides_by_log_probabilities(curate, model_server):
    likely = {"good": {" Yes": 0.3, "no": 0.2, "yes": 0.1}, "bad": {"yes": 0.1, "No": 0.6}}
    model_server.reply = lambda prompt, body: choice(**likely[prompt.split()[-1]])
    _, ids, kept = judged(curate, model_server, ["good", "bad"], answer="logprobs")
    assert ids == ["d0"]
    assert kept[0]["metadata"]["judged"] == {"informative": pytest.approx(0.6667, abs=1e-4)}
    assert model_server.bodies[0]["logprobs"] is True
    assert "one word" in model_server.prompts[0]


def test_a_server_without_log_probabilities_is_told(curate, model_server):
    model_server.reply = lambda prompt, body: "yes"
    report, ids, _ = judged(curate, model_server, ["a"], answer="logprobs")
    assert ids == []
    assert dropped(report, "judge") == {"no log-probabilities in the reply": 1}


def test_probabilities_are_of_yes_against_no():
    assert yes_probability(choice(yes=0.25, no=0.75)) == pytest.approx(0.25)
    assert yes_probability(choice(**{'"yes': 0.2, "maybe": 0.8})) == 1


@pytest.mark.parametrize("apart", [True, False], ids=["reasoning_content", "think-tags"])
def test_a_model_that_reasons_first_is_judged_by_the_first_word_of_its_answer(curate, model_server, apart):
    """Log-probabilities of servers are of all tokens, those of the reasoning first."""
    thought = ["<think>", "\n", "yes", " or", " no", "?", "</think>", "\n\n", "**"]

    def reply(prompt, body):
        good = "good" in prompt.split("The text:")[1]
        sure = {"token": "no", "logprob": 0.0, "top_logprobs": [{"token": "no", "logprob": 0.0}]}
        said = choice(yes=0.9 if good else 0.2, no=0.1 if good else 0.8)["logprobs"]["content"]
        word = "Yes" if good else "No"
        tokens = [sure | {"token": token} for token in thought] + [said[0] | {"token": word}]
        tokens += [sure | {"token": token} for token in ("**", "<|im_end|>")]
        text = "".join(thought[:-2])
        message = (
            {"content": f"**{word}**", "reasoning_content": text} if apart else {"content": f"{text}\n\n**{word}**"}
        )
        return {"message": message, "finish_reason": "stop", "logprobs": {"content": tokens}}

    model_server.reply = reply
    report, ids, kept = judged(curate, model_server, ["a good one", "a bad one"], answer="logprobs")
    assert ids == ["d0"]
    assert kept[0]["metadata"]["judged"] == {"informative": pytest.approx(0.9, abs=1e-4)}
    assert report.steps[-1].account.notes["documents about which the model reasoned before it said yes or no"] == 2


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"passes": 2}, "passes is above 1 at temperature 0"),
        ({"passes": 2, "temperature": 0.5, "answer": "logprobs"}, "needs no second pass"),
        ({"passes": 0}, "judge.passes is 0"),
        ({"prompt": "informativ"}, "did you mean 'informative'?"),
    ],
)
def test_settings_that_say_nothing_are_refused(curate, model_server, settings, told):
    with pytest.raises(UserError) as error:
        judged(curate, model_server, ["a"], **settings)
    assert told in str(error.value)


def test_of_long_texts_the_ends_are_shown():
    text = "".join(chr(97 + i % 26) for i in range(1000))
    shown = shortened(text, 300)
    assert shown.startswith(text[:200])
    assert shown.endswith(text[-100:])
    assert len(shown) < 320
    assert shortened("short", 300) == "short"


def test_conversations_are_judged_with_tools_calls_and_reasoning(curate, model_server):
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "Add 1 and 2."},
        {"role": "assistant", "content": "", "reasoning_content": "I call add.", "tool_calls": [call]},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 3."},
    ]
    shown = conversation_text(messages, tools)
    assert [part.split("\n")[0] for part in shown.split("\n\n")] == [
        "## tools", "## user", "## assistant", "## tool", "## assistant",
    ]  # fmt: skip
    for words in ('"add"', "(reasoning) I call add.", '(call) {"name": "add"', "It is 3."):
        assert words in shown
    rows = [{"messages": messages, "tools": tools, "id": "good"},
            {"messages": [*messages[:3], {"role": "assistant", "content": "It is 4."}], "tools": tools, "id": "bad"},
            {"id": "none", "text": "x"}]  # fmt: skip
    model_server.reply = lambda prompt, body: verdict("It is 3." in prompt)
    report, kept = curate(
        [("judge-conversation", {"prompt": "consistent"})], rows, reader="conversations", server=model_server.url
    )
    assert [row["id"] for row in kept] == ["good"]
    assert kept[0]["messages"] == messages
    assert dropped(report, "conversation") == {"judged no: consistent": 1, "no conversation": 1}


def test_texts_of_which_the_model_sees_a_part_are_counted(curate, model_server):
    model_server.reply = lambda prompt, body: verdict(True)
    report, _, _ = judged(curate, model_server, ["a" * 100, "b" * 101], shown=100)
    assert report.steps[-1].account.notes["texts judged by their beginning and end"] == 1


@pytest.mark.parametrize("use", ["informative", "judge-conversation"])
@pytest.mark.parametrize(("key", "value"), [("passes", 2), ("temperature", -1.0), ("shown", 1)])
def test_errors_name_the_step_that_is_set(curate, use, key, value):
    with pytest.raises(UserError, match=rf"\({use}\): {use}\.{key} is "):
        curate([(use, {key: value})], ["x"])
