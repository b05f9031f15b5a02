"""Tokens as clients see them."""

import math
import types

from nano3.engine.request import Token
from nano3.serve.tokens import CompletionLogprobs, TokenTexts, finite


def test_every_token_of_the_vocabulary_has_its_bytes(tokenizer):
    texts = TokenTexts(tokenizer)
    text = "über 日本語 🦊 <|im_end|>\n"
    ids = tokenizer.encode(text, special=True)
    assert b"".join(texts.bytes(i) for i in ids).decode() == text
    assert any(texts.text(i).startswith("bytes:\\x") for i in ids)
    assert len({texts.text(i) for i in range(tokenizer.vocab_size)}) == tokenizer.vocab_size


def test_the_chosen_token_is_among_the_alternatives_and_the_better_of_two_equal_texts_stands(tokenizer):
    a, b = tokenizer.encode("a")[0], tokenizer.encode("b")[0]
    lists = CompletionLogprobs(TokenTexts(tokenizer), 1).add([Token(b, -3.0, -3.0, ((a, -0.5), (b, -3.0)))])
    assert lists["top_logprobs"] == [{"a": -0.5, "b": -3.0}]
    alike = types.SimpleNamespace(text=lambda _: "x", bytes=lambda _: b"x")
    lists = CompletionLogprobs(alike, 1).add([Token(b, -3.0, -3.0, ((a, -0.5), (b, -3.0)))])
    assert lists["top_logprobs"] == [{"x": -0.5}]


def test_offsets_count_characters_across_calls(tokenizer):
    ids = tokenizer.encode("日x")
    lists = CompletionLogprobs(TokenTexts(tokenizer), 0)
    offsets = [lists.add([Token(i, -1.0, -1.0)])["text_offset"][0] for i in ids]
    assert offsets == [0] * (len(ids) - 1) + [1]


def test_what_json_cannot_carry_becomes_a_number():
    assert finite(-math.inf) == finite(math.nan) == -9999.0
    assert finite(-1.5) == -1.5
