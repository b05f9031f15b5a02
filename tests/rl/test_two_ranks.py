"""Weights that FSDP sharded over two gloo ranks arrive in each rank's engine, and one rank's fault stops both."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ..forked import start_ranks

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture
def printed(tmp_path, model, tokenizer):
    """What two_ranks.py prints on each of two ranks."""
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(model.cfg)))
    tokenizer.save(tmp_path)
    running = start_ranks(str(SCRIPT), str(tmp_path), ranks=2)
    try:
        outputs = [process.communicate(timeout=300) for process in running]
        assert [process.returncode for process in running] == [0, 0], outputs
        yield [out.splitlines() for out, _ in outputs]
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.communicate()


@pytest.mark.slow
def test_shards_arrive_whole_and_one_ranks_mismatch_stops_all(printed):
    for facts, refusal in printed:
        facts = json.loads(facts)
        assert facts["type"].startswith("FSDP")
        assert facts["arrived"]
        assert 0 < facts["largest"] < 1e-4
        assert refusal.startswith("refused: MismatchError")
        assert "states of the old weights" in refusal
