from __future__ import annotations

import json

import pytest


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
        (("retrieval", "--lengths", "12"), "whole numbers of at least 256"),
        (("retrieval", "--lengths", "4k"), "whole numbers of at least 256"),
        (("retrieval", "--url", "localhost:1"), "retrieval texts need none"),
        (("document-qa", "--from", "/nowhere"), "no file or folder at /nowhere"),
        (("document-qa", "--lengths", "500000"), "give more texts"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, texts, tmp_path, args, message):
    source = () if "--from" in args else ("--from", texts)
    done = run("data", "generate", *args, *source, "--out", tmp_path / "made.jsonl")
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.glob("*made*"))
