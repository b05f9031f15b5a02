import contextlib
import json
import resource

import pytest
import torch

from nano3.train.checkpoint.checkpointer import Checkpointer, CheckpointError, damage, load_tensors, step_folders
from nano3.train.world import World

pytestmark = pytest.mark.any_isa


@pytest.fixture
def messages():
    return []


@pytest.fixture
def make(tmp_path, messages):
    def checkpointer(keep=2, asynchronous=True):
        return Checkpointer(tmp_path / "checkpoints", keep, asynchronous, World(), messages.append)

    return checkpointer


def _tensors(value):
    return {"model.w": torch.full((300, 7), float(value)), "model.b": torch.arange(5) + value}


def _steps(checkpoints):
    return [int(p.name.removeprefix("step-")) for p in step_folders(checkpoints.folder)]


@contextlib.contextmanager
def _file_size_limit(n_bytes):
    """Writes beyond `n_bytes` in one file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("asynchronous", [True, False])
def test_what_was_saved_comes_back_even_if_the_live_tensors_changed_meanwhile(make, asynchronous):
    checkpoints, live = make(asynchronous=asynchronous), _tensors(3)
    checkpoints.save(10, live, {"position": {"step": 10}})
    live["model.w"].fill_(-1.0)
    checkpoints.wait()
    saved = checkpoints.find()
    assert saved.state == {"position": {"step": 10}}
    back = load_tensors(saved.path, _tensors(0), World())
    assert torch.equal(back["model.w"], _tensors(3)["model.w"])
    assert torch.equal(back["model.b"], _tensors(3)["model.b"])


def test_only_the_newest_are_kept(make):
    checkpoints = make(keep=2)
    for step in (8, 9, 10, 100):
        checkpoints.save(step, _tensors(step), {})
    checkpoints.wait()
    assert _steps(checkpoints) == [100, 10]
    with pytest.raises(ValueError, match=r"checkpoint\.keep"):
        make(keep=0)


def test_nothing_is_pickled(make):
    checkpoints = make()
    checkpoints.save(1, _tensors(1), {})
    checkpoints.wait()
    assert {p.suffix for p in (checkpoints.folder / "step-1").iterdir()} == {".safetensors", ".json"}


def _flip_a_byte(folder):
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)


def _garble_a_header(folder):
    file = next(folder.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def _truncate(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "checksum": _flip_a_byte,
    "header cannot be read": _garble_a_header,
    "bytes, not": _truncate,
    "is missing": lambda folder: next(folder.glob("*.safetensors")).unlink(),
    "manifest.json is missing": lambda folder: (folder / "manifest.json").unlink(),
    "cannot be read": lambda folder: (folder / "manifest.json").write_text('{"files": {'),
}


@pytest.mark.parametrize("problem", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_message(make, messages, problem):
    checkpoints = make()
    for step in (1, 2):
        checkpoints.save(step, _tensors(step), {"step": step})
    checkpoints.wait()
    DAMAGES[problem](checkpoints.folder / "step-2")
    assert checkpoints.find().state == {"step": 1}
    assert len(messages) == 1
    assert "step-2 is damaged" in messages[0]
    assert problem in messages[0]


def test_only_damaged_checkpoints_are_an_error_not_a_fresh_start(make):
    checkpoints = make()
    assert checkpoints.find() is None
    checkpoints.save(1, _tensors(1), {})
    checkpoints.wait()
    _truncate(checkpoints.folder / "step-1")
    with pytest.raises(CheckpointError, match="all 1 checkpoints"):
        checkpoints.find()


def test_a_checkpoint_can_be_named_by_its_step(make, messages):
    checkpoints = make(keep=3)
    with pytest.raises(CheckpointError, match="no checkpoint of step 2: there is none yet"):
        checkpoints.find(step=2)
    for step in (2, 4, 6):
        checkpoints.save(step, _tensors(step), {"step": step})
    checkpoints.wait()
    with pytest.raises(CheckpointError, match="no checkpoint of step 3: there is 2, 4, 6"):
        checkpoints.find(step=3)
    saved = checkpoints.find(step=2)
    assert saved.state == {"step": 2}
    checkpoints.clean(saved)
    assert _steps(checkpoints) == [2]
    assert (checkpoints.folder / "step-6.later").is_dir()
    assert any("step-4.later: delete it" in message for message in messages)
    # It outlives any number of newer ones.
    again = make(keep=1)
    for step in (3, 4, 5):
        again.save(step, _tensors(step), {})
    again.wait()
    assert _steps(again) == [5, 2]
    _truncate(again.folder / "step-5")
    with pytest.raises(CheckpointError, match=r"step 5 .* is damaged: name another step"):
        again.find(step=5)


def test_the_newest_checkpoint_from_before_possible_trouble_stays(make):
    checkpoints = make(keep=1)
    for step, safe in ((2, 0), (4, 2), (6, 4), (8, 5)):
        checkpoints.save(step, _tensors(step), {}, safe)
    checkpoints.wait()
    assert _steps(checkpoints) == [8, 4]
    checkpoints.save(10, _tensors(10), {}, 10)
    checkpoints.wait()
    assert _steps(checkpoints) == [10, 8]


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(make):
    checkpoints = make()
    checkpoints.save(1, _tensors(1), {"try": 1})
    checkpoints.wait()
    _truncate(checkpoints.folder / "step-1")
    checkpoints.save(1, _tensors(2), {"try": 2})
    checkpoints.wait()
    assert checkpoints.find().state == {"try": 2}
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-1"]


KILLED = """
import os, sys, torch
from pathlib import Path
from nano3.train.checkpoint.checkpointer import Checkpointer, load_tensors, step_folders
from nano3.train.world import World

