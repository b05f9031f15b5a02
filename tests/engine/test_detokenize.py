import tracemalloc
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers

from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.detokenize import TextStream
from nano3.engine.request import Sampling

pytestmark = pytest.mark.any_isa

TEXTS = [Path(__file__).read_text("utf-8"), "naïve café, 你好世界 👋🏽 Здравствуй, мир — “quotes” " * 20]


def sentencepiece_like():
    """A vocabulary as Llama 2 has it: words with ▁, bytes as <0xNN>, text stripped of its first space."""
    words = ["▁", "▁the", "▁a", "the", "a", "b", "ab", "▁café", "é", "你", "▁end", "END", ".", "▁."]
    vocabulary = {"<unk>": 0, "</s>": 1, "<think>": 2}
    for word in [*(f"<0x{byte:02X}>" for byte in range(256)), *words]:
        vocabulary[word] = len(vocabulary)
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens([AddedToken("</s>", special=True)])
    inner.add_tokens([AddedToken("<think>", special=False)])
    return Tokenizer._named(inner)


def byte_level():
    tokenizer = Tokenizer.train(TEXTS, 700)
    tokenizer.inner.add_tokens([AddedToken("two words é", special=False)])
    return tokenizer


TOKENIZERS = {"byte-level": byte_level(), "sentencepiece": sentencepiece_like()}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


def pieces(stream, ids):
    return [*(stream.push(token) for token in ids), stream.flush()]


def cut(text, stops, include):
    """The text up to the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


@kinds
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_of_any_tokens_make_up_the_decoded_text(kind, data):
    tokenizer = TOKENIZERS[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=60))
    assert "".join(pieces(TextStream(tokenizer), ids)) == tokenizer.decode(ids, skip_special=True)


@kinds
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_text_ends_at_the_first_stop_string(kind, data):
    tokenizer = TOKENIZERS[kind]
    words = st.lists(st.sampled_from(["a", "b", "ab", "the", " ", "你", "é", "END", "\n", "."]), max_size=30)
    ids = tokenizer.encode("".join(data.draw(words)))
    whole = tokenizer.decode(ids, skip_special=True)
    stops = tuple(data.draw(st.lists(st.text("ab.E你é \n", min_size=1, max_size=4), min_size=1, max_size=3)))
    include = data.draw(st.booleans())
    stream = TextStream(tokenizer, stops, include)
    text, stop = cut(whole, stops, include)
    shown = ""
    for piece in pieces(stream, ids):
        shown += piece
        assert text.startswith(shown)
    assert (shown, stream.stopped) == (text, stop)


def test_characters_of_several_tokens_appear_whole_and_at_once():
    tokenizer = Tokenizer.train(["plain"], 263)
    ids = tokenizer.encode("é你👋!")
    assert pieces(TextStream(tokenizer), ids) == ["", "é", "", "", "你", "", "", "", "👋", "!", ""]


def test_a_character_cut_in_two_becomes_a_replacement_at_the_end():
    tokenizer = TOKENIZERS["byte-level"]
    assert "".join(pieces(TextStream(tokenizer), tokenizer.encode("好🙃")[:-1])) == "好\ufffd"


def test_special_tokens_and_hidden_ones_have_no_text_but_thinking_tags_do():
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer.encode("<|im_start|><think>yes</think></s>", special=True)
    stream = TextStream(tokenizer)
    assert "".join(pieces(stream, ids)) == "<think>yes</think>"
    assert TextStream(tokenizer).push(tokenizer.encode("a")[0], hidden=True) == ""


def test_text_that_may_become_a_stop_string_waits_and_is_shown_when_it_does_not():
    tokenizer = Tokenizer.train(["plain"], 263)
    stream = TextStream(tokenizer, ("abc", "bd"))
    assert [stream.push(token) for token in tokenizer.encode("xababd")] == ["x", "", "", "ab", "", "a"]
    assert stream.stopped == "bd"
    assert stream.push(tokenizer.encode("z")[0]) == ""
    assert stream.flush() == ""
    unfinished = TextStream(tokenizer, ("abc",))
    assert pieces(unfinished, tokenizer.encode("zab")) == ["z", "", "", "ab"]
    assert unfinished.stopped is None


def test_stop_strings_count_only_where_they_are_checked():
    tokenizer = TOKENIZERS["byte-level"]
    stream = TextStream(tokenizer, ("END",))
    early = "".join(stream.push(token, check_stop=False) for token in tokenizer.encode("one END two EN"))
    assert early == "one END two EN"
    assert "".join(stream.push(token) for token in tokenizer.encode("D then END now")) == "D then "
    assert stream.stopped == "END"


@kinds
def test_a_token_is_decoded_from_a_window_of_fixed_size(kind, monkeypatch):
    tokenizer = TOKENIZERS[kind]
    sizes = []
    decode = Tokenizer.decode

    def counting(self, ids, skip_special=False):
        sizes.append(len(ids))
        return decode(self, ids, skip_special)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    stream = TextStream(tokenizer, ("never",))
    for token in tokenizer.encode("the ab. " * 400):
        stream.push(token)
    assert max(sizes, default=0) < 20


def test_outputs_with_the_same_stop_strings_share_what_is_made_of_them():
    stops = tuple(f"{n}" + "ab" * 499 for n in range(20))
    tokenizer = TOKENIZERS["byte-level"]
    tracemalloc.start()
    try:
        streams = [TextStream(tokenizer, stops) for _ in range(20)]
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(streams) == 20
    assert used < 1_000_000


def test_a_stop_string_has_a_longest_length():
    assert Sampling(stop=("s" * 1000,)).stop
    with pytest.raises(ValueError, match="1001 characters"):
        Sampling(stop=("ok", "s" * 1001))
