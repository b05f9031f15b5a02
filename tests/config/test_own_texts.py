from __future__ import annotations

import pytest

from nano3.config.own_texts import category_names, own_texts
from nano3.config.presets import load_extend_context, load_pretrain


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["texts/"], ["texts"]),
        (["a/notes.jsonl.gz::body", "b/notes"], ["notes", "notes-2"]),
        (["my texts (2024).txt", "python-stdlib"], ["my-texts-2024", "python-stdlib"]),
        (["Release-1.0", "Ü.txt", "v1.2.parquet"], ["Release-1-0", "text", "v1-2"]),
    ],
)
def test_a_category_is_named_after_its_path(paths, names):
    assert category_names(paths) == names


def test_here_is_named_after_the_folder(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    monkeypatch.chdir(tmp_path / "corpus")
    assert category_names(["."]) == ["corpus"]


def test_paths_with_signs_of_toml_arrive_as_they_are():
    paths = ['a "b"/c.txt', "d\\e = {f}", "ü\tg"]
    data = load_pretrain("tiny", own_texts(paths, load_pretrain("tiny").data)).data
    assert list(data.sources.values()) == [[path] for path in paths]


def test_whole_documents_and_blend_file_of_the_preset_go_with_its_categories():
    preset = load_pretrain("tiny", ["data.blend={old=1}", "data.whole_documents=old", "data.sources_file=b.toml"]).data
    data = load_pretrain("tiny", own_texts(["new"], preset)).data
    assert (data.blend, data.whole_documents, data.sources_file) == ({"new": 1.0}, [], "")


def test_generated_texts_are_not_made_from_prepared_folders(tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").touch()
    preset = load_extend_context("tiny").data
    data = load_extend_context("tiny", own_texts([str(tmp_path / "shards"), "t.txt"], preset)).data
    assert data.blend == {"shards": 39.5, "t": 39.5, "document-qa": 20.0, "retrieval": 1.0}
    assert data.generate.sources == ["t.txt"]