CALLS = ("rename", "replace", "unlink", "rmdir", "remove")


def dying(call, left):
    def count(*args, **kwargs):
        left[0] -= 1
        if left[0] < 0:
            os._exit(9)
        return call(*args, **kwargs)
    return count


def save(folder, value):
    checkpoints = Checkpointer(folder, 2, False, World(), print)
    checkpoints.save(5, {"w": torch.full((40,), value)}, {"value": value})


def found(folder):
    checkpoints = Checkpointer(folder, 2, False, World(), lambda message: None)
    saved = checkpoints.find()
    checkpoints.clean(saved)
    tensors = load_tensors(checkpoints.find().path, {"w": torch.zeros(40)}, World())
    return saved.state["value"], set(tensors["w"].tolist())


n, killed, values = 0, True, []
while killed:
    folder = Path(sys.argv[1]) / str(n)
    save(folder, 1.0)
    if not (pid := os.fork()):
        left = [n]
        for name in CALLS:
            setattr(os, name, dying(getattr(os, name), left))
        save(folder, 2.0)
        os._exit(0)
    killed = os.waitpid(pid, 0)[1] != 0
    assert len(step_folders(folder)) >= 1, f"killed at call {n}: no checkpoint is left"
    value, weights = found(folder)
    assert weights == {value}
    values.append(value)
    save(folder, 3.0)
    assert found(folder)[0] == 3.0
    assert [path.name for path in folder.iterdir()] == ["step-5"]
    n += 1
assert values == sorted(values) and values[0] == 1.0 and values[-1] == 2.0 and len(values) > 4, values
"""


def test_a_process_killed_at_any_rename_leaves_the_step_that_it_saves_again(processes, tmp_path):
    [process] = processes("-c", KILLED, str(tmp_path))
    output = process.communicate(timeout=300)
    assert process.returncode == 0, output


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_full_disk_leaves_the_old_checkpoint_and_a_clear_error(make, asynchronous):
    checkpoints = make(keep=1, asynchronous=asynchronous)
    checkpoints.save(1, _tensors(1), {})
    checkpoints.wait()

    def save_and_wait():
        checkpoints.save(2, _tensors(2), {})
        checkpoints.wait()

    with _file_size_limit(4096), pytest.raises(CheckpointError) as error:
        save_and_wait()
    text = str(error.value)
    assert "step-2: File too large" in text
    assert text.endswith("checkpoints/step-1")
    assert "\n" not in text
    assert [p.name for p in checkpoints.folder.iterdir()] == ["step-1"]
    assert damage(checkpoints.folder / "step-1") is None


def test_leftovers_of_a_killed_save_are_never_loaded_and_are_removed(make):
    checkpoints = make()
    checkpoints.save(1, _tensors(1), {"step": 1})
    checkpoints.wait()
    leftover = checkpoints.folder / ".step-2.partial"
    leftover.mkdir()
    (leftover / "state.json").write_text("{}")
    assert checkpoints.find().state == {"step": 1}
    checkpoints.clean()
    assert not leftover.exists()


def test_another_models_checkpoint_is_refused_by_name_and_shape(make):
    checkpoints = make()
    checkpoints.save(1, _tensors(1), {})
    checkpoints.wait()
    path = checkpoints.find().path
    with pytest.raises(CheckpointError, match=r"no tensor model\.other"):
        load_tensors(path, {"model.other": torch.zeros(2)}, World())
    with pytest.raises(CheckpointError, match=r"model\.w is \(300, 7\) in the checkpoint, \(2,\) in the model"):
        load_tensors(path, {"model.w": torch.zeros(2)}, World())


def test_large_states_are_split_into_files(make, monkeypatch):
    monkeypatch.setattr("nano3.train.checkpoint.files.FILE_BYTES", 4000)
    checkpoints = make()
    checkpoints.save(1, _tensors(1), {})
    checkpoints.wait()
    files = json.loads((checkpoints.folder / "step-1" / "manifest.json").read_text())["files"]
    assert sorted(entry["bytes"] > 4000 for name, entry in files.items() if name.endswith(".safetensors")) == [
        False,
        True,
    ]
    back = load_tensors(checkpoints.find().path, _tensors(0), World())
    assert torch.equal(back["model.w"], _tensors(1)["model.w"])
