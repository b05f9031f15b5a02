from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nano3.config.errors import UserError
from nano3.config.schema import DataConfig
from nano3.data.tokens.prepare import prepare
from nano3.data.tokens.shards import ShardFolder
from nano3.data.tokens.tokenizer import SMALLEST_VOCABULARY, Tokenizer
from nano3.splits import SPLITS, TRAINED_FOR_LLAMA_CPP

SAMPLES = ["def f(x):\n    return x\n", "  tabs\t\tand \r\n\r\n breaks", "1234567 naïve 日本語 🙂", " ", "a" * 500]


@given(st.text())
def test_any_text_survives_a_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids_are_fixed(tokenizer):
    names = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    assert [tokenizer.token_id(name) for name in names] == list(range(7))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)


def test_markup_written_in_a_text_is_text_unless_asked_for(tokenizer):
    assert tokenizer.eos_id not in tokenizer.encode("a </s> b")
    assert tokenizer.encode("<|im_start|></s>", special=True) == [3, 2]
    assert tokenizer.eos_id not in tokenizer.encode("a </s> b")


def test_hidden_special_tokens_leave_the_end_of_reasoning_visible(tokenizer):
    ids = tokenizer.encode("<think>hm</think>yes<|im_end|>", special=True)
    assert tokenizer.decode(ids, skip_special=True) == "<think>hm</think>yes"


def test_batches_equal_single_texts(tokenizer):
    assert tokenizer.encode_batch(SAMPLES) == [tokenizer.encode(text) for text in SAMPLES]


def test_indentation_and_line_break_are_one_token(tokenizer):
    assert len(tokenizer.encode("):\n        ")) <= 2


def test_digits_stand_alone(tokenizer):
    assert len(tokenizer.encode("424242")) == 6


def test_training_gives_the_same_vocabulary_in_another_process(tokenizer):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import conftest;"
        "from nano3.data.tokens.tokenizer import Tokenizer;"
        "t = Tokenizer.train(['日本語 naïve café', conftest.PROSE * 3, conftest.CODE * 3], 400); print(t.fingerprint())"
    )
    folder = str(Path(__file__).parents[1])
    result = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == tokenizer.fingerprint()


def test_saved_folder_loads_here_and_in_transformers_with_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again, peer = Tokenizer.load(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint()
    for text in SAMPLES:
        assert again.encode(text) == tokenizer.encode(text) == peer(text)["input_ids"]
        assert peer.decode(tokenizer.encode(text)) == text
    assert (peer.eos_token_id, peer.bos_token_id, peer.pad_token_id) == (2, 1, 0)


def test_a_bare_tokenizer_json_loads(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    assert Tokenizer.load(tmp_path / "tokenizer.json").eos_id == tokenizer.eos_id


def test_settings_of_a_loaded_folder_are_kept_when_it_is_saved_again(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "a")
    config = json.loads((tmp_path / "a/tokenizer_config.json").read_text()) | {
        "eos_token": "<|im_end|>",
        "note": "kept",
    }
    (tmp_path / "a/tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "a/chat_template.jinja").write_text("{{ messages }}")
    Tokenizer.load(tmp_path / "a").save(tmp_path / "b")
    assert Tokenizer.load(tmp_path / "b").eos_id == tokenizer.token_id("<|im_end|>")
    assert json.loads((tmp_path / "b/tokenizer_config.json").read_text())["note"] == "kept"
    assert (tmp_path / "b/chat_template.jinja").read_text() == "{{ messages }}"


def test_wrong_tokenizers_are_one_line_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        Tokenizer.load(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=f"the least is {SMALLEST_VOCABULARY}"):
        Tokenizer.train(["a"], 100)


def with_last_id(tokenizer: Tokenizer, last: int) -> Tokenizer:
    """The same vocabulary with its last entry at id `last`."""
    settings = json.loads(tokenizer.inner.to_str())
    vocab = settings["model"]["vocab"]
    vocab[max(vocab, key=lambda name: vocab[name])] = last
    return Tokenizer._named(tokenizers.Tokenizer.from_str(json.dumps(settings)))


@pytest.mark.parametrize("last", [1000, 5000, 70_000])
def test_ids_may_leave_gaps(tmp_path, last):
    text = "some words and some more words " * 5
    gapped = with_last_id(Tokenizer.train([text], 290), last)
    assert gapped.vocab_size == last + 1
    gapped.save(tmp_path / "tokenizer")
    assert Tokenizer.load(tmp_path / "tokenizer").vocab_size == last + 1
    ids = gapped.encode(text)
    assert max(ids) == last
    (tmp_path / "a.txt").write_text(text)
    cfg = DataConfig(
        blend={"a": 1}, sources={"a": [str(tmp_path / "a.txt")]}, tokenizer=str(tmp_path / "tokenizer"),
        heldout_fraction=0, cache_dir=str(tmp_path / "cache"), seq_len=8,
    )  # fmt: skip
    with pytest.raises(UserError, match=f"ids up to {last}, model.vocab_size is {last}: .*vocab_size={last + 1}"):
        prepare(cfg, last)
    assert not (tmp_path / "cache" / "shards").exists()
    prepared = prepare(cfg, last + 1)
    (folder,) = prepared.folders["a"]
    assert ShardFolder(folder).tokens(0).tolist() == ids
    assert ShardFolder(folder).manifest.vocab_size == last + 1


def test_tokens_that_are_added_later_count(tokenizer):
    other = Tokenizer._named(tokenizers.Tokenizer.from_str(tokenizer.inner.to_str()))
    before = other.vocab_size
    other.inner.add_tokens(["<|one|>", "<|two|>"])
    assert other.vocab_size == before + 2


def test_a_vocabulary_for_llama_cpp_cuts_as_llama_cpp_does():
    text = "don't x = 12;\n    y\n" * 20
    cut = Tokenizer.train([text], 300, SPLITS[TRAINED_FOR_LLAMA_CPP]).inner.pre_tokenizer
    assert [text[a:b] for _, (a, b) in cut.pre_tokenize_str("don't x = 12;\n    y")] == [
        "don", "'t", " x", " =", " ", "1", "2", ";\n", "   ", " y",
    ]  # fmt: skip


def test_data_tokenizer_chooses_the_split(tmp_path):
    (tmp_path / "a.txt").write_text("don't x = 12;\n    y\n" * 200)
    found = {}
    for name in SPLITS:
        cfg = DataConfig(blend={"text": 100.0}, sources={"text": [str(tmp_path / "a.txt")]}, seq_len=16,
                         tokenizer=name, cache_dir=str(tmp_path / "cache"), heldout_fraction=0.0)  # fmt: skip
        found[name] = json.loads(prepare(cfg, 300).tokenizer.inner.to_str())["pre_tokenizer"]
    patterns = {name: pre["pretokenizers"][0]["pattern"]["Regex"] for name, pre in found.items()}
    assert patterns == SPLITS
