"""The script that measures a GPU, dry: every stage runs on the CPU, so that no typo waits for a card."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / ".ci" / "h200.sh"
MEASURED = {"conv", "scan-1", "scan-3", "norms", "attention-1", "attention-3", "experts-8", "loss", "step-2"}
MEASURED |= {"blocks-mamba", "blocks-moe", "blocks-attention", "train", "prefill", "decode-2", "op_by_op"}


def run(folder, **variables):
    environment = os.environ | {"PYTHON": sys.executable, "NANO3_H200_DRY": "1"} | variables
    done = subprocess.run([str(SCRIPT), str(folder)], env=environment, capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text("utf-8").splitlines()]
    return done, rows


def test_a_stage_that_fails_does_not_stop_the_rest(tmp_path):
    """Here each does: a Python that cannot import nano3's benches."""
    (tmp_path / "broken").write_text(
        f'#!/bin/sh\ncase "$*" in *device.rows*) exec {sys.executable} "$@";; esac\necho no luck >&2; exit 7\n'
    )
    (tmp_path / "broken").chmod(0o755)
    variables = {"PYTHON": str(tmp_path / "broken"), "NANO3_H200_ONLY": "conv loss blocks op_by_op"}
    done, rows = run(tmp_path / "out", **variables)
    blocks = ["blocks-mamba", "blocks-moe", "blocks-attention"]
    assert [row["stage"] for row in rows] == ["conv", "loss", *blocks, "op_by_op"]
    assert {row["failed"] for row in rows} == {"exit code 7: no luck"}
    assert done.stdout.rstrip().splitlines()[-1].startswith("op_by_op")


def test_a_test_file_that_cannot_be_imported_keeps_no_other_from_running(tmp_path):
    """A machine that is lent for minutes has few of the packages that tests import."""
    seen = tmp_path / "python"
    seen.write_text(f'#!/bin/sh\ncase "$*" in *device.rows*) exec {sys.executable} "$@";; *pytest*) echo "$@";; esac\n')
    seen.chmod(0o755)
    run(tmp_path / "out", PYTHON=str(seen), NANO3_H200_ONLY="tests")
    given = (tmp_path / "out" / "tests.log").read_text("utf-8").split()
    assert "--continue-on-collection-errors" in given
    files = [SCRIPT.parent.parent / word for word in given if word.startswith("tests/")]
    assert len(files) > 8
    assert all("mark.gpu" in path.read_text("utf-8") for path in files)


@pytest.mark.slow
@pytest.mark.any_isa
def test_every_stage_runs_dry(tmp_path):
    pytest.importorskip("triton")
    done, rows = run(tmp_path / "out")
    assert [row for row in rows if "failed" in row and "too small to measure" not in row["failed"]] == []
    assert {row["stage"] for row in rows} == MEASURED | {"info", "tests"}
    for stage in MEASURED:
        assert any(row["by"] and row["seconds"] for row in rows if row["stage"] == stage and "seconds" in row)
    # Kernels that exist were run by the interpreter, not passed over.
    by = {row["stage"] for row in rows if row["by"] == "triton"}
    assert by >= {"conv", "scan-1", "scan-3", "norms", "experts-8", "step-2"}
    assert "op_by_op" in done.stdout
