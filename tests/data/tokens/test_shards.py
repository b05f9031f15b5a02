from __future__ import annotations

import numpy as np
import pytest

from nano3.data.texts.skipped import Skipped
from nano3.data.tokens.shards import (
    EncodedDocument,
    Manifest,
    ShardFolder,
    finished_shards,
    token_dtype,
    write_manifest,
    write_shard,
)


def make(folder, documents, stored=np.uint16, per_shard=3):
    dtype = np.dtype(stored)
    folder.mkdir(exist_ok=True)
    parts = [documents[i : i + per_shard] for i in range(0, len(documents), per_shard)]
    for number, part in enumerate(parts):
        write_shard(folder, number, part, dtype, (0, 0), Skipped())
    total = sum(len(d.ids) for d in documents)
    write_manifest(folder, Manifest("key", len(parts), len(documents), total, 0, dtype.name, 100))
    return folder


@pytest.fixture
def documents():
    rng = np.random.default_rng(0)
    return [
        EncodedDocument(f"naïve/{i}\n.txt", rng.integers(0, 60000, 1 + 7 * i).astype(np.uint32), 5 * i + 1, 2**63 + i)
        for i in range(8)
    ]


def test_documents_come_back(tmp_path, documents):
    folder = ShardFolder(make(tmp_path / "p", documents))
    assert len(folder) == 8
    for i, document in enumerate(documents):
        np.testing.assert_array_equal(folder.tokens(i), document.ids)
        np.testing.assert_array_equal(folder.tokens(i, 1, 4), document.ids[1:4])
        np.testing.assert_array_equal(folder.tokens(i, 2, 10**6), document.ids[2:])
        assert (folder.name(i), folder.lengths[i], folder.n_bytes[i], folder.hashes[i]) == (
            document.name,
            len(document.ids),
            document.n_bytes,
            document.content_hash,
        )


def test_large_vocabularies_take_four_bytes_a_token(tmp_path):
    assert (token_dtype(65536), token_dtype(65537)) == (np.uint16, np.uint32)
    ids = np.array([131071, 0, 65536], np.uint32)
    folder = ShardFolder(make(tmp_path / "p", [EncodedDocument("a", ids, 3, 1)], np.uint32))
    np.testing.assert_array_equal(folder.tokens(0), ids)


@pytest.mark.parametrize("suffix", ["bin", "idx"])
@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_shard_is_an_error_that_names_the_file_and_the_way_out(tmp_path, documents, suffix, damage):
    path = make(tmp_path / "p", documents) / f"shard-00001.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": data[:-2], "flip": data, "empty": b""}[damage])
    with pytest.raises(
        ValueError, match=rf"shard-00001\.{suffix} is damaged .*delete it and run .*nano3 data prepare.* again"
    ):
        ShardFolder(path.parent)


def test_a_missing_shard_is_an_error_that_names_it(tmp_path, documents):
    folder = make(tmp_path / "p", documents)
    (folder / "shard-00002.bin").unlink()
    with pytest.raises(ValueError, match=r"shard-00002\.bin is missing"):
        ShardFolder(folder)


def test_a_shard_without_its_json_file_is_not_finished(tmp_path, documents):
    folder = make(tmp_path / "p", documents)
    (folder / "shard-00001.json").unlink()
    assert len(finished_shards(folder)) == 1


def test_other_folders_are_told_from_prepared_ones(tmp_path):
    with pytest.raises(ValueError, match="holds no prepared data"):
        ShardFolder(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="has format 'other'"):
        ShardFolder(tmp_path)
