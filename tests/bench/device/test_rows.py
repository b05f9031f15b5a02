"""A session's results as rows and as a table."""

import json

import pytest

from nano3.bench.device.rows import add, cells, read, stage_rows, table

OPS = {
    "kind": "kernels",
    "ceilings": {"copy": {"max": 4e12, "unit": "B/s"}},
    "cases": [{
        "name": "ssd_scan, forward", "shapes": "1x8",
        "sides": {"triton": {"seconds": {"median": 5e-4}, "flops_per_second": 2e14, "bytes_per_second": 3e12,
                             "share_of_roofline": 0.75}},
        "failed": {"mamba-ssm": "ImportError: no einops"},
    }],
}  # fmt: skip
BLOCKS = {
    "kind": "blocks",
    "cases": [
        {"name": "MoE block, batch 1", "context": 70, "seconds": 2e-5, "bytes": 6e7, "share_of_copy": 0.7},
        {"name": "MoE block, batch 2", "context": 70, "seconds": -1e-6, "bytes": 6e7, "share_of_copy": None},
    ],
}
RUN = {
    "kind": "decode",
    "cases": [{
        "name": "1 sequence",
        "sides": {"nano3": {"seconds": {"median": 1.0}, "seconds_per_step": 0.002, "share_of_read": 0.5,
                            "tokens_per_second": {"median": 500.0}, "peak_memory_bytes": 3 << 30},
                  "vllm": {"failed": "did not finish"}},
    }],
}  # fmt: skip


@pytest.fixture
def stage(tmp_path):
    def rows(result=None, code=0, said=""):
        file, log = tmp_path / "s.json", tmp_path / "s.log"
        if result is not None:
            file.write_text(result if isinstance(result, str) else json.dumps(result))
        log.write_text(said)
        return stage_rows("scan", code, 12.0, file, log)

    return rows


def test_each_side_of_each_case_is_a_row(stage):
    ceiling, scan, other, own = stage(OPS)
    assert (ceiling["by"], ceiling["bytes_per_second"]) == ("copy", 4e12)
    assert cells(scan) == ("scan", "ssd_scan, forward, 1x8", "triton", "0.500", "200.0", "3,000", "75.0%", "", "", "")
    assert cells(other)[-1] == "FAILED: ImportError: no einops"
    assert own["seconds"] == 12.0
    assert "failed" not in own


def test_ceilings_of_an_earlier_result_are_not_told_again(stage):
    assert next(row["what"] for row in stage(OPS | {"ceilings_measured": False})) == "ssd_scan, forward, 1x8"


def test_blocks_and_whole_runs(stage):
    block, unmeasured, _ = stage(BLOCKS)
    assert block["bytes_per_second"] == pytest.approx(3e12)
    assert cells(block)[6] == "70.0%"
    assert "failed" in unmeasured
    ours, theirs, _ = stage(RUN)
    assert cells(ours)[3:9] == ("2.000", "", "", "50.0%", "500.0", "3.0")
    assert theirs["failed"] == "did not finish"


def test_a_stage_that_failed_says_how_and_keeps_what_it_measured(stage):
    assert stage(code=124, said="ceilings\nssd_scan\n")[-1]["failed"] == "ran out of time: ssd_scan"
    assert stage(code=3)[-1]["failed"] == "exit code 3"
    assert "result cannot be read" in stage('{"kind": "ker')[-1]["failed"]
    *measured, own = stage(OPS, code=1, said="RuntimeError: at the end")
    assert len(measured) == 3
    assert own["failed"] == "exit code 1: RuntimeError: at the end"


def test_a_result_that_measures_nothing_has_no_rows(stage):
    (own,) = stage({"hardware": {"cpu": "one"}})
    assert "failed" not in own


def test_a_test_is_told_by_its_last_words(stage, tmp_path):
    (tmp_path / "s.json").unlink(missing_ok=True)
    assert stage(said="...\n31 passed in 60 s\n")[-1]["note"] == "31 passed in 60 s"


def test_rows_are_appended_and_a_line_that_was_cut_off_is_left_out(stage, tmp_path):
    file = tmp_path / "rows.jsonl"
    add(file, stage(OPS))
    add(file, stage(RUN))
    with file.open("a") as cut:
        cut.write('{"stage": "deco')
    found = read(file)
    assert len(found) == 7
    lines = table(found).splitlines()
    assert len(lines) == 8
    assert lines[1].startswith("scan ")
    assert lines[2].startswith("     ")
