"""Where the data come from, and what the result says of it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from nano3.config.errors import UserError
from nano3.eval.ruler import CountTokens, Sources, make_sample, reference
from nano3.eval.ruler.essays import Essays, split_sentences
from nano3.eval.ruler.words import WordList, built_in

PROSE = "It was a cold day in March. Mr. Hill went out, e.g. to buy bread! Did he? He did. "


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "essays").mkdir()
    (tmp_path / "essays" / "b.txt").write_text(PROSE * 10, "utf-8")
    (tmp_path / "essays" / "a.txt").write_text("Alone \n here.\n\n" * 40, "utf-8")
    (tmp_path / "essays" / "c.bin").write_bytes(b"\xff")
    return tmp_path / "essays"


def test_essays_come_from_any_text_folder(folder: Path, count: CountTokens) -> None:
    sources = Sources(essays=folder, words=built_in())
    sample = make_sample("niah_single_2", 4096, 0, 0, count, sources)
    assert "Alone here. Alone here." in sample.text
    assert sample.text.count("It was a cold day in March. Mr. Hill went out, e.g. to buy bread!") > 10
    assert sources.labels(["niah_single_2"])["essays"].startswith("essays (270 words, ")


def test_default_essays_are_readable_prose(sources: Sources) -> None:
    sentences = sources.essays.sentences(5000)
    words = " ".join(sentences).split(" ")
    assert len(words) == 5000
    assert sum(word.strip(".,'\"()").isalpha() for word in words) > 0.9 * len(words)
    assert 5 < len(words) / len(sentences) < 40
    assert sources.labels(["niah_single_2"])["essays"].startswith("prose of python-stdlib 3.")


def test_sentences_are_cut_at_their_ends_only() -> None:
    assert split_sentences(PROSE.strip()) == [
        "It was a cold day in March.",
        "Mr. Hill went out, e.g. to buy bread!",
        "Did he?",
        "He did.",
    ]
    assert split_sentences("no end") == ["no end"]


def test_any_number_of_words_is_there() -> None:
    essays = Essays("x", False, "One two three. Four five. Six")
    assert essays.sentences(0) == []
    assert essays.sentences(4) == ["One two three.", "Four"]
    assert essays.sentences(6) == ["One two three.", "Four five.", "Six"]
    assert " ".join(essays.sentences(14)) == "One two three. Four five. Six One two three. Four five. Six One two"


def test_only_the_references_data_make_it_ruler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference_words = WordList("wonderwords 3.0.1", True, *([f"{part}{i}" for i in range(9)] for part in "anv"))
    file = tmp_path / "PaulGrahamEssays.json"
    file.write_text(json.dumps({"text": "Some words. " * 100}), "utf-8")
    other = Sources(essays=file, words=reference_words)
    assert other.result_name(["niah_single_2"]) == "ruler-offline", "the name alone does not make it the reference's"
    known = (file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setitem(reference.FILES, "essays", frozenset({known}))
    sources = Sources(essays=file, words=reference_words)
    assert sources.result_name(["niah_single_1", "niah_single_2", "vt", "fwe"]) == "ruler"
    labels = sources.labels(["niah_single_2"])
    assert labels["words"] == "wonderwords 3.0.1"
    assert labels["essays"].startswith("PaulGrahamEssays.json (200 words, ")
    file.write_text(json.dumps({"text": "Same words. " * 100}), "utf-8")
    changed = Sources(essays=file, words=reference_words)
    assert changed.labels(["niah_single_2"]) != labels
    assert changed.result_name(["niah_single_2"]) == "ruler-offline"
    assert sources.result_name(["niah_single_1", "qa_1"]) == "ruler-offline"
    assert Sources(words=reference_words).result_name(["niah_single_2"]) == "ruler-offline"
    assert Sources(essays=file, words=built_in()).result_name(["niah_single_2"]) == "ruler-offline"
    assert sources.result_name(["cwe"], 131072) == "ruler"
    assert sources.result_name(["cwe"], 262144) == "ruler-offline"
    assert Sources(words=built_in()).result_name(["niah_multikey_3", "vt", "fwe"]) == "ruler"


def test_paths_that_are_not_there_are_told_at_once(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(UserError, match=r"--essays .*nowhere: no such file or folder"):
        Sources(essays=nowhere)
    with pytest.raises(UserError, match=r"--squad .*nowhere: no such file"):
        Sources(squad=nowhere)
    with pytest.raises(UserError, match=r"--hotpotqa .*nowhere: no such file"):
        Sources(hotpotqa=nowhere)


def test_unusable_essays_are_told(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Too little.", "utf-8")
    with pytest.raises(UserError, match=r"has 2 words of text in \.txt, .*: --essays needs 100"):
        _ = Sources(essays=tmp_path).essays
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 200)
    with pytest.raises(UserError, match=r"--essays: .*latin\.txt: not UTF-8 text"):
        _ = Sources(essays=tmp_path).essays
