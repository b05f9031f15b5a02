from __future__ import annotations

from nano3.data.tokens.inspection import inspect
from nano3.data.tokens.shards import ShardFolder
from nano3.data.tokens.tokenizer import Tokenizer


def test_facts_add_up(prepared_folder):
    found = inspect(prepared_folder, heldout_fraction=0.3)
    folder = ShardFolder(prepared_folder)
    assert found.documents == len(folder) == 40
    assert found.tokens == folder.lengths.sum()
    assert found.bytes_per_token == found.bytes / found.tokens
    assert found.shards > 1
    assert 0 < found.heldout_documents < 40
    assert found.heldout_share == found.heldout_bytes / found.bytes
    assert found.longest_tokens == folder.lengths.max()


def test_samples_show_a_border_between_documents(prepared_folder):
    folder, tokenizer = ShardFolder(prepared_folder), Tokenizer.load(prepared_folder / "tokenizer")
    texts = {folder.name(d): tokenizer.decode(folder.tokens(d).tolist()) for d in range(len(folder))}
    for *ended, last in inspect(prepared_folder, samples=3).samples:
        assert ended
        for piece in ended:
            assert texts[piece.document].endswith(piece.text)
            assert len(piece.text) == len(texts[piece.document]) or piece.first_token > 0
        assert last.first_token == 0
        assert last.text
        assert texts[last.document].startswith(last.text)
