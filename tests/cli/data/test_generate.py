from __future__ import annotations

import json

import numpy as np
import pytest

from nano3.config.schema import DataConfig
from nano3.data.texts.corpus import is_heldout
from nano3.data.tokens.build import content_hash
from nano3.data.tokens.prepare import prepare


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
        (("retrival",), "no category 'retrival'; did you mean retrieval?"),
        (("foo",), "no category 'foo'; there are document-qa and retrieval"),
        (("retrieval", "--tokens", "1.5"), "'1.5' is not a whole number"),
        (("retrieval", "--tokens", "0"), "'0' is not a whole number of at least 1"),
        (("retrieval", "--heldout", "2"), "error: --heldout 2: a share of the documents, at least 0 and below 1"),
        (("retrieval", "--lengths", "12"), "whole numbers of at least 255"),
        (("retrieval", "--lengths", "4k"), "whole numbers of at least 255"),
        (("retrieval", "--url", "localhost:1"), "retrieval texts need none"),
        (("document-qa", "--from", "/nowhere"), "error: --from: no file or folder at /nowhere"),
        (("document-qa", "--lengths", "500000"), "give more texts with --from"),
        (
            ("document-qa", "--url", "http://me:secret@localhost:1"),
            "error: --url has a name or password in it: give the address alone",
        ),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, texts, tmp_path, args, message):
    source = () if "--from" in args else ("--from", texts)
    done = run("data", "generate", *args, *source, "--out", tmp_path / "made.jsonl")
    assert done.code == 2
    assert message in done.err
    assert not list(tmp_path.glob("*made*"))


def test_a_file_that_exists_is_replaced_only_on_request(run, texts, tmp_path):
    out = tmp_path / "made.jsonl"
    out.write_text("mine")
    command = ("data", "generate", "document-qa", "--from", texts, "--tokens", "1e3", "--lengths", 512, "--out", out)
    done = run(*command)
    assert (done.code, done.err) == (
        2,
        f"error: --out {out} exists already: give another name, or --force to replace it\n",
    )
    assert out.read_text() == "mine"
    assert run(*command, "--force").code == 0
    assert len(out.read_text().splitlines()) == 2


def test_a_server_that_gives_no_answer_ends_with_the_exit_code_of_the_evaluations(run, texts, tmp_path, monkeypatch):
    monkeypatch.setattr("nano3.data.generated.question_writer.ATTEMPTS", 1)
    out = tmp_path / "made.jsonl"
    done = run("data", "generate", "document-qa", "--from", texts, "--url", "127.0.0.1:9", "--out", out)
    assert done.code == 3
    assert done.err.splitlines()[-1].startswith("error: http://127.0.0.1:9/v1/models gave no answer")
    assert not out.exists()


def test_texts_counted_with_the_tokenizer_of_a_run_fill_its_rows(run, texts, tmp_path):
    shards, rows = tmp_path / "shards", {}
    (tmp_path / "others").mkdir()
    for i in range(40):
        (tmp_path / f"others/{i}.txt").write_text(f"def f{i}(x):\n    return x + {i * i}\n" * 9)
    assert run("data", "prepare", tmp_path / "others", "--vocab-size", 300, "--out", shards).code == 0
    for name, tokenizer in (("own", ()), ("run", ("--tokenizer", shards / "tokenizer"))):
        out = tmp_path / f"{name}.jsonl"
        made = ("--tokens", 4000, "--lengths", 511, "--out", out)
        assert run("data", "generate", "document-qa", "--from", texts, *tokenizer, *made).code == 0
        sources = {"text": [str(shards)], "qa": [str(out)]}
        rows[name] = DataConfig(
            blend={"text": 80, "qa": 20}, sources=sources, whole_documents=["qa"], seq_len=512, heldout_fraction=0,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
    train = prepare(rows["run"], 300).train
    assert train.epochs(100)["qa"] == 20 / 8  # of eight texts, each a row
    with pytest.raises(ValueError, match=r"no document of qa fits whole .* \(nano3 data generate --tokenizer PATH"):
        prepare(rows["own"], 300).train.sequence(0)


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
