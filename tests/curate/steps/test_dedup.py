"""Exact and near-duplicates, within the input and against an existing corpus."""

import gzip
import json
import random
import re
import tracemalloc
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nano3.config.errors import UserError
from nano3.curate import pieces
from nano3.curate.pieces import count_words
from nano3.curate.steps.dedup.exact import WriteHashes
from nano3.curate.steps.dedup.near import NearDedupSettings, Signatures
from nano3.curate.steps.dedup.shingles import jaccard, run_hashes, shingles

from ..conftest import dropped

WORDS = [
    a + b for a in ("ka", "lo", "mi", "tu", "re", "so", "ne", "ba") for b in ("nar", "vel", "din", "pos", "rek", "tam")
]
LETTERS = st.one_of(st.sampled_from("aB_1 .\n\u0130\u00df\u4e2d\u2019\u00b2\u0301\ud800"), st.characters())
VOCABULARY = [one + other for one in WORDS for other in WORDS]


def text_of(rng, words=150):
    return " ".join(rng.choice(VOCABULARY) for _ in range(words))


def changed(text, share, rng):
    return " ".join(rng.choice(VOCABULARY) if rng.random() < share else word for word in text.split())


def ngrams(text, n):
    """Runs of words, by Python's sets; of a shorter text all of it."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def similarity(one, other, n=5):
    """Jaccard of word n-grams, by Python's sets."""
    first, second = ngrams(one, n), ngrams(other, n)
    return len(first & second) / len(first | second)


def corpus(bases=60, copies=3):
    """Texts, and copies of them with a share of the words replaced: (id, text), shuffled."""
    rng = random.Random(3)
    texts = [(f"b{i}", text_of(rng)) for i in range(bases)]
    for i in range(bases):
        for j in range(copies):
            share = (0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1)[(i + 7 * j) % 7]
            texts.append((f"b{i}-{j}", changed(texts[i][1], share, rng)))
    rng.shuffle(texts)
    return [{"id": name, "text": text} for name, text in texts]


@pytest.mark.parametrize("text", ["", "one", "one two", "a b c d e f g", "A, b; C: d! e? f"])
def test_shingles_are_the_runs_of_words(text):
    assert len(shingles(text, 3)) == len(ngrams(text, 3))
    assert len(shingles(text + " " + text, 3)) == len(ngrams(text + " " + text, 3))
    assert (shingles(text.upper(), 3) == shingles(text, 3)).all()


@settings(max_examples=200, deadline=None)
@given(one=st.text(LETTERS, max_size=60), other=st.text(LETTERS, max_size=60), n=st.integers(1, 3))
def test_words_of_any_script_are_those_of_a_regular_expression(one, other, n):
    assert len(shingles(one, n)) == len(ngrams(one, n))
    assert len(np.intersect1d(shingles(one, n), shingles(other, n))) == len(ngrams(one, n) & ngrams(other, n))


def test_a_word_without_end_takes_bounded_memory():
    text = "x" * 20_000_000
    tracemalloc.start()
    try:
        found = shingles(text, 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) > 0
    assert peak < 150_000_000


def test_the_similarity_is_that_of_sets():
    rng = random.Random(5)
    for share in (0, 0.01, 0.05, 0.3, 1):
        one = text_of(rng)
        other = changed(one, share, rng)
        assert jaccard(shingles(one, 5), shingles(other, 5)) == similarity(one, other)


def test_near_duplicates_are_found_and_each_one_dropped_is_near_to_one_kept(curate):
    rows = corpus()
    report, kept = curate([("near-dedup", {})], rows)
    kept_texts = {row["id"]: row["text"] for row in kept}
    missed = found = 0
    for i, row in enumerate(rows):
        family = row["id"].partition("-")[0]
        before = [o for o in rows[:i] if o["id"] in kept_texts and o["id"].partition("-")[0] == family]
        near = any(similarity(row["text"], other["text"]) >= 0.8 for other in before)
        assert near or row["id"] in kept_texts, f"{row['id']} was dropped and is near to nothing that is kept"
        found += near
        missed += near and row["id"] in kept_texts
    assert found > 60
    assert missed <= 1
    assert dropped(report, "near-dedup") == {"near-duplicate": len(rows) - len(kept)}


def test_pages_of_one_template_are_kept(curate):
    rng = random.Random(7)
    frame = text_of(rng, 40)
    rows = [{"id": f"t{i}", "text": f"{frame} {text_of(rng, 60)} {frame}"} for i in range(60)]
    assert 0.2 < similarity(rows[0]["text"], rows[1]["text"]) < 0.6
    _, kept = curate([("near-dedup", {"rows": 2})], rows)
    assert [row["id"] for row in kept] == [row["id"] for row in rows]


def test_a_chain_of_neighbours_does_not_drop_its_far_end(curate):
    rng = random.Random(9)
    texts = [text_of(rng, 200)]
    for i in range(12):
        words = texts[-1].split()
        words[i * 15 : i * 15 + 8] = text_of(rng, 8).split()
        texts.append(" ".join(words))
    _, kept = curate([("near-dedup", {})], texts)
    names = [row["id"] for row in kept]
    assert names[0] == "d0"
    for i, text in enumerate(texts):
        nearest = max(similarity(text, row["text"]) for row in kept)
        assert (f"d{i}" in names) == (nearest == 1)
        assert nearest >= 0.8
    assert len(names) > 2


