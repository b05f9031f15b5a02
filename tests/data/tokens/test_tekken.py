from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from transformers import AutoTokenizer

from nano3.data.tokens import packing, tekken
from nano3.data.tokens.tokenizer import Tokenizer

TEXT = Path(packing.__file__).read_text() + "\n\n日本語 naïve Ünïcode मानक 🙂 1234567 x\t\ty   z\r\n"


@pytest.fixture(scope="module")
def mistral(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Tokenizer.load("mistral")


@pytest.fixture(scope="module")
def peer():
    spec = importlib.util.find_spec("mistral_common")
    return Tekkenizer.from_file(Path(spec.submodule_search_locations[0]) / "data" / tekken.VOCABULARY_FILE)


def test_size_and_special_ids(mistral):
    assert mistral.vocab_size == 131072
    assert (mistral.pad_id, mistral.bos_id, mistral.eos_id) == (0, 1, 2)
    assert mistral.encode("<|im_start|><|im_end|><think></think>", special=True) == [10, 11, 12, 13]


def test_ids_are_those_of_mistral_common(mistral, peer):
    assert mistral.encode(TEXT) == peer.encode(TEXT, bos=False, eos=False)
    assert mistral.decode(mistral.encode(TEXT)) == TEXT


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60), *(st.text(letters, max_size=120) for letters in ("ab", " \n\t", "=-#", "日本é🙂", "01."))
    )
)
def test_ids_of_any_text_are_those_of_mistral_common(mistral, peer, text):
    assert mistral.encode(text) == peer.encode(text, bos=False, eos=False)


def test_saved_folder_loads_in_transformers(mistral, tmp_path):
    mistral.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXT)["input_ids"] == mistral.encode(TEXT)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install .*\[mistral\]'"):
        Tokenizer.load("mistral")
