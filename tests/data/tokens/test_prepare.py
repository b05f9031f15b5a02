from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nano3.config.schema import DataConfig
from nano3.data.texts.corpus import is_heldout
from nano3.data.tokens.build import content_hash
from nano3.data.tokens.prepare import prepare, prepare_out

CODE = "def add(a, b):\n    return a + b\n\n\nclass Point:\n    def __init__(self, x):\n        self.x = x\n"
PROSE = "The quick brown fox jumps over the lazy dog. Seven wizards cast 42 spells, twice. "


@pytest.fixture
def cfg(write_texts, tmp_path):
    web = write_texts({f"{i}.txt": f"web {i} " + PROSE * (1 + i % 3) for i in range(60)}, "web")
    code = write_texts({f"{i}.py": f"# code {i}\n" + CODE * (1 + i % 4) for i in range(40)}, "code")
    return DataConfig(
        blend={"web": 75.0, "code": 25.0},
        sources={"web": [str(web)], "code": [str(code)]},
        cache_dir=str(tmp_path / "cache"),
        seq_len=32,
        heldout_fraction=0.2,
    )


def source_texts(cfg):
    return [path.read_text() for listed in cfg.sources.values() for path in Path(listed[0]).iterdir()]


def test_training_and_heldout_text_make_up_the_corpus(cfg):
    prepared = prepare(cfg, 400)
    heldout = list(prepared.heldout_texts())
    texts = source_texts(cfg)
    assert set(heldout) < set(texts)
    assert prepared.n_documents + len(heldout) == len(texts)
    assert prepared.heldout_bytes == sum(len(text.encode()) for text in heldout)
    assert prepared.n_bytes + prepared.heldout_bytes == sum(len(text.encode()) for text in texts)
    for stream in prepared.train._streams.values():
        rows = [stream.row(i, cfg.seq_len).tokens for i in range(400)]
        seen = prepared.tokenizer.decode([token for row in rows for token in row.tolist()])
        assert not [text for text in heldout if text in seen]


def test_shares_of_the_blend_show_in_the_rows(cfg):
    batch = prepare(cfg, 400).train.batch(0, 40)
    assert batch.tokens.shape == (40, 32)
    rows = [prepare(cfg, 400).train.blend.category(i)[0] for i in range(40)]
    assert (rows.count("web"), rows.count("code")) == (30, 10)


def test_the_cache_gives_the_same_data_without_reading_again(cfg):
    first = prepare(cfg, 400)
    asked = []
    second = prepare(cfg, 400, progress=lambda *args: asked.append(args))
    assert not asked
    assert torch.equal(first.train.batch(3, 5).tokens, second.train.batch(3, 5).tokens)
    fresh = prepare(replace(cfg, cache_dir=cfg.cache_dir + "2"), 400)
    assert torch.equal(first.train.batch(3, 5).tokens, fresh.train.batch(3, 5).tokens)


def test_a_changed_file_is_prepared_again(cfg, tmp_path):
    before = prepare(cfg, 400).n_bytes + prepare(cfg, 400).heldout_bytes
    (tmp_path / "web/0.txt").write_text("shorter")
    assert prepare(cfg, 400).n_bytes + prepare(cfg, 400).heldout_bytes < before


