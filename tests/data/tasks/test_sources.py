from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest

from nano3.config.errors import UserError
from nano3.config.presets import load_sft
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.chat.maker import RowMaker
from nano3.data.chat.records import Record
from nano3.data.tasks.catalogue import GENERATORS, find_tasks, is_tasks
from nano3.data.tasks.source import HELDOUT_FRACTION, split_of

EVERY = sorted(GENERATORS)


@pytest.mark.parametrize("name", EVERY)
def test_training_and_heldout_tasks_share_nothing_whatever_the_settings(name):
    train = [t for seed in (0, 1) for t in find_tasks(f"{name}?trace=mixed", seed).tasks(600)]
    train += find_tasks(f"{name}?levels={GENERATORS[name].levels[0]}", 2).tasks(600)
    heldout = [t for seed in (0, 7) for t in find_tasks(name, seed, "heldout").tasks(200)]
    assert not {t.content for t in train} & {t.content for t in heldout}
    assert not {json.dumps(t.prompt) for t in train} & {json.dumps(t.prompt) for t in heldout}


def test_the_words_of_one_split_are_in_no_task_on_letters_of_the_other():
    words = {
        split: {t.content for name in ("count", "spell") for t in find_tasks(name, 3, split).tasks(400)}
        for split in ("train", "heldout")
    }
    assert not words["train"] & words["heldout"]


@pytest.mark.parametrize("name", EVERY)
def test_there_are_enough_heldout_tasks_to_measure_with(name):
    tasks = find_tasks(name, split="heldout").distinct(160)
    assert len({t.id for t in tasks}) == len({json.dumps(t.prompt) + json.dumps(t.truth) for t in tasks}) == 160
    assert {t.level for t in tasks} == set(GENERATORS[name].levels)


def test_a_share_of_the_contents_is_held_out():
    drawn = [GENERATORS["sort"].make(random.Random(i), 4) for i in range(2000)]
    share = sum(split_of(draft) == "heldout" for draft in drawn) / len(drawn)
    assert abs(share - HELDOUT_FRACTION) < 0.03


def test_tasks_are_the_same_in_every_process_and_order():
    code = (
        "import json; from nano3.data.tasks.catalogue import GENERATORS, find_tasks\n"
        "print(json.dumps([find_tasks(n, 5, 'heldout').task(3).row() for n in sorted(GENERATORS)]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "77"}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(out.stdout) == [find_tasks(n, 5, "heldout").task(3).row() for n in EVERY]


@pytest.mark.parametrize("name", EVERY)
def test_long_traces_are_of_the_same_tasks(name):
    short, long, mixed = (list(find_tasks(f"{name}?trace={trace}").tasks(40)) for trace in ("short", "long", "mixed"))

    def size(task):
        return sum(len(message.get("reasoning_content", "")) for message in task.solution)

    assert [t.id for t in short] == [t.id for t in long] == [t.id for t in mixed]
    thought = [place for place, task in enumerate(short) if size(task)]
    short, long, mixed = ([found[place] for place in thought] for found in (short, long, mixed))
    assert all(size(b) > 2 * size(a) for a, b in zip(short, long, strict=True))
    taken = [size(m) == size(b) for m, b in zip(mixed, long, strict=True)]
    assert len(taken) / 5 < sum(taken) < len(taken) * 4 / 5
    assert all(size(m) in (size(a), size(b)) for a, b, m in zip(short, long, mixed, strict=True))


@pytest.mark.parametrize("name", EVERY)
def test_rows_are_chat_data_that_our_template_renders_and_marks(name, tokenizer):
    row = json.loads(json.dumps(find_tasks(name).task(1).row()))
    assert row["task"]["generator"] == name
    encoded = ChatEncoder(tokenizer).encode_training(row["messages"], row.get("tools"))
    text = tokenizer.decode([token for token, on in zip(encoded.ids, encoded.trained, strict=True) if on])
    for message in row["messages"]:
        if message["role"] == "assistant":
            assert message["content"] in text
            assert message.get("reasoning_content", "") in text


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("generate:cuont", "did you mean generate:count"),
        ("generate:sort?levels=1", "levels are 2 to 32 (how many numbers)"),
        ("generate:sort?levels=a", "write them as 3-7"),
        ("generate:sort?levels=5-3", "names none"),
        ("generate:sort?level=3", "there is no option 'level'"),
        ("generate:sort?trace=huge", "short, long, mixed"),
        ("generate:sort?turns=few", "turns is 'few'"),
        ("generate:sort?turns=0", "at least 1"),
    ],
)
def test_a_source_that_does_not_exist_is_refused_in_a_line(spec, words):
    with pytest.raises(UserError) as refusal:
        find_tasks(spec)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_row_may_hold_several_tasks_all_of_which_are_trained_on_with_their_reasoning(tokenizer):
    source = find_tasks("generate:tool?turns=3&levels=1-2")
    tasks, rows = list(source.tasks(7)), list(source.rows(7))
    assert any(task.tools != tasks[0].tools for task in tasks[:3])  # the row describes the tools of all
    assert [len(row["tasks"]) for row in rows[:2]] == [3, 3]
    assert rows[2] == tasks[6].row()
    assert list(find_tasks("generate:tool").rows(2)) == [t.row() for t in find_tasks("generate:tool").tasks(2)]
    assert [task["id"] for row in rows[:2] for task in row["tasks"]] == [task.id for task in tasks[:6]]
    cfg = load_sft("tiny", ["data.pack_length=8192", "reasoning.strip_fraction=0", "reasoning.truncate_fraction=0"])
    (made,) = RowMaker(cfg, tokenizer).rows(Record("made", 1, rows[0], heldout=False), refused)
    ids, trained = made.encoded.ids, made.encoded.trained
    assert tokenizer.decode(ids.tolist()).count("You have access to the following functions") == 1
    text = tokenizer.decode(ids[trained].tolist())
    for task in tasks[:3]:
        for message in task.solution:
            if message["role"] == "assistant":
                assert message["reasoning_content"] in text
                assert message["content"] in text
                assert all(call["function"]["name"] in text for call in message.get("tool_calls", ()))
    assert not any(task.prompt[0]["content"] in text for task in tasks[:3])


def refused(name, error):
    raise AssertionError(f"{name}: {error}")


def test_levels_are_those_asked_for():
    assert {t.level for t in find_tasks("generate:sort?levels=5-6,9").tasks(60)} == {5, 6, 9}


def test_asking_for_more_tasks_than_there_are_says_so():
    with pytest.raises(UserError, match="different heldout tasks"):
        find_tasks("add?levels=1", split="heldout").distinct(60)


def test_sources_of_texts_are_none_of_tasks():
    assert is_tasks("generate:count")
    assert is_tasks("generate:gym/chain_sum?levels=1")
    assert not is_tasks("generate:document-qa")
    assert not is_tasks("count")
