from __future__ import annotations

import gzip

import numpy as np
import pytest

from nano3.cli.training.dry_run import show_dry_run
from nano3.config.errors import UserError
from nano3.config.presets import load_extend_context, load_pretrain
from nano3.config.schema import DataConfig
from nano3.data.texts.readings import estimated_readings, reading_lines, readings, tokens_of_run
from nano3.data.tokens.prepare import prepare


@pytest.fixture
def prepared(write_texts, tmp_path):
    folder = write_texts({f"{i}.txt": f"the note number {i} is about {i * i} and {i + 7}. " * 4 for i in range(40)})
    sources = {"a": [str(folder)], "b": [str(folder / "1.txt")]}
    cfg = DataConfig(blend={"a": 75, "b": 25}, sources=sources, seq_len=32, heldout_fraction=0.1,
                     cache_dir=str(tmp_path / "cache"))  # fmt: skip
    return prepare(cfg, 300)


def test_readings_are_what_the_rows_of_the_run_hold(prepared):
    rows, n = {32: prepared.train}, 400
    found = readings(rows, {32: 1.0}, n * 32)
    places = {"a": 0, "b": 0}
    for number in range(n):
        places[prepared.train.blend.category(number)[0]] += 32
    epoch = {name: prepared.train._streams[name].epoch_tokens for name in places}
    assert found == {name: pytest.approx(places[name] / epoch[name]) for name in places}


def test_several_lengths_read_a_stream_each(prepared):
    rows = {length: prepared.train.with_seq_len(length, [16, 32]) for length in (16, 32)}
    alone = readings({32: prepared.train}, {32: 1.0}, 6400)
    assert readings(rows, {16: 3.0, 32: 1.0}, 6400) == {name: pytest.approx(times) for name, times in alone.items()}


def test_the_estimate_is_near_what_is_found(prepared, write_texts):
    rng = np.random.default_rng(0)
    words = ["".join(chr(97 + c) for c in rng.integers(0, 26, 5)) for _ in range(40)]
    text = " ".join(rng.choice(words, 4000))
    folder = write_texts({"t/a.txt": text, "z/a.txt.gz": gzip.compress(text.encode())})
    shards = [str(path) for path in prepared.folders["a"]]
    blend = {"plain": 1, "packed": 1, "shards": 1, "nothing": 1}
    sources = {"plain": [str(folder / "t")], "packed": [str(folder / "z")], "shards": shards}
    found = estimated_readings(DataConfig(blend=blend, sources=sources, heldout_fraction=0), 100_000)
    assert found["plain"] == pytest.approx(25_000 / (len(text) / 4))
    assert 0.3 < found["packed"] / found["plain"] < 3
    assert 0.8 < found["shards"] / (25_000 / prepared.train._streams["a"].epoch_tokens) < 1.2
    assert "nothing" not in found


def test_above_four_readings_there_is_a_warning_that_names_the_texts():
    assert reading_lines({}) == []
    assert reading_lines({"a": 3.96}) == ["each text is read 4 times"]
    line, warning = reading_lines({"a": 0.456, "mine": 2700.4})
    assert line == "each text is read: a 0.46 times, mine 2,700 times"
    assert warning.startswith("warning: texts read more than 4 times")
    assert "mine (2,700 times); give more text" in warning
    assert "a (" not in warning


def test_the_tokens_of_a_run_are_those_of_whole_steps():
    settings = ["train.batch_size=2", "train.micro_batch_size=1", "data.seq_len=64"]
    assert tokens_of_run(load_pretrain("tiny", [*settings, "train.tokens=129", "schedule.warmup_tokens=0"])) == 256
    assert tokens_of_run(load_pretrain("tiny", [*settings, "train.steps=3"])) == 384


@pytest.mark.parametrize(
    ("load", "length", "setting"),
    [(load_pretrain, ["data.seq_len=90"], "data.seq_len"),
     (load_extend_context, ["context.lengths={180=1,90=1}"], "context.lengths")],
)  # fmt: skip
def test_a_dry_run_refuses_what_cannot_fill_one_sequence(prepared, write_texts, capsys, load, length, setting):
    """Counted exactly in a prepared folder; of files, nobody knows yet how many tokens 88 bytes or more make."""
    folder = write_texts({"t/a.txt": "a" * 87, "t/b.txt": "", "z/a.txt": "a" * 88, "g/a.txt.gz": gzip.compress(b"a")})
    (shards,) = (str(path) for path in prepared.folders["b"])
    told = rf"too little text: at most \d\d tokens to train on, and one sequence takes 90: .*\({setting}\)"
    for source in (shards, str(folder / "t" / "a.txt")):
        with pytest.raises(UserError, match=told):
            show_dry_run(load("tiny", [*length, "data.blend={x=1}", f'data.sources={{x=["{source}"]}}']), "tiny", True)
    for source in (folder / "z", folder / "g", folder / "t"):
        show_dry_run(load("tiny", [*length, "data.blend={x=1}", f'data.sources={{x=["{source}"]}}']), "tiny", True)
    capsys.readouterr()
