from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import nano3.data.tokens.build as build_module
from nano3.data.texts.readers import Document
from nano3.data.texts.sources import find_inputs
from nano3.data.tokens.build import build, encode_documents
from nano3.data.tokens.shards import ShardFolder, finished_shards, read_meta
from nano3.data.tokens.tokenizer import Tokenizer

KILLED = """
import os, signal, sys
import nano3.data.tokens.build as module
from nano3.data.tokens.shards import finished_shards
from nano3.data.texts.sources import find_inputs
from nano3.data.tokens.tokenizer import Tokenizer
from pathlib import Path

out = Path(sys.argv[1])
module.BATCH_CHARACTERS = 500

def kill_after_two_shards(what, done, total):
    if len(finished_shards(out)) >= 2:
        os.kill(os.getpid(), signal.SIGKILL)

inputs, tokenizer = find_inputs([sys.argv[2]]).inputs, Tokenizer.load(sys.argv[3])
module.build(out, inputs, tokenizer, progress=kill_after_two_shards, shard_tokens=300)
"""


def contents(folder):
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file() and p.suffix != ".tmp"}


@pytest.fixture
def texts(write_texts):
    lines = "".join(f'{{"text": "line {i} {"word " * (i % 17)}"}}\nbroken\n' for i in range(120))
    files = {f"{i:02d}.txt": f"text {i} " + "some words\n" * i for i in range(20)}
    return write_texts({**files, "00b.txt": b"\xff", "01b.jsonl": lines, "07b.txt": b"\xff", "99.txt": b""})


def test_a_killed_run_goes_on_to_the_same_bytes(texts, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    whole, joined = tmp_path / "whole", tmp_path / "joined"
    build(whole, find_inputs([str(texts)]).inputs, tokenizer, shard_tokens=300)
    result = subprocess.run([sys.executable, "-c", KILLED, joined, texts, tmp_path / "tokenizer"], check=False)
    assert result.returncode == -signal.SIGKILL
    assert not (joined / "manifest.json").exists()
    stopped = read_meta(joined, len(finished_shards(joined)) - 1)
    assert stopped.next_item > 1
    assert stopped.skipped["not UTF-8"] == 1
    kept = {p.name: p.stat().st_mtime_ns for p in joined.glob("shard-0000[01].*")}
    build(joined, find_inputs([str(texts)]).inputs, tokenizer, shard_tokens=300)
    assert contents(joined) == contents(whole)
    assert {name: (joined / name).stat().st_mtime_ns for name in kept} == kept
    assert ShardFolder(joined).manifest.skipped == {"not a JSON object": 120, "not UTF-8": 2, "empty": 1}


@pytest.mark.parametrize("number", [0, 2])
def test_a_deleted_shard_is_made_again(texts, tokenizer, tmp_path, number):
    out = tmp_path / "out"
    build(out, find_inputs([str(texts)]).inputs, tokenizer, shard_tokens=300)
    before = contents(out)
    (out / f"shard-0000{number}.bin").unlink()
    build(out, find_inputs([str(texts)]).inputs, tokenizer, shard_tokens=300)
    assert contents(out) == before


def test_a_finished_folder_is_not_written_again(texts, tokenizer, tmp_path):
    build(tmp_path / "out", find_inputs([str(texts)]).inputs, tokenizer)
    asked = []
    build(tmp_path / "out", find_inputs([str(texts)]).inputs, tokenizer, progress=lambda *args: asked.append(args))
    assert not asked


def test_changed_inputs_are_noticed(texts, tokenizer, tmp_path):
    build(tmp_path / "out", find_inputs([str(texts)]).inputs, tokenizer)
    (texts / "00.txt").write_text("changed")
    with pytest.raises(ValueError, match="holds shards of other inputs"):
        build(tmp_path / "out", find_inputs([str(texts)]).inputs, tokenizer)


def test_a_folder_with_other_files_is_refused(texts, tokenizer):
    with pytest.raises(ValueError, match="is not empty and holds no prepared data"):
        build(texts, find_inputs([str(texts)]).inputs, tokenizer)


def test_inputs_without_a_usable_document_are_an_error_with_counts(write_texts, tokenizer, tmp_path):
    folder = write_texts({"a.txt": b"\xff", "b.txt": b"", "c.txt": b" "})
    with pytest.raises(ValueError, match=r"no usable document in here \(skipped: 2 empty \(.*\), 1 not UTF-8 \(.*\)\)"):
        build(tmp_path / "out", find_inputs([str(folder)]).inputs, tokenizer, sources=["here"])
    assert finished_shards(tmp_path / "out") == []


def test_a_reader_error_reaches_the_caller(write_texts, tokenizer, tmp_path):
    folder = write_texts({"a.txt": "fine", "b.txt.gz": b"\x1f\x8b no gzip"})
    named = [str(folder / "a.txt"), str(folder / "b.txt.gz")]
    with pytest.raises(ValueError, match=r"b\.txt\.gz is damaged"):
        build(tmp_path / "out", find_inputs(named).inputs, tokenizer)


@pytest.mark.parametrize(
    "text", ["def f():\n    return 1\n\n\n" * 50, "no line break " * 100, "\n" * 900, "日本語" * 300]
)
def test_a_long_text_in_pieces_is_the_same_text(tokenizer, monkeypatch, text):
    monkeypatch.setattr(build_module, "PIECE_CHARACTERS", 100)
    (pieces,) = encode_documents([Document("a", text)], tokenizer)
    assert tokenizer.decode(pieces.ids.tolist()) == text
    if text.startswith("def"):
        assert pieces.ids.tolist() == tokenizer.encode(text)
    assert pieces.n_bytes == len(text.encode())


def test_temporary_files_do_not_stay(texts, tokenizer, tmp_path):
    build(tmp_path / "out", find_inputs([str(texts)]).inputs, tokenizer)
    assert not [name for name in os.listdir(tmp_path / "out") if name.endswith(".tmp")]


MEMORY = """
import sys
from pathlib import Path
from nano3.data.texts import parts
from nano3.data.texts.sources import find_inputs
from nano3.data.tokens import build as building
from nano3.data.tokens.tokenizer import Tokenizer

parts.LONGEST, building.BATCH_CHARACTERS, building.PIECE_CHARACTERS = 1 << 18, 1 << 16, 1 << 14
folder, tokenizer = Path(sys.argv[1]), Tokenizer.load(sys.argv[1])
for name in ("short", "long"):
    inputs = find_inputs([f"{folder}/{name}.txt"]).inputs
    building.build(folder / name, inputs, tokenizer, sources=[name], shard_tokens=100_000)
    print(next(int(line.split()[1]) for line in open("/proc/self/status") if "VmHWM" in line))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_memory_of_a_preparation_does_not_grow_with_the_text(tmp_path):
    lines = [f"def function_{i}(x, y):\n    return x * {i % 97} + y\n\n\n" for i in range(300_000)]
    (tmp_path / "short.txt").write_text("".join(lines[:30_000]), "utf-8")
    (tmp_path / "long.txt").write_text("".join(lines), "utf-8")
    Tokenizer.train(lines[:2000], 400).save(tmp_path)
    environment = os.environ | {"RAYON_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, env=environment
    )
    short, long = map(int, done.stdout.split())
    assert (tmp_path / "long.txt").stat().st_size > 15_000_000
    assert long - short < 8 << 10  # KiB; the text alone has 14,800
