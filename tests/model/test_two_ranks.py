"""A model that FSDP sharded over two gloo ranks is saved and filled as one process does it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from nano3.model.hf.folder import save
from nano3.model.lm import LM

from ..forked import start_ranks

pytestmark = pytest.mark.any_isa

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture
def two_ranks(tmp_path, small_config):
    """Runs two_ranks.py on two ranks to the end; returns what each printed."""
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(small_config)))
    running = []

    def run() -> list[str]:
        running.extend(start_ranks(str(SCRIPT), str(tmp_path), ranks=2))
        outputs = [process.communicate(timeout=300) for process in running]
        assert [process.returncode for process in running] == [0, 0], outputs
        return [out for out, _ in outputs]

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
            process.communicate()


def same_files(first: Path, second: Path) -> None:
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_two_ranks_do_what_one_process_does(two_ranks, small_config, small_model, tmp_path):
    small_model.init_weights(seed=2)
    for bias in small_model.expert_biases():
        bias.normal_()
    save(small_model, tmp_path / "given")
    printed = two_ranks()
    alone = LM(small_config).init_weights(seed=1)
    save(alone, tmp_path / "alone", max_shard_bytes=20_000)
    assert len(list((tmp_path / "alone").glob("*.safetensors"))) > 3
    same_files(tmp_path / "saved", tmp_path / "alone")
    same_files(tmp_path / "filled", tmp_path / "given")
    save(alone, tmp_path / "alone-narrow", torch.bfloat16, max_shard_bytes=20_000)
    same_files(tmp_path / "narrow", tmp_path / "alone-narrow")
    # The rank that does not write makes no tensor larger than its own parts.
    largest, part = (int(number) for number in printed[1].splitlines()[0].split()[1::2])
    assert 0 < largest <= part
    held = [int(text.splitlines()[1].split()[0]) for text in printed]
    assert sum(held) == sum(p.numel() for p in alone.parameters())
    assert max(held) < 0.6 * sum(held)
    for rank, text in enumerate(printed):
        assert f"rank {rank}: " in text
        assert "No space left" in text
    assert not (tmp_path / "failed").exists()
