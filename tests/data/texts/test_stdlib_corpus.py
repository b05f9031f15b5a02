from __future__ import annotations

import shutil

import pytest

from nano3.data.texts.skipped import Skipped
from nano3.data.texts.stdlib_corpus import StandardLibrary


@pytest.fixture(scope="module")
def corpus():
    return StandardLibrary()


def documents(corpus):
    return [d for d in corpus.documents(Skipped()) if d is not None]


def test_sources_and_help_texts_but_no_tests_or_packages(corpus):
    names = [d.name for d in documents(corpus)]
    assert {"argparse.py", "json/decoder.py", "pydoc_data/topics/lambda.txt"} <= set(names)
    assert len(names) == len(set(names))
    assert not [n for n in names if {"test", "tests", "site-packages", "idle_test"} & set(n.split("/"))]
    assert "pydoc_data/topics.py" not in names


def test_about_twelve_megabytes_of_text(corpus):
    assert 8e6 < sum(len(d.text.encode()) for d in documents(corpus)) < 30e6


def test_another_place_gives_the_same_documents_and_identity(corpus, tmp_path):
    for name, _ in corpus._files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(corpus.root / name, tmp_path / name)
    (tmp_path / "test").mkdir(exist_ok=True)
    (tmp_path / "test/test_x.py").write_text("x")
    moved = StandardLibrary(tmp_path)
    assert documents(moved) == documents(corpus)
    assert moved.identity() == corpus.identity()


def test_a_python_without_sources_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no standard library sources"):
        documents(StandardLibrary(tmp_path))