def test_another_sequence_length_or_seed_reuses_the_shards_where_the_vocabulary_allows(cfg, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tok")
    cfg = replace(cfg, tokenizer=str(tmp_path / "tok"))
    folders = prepare(cfg, 400).folders
    changed = prepare(replace(cfg, seq_len=64, seed=5, heldout_fraction=0.1), 400)
    assert changed.folders == folders
    assert changed.train.batch(0, 2).tokens.shape == (2, 64)


def test_a_prepared_folder_is_a_source_and_brings_its_tokenizer(cfg, tmp_path):
    folders, _ = prepare_out(cfg, 400, tmp_path / "out")
    again = replace(cfg, sources={}, sources_file=str(tmp_path / "out/blend.toml"))
    assert any("brings its own" in note for note in prepare(again, 400).notes)
    assert folders == {"web": [tmp_path / "out/web"], "code": [tmp_path / "out/code"]}
    assert torch.equal(prepare(again, 400).train.batch(0, 9).tokens, prepare(cfg, 400).train.batch(0, 9).tokens)


def test_a_prepared_folder_of_another_tokenizer_is_an_error(cfg, tokenizer, tmp_path):
    prepare_out(cfg, 400, tmp_path / "out")
    tokenizer.save(tmp_path / "tok")
    again = replace(cfg, tokenizer=str(tmp_path / "tok"), sources_file=str(tmp_path / "out/blend.toml"))
    with pytest.raises(ValueError, match="was prepared with another tokenizer"):
        prepare(again, 400)


def test_a_tokenizer_larger_than_the_model_is_an_error(cfg, tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    n = tokenizer.vocab_size
    with pytest.raises(ValueError, match=rf"ids up to {n - 1}, model\.vocab_size is 300: --set model\.vocab_size={n}"):
        prepare(replace(cfg, tokenizer=str(tmp_path)), 300)


def test_the_vocabulary_does_not_see_heldout_text(cfg, write_texts):
    def learned(held: bool) -> bool:
        texts = (f"{i}" + " xylophonist" * 300 for i in range(1000))
        hashes = ((text, np.array([content_hash(text)], np.uint64)) for text in texts)
        text = next(text for text, h in hashes if is_heldout(h, cfg.heldout_fraction, cfg.seed)[0] == held)
        write_texts({"rare.txt": text}, "web")
        return len(prepare(cfg, 300).tokenizer.encode(" xylophonist")) == 1

    assert learned(held=False)
    assert not learned(held=True)


@pytest.mark.parametrize("fraction", [0.05, 0.06, 0.07, 0.08])
def test_a_cut_document_is_not_cut_inside_a_character(write_texts, tmp_path, fraction):
    text = "日本語の文章である" * 7
    folder = write_texts({"book.txt": text})
    cfg = DataConfig(
        blend={"b": 1.0}, sources={"b": [str(folder)]}, cache_dir=str(tmp_path / "c"), heldout_fraction=fraction
    )
    prepared = prepare(cfg, 263)
    (end,) = prepared.heldout_texts()
    assert end
    assert text.endswith(end)
    assert prepared.n_bytes + prepared.heldout_bytes == len(text.encode())


def test_a_single_document_gives_its_end_to_the_heldout_side(write_texts, tmp_path):
    text = "".join(f"line {i}: naïve 日本語 {PROSE}\n" for i in range(50))
    folder = write_texts({"book.txt": text})
    cfg = DataConfig(blend={"b": 1.0}, sources={"b": [str(folder)]}, cache_dir=str(tmp_path / "c"), seq_len=16)
    prepared = prepare(cfg, 300)
    (end,) = prepared.heldout_texts()
    assert text.endswith(end)
    assert len(end) == pytest.approx(0.05 * len(text), rel=0.3)
    assert prepared.heldout_bytes == len(end.encode())
    assert prepared.n_bytes + prepared.heldout_bytes == len(text.encode())
    assert prepared.n_train_tokens - 1 == len(prepared.tokenizer.encode(text.removesuffix(end)))
    assert "the end of book.txt is held out" in prepared.notes[0]


def test_bits_per_byte_of_a_uniform_model_are_exact(cfg):
    prepared = prepare(cfg, 400)
    batches = [prepared.heldout.batch(i, 3) for i in range(0, len(prepared.heldout), 3)]
    bits = sum(batch.n_targets for batch in batches) * math.log2(400)
    texts = list(prepared.heldout_texts())
    n_tokens = sum(len(prepared.tokenizer.encode(text)) + 1 for text in texts)
    assert bits == pytest.approx(n_tokens * math.log2(400))
    assert prepared.heldout.bytes_of(0, len(prepared.heldout)) == sum(len(text.encode()) for text in texts)


def test_nothing_held_out_when_asked(cfg):
    prepared = prepare(replace(cfg, heldout_fraction=0.0), 400)
    assert (len(prepared.heldout), prepared.heldout_bytes, prepared.n_documents) == (0, 0, 100)


@pytest.mark.parametrize(("key", "value"), [("heldout_fraction", 1.0), ("heldout_fraction", -0.1), ("seq_len", 0)])
def test_impossible_settings_are_errors(cfg, key, value):
    with pytest.raises(ValueError, match=rf"data\.{key} is"):
        prepare(replace(cfg, **{key: value}), 400)


def test_skipped_documents_are_reported_also_from_the_cache(cfg, write_texts):
    write_texts({"bad.txt": b"\xff", "picture.png": b"x"}, "web")
    for _ in range(2):
        assert prepare(cfg, 400).notes == [
            "web: skipped 1 file of unknown type (picture.png), 1 not UTF-8 (bad.txt); "
            "a file that you name itself is read whatever its type"
        ]
