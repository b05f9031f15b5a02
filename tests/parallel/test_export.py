"""The folder that shards leave: the bytes of one process, out of parts, and in little memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nano3.config.presets import load_model
from nano3.model.hf.folder import save
from nano3.model.hf.parts import PartsWriter, RangeFile
from nano3.model.hf.write import plan_files
from nano3.model.lm import LM

SAVE = """
import json
import resource
import sys
sys.path.insert(0, sys.argv[1])
from dataclasses import replace
from pathlib import Path
import torch
from nano3.config.model import ModelConfig
from nano3.config.sections.parallel import ParallelConfig
from nano3.model.hf.folder import save
from nano3.model.lm import LM
from nano3.parallel.layout import axes_of
from nano3.train.parallel import parallelize
from nano3.train.world import init_world

folder, most = Path(sys.argv[2]), int(sys.argv[3])
cfg, parallel = ModelConfig(**json.loads(sys.argv[4])), ParallelConfig(**json.loads(sys.argv[5]))
world = init_world(axes_of(parallel))
with torch.device("meta"):
    model = LM(cfg)
parallelize(model, world, parallel)
model.to_empty(device="cpu")
model.init_weights(seed=1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save(model, folder, torch.bfloat16, max_shard_bytes=most)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, flush=True)
world.close()
"""


@pytest.fixture
def exported(processes, tmp_path):
    """Exports a model with random weights from `ranks` processes; returns its folder and what the first one printed."""

    def run(cfg, ranks, most, **parallel):
        settings = [json.dumps(vars(cfg)), json.dumps(parallel)]
        arguments = ["-c", SAVE, str(Path(__file__).parent), str(tmp_path / "parts"), str(most), *settings]
        outputs = [process.communicate(timeout=120) for process in processes(*arguments, ranks=ranks)]
        assert (tmp_path / "parts" / "config.json").is_file(), outputs
        return tmp_path / "parts", int(outputs[0][0])

    return run


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (2, {"expert": 2}),
        (2, {"tensor": 2}),
        pytest.param(4, {"expert": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"expert": 2, "replicate": 2}, marks=pytest.mark.slow),
        pytest.param(4, {"expert": 2, "context": 2, "gather_dtype": "auto"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_arrangement_writes_the_bytes_of_one_process(exported, tmp_path, tiny, ranks, parallel):
    """Files so small that the experts of a block lie in several of them."""
    cfg = replace(tiny.MODEL, mamba_n_heads=4, n_groups=2)
    there, _ = exported(cfg, ranks, 1200, **parallel)
    save(LM(cfg).init_weights(seed=1), tmp_path / "one", torch.bfloat16, max_shard_bytes=1200)
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert sorted(file.name for file in there.iterdir()) == names
    assert len(names) > 8
    for name in names:
        assert (there / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_a_disk_that_is_full_when_a_file_is_closed_is_told_to_all(tmp_path, tiny, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    writer, model = PartsWriter.__new__(PartsWriter), LM(tiny.MODEL).init_weights(seed=1)
    writer.places, writer.rank = [{}], 0
    monkeypatch.setattr(RangeFile, "close", full)
    (items,) = plan_files(model, torch.bfloat16, 10**9).values()
    assert str(writer.write(tmp_path / "file", items)) == "[Errno 28] No space left on device"


@pytest.mark.slow
def test_the_writer_needs_less_memory_than_the_file(exported):
    cfg = load_model("tiny")
    wide = type(cfg)(**{**vars(cfg), "n_experts": 64, "d_expert": 1024, "d_model": 256, "pattern": "ME", "top_k": 2})
    folder, grown = exported(wide, 2, 10**12, expert=2)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 60_000_000
    assert grown < 0.75 * size
