"""The encoded rows in a run folder: taken again, made again, and waited for."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nano3.config.presets import load_sft
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.stages.sft_rows import prepare_rows
from nano3.train.world import World

SCRIPT = Path(__file__).with_name("waiting_ranks.py")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["some words to learn from"], 300)


@pytest.fixture
def chats(tmp_path):
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q {i}", "completion": "a"}) + "\n" for i in range(50)))
    return path


def prepare(chats, tokenizer, run_dir, *settings):
    """Reports, number of rows, and which folder they lie in."""
    cfg = load_sft("tiny", ["data.blend={chats=1}", f'data.sources={{chats=["{chats}"]}}', *settings])
    reports, sets = prepare_rows(cfg, tokenizer, run_dir, True, World())
    return [report.values() for report in reports], len(sets["chats"]), (run_dir / "rows").stat().st_ino


def test_rows_of_the_same_files_and_settings_are_taken_again(chats, tokenizer, tmp_path, capsys):
    run = tmp_path / "run"
    first = prepare(chats, tokenizer, run)
    assert prepare(chats, tokenizer, run, "train.steps=7") == first
    assert "the rows are there: made of the same files" in capsys.readouterr().err
    assert prepare(chats, tokenizer, run, "data.seed=7")[2] != first[2]


def test_other_files_and_damaged_rows_are_encoded_again(chats, tokenizer, tmp_path):
    run = tmp_path / "run"
    first = prepare(chats, tokenizer, run)
    chats.write_text(chats.read_text() + json.dumps({"prompt": "one more", "completion": "a"}) + "\n")
    more = prepare(chats, tokenizer, run)
    assert (first[1], more[1]) == (50, 51)
    tokens = run / "rows" / "chats" / "tokens.bin"
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-8])
    prepare(chats, tokenizer, run)
    assert tokens.read_bytes() == whole
    (run / "rows" / "made.json").write_text("{}")
    assert prepare(chats, tokenizer, run)[:2] == more[:2]


@pytest.mark.slow
def test_a_rank_waits_longer_than_a_collective_may(tmp_path):
    """Two seconds in place of half an hour, for five seconds of work."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    try:
        for rank in range(2):
            place = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}}
            pipe, command = subprocess.PIPE, [sys.executable, str(SCRIPT), "0.3"]
            running.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
    assert [process.returncode for process in running] == [0, 0], outputs
    assert [out.splitlines() for out, _ in outputs] == [
        ["worked 1", "refused: no such file"],
        ["worked 0", "refused: no such file"],
    ]
