from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nano3.config.generate import GenerateConfig
from nano3.config.schema import DataConfig
from nano3.data.generated.inputs import GeneratedTexts
from nano3.data.texts import passages
from nano3.data.texts.corpus import is_heldout
from nano3.data.texts.skipped import Skipped
from nano3.data.texts.sources import resolve
from nano3.data.tokens.batch import IGNORE
from nano3.data.tokens.build import content_hash
from nano3.data.tokens.lengths import plan_lengths
from nano3.data.tokens.prepare import prepare
from nano3.data.tokens.shards import ShardFolder


@pytest.fixture
def folder(write_texts, library):
    return write_texts({document.name: document.text for document in library})


@pytest.fixture
def cfg(folder, tmp_path):
    return DataConfig(
        blend={"mine": 75, "document-qa": 20, "retrieval": 5},
        sources={"mine": [str(folder)]},
        cache_dir=str(tmp_path / "cache"),
        seq_len=512,
        heldout_fraction=0.3,
        generate=GenerateConfig(
            sources=[str(folder)], tokens=12000, retrieval_tokens=16000, lengths={"4096": 1, "512": 1}
        ),
    )


@pytest.mark.parametrize("category", ["document-qa", "retrieval"])
def test_no_heldout_text_is_quoted(cfg, library, tokenizer, category):
    (source,) = resolve(cfg)[category].generated
    texts = "".join(d.text for d in source.with_tokenizer(tokenizer).documents(Skipped()) if d)
    hashes = np.array([content_hash(document.text) for document in library], np.uint64)
    lines = {False: set(), True: set()}
    for document, held in zip(library, is_heldout(hashes, 0.3, cfg.seed), strict=True):
        lines[bool(held)] |= {line.strip() for line in document.text.splitlines() if len(line) > 40}
    assert any(line in texts for line in lines[False])
    assert not [line for line in lines[True] - lines[False] if line in texts]


def test_a_run_gets_rows_of_the_wanted_lengths_and_holds_out_real_text_only(cfg):
    prepared = prepare(cfg, 1024)
    for name in ("document-qa", "retrieval"):
        (path,) = prepared.folders[name]
        assert {int(length) for length in ShardFolder(path).lengths} <= {510, 511, 4094, 4095}
    assert prepared.heldout.n_bytes > 0
    corpus = prepared.heldout.corpus
    assert all(corpus.name(i).endswith((".py", ".txt")) for i in range(len(corpus)))


def test_the_end_that_a_small_blend_holds_out_is_not_quoted(cfg, library, write_texts):
    fraction = 0.3
    hashes = np.array([content_hash(document.text) for document in library], np.uint64)
    held = is_heldout(hashes, fraction, cfg.seed)
    assert held.any()
    book = library[int(np.flatnonzero(~held)[0])]
    alone = write_texts({book.name: book.text}, "book")
    made = replace(cfg.generate, tokens=60_000, lengths={"4096": 1})
    cfg = replace(
        cfg, blend={"mine": 80, "document-qa": 20}, sources={"mine": [str(alone)]}, seq_len=4096, generate=made
    )
    prepared = prepare(cfg, 1024)
    lines = {line for text in prepared.heldout_texts() for line in text.splitlines()[1:] if len(line) > 30}
    assert len(lines) > 3
    (source,) = resolve(cfg)["document-qa"].generated
    made = "".join(text.text for text in source.with_tokenizer(prepared.tokenizer).texts())
    assert any(line in made for line in book.text.splitlines()[:8] if len(line) > 30)
    assert not [line for line in lines if line in made]


