"""From records to encoded rows."""

import json

import numpy as np
import pytest

from nano3.config.sft import ChatDataConfig, ReasoningConfig, SftConfig
from nano3.data.chat.maker import TOO_LONG, RowMaker
from nano3.data.chat.records import Record
from nano3.data.tokens.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "price", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "id": "c1", "function": {"name": "price", "arguments": '{"of": "tea"}'}}
TALK = {
    "tools": [TOOL],
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what is tea?"},
        {"role": "assistant", "reasoning_content": "a plant", "content": "A drink."},
        {"role": "user", "content": "and what does it cost?"},
        {"role": "assistant", "reasoning_content": "I must ask", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "reasoning_content": "so four", "content": "Four."},
    ],
}


def config(reasoning=None, **data):
    plain = {"strip_fraction": 0.0, "truncate_fraction": 0.0}
    return SftConfig(
        data=ChatDataConfig(blend={"x": 1.0}, **{"pack_length": 4096, **data}),
        reasoning=ReasoningConfig(**(reasoning or plain)),
    )


def make(tokenizer, record, cfg=None):
    refused = []
    maker = RowMaker(cfg or config(), tokenizer)
    rows = list(maker.rows(Record("x.jsonl", 7, record), lambda name, error: refused.append((name, error.reason))))
    return rows, refused


def tokens(tokenizer, row):
    """(text of a token, whether it is trained) one by one, cut where neither the mask nor a special token changes."""
    return [(tokenizer.decode([int(i)]), bool(t)) for i, t in zip(row.encoded.ids, row.encoded.trained, strict=True)]


def spans(tokenizer, row):
    runs = []
    for token, trained in zip(row.encoded.ids.tolist(), row.encoded.trained.tolist(), strict=True):
        if not runs or runs[-1][1] != trained:
            runs.append(([], trained))
        runs[-1][0].append(token)
    return [(tokenizer.decode(ids), trained) for ids, trained in runs]


CALLED = "<tool_call>\n<function=price>\n<parameter=of>\ntea\n</parameter>\n</function>\n</tool_call>\n"


def test_two_user_turns_with_tools_are_two_rows_masked_token_by_token(tokenizer):
    (first, second), refused = make(tokenizer, TALK)
    assert refused == []
    (prompt, trained), (answer, is_trained) = spans(tokenizer, first)
    assert (trained, is_trained) == (False, True)
    assert prompt.endswith("<|im_start|>user\nwhat is tea?<|im_end|>\n<|im_start|>assistant\n<think>\n")
    assert answer == "a plant\n</think>\nA drink.<|im_end|>"
    (prompt, _), (asks, is_trained), (result, between), (answer, last) = spans(tokenizer, second)
    assert (is_trained, between, last) == (True, False, True)
    # The reasoning of the turn before is gone, and what it said is not trained again.
    assert prompt.endswith(
        "<|im_start|>assistant\n<think></think>\nA drink.<|im_end|>\n"
        "<|im_start|>user\nand what does it cost?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert asks == f"I must ask\n</think>\n{CALLED}<|im_end|>"
    assert result == (
        "\n<|im_start|>user\n<tool_response>\n4\n</tool_response>\n<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )
    assert answer == "so four\n</think>\nFour.<|im_end|>"
    # Token by token: the special tokens are whole, and the row ends with its last trained one.
    for row in (first, second):
        assert tokens(tokenizer, row)[-1] == ("<|im_end|>", True)
        starts = [trained for text, trained in tokens(tokenizer, row) if text == "<|im_start|>"]
        assert len(starts) >= 3
        assert not any(starts)
    assert first.encoded.task == second.encoded.task


def test_every_answer_is_trained_once(tokenizer):
    messages = []
    for thought in ("a", "", "c"):
        messages += [{"role": "user", "content": "go on"}, {"role": "assistant", "content": f"said {thought}"}]
        messages[-1] |= {"reasoning_content": thought} if thought else {}
    rows, _ = make(tokenizer, {"messages": messages})
    texts = [[text for text, trained in spans(tokenizer, row) if trained] for row in rows]
    assert texts == [["a\n</think>\nsaid a<|im_end|>"], ["said<|im_end|>"], ["c\n</think>\nsaid c<|im_end|>"]]


def test_a_stripped_row_is_what_is_asked_for_with_thinking_off(tokenizer):
    from nano3.data.chat.encoder import ChatEncoder

    cfg = config({"strip_fraction": 1.0, "truncate_fraction": 0.0})
    (first, _), _ = make(tokenizer, TALK, cfg)
    prompt = ChatEncoder(tokenizer).encode(TALK["messages"][:2], [TOOL], enable_thinking=False).ids
    assert tuple(first.encoded.ids[: len(prompt)].tolist()) == prompt
    assert spans(tokenizer, first)[1] == ("A drink.<|im_end|>", True)


def test_rows_longer_than_a_sequence_are_dropped_or_cut_and_never_in_silence(tokenizer):
    (first, second), _ = make(tokenizer, TALK)
    length = first.encoded.places
    assert second.encoded.places > length
    rows, refused = make(tokenizer, TALK, config(pack_length=length))
    assert [row.turn.number for row in rows] == [0]
    assert refused == [("x.jsonl:7 turn 2", TOO_LONG)]
    longer = second.encoded.places - 2
    (_, cut), refused = make(tokenizer, TALK, config(pack_length=longer, too_long="cut"))
    assert refused == []
    assert cut.cut
    assert cut.encoded.places == longer
    assert np.array_equal(cut.encoded.ids, second.encoded.ids[: longer + 1])
    # Cut before its answer begins there is nothing to learn.
    _, refused = make(tokenizer, TALK, config(pack_length=length // 2, too_long="cut"))
    assert [reason for _, reason in refused] == [TOO_LONG, TOO_LONG]


def test_tasks_are_held_out_by_what_they_ask_first(tokenizer):
    records = [
        {"prompt": f"question {i // 2}", "completion": f"answer {i}"} for i in range(400)
    ]  # two answers to each question
    maker = RowMaker(config(heldout_fraction=0.2), tokenizer)
    rows = [next(maker.rows(Record("x", i, record), lambda *_: None)) for i, record in enumerate(records)]
    held = [row.heldout for row in rows]
    assert held[::2] == held[1::2]
    assert 20 < sum(held[::2]) < 65
    assert len({row.encoded.task for row in rows}) == 200


def test_a_tokenizer_that_cannot_mark_turns_is_refused(tokenizer):
    bare = json.loads(tokenizer.inner.to_str())
    bare["added_tokens"] = [token for token in bare["added_tokens"] if "im_" not in token["content"]]
    for name in ("<|im_start|>", "<|im_end|>"):
        bare["model"]["vocab"].pop(name)
    inner = type(tokenizer.inner).from_str(json.dumps(bare))
    with pytest.raises(ValueError, match=r"no chat template, and no token <\|im_start\|>"):
        RowMaker(config(), Tokenizer(inner, tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id))