@pytest.mark.parametrize("use", ["exact-dedup", "near-dedup"])
def test_what_the_existing_corpus_has_is_dropped_and_nothing_of_it_comes_out(curate, tmp_path, use):
    rng = random.Random(11)
    old = [text_of(rng) for _ in range(30)]
    (tmp_path / "old").mkdir()
    for part in range(3):
        lines = [json.dumps({"text": text, "id": "old"}) for text in old[part::3]]
        (tmp_path / f"old/{part}.jsonl").write_text("\n".join(lines))
    new = [text_of(rng) for _ in range(20)]
    near = [changed(text, 0.01, rng) for text in old[:10]] if use == "near-dedup" else []
    near = [text for i, text in enumerate(near) if similarity(text, old[i]) >= 0.85]
    report, kept = curate([(use, {})], [*old[10:], *new, *near, new[0]], against=[str(tmp_path / "old")])
    assert sorted(row["text"] for row in kept) == sorted(new)
    assert sorted(dropped(report, use).values()) == [1, 20 + len(near)]
    assert report.entered.documents == 20 + 20 + len(near) + 1


@pytest.mark.parametrize("use", ["exact-dedup", "near-dedup"])
def test_what_cannot_be_read_of_the_existing_corpus_is_told(curate, tmp_path, use):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/a.jsonl").write_text('{"text": "one two"}\n{broken\n')
    (tmp_path / "old/b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n' * 99)[:20])
    (tmp_path / "old/c.pdf").touch()
    report, _ = curate([(use, {})], ["one two", "three"], against=[str(tmp_path / "old")])
    assert sum(report.steps[1].account.notes.values()) == 2
    assert "left out of the existing corpus: not a JSON object" in report.steps[1].account.notes
    assert report.manifest.left_out.startswith("of --against 1 file of unknown type (c.pdf)")


def test_the_division_into_tasks_changes_nothing_but_the_files(curate, tmp_path):
    rows = corpus(20)
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.jsonl")
        paths[-1].write_text("".join(json.dumps(row) + "\n" for row in rows[i * 20 : i * 20 + 20]))
    _, one = curate([("near-dedup", {})], paths=paths, tasks=1, out="one")
    _, four = curate([("near-dedup", {})], paths=paths, tasks=4, out="four")
    assert [row["id"] for row in one] == [row["id"] for row in four]


def test_documents_without_words_and_empty_tasks_pass(curate):
    _, kept = curate([("near-dedup", {}), ("near-dedup", {})], ["...", "***", "one"], tasks=3)
    assert len(kept) == 3


def test_white_space_may_be_ignored(curate):
    texts = ["a  b\nc", "a b c", "a b d"]
    _, kept = curate([("exact-dedup", {})], texts, out="exact")
    assert len(kept) == 3
    _, kept = curate([("exact-dedup", {"ignore_white_space": True})], texts, out="loose")
    assert [row["id"] for row in kept] == ["d0", "d2"]


def hashed(text, loose):
    return WriteHashes(Path(), loose)._hash(text)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_a_text_in_pieces_is_the_same_text(monkeypatch, size):
    rng = random.Random(2)
    for _ in range(40):
        text = "".join(
            rng.choice(["a", "B\u0130", "cde", " ", "\n\n", "-", "\u3000"]) for _ in range(rng.randrange(30))
        )
        found = []
        for piece in (1 << 20, size):
            monkeypatch.setattr(pieces, "PIECE", piece)
            runs = [one.tolist() for one in run_hashes(text, 3)]
            found.append((list(chain(*runs)), shingles(text, 3).tolist(), hashed(text, False), hashed(text, True)))
            assert count_words(text) == len(text.split())
        assert found[0] == found[1]
        assert hashed(text, True) == hashed(" " + "\n ".join(text.split()), True)


def test_a_long_text_takes_a_small_multiple_of_its_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(pieces, "PIECE", 5000)
    text = " ".join(map(str, range(1000, 9000))) * 20  # as a list of words 12 times as much, as one of n-grams 17 times
    signatures = Signatures(tmp_path, NearDedupSettings())
    shingles(text, 5)  # so that its words are known
    for most, work in (
        (0.2, lambda: count_words(text)),
        (0.2, lambda: hashed(text, True)),
        (2, lambda: signatures.get_signature(signatures.get_shingles(text))),
        (9, lambda: shingles(text, 5)),
    ):
        tracemalloc.start()
        try:
            work()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < most * len(text)


@pytest.mark.parametrize("wrong", [{"verify": 0}, {"verify": 1.5}, {"rows": 0}])
def test_settings_have_bounds(curate, wrong):
    with pytest.raises(UserError, match="near-dedup"):
        curate([("near-dedup", wrong)], ["a"])


def test_samples_say_of_which_document_they_are_a_copy(curate, tmp_path):
    words = [f"w{i}" for i in range(60)]
    (tmp_path / "old.txt").write_text(" ".join(words[::-1]))
    texts = [" ".join(words), " ".join(words[::-1]), " ".join([*words, "more"]), " ".join(words)]
    steps = [("exact-dedup", {}), ("near-dedup", {})]
    report, _ = curate(steps, texts, against=[str(tmp_path / "old.txt")])
    found = {sample.id: (sample.copy_of, sample.similarity) for _, _, sample in report.samples()}
    assert found == {"d1": ("old.txt", 1.0), "d2": ("d0", round(56 / 57, 3)), "d3": ("d0", 1.0)}


def test_a_sample_names_its_original_whatever_the_name(curate):
    rows = [{"id": name, "text": f"text {i % 3} " * 9} for i, name in enumerate(["a\nb", "\ud800", "", "x", "y", "z"])]
    report, _ = curate([("exact-dedup", {})], rows)
    assert {sample.id: sample.copy_of for _, _, sample in report.samples()} == {"x": "a\nb", "y": "?", "z": ""}
