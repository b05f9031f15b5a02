"""Texts that are cut into words give the ids of the whole text, and tokenizers that would not are left alone."""

from __future__ import annotations

import pytest
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers

from nano3.data.chat.encoder import ChatEncoder
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.eval.pieces import PieceTokenizer, can_be_cut
from nano3.eval.ruler import TASKS, Sources, make_sample
from nano3.eval.ruler.words import built_in

ODD = "  Two  blanks,\ttabs\n\n\n and lines. naïve e\u0301 日本 it's 3.14; (x) </s> <think> a\r\n <|im_end|> B" * 90


@pytest.mark.parametrize("task", sorted(TASKS))
def test_samples_get_the_same_ids(task, tokenizer):
    pieces = PieceTokenizer.of(tokenizer)
    assert pieces is not tokenizer
    sample = make_sample(task, 6000, 0, 0, lambda text: len(tokenizer.encode(text)), Sources(words=built_in()))
    for text in (sample.prompt, sample.prompt[7:], ODD, ODD + sample.prompt):
        for special in (False, True):
            assert pieces.encode(text, special) == tokenizer.encode(text, special)
    messages = [{"role": "user", "content": sample.text + ODD}]
    assert ChatEncoder(pieces).encode(messages).ids == ChatEncoder(tokenizer).encode(messages).ids


def test_the_memory_of_words_does_not_change_the_ids(tokenizer, monkeypatch):
    monkeypatch.setattr("nano3.eval.pieces.MOST_PIECES", 40)
    pieces = PieceTokenizer.of(tokenizer)
    for number in range(3):
        text = " ".join(f"word{number} a{i} b" for i in range(1000))
        assert pieces.encode(text) == tokenizer.encode(text)
        assert pieces.encode(text) == tokenizer.encode(text)


def bpe(split, normalizer=None) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    if split is not None:
        inner.pre_tokenizer = split
    if normalizer is not None:
        inner.normalizer = normalizer
    return inner


def test_rules_that_join_words_are_not_cut():
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert can_be_cut(bpe(gpt2))
    assert can_be_cut(bpe(gpt2, normalizers.NFC()))
    assert not can_be_cut(bpe(None))
    assert not can_be_cut(bpe(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)))
    assert not can_be_cut(bpe(pre_tokenizers.ByteLevel(add_prefix_space=True)))
    assert not can_be_cut(bpe(pre_tokenizers.Split(Regex(r"\p{L}+ \p{L}+|."), "isolated")))
    assert not can_be_cut(bpe(pre_tokenizers.Split(Regex(r"[^ ]+ "), "isolated")))
    assert not can_be_cut(bpe(gpt2, normalizers.Prepend("_")))
    joined = bpe(gpt2)
    joined.add_tokens(["of the"])
    assert not can_be_cut(joined)


def test_such_a_tokenizer_stays_as_it_is(tokenizer):
    inner = tokenizers.Tokenizer.from_str(tokenizer.inner.to_str())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining = Tokenizer(inner, tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id)
    assert PieceTokenizer.of(joining) is joining
