"""Two ranks with tensors of their own save, check and load one checkpoint together."""

import pytest

pytestmark = pytest.mark.any_isa
BEGIN = """
import sys
from pathlib import Path
import torch
from nano3.train.checkpoint import files as checkpoint_files
from nano3.train.checkpoint.checkpointer import Checkpointer, load_tensors
from nano3.train.world import init_world

world, folder = init_world(), Path(sys.argv[1])
checkpoint_files.FILE_BYTES = 20_000
summed, crc32 = [], checkpoint_files.crc32

def spy(path):
    summed.append(path.name)
    return crc32(path)

checkpoint_files.crc32 = spy

def make(value):
    own = {f"model.stage-{world.rank}.{i}": torch.full((64, 40), value * (i + 1.0)) for i in range(2 + 3 * world.rank)}
    return own | {"model.shared": torch.full((5,), value), f"rng.{world.rank}.torch": torch.arange(9) + world.rank}

def say(message):
    print(message.replace(str(folder), "RUN"))

for step, asynchronous in ((1, False), (2, True)):
    summed.clear()
    checkpoints = Checkpointer(folder / "checkpoints", 2, asynchronous, world, say)
    checkpoints.save(step, make(float(step)), {"step": step})
    checkpoints.wait()
    print(" ".join(name for name in summed if name.endswith(".safetensors")))
"""

LOAD = """
summed.clear()
wanted = {name: torch.zeros_like(value) for name, value in make(1.0).items()}
saved = checkpoints.find(wanted)
print(" ".join(sorted(set(summed))))
loaded = load_tensors(saved.path, wanted, world)
for name, value in make(2.0).items():
    assert torch.equal(loaded[name], value), name
"""

DAMAGE = """
if world.is_main:
    file = sorted((folder / "checkpoints" / "step-2").glob("shard-00002-*"))[0]
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
world.barrier()
print("found", checkpoints.find(make(0.0)).state)
"""


def test_each_rank_writes_checks_and_loads_its_own_and_what_one_finds_damaged_none_loads(processes, tmp_path):
    started = processes("-c", BEGIN + LOAD + DAMAGE + "world.close()\n", str(tmp_path), ranks=2)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    main, other = (out.splitlines() for out, _ in outputs)

    for i, step in enumerate((1, 2)):
        files = {path.name for path in (tmp_path / "checkpoints" / f"step-{step}").glob("*.safetensors")}
        assert len(files) >= 5
        assert sorted([*main[i].split(), *other[i].split()]) == sorted(files)  # each by the rank that wrote it
    checked, checked_too = set(main[2].split()), set(other[2].split())
    assert checked | checked_too == {*files, "state.json"}
    # Of both ranks: the file with the tensor that both have.
    assert len(checked & checked_too) == 2

    assert len(main) == 5
    assert "RUN/checkpoints/step-2 is damaged (shard-00002-" in main[3]
    assert "does not match its checksum" in main[3]
    assert main[4] == other[3] == "found {'step': 1}"


KILLED = """
import time
write = checkpoint_files.Writer.write_data

def slow(self, plan, planner):
    done = write(self, plan, planner)
    print("half written", flush=True)
    time.sleep(600)
    return done

checkpoint_files.Writer.write_data = slow
Checkpointer(folder / "checkpoints", 2, True, world, say).save(3, make(3.0), {"step": 3})
time.sleep(600)
"""

AFTER = """
checkpoints = Checkpointer(folder / "checkpoints", 2, True, world, say)
saved = checkpoints.find(make(0.0))
checkpoints.clean(saved)
print(saved.state["step"])
"""


def test_ranks_that_are_killed_while_they_save_in_the_background_leave_the_checkpoint_before(processes, tmp_path):
    ranks = processes("-c", BEGIN + KILLED, str(tmp_path), ranks=2)
    for rank in ranks:
        assert any("half written" in line for line in rank.stdout), rank.stderr.read()
    for rank in ranks:
        rank.kill()
        rank.wait()
    folder = tmp_path / "checkpoints"
    assert (folder / ".step-3.partial").is_dir()
    head = BEGIN.partition("for step, asynchronous")[0]
    outputs = [rank.communicate(timeout=60) for rank in processes("-c", head + AFTER, str(tmp_path), ranks=2)]
    assert [out.split() for out, _ in outputs] == [["2"], ["2"]], outputs
    assert sorted(path.name for path in folder.iterdir()) == ["step-1", "step-2"]
