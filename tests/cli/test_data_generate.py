from __future__ import annotations

import json

import numpy as np
import pytest

from nano3.data.build import content_hash
from nano3.data.corpus import is_heldout


@pytest.fixture
def texts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "texts").mkdir()
    for i in range(40):
        lines = [f"Line {i * 100 + n} says that item {i * 7919 + n * 31} lies on shelf {i}-{n}." for n in range(30)]
        (tmp_path / f"texts/{i}.txt").write_text("\n".join(lines))
    return tmp_path / "texts"


@pytest.mark.parametrize("category", ["document-qa", "retrieval"])
def test_a_file_is_written_that_data_prepare_reads(run, texts, tmp_path, category):
    out = tmp_path / "made.jsonl"
    done = run(
        "data", "generate", category, "--from", texts, "--tokens", 6000, "--lengths", "512,1024", "--out", out, "--json"
    )
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert summary["texts"] == len(lines)
    assert summary["tokens"] == sum(line["tokens"] for line in lines)
    assert all(0.99 * n <= line["tokens"] <= n for line in lines for n in (512 if line["tokens"] <= 512 else 1024,))
    for line in lines:
        for question in line["questions"]:
            assert question["question"] in line["text"]
            assert question["answers"][0] in line["text"]
            assert 0 <= question["depth"] <= 1
    done = run("data", "prepare", out, "--vocab-size", 400, "--out", tmp_path / "shards", "--json")
    assert json.loads(done.out)["prepared"][0]["documents"] == len(lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("retrival",), "did you mean generate:retrieval?"),
        (("retrieval", "--lengths", "12"), "whole numbers of at least 255"),
        (("retrieval", "--lengths", "4k"), "whole numbers of at least 255"),
        (("retrieval", "--url", "localhost:1"), "retrieval texts need none"),
        (("document-qa", "--from", "/nowhere"), "no file or folder at /nowhere"),
        (("document-qa", "--lengths", "500000"), "give more texts"),
        (("document-qa", "--url", "http://me:secret@localhost:1"), "leave them out"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, texts, tmp_path, args, message):
    source = () if "--from" in args else ("--from", texts)
    done = run("data", "generate", *args, *source, "--out", tmp_path / "made.jsonl")
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.glob("*made*"))


def test_the_split_of_the_run_is_kept_to(run, texts, tmp_path):
    quoted = {}
    for seed in (1234, 77):
        out = tmp_path / f"{seed}.jsonl"
        done = run(
            *("data", "generate", "document-qa", "--from", texts, "--tokens", 60000, "--lengths", 4095, "--out", out),
            *("--heldout", 0.3, "--split-seed", seed),
        )
        assert done.code == 0, done.err
        text = out.read_text()
        quoted[seed] = {i for i in range(40) if any(f"shelf {i}-{n}." in text for n in range(30))}
    for seed, numbers in quoted.items():
        paths = sorted(texts.iterdir())
        hashes = np.array([content_hash(path.read_text()) for path in paths], np.uint64)
        held = {int(path.stem) for path, out in zip(paths, is_heldout(hashes, 0.3, seed), strict=True) if out}
        assert held
        assert not held & numbers
    assert quoted[1234] != quoted[77]