def test_a_sample_of_the_sources_is_told(cfg, library, monkeypatch):
    monkeypatch.setattr(passages, "CORPUS_CHARACTERS", sum(len(document.text) for document in library) // 3)
    cfg = replace(cfg, blend={"mine": 80, "retrieval": 20})
    for _ in range(2):  # the second time from the cache
        notes = prepare(cfg, 1024).notes
        assert [note for note in notes if "retrieval: skipped" in note and "of the text, are all that is used" in note]


@pytest.mark.parametrize("category", ["document-qa", "retrieval"])
def test_the_shortest_length_can_be_made(cfg, category):
    made = replace(cfg.generate, lengths={"256": 1}, tokens=600, retrieval_tokens=600)
    cfg = replace(cfg, blend={"mine": 80, category: 20}, seq_len=256, generate=made)
    (path,) = prepare(cfg, 1024).folders[category]
    assert {int(length) for length in ShardFolder(path).lengths} <= {253, 254, 255}


def test_what_decides_one_category_makes_the_other_not_anew(cfg):
    def identities(**change):
        changed = replace(cfg, generate=replace(cfg.generate, **change))
        return [resolve(changed)[name].generated[0].identity() for name in ("document-qa", "retrieval")]

    qa, retrieval = identities()
    for change in ({"tokens": 7001}, {"url": "x"}, {"model": "y"}):
        assert identities(**change)[1] == retrieval
    for change in ({"retrieval_tokens": 7001}, {"retrieval_longest": 512}):
        assert identities(**change)[0] == qa
        assert identities(**change)[1] != retrieval


def test_each_question_stands_in_one_row_and_one_document_with_its_evidence(cfg, tokenizer):
    cfg = replace(cfg, seq_len=4096)
    prepared = prepare(cfg, 1024)
    lengths = (4096, 512)
    for category in ("document-qa", "retrieval"):
        (source,) = resolve(cfg)[category].generated
        texts = list(source.with_tokenizer(prepared.tokenizer).texts())
        made = {f"{category}/{n}/{i}": text for i, (n, text) in enumerate(zip(source.lengths(), texts, strict=True))}
        for seq_len in lengths:
            train = prepared.train.with_seq_len(seq_len, lengths)
            names = {name for name in made if name.split("/")[1] == str(seq_len)}
            numbers = [i for i in range(60 * len(names)) if train.blend.category(i)[0] == category][: len(names)]
            seen = []
            for number in numbers:
                row = train.sequence(number)
                (name,) = row.documents
                text = made[name]
                decoded = prepared.tokenizer.decode(row.tokens[row.document_ids == 0].tolist())
                assert text.text in decoded
                for question in text.questions:
                    assert all(0 <= decoded.find(e) < decoded.rfind(question.text) for e in question.evidence)
                scored = row.targets != IGNORE
                assert row.targets[scored].tolist() == [
                    *prepared.tokenizer.encode(text.text),
                    prepared.tokenizer.eos_id,
                ]
                seen.append(name)
            assert sorted(seen) == sorted(names)
            assert train.epochs(100)[category] == pytest.approx(float(100 * train.blend.shares[category]) / len(names))


def test_texts_longer_than_a_row_are_left_out_with_a_note(cfg):
    prepared = prepare(cfg, 1024)
    long = resolve(cfg)["document-qa"].generated[0].lengths().count(4096)
    assert any(f"document-qa: {long} of" in note and "longer than a row of 512" in note for note in prepared.notes)
    everything = prepare(replace(cfg, seq_len=4096), 1024)
    assert 0 < prepared.n_train_tokens < everything.n_train_tokens
    with pytest.raises(ValueError, match="no document of document-qa fits whole in a row of 128 tokens"):
        prepared.train.with_seq_len(128)


def test_a_category_of_texts_from_a_file_is_kept_whole_on_request(cfg, folder):
    def cut(cfg):
        train = prepare(cfg, 1024).train
        rows = [train.sequence(i) for i in range(30)]
        return [row.tokens[0] != 2 or (row.targets == IGNORE).sum() == 0 for row in rows]

    alone = replace(cfg, blend={"mine": 1}, seq_len=2048)
    assert any(cut(alone))
    assert not any(cut(replace(alone, whole_documents=["mine"])))
    with pytest.raises(ValueError, match=r"whole_documents: 'main' has no share"):
        replace(alone, whole_documents=["main"])


def test_the_second_run_takes_them_from_the_cache(cfg, monkeypatch):
    first = prepare(cfg, 1024).folders
    monkeypatch.setattr(GeneratedTexts, "texts", lambda self: pytest.fail("made again"))
    assert prepare(cfg, 1024).folders == first


def test_identity_changes_with_all_that_decides_the_texts(cfg):
    def identity(cfg):
        (source,) = resolve(cfg)["document-qa"].generated
        return source.identity()

    made = cfg.generate
    others = [
        replace(cfg, seed=5),
        replace(cfg, heldout_fraction=0.1),
        *(
            replace(cfg, generate=replace(made, **change))
            for change in ({"seed": 1}, {"tokens": 7001}, {"lengths": {"512": 1}}, {"url": "x"}, {"model": "y"})
        ),
        replace(cfg, generate=replace(made, sources=["python-stdlib"])),
    ]
    assert len({identity(other) for other in [cfg, *others]}) == len(others) + 1


def test_lengths_have_their_share_of_the_tokens():
    lengths = plan_lengths(1_000_000, {1000: 1, 10_000: 3})
    assert sum(n for n in lengths if n == 10_000) == 750_000
    assert sum(n for n in lengths if n == 1000) == 250_000
    first = lengths[: len(lengths) // 2]
    assert 0.45 < sum(first) / sum(lengths) < 0.55


def test_mistakes_are_named(cfg, folder):
    with pytest.raises(ValueError, match="did you mean generate:retrieval"):
        resolve(replace(cfg, sources={"mine": ["generate:retrival"]}))
    with pytest.raises(ValueError, match="category of their own"):
        resolve(replace(cfg, sources={"mine": ["generate:retrieval", str(folder)]}))
    with pytest.raises(ValueError, match=r"lengths has '12'"):
        GenerateConfig(lengths={"12": 1})
    with pytest.raises(ValueError, match="a share must be above 0"):
        GenerateConfig(lengths={"512": 0})
