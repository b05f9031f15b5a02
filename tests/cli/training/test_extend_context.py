"""`nano3 extend-context`: what it shows, and what it refuses."""

import json

from typer.testing import CliRunner

from nano3.cli.app import app
from nano3.config.errors import UserError


def invoke(*args):
    return CliRunner().invoke(app, ["extend-context", *args], env={"COLUMNS": "100"})


def test_the_dry_run_of_the_reports_preset_gives_its_steps_and_what_a_device_would_need():
    facts = json.loads(invoke("--preset", "long-context", "--dry-run", "--json").stdout)
    assert facts["tokens_per_step"] == 48 * 524_288
    assert facts["steps"] == 4809
    assert [(row["seq_len"], row["sequences_per_step"]) for row in facts["lengths"]] == [(524288, 48), (4096, 6144)]
    assert facts["report_phase"] == "long-context"
    assert [row["key"] for row in facts["differences"]] == ["parallelism"]
    assert facts["most_ranks"] == 48
    assert facts["rank_memory_bytes"] > facts["memory_bytes"]["activations"] > 140e9
    assert "each of many ranks" in invoke("--preset", "long-context", "--dry-run").stdout


def test_the_dry_run_tells_the_longest_sequence_that_fits(monkeypatch):
    monkeypatch.setattr("nano3.cli.training.dry_run._free_memory", lambda: 10**9)
    long = ["--set", "context.lengths={1048576=1}", "--set", "train.micro_batch_size=1"]
    long += ["--set", "train.dtype=float32"]
    facts = json.loads(invoke("--dry-run", "--json", *long).stdout)
    assert facts["largest_seq_len"] == 16384
    text = invoke("--dry-run", *long).stdout
    assert "one process has room for sequences of 16,384 tokens" in " ".join(text.split())


def test_pieces_lower_the_estimate_of_memory():
    block = ["--set", "train.checkpoint_activations=block", "--set", "context.lengths={65536=1}"]
    whole, pieces = (
        json.loads(invoke("--dry-run", "--json", *block, "--set", f"train.sequence_chunk={n}").stdout)["memory_bytes"]
        for n in (0, 4096)
    )
    assert pieces["activations"] < whole["activations"] / 2


def test_the_tables_show_every_length():
    text = invoke("--dry-run").stdout
    assert "2 sequences of 4,096 tokens" in text
    assert "or 16 sequences of 512 tokens" in text


def test_the_sequence_length_of_pretraining_is_refused():
    done = invoke("--set", "data.seq_len=4096")
    assert isinstance(done.exception, UserError)
    assert "takes its sequence lengths from context.lengths" in str(done.exception)
