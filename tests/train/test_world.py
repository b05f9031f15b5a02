"""Two ranks that save together, talk meanwhile, and fail together."""

import pytest

pytestmark = pytest.mark.any_isa

BEGIN = """
import sys
from pathlib import Path
import torch
from nano3.train.checkpoint.checkpointer import Checkpointer
from nano3.train.world import init_world

world, folder = init_world(), Path(sys.argv[1])
tensors = {f"model.{i}": torch.full((64, 64), float(i)) for i in range(40)}

def saving(folder, asynchronous):
    return Checkpointer(folder, 2, asynchronous, world, print)

def report(action):
    try:
        action()
    except ValueError as error:
        print(type(error).__name__, error)
"""

TALK = """
checkpoints = saving(folder, True)
for step in range(1, 6):
    checkpoints.save(step, tensors, {})
    for _ in range(20):
        assert world.gather(world.rank) == [0, 1]
        assert world.from_main(f"from {world.rank}") == "from 0"
checkpoints.wait()
print("saved", checkpoints.find().path.name)
"""

FAIL = """
def full(writer, final, state, safe_step):
    if world.is_main:
        raise OSError(28, "No space left on device")

(folder / "file").touch()
for asynchronous in (False, True):
    checkpoints = saving(folder / "file" / "checkpoints", asynchronous)
    report(lambda: checkpoints.save(1, tensors, {}))
    checkpoints = saving(folder / "checkpoints", asynchronous)
    checkpoints._publish = full
    report(lambda: (checkpoints.save(2, tensors, {}), checkpoints.wait()))
report(lambda: world.agree(ValueError("no tracker") if world.is_main else None))
"""

END = """
from nano3.rl.training.stops import TrainingStoppedError
from nano3.train.feed import PausedError

class Odd(Exception):
    pass

def end(*errors):
    try:
        world.agree(errors[world.rank])
    except Exception as error:
        print(type(error).__name__, error, getattr(error, "since", ""))

end(None, TrainingStoppedError("too far", 7))
end(TrainingStoppedError("too far", 7), Odd("late"))
end(Odd("late"), TrainingStoppedError("too far", 7))
end(PausedError("later"), PausedError("later"))
end(None, None)
print([len(world.to_main(world.rank)), world.gather(world.rank)])
"""


@pytest.fixture
def on_two_ranks(processes, tmp_path):
    """Runs code on two ranks; returns what each printed."""

    def run(code):
        started = processes("-c", BEGIN + code + "world.close()\n", str(tmp_path), ranks=2)
        outputs = [process.communicate(timeout=300) for process in started]
        assert [process.returncode for process in started] == [0, 0], outputs
        return [out.splitlines() for out, _ in outputs]

    return run


def test_ranks_talk_while_a_checkpoint_is_written(on_two_ranks):
    assert on_two_ranks(TALK) == [["saved step-5"]] * 2


def test_all_ranks_end_alike_whichever_finds_the_reason(on_two_ranks):
    main, other = on_two_ranks(END)
    stopped, paused = "TrainingStoppedError too far 7", "PausedError later "
    assert main == [stopped, stopped, "Odd late ", paused, "[2, [0, 1]]"]
    assert other == [stopped, stopped, "UserError late ", paused, "[0, [0, 1]]"]


def test_what_fails_on_one_rank_fails_on_all(on_two_ranks):
    main, other = on_two_ranks(FAIL)
    assert [line.split()[0] for line in main] == ["CheckpointError"] * 4 + ["ValueError"]
    assert ["Not a directory" in line for line in main] == [True, False, True, False, False]
    assert ["step-2: No space left on device" in line for line in main] == [False, True, False, True, False]
    assert other == [*main[:4], "UserError no tracker"]
