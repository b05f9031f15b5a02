from __future__ import annotations

import numpy as np
import pytest

from nano3.data.texts import passages
from nano3.data.texts.corpus import is_heldout
from nano3.data.texts.passages import PassageIndex
from nano3.data.texts.readers import Document
from nano3.data.tokens.build import content_hash


def test_passages_are_all_of_the_text_in_order_and_none_is_long():
    text = "\n\n".join(f"Paragraph {i} " + "of some words " * (i % 60) for i in range(200)) + "x" * 3000
    index = PassageIndex([Document("a", text)])
    parts = [index.text(section, part, part + 1) for section, part in index.passages]
    assert "".join("".join(parts).split()) == "".join(text.split())
    assert max(map(len, parts)) <= 1000
    assert len({section.title for section in index.sections}) == len(index.sections) > 1


def test_chunks_are_all_of_the_text_and_begin_without_white_space(library):
    index = PassageIndex(library)
    for number in range(len(index.sections)):
        chunks = index.chunks(number)
        assert "".join("".join(chunks).split()) == "".join(index.text(number).split())
        assert all(chunk == chunk.strip() and len(chunk) <= 1200 for chunk in chunks)


def test_heldout_documents_are_left_out(listed, tokenizer):
    hashes = np.array([content_hash(document.text) for document in listed.found], np.uint64)
    held = is_heldout(hashes, 0.3, 9)
    index = PassageIndex.read([listed], 0.3, 9, tokenizer)
    names = {section.title.partition(",")[0] for section in index.sections}
    assert names == {document.name for document, out in zip(listed.found, held, strict=True) if not out}
    assert 0 < held.sum() < len(held)


def test_where_none_is_held_out_by_hash_the_ends_are(listed, tokenizer):
    one = type(listed)(listed.found[:1])
    assert not is_heldout(np.array([content_hash(one.found[0].text)], np.uint64), 0.1, 1)[0]
    ids = tokenizer.encode(one.found[0].text)
    index = PassageIndex.read([one], 0.1, 1, tokenizer)
    text = "".join(index.text(number) for number in range(len(index.sections)))
    assert tokenizer.decode(ids[: int(len(ids) * 0.85)])[-200:-100] in text
    assert tokenizer.decode(ids[-(len(ids) // 10) :])[2:40] not in text


def test_more_text_than_is_kept_is_sampled_over_all_inputs(listed, monkeypatch):
    monkeypatch.setattr(passages, "CORPUS_CHARACTERS", sum(len(d.text) for d in listed.found) // 2)
    half = len(listed.found) // 2
    parts = [type(listed)(listed.found[:half]), type(listed)(listed.found[half:])]

    def names(inputs):
        index = PassageIndex.read(inputs)
        assert index.documents_left_out == len(listed.found) - len({s.document for s in index.sections})
        assert 0.4 < index.share_kept <= 0.5
        return {section.title.partition(",")[0] for section in index.sections}

    kept = names(parts)
    assert kept == names(parts[::-1])
    for part in parts:
        assert 5 < len(kept & {document.name for document in part.found}) < half


def test_no_text_is_an_error():
    with pytest.raises(ValueError, match=r"data\.generate\.sources"):
        PassageIndex([])
