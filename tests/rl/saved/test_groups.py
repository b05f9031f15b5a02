"""Groups of saved rollouts: put together from lines, counted and chosen."""

import pytest

from nano3.config.errors import UserError
from nano3.rl.rollout_files import cut_rollouts, read_rollouts, rollouts_path, save_rollouts
from nano3.rl.samples import Group
from nano3.rl.saved.groups import Selection, chosen_steps, read_groups, saved_steps
from nano3.rl.saved.tally import tally, together

from ...rollout_run import SOURCE, make_run, sample


@pytest.fixture
def path(tokenizer, tmp_path):
    return rollouts_path(make_run(tmp_path, tokenizer), 1)


def test_lines_become_the_groups_that_were_saved(path):
    groups = list(read_groups(path))
    assert [(group.environment, group.task, len(group.samples)) for group in groups] == [
        ("echo", "say-0", 4), ("echo", "say-1", 4), ("echo", "say-2", 4), ("judged", "essay <0>", 2),
        ("judged", "essay <1>", 2),
    ]  # fmt: skip
    assert [group.passes for group in groups] == [2, 4, 2, 0, 0]
    assert [group.no_variance for group in groups] == [False, True, False, False, False]
    assert [group.fault for group in groups] == ["", "", "", "judge", ""]
    assert groups[3].samples[1].fault_message == "no answer of the judge"


def test_a_task_that_a_step_draws_twice_in_a_row_is_two_groups(tokenizer, tmp_path):
    from nano3.data.chat.encoder import ChatEncoder
    from nano3.rl.environments.base import Task, user

    encoder, task = ChatEncoder(tokenizer), Task("t", user("Say."))
    groups = [Group("echo", task, [sample(encoder, task, i, ["a"], 0.0) for i in range(3)]) for _ in range(2)]
    found = read_groups(save_rollouts(tmp_path, 1, groups, {"echo": SOURCE}))
    assert [len(group.samples) for group in found] == [3, 3]


def test_advantages_are_those_of_the_update(path):
    groups = list(read_groups(path))
    assert groups[1].advantages == [0.0] * 4
    # Rewards 0, 0, 1, 1: each against the mean of the other three, over their deviation.
    high = (2 / 3) / (3**-0.5 + 1e-6)
    assert groups[0].advantages == pytest.approx([-high, -high, high, high])
    assert groups[3].advantages is None


def test_the_tally_leaves_dropped_groups_out_of_means(path):
    found = {name: one.table() for name, one in tally(read_groups(path)).items()}
    assert found["judged"]["groups"] == 2
    assert found["judged"]["faults"] == {"judge": 1}
    assert found["judged"]["reward"] == 0.125
    assert found["echo"]["pass_rate"] == pytest.approx(8 / 12)
    assert found["echo"]["zero_variance"] == pytest.approx(1 / 3)
    assert found["echo"]["truncated"] == pytest.approx(1 / 12)
    whole = together(tally(read_groups(path)).values()).table()
    assert (whole["groups"], whole["samples"], whole["faults"]) == (5, 14, {"judge": 1})
    assert whole["zero_variance"] == 0.25
    assert whole["tokens"] == sum(s.n_drawn for g in read_groups(path) for s in g.samples if not g.fault) / 14


def test_a_step_whose_groups_were_all_dropped_has_no_means(path):
    dropped = [group for group in read_groups(path) if group.fault]
    table = tally(dropped)["judged"].table()
    assert (table["groups"], table["reward"], table["zero_variance"]) == (1, None, None)


@pytest.mark.parametrize(
    ("selection", "found"),
    [
        (Selection(), {"say-0": 4, "say-1": 4, "say-2": 4, "essay <0>": 2, "essay <1>": 2}),
        (Selection(environment="judged"), {"essay <0>": 2, "essay <1>": 2}),
        (Selection(task="say-2", passed=False), {"say-2": 2}),
        (Selection(passed=True), {"say-0": 2, "say-1": 4, "say-2": 2}),
        (Selection(truncated=True), {"say-2": 1}),
        (Selection(environment="echo", index=3, passed=False), {"say-2": 1}),
        (Selection(task="none"), {}),
    ],
)
def test_what_is_asked_for_is_found(path, selection, found):
    assert {group.task: len(samples) for group, samples in selection.groups(read_groups(path))} == found


def test_steps_are_found_in_order(tokenizer, tmp_path):
    run = make_run(tmp_path, tokenizer, steps=11)
    (run / "rollouts" / "step-notes.jsonl").write_text("")
    steps = saved_steps(run)
    assert list(steps) == list(range(1, 12))
    assert list(chosen_steps(steps, 3, 4)) == [3, 4]
    assert list(chosen_steps(steps, None, 2)) == [1, 2]
    assert list(chosen_steps(steps, 11, None)) == [11]
    with pytest.raises(UserError, match="no rollouts of step 12: there are 11 files, of steps 1 to 11"):
        chosen_steps(steps, 12, 12)


def test_files_that_counted_steps_from_0_are_read_as_from_1(tokenizer, tmp_path):
    run = make_run(tmp_path, tokenizer, steps=3)
    for step in (1, 2):
        for path in (rollouts_path(run, step), rollouts_path(run, step).with_suffix(".npz")):
            old = path.with_name(f"step-{step - 1:06d}{path.suffix}")
            path.rename(old)
        old = old.with_suffix(".jsonl")
        old.write_text(old.read_text().replace(f'"step": {step},', f'"step": {step - 1},'))
    steps = saved_steps(run)
    assert list(steps) == [1, 2, 3]
    assert [next(read_groups(path)).step for path in steps.values()] == [1, 2, 3]
    cut_rollouts(run, 1)
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == ["step-000000.jsonl", "step-000000.npz"]


def test_a_folder_without_rollouts_is_told(tmp_path):
    with pytest.raises(UserError, match="has no rollouts"):
        saved_steps(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        saved_steps(tmp_path / "none")


def test_a_line_that_is_cut_off_is_named(path):
    path.write_text(path.read_text()[:-40])
    with pytest.raises(UserError, match=r"step-1\.jsonl, line 16: no saved rollout"):
        list(read_rollouts(path))
