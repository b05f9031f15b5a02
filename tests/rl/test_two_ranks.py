"""Weights that FSDP sharded over two gloo ranks arrive in each rank's engine, and one rank's fault stops both."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture
def printed(tmp_path, model, tokenizer):
    """What two_ranks.py prints on each of two ranks."""
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(model.cfg)))
    tokenizer.save(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    try:
        for rank in range(2):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = {**os.environ, "OMP_NUM_THREADS": "1", **{name: str(value) for name, value in place.items()}}
            command = [sys.executable, str(SCRIPT), str(tmp_path)]
            pipe = subprocess.PIPE
            running.append(subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True))
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
