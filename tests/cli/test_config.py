"""`nano3 config`: every setting with its value and meaning."""

import json

import pytest

from nano3.config.extend_context import ExtendContextConfig
from nano3.config.typed import keys


def listed(run, *args):
    done = run("config", *args, "--json")
    assert done.code == 0, done.err
    return {row["key"]: row for row in json.loads(done.out)["settings"]}


def test_all_keys_of_set_are_listed_with_a_meaning(run):
    found = listed(run)
    assert sorted(found) == sorted(keys(ExtendContextConfig))
    assert all(len(row["text"]) > 10 for row in found.values())


def test_a_setting_a_section_and_a_part_of_a_name(run):
    assert list(listed(run, "train.tokens")) == ["train.tokens"]
    assert all(key.startswith("schedule.") for key in listed(run, "schedule"))
    assert {"heldout.tokens", "checkpoint.every_tokens"} <= set(listed(run, "tokens"))
    done = run("config", "heldout.final_tokens")
    assert all(word in " ".join(done.out.split()) for word in ("heldout.final_tokens", "0 means all of them"))


def test_values_are_those_of_the_preset(run):
    assert listed(run, "model.d_model")["model.d_model"]["value"] == "128"
    assert listed(run, "model.d_model", "--preset", "phase1")["model.d_model"]["value"] == "2688"


@pytest.mark.parametrize(
    ("args", "words"), [(["train.tokns"], "did you mean 'train.tokens'"), (["x", "--preset", "nope"], "nope")]
)
def test_what_is_not_there_is_one_line(run, args, words):
    done = run("config", *args)
    assert (done.code, done.out) == (2, "")
    assert words in done.err
