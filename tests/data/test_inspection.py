from __future__ import annotations

from nano3.data.inspection import inspect
from nano3.data.shards import ShardFolder


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
    for sample in inspect(prepared_folder, samples=3).samples:
        assert len(sample) >= 2
        assert sample[-1].first_token == 0
        assert f"document {int(sample[-1].document[:2])}\n".startswith(sample[-1].text[:9])
