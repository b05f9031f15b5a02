"""Prompts that a judge's policy answers: where they come from, and which of them are none."""

import json

import pytest

from nano3.config.errors import UserError
from nano3.config.presets import load_rlhf
from nano3.rl.feedback.open import check_judges, check_prompts
from nano3.rl.feedback.prompts import Prompts
from nano3.rl.training.domains import open_domains

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "?"}]
ANSWER = {"role": "assistant", "content": "yes", "reasoning_content": "hm"}
TOOL = {"type": "function", "function": {"name": "f"}}
PAIR = {"response1": "a", "response2": "b", "overall_preference": 1}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Why?"}, [{"role": "user", "content": "Why?"}]),
        ({"prompt": TALK}, TALK),
        ({"question": "Why?", "answer": "so"}, [{"role": "user", "content": "Why?"}]),
        ({"messages": TALK}, TALK),
        ({"messages": [*TALK, ANSWER]}, TALK),
        ({"context": TALK, **PAIR}, TALK),
        ({"prompt": "a\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", "response_1": "x", "response_2": "y",
          "preference_strength": 0}, [{"role": role, "content": text} for role, text in
                                      (("user", "a"), ("assistant", "b"), ("user", "c"))]),
        ({"responses_create_params": {"input": TALK}}, TALK),
    ],
)  # fmt: skip
def test_rows_of_all_layouts_give_their_prompt_without_its_answers(tmp_path, row, messages):
    [task] = Prompts(rows=write(tmp_path / "rows.jsonl", [row])).tasks()
    assert list(task.messages) == messages
    assert task.truth == row.get("answer")


def test_two_rows_with_one_prompt_are_one_and_ids_follow_from_it(tmp_path):
    rows = [{"prompt": "one", "response": "a", "helpfulness": 1}, {"prompt": "one", "response": "b", "helpfulness": 3}]
    first = Prompts(rows=write(tmp_path / "a.jsonl", [*rows, {"prompt": "two"}])).tasks()
    assert [task.messages[0]["content"] for task in first] == ["one", "two"]
    other = Prompts(rows=write(tmp_path / "b.jsonl", [{"messages": [{"role": "user", "content": "two"}, ANSWER]}]))
    assert other.tasks()[0].id == first[1].id


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "x"}, "no prompt"), ({"prompt": ""}, "no prompt"), ({"prompt": 3}, "no prompt"),
        ({"messages": [ANSWER]}, "messages is empty"), ({"prompt": [*TALK, ANSWER]}, "does not end with a user"),
        ({"prompt": [{"role": "robot", "content": "x"}]}, "role is 'robot'"), (["x"], "not a JSON object"),
        ({"prompt": "x", "tools": [TOOL]}, "it offers tools"),
        ({"prompt": "a\n<extra_id_1>Robot\nb"}, "Assistant or User"),
    ],
)  # fmt: skip
def test_a_row_that_is_no_prompt_is_told_by_file_and_line(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "fine"}, row])
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{message}") as caught:
        Prompts(rows=path)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("rows.jsonl") == 1


def test_sets_share_no_prompt_with_those_held_out(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": f"prompt {i}"} for i in range(60)])
    settings = ["prompts.weights={mine=1, count=1}", f"prompts.sources={{mine='{path}'}}", "prompts.tasks=30"]
    domains = open_domains(load_rlhf("tiny", settings).environments, 20)
    assert len(domains["count"].train) == 30
    assert len(domains["count"].heldout) == 20
    assert len(domains["mine"].train) + len(domains["mine"].heldout) == 60
    for domain in domains.values():
        assert not {task.id for task in domain.heldout} & domain.train.keys()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["prompts.weights={}"], "there are no prompts"), (["prompts.weights={tool=1}"], "turns with tools"),
        (["prompts.weights={counts=1}"], "did you mean generate:count"),
        (["prompts.sources={count='nowhere.jsonl'}"], "prompts.sources.count"),
        (["judge.spec="], "no judge is named"), (["judge.spec=rule"], "did you mean rules"),
        (["judge.spec=http://"], "judge.spec"), (["prompts.weights={talk=1}"], "cannot be judged by rule"),
        (["prompts.weights={here=1}", "prompts.sources={here='.'}"], "knows what is right in generated tasks alone"),
        (["heldout.judge=rule"], "did you mean rules"), (["judge.spec=/"], "config.json"),
    ],
)  # fmt: skip
def test_prompts_and_judges_that_cannot_be_are_told_before_any_work(settings, message):
    cfg = load_rlhf("tiny", settings)

    def check():
        check_prompts(cfg.prompts)
        check_judges(cfg)

    with pytest.raises(UserError, match=message) as caught:
        check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["heldout.samples=1"], "2 or more answers"), (["judge.tries=0"], "judge.tries is 0"),
        (["length_control.quantile=1.5"], "length_control.quantile"), (["prompts.weights={count=0}"], "above 0"),
        (["rollout.max_turns=3"], "answered once"), (["judge.memory=0"], "judge.memory"),
    ],
)  # fmt: skip
def test_settings_out_of_bounds_are_one_line(settings, message):
    with pytest.raises(UserError, match=message):
        load_rlhf("tiny", settings)
