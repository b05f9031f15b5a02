"""The smallest inputs of what campaigns found: each gave another error than the user's."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest

from nano3.cli.training.runs import list_
from nano3.config.errors import UserError
from nano3.config.presets import load_pretrain
from nano3.data.chat.encoder import ChatEncoder
from nano3.data.chat.template import ChatTemplate
from nano3.data.tokens.shards import Manifest, read_manifest, write_manifest
from nano3.engine.launch import small_tokenizer
from nano3.model.hf.files import locate
from nano3.model.lora.folder import load_adapter
from nano3.rl.environments.mcq import MultipleChoice
from nano3.rl.environments.registry import load_environment
from nano3.rl.environments.rows import find_column, task_of
from nano3.rl.rollout_files import read_rollouts
from nano3.train.tracking.metrics import read_metrics
from nano3.train.tracking.runs import read_run

LINE = {"kind": "train", "step": 1, "tokens": 2, "loss": 1.0}
HELD = LINE | {"kind": "heldout", "bits_per_byte": 1.0}


@pytest.mark.parametrize("name", ["\0", "\ud800"])
def test_an_index_with_a_name_that_no_file_has(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="it must be a file's name"):
        locate(tmp_path)


@pytest.mark.parametrize("text", ["{% break %}", "{% continue %}"])
def test_a_template_that_python_cannot_compile(text):
    with pytest.raises(UserError, match="chat template cannot be compiled"):
        ChatTemplate(text)


@pytest.mark.parametrize("change", [{"lora_alpha": None}, {"lora_alpha": "x"}, {"lora_alpha": float("nan")},
                                    {"target_parameters": True}, {"target_parameters": [None]}])  # fmt: skip
def test_an_adapter_with_values_of_another_type(tmp_path, small_model, change):
    config = {"peft_type": "LORA", "lora_alpha": 2, "base_model_name_or_path": "a"} | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"adapter_config.json: {next(iter(change))} is no"):
        load_adapter(small_model, tmp_path)


@pytest.mark.parametrize("tools", [5, {"a": 1}, "f", [5], [None], [{"function": 5}]])
def test_a_row_whose_tools_are_none(tools):
    with pytest.raises(UserError, match=r"^row 1: (tools is no list|a tool is no object)"):
        task_of({"prompt": "x", "tools": tools}, None, "row 1")


def test_a_row_with_info_nested_too_deeply():
    assert find_column({"info": "[" * 200_000, "answer": 1}, "answer") == 1


@pytest.mark.parametrize("options", [5, True, "abcdefghij", {"a": 1}])
def test_a_question_whose_options_are_no_list(options):
    with pytest.raises(UserError, match="options is no list"):
        MultipleChoice([{"question": "x", "options": options, "answer": 0}])


@pytest.mark.parametrize("change", [
    {"clock": 5}, {"clock": {"seconds": None}}, {"clock": {"seconds": float("inf")}}, {"loss": "x"}, {"loss": [1]},
    {"seq_len": [1]}, {"step": 10**400}, {"tokens": 10**400}, {"bits_per_byte": {}}, {"reward": "x"},
])  # fmt: skip
def test_a_line_with_values_of_another_type_is_no_line_of_metrics(tmp_path, change):
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in (LINE, HELD, HELD | change)))
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 2
    list_(tmp_path)


def test_a_held_out_line_without_a_loss_is_no_score(tmp_path):
    line = {key: value for key, value in HELD.items() if key != "loss"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert read_run(tmp_path).scores == []


@pytest.mark.parametrize("text", ["a = " + "[" * 9999, '[train]\nsteps = "x"', "[train]\ntokens = [1]",
                                  "[train]\ntokens = inf", "train = 1"])  # fmt: skip
def test_settings_of_another_type_are_told_as_damage(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    (tmp_path / "config.toml").write_text(text)
    assert read_run(tmp_path).state == "damaged"
    assert "config.toml" in str(read_run(tmp_path).trouble)


def test_a_manifest_nested_too_deeply_is_of_no_whole_checkpoint(tmp_path):
    step = tmp_path / "checkpoints" / "step-000001"
    step.mkdir(parents=True)
    (step / "manifest.json").write_text("[" * 200_000)
    assert read_run(tmp_path).trouble


@pytest.mark.parametrize("line", [b'{"segments": 0, "reward": 5, "tokens": 0, "step": 1, "source": 5}',
                                  b'{"segments": 9223372036854775807, "reward": null, "tokens": 0}', b"\xff", b"5",
                                  b'{"segments": null}', b'{"segments": -1}'])  # fmt: skip
def test_a_line_that_is_no_saved_rollout(tmp_path, line):
    file = tmp_path / "step-000001.jsonl"
    file.write_bytes(line + b"\n")
    none = np.zeros(0, int)
    np.savez(tmp_path / "step-000001.npz", ids=none, kinds=none, log_probs=none.astype("f4"), lengths=none)
    with pytest.raises(UserError, match=r"step-000001\.jsonl"):
        list(read_rollouts(file))


@pytest.mark.parametrize("key", ["#", "# model", ""])
def test_a_key_of_set_that_is_none(key):
    with pytest.raises(UserError, match="--set"):
        load_pretrain("tiny", [f"{key}=1"])


def test_half_a_surrogate_pair_has_no_tokens():
    tokenizer = small_tokenizer(600)
    for text in ("a\ud800", "\udfff"):
        with pytest.raises(UserError, match="surrogate"):
            tokenizer.encode(text)
        with pytest.raises(UserError, match="surrogate"):
            tokenizer.encode_batch(["a", text])
    with pytest.raises(UserError, match="surrogate"):
        ChatEncoder(tokenizer).encode([{"role": "user", "content": "a\ud800"}])


SAVED = {
    "step": 1, "environment": "e", "task": "t", "index": 0, "seed": 1, "truncated": False, "messages": [],
    "weights_version": 1, "segments": 0, "tokens": 0, "fault": "", "fault_message": "", "reward": {"value": 1.0},
    "source": {"spec": "e", "package": "", "version": "", "sha256": ""},
}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"step": "1"}, {"environment": None}, {"task": ["t"]}, {"messages": [5]}, {"messages": [{"tool_calls": [5]}]},
    {"reward": None}, {"reward": {"value": 10**400}}, {"reward": {"value": 1.0, "parts": 5}}, {"truncated": "no"},
    {"source": SAVED["source"] | {"sha256": 5}}, {"source": SAVED["source"] | {"requires": [1]}},
])  # fmt: skip
def test_a_field_of_a_saved_rollout_that_nothing_can_show(tmp_path, change):
    file, none = tmp_path / "step-000001.jsonl", np.zeros(0, int)
    np.savez(tmp_path / "step-000001.npz", ids=none, kinds=none, log_probs=none.astype("f4"), lengths=none)
    file.write_text(json.dumps(SAVED) + "\n")
    (sample,) = read_rollouts(file)
    assert sample.rollout.token_ids.tolist() == []
    file.write_text(json.dumps(SAVED | change) + "\n")
    with pytest.raises(UserError, match=r"step-000001\.jsonl, line 1: no saved rollout"):
        list(read_rollouts(file))


@pytest.mark.parametrize("arrays", [
    {"ids": [[1, 2]]}, {"ids": [-1, 2]}, {"lengths": [3]}, {"lengths": [-1, 3]}, {"kinds": [1]},
    {"log_probs": ["a", "b"]},
])  # fmt: skip
def test_arrays_of_rollouts_that_do_not_fit(tmp_path, arrays):
    file = tmp_path / "step-000001.jsonl"
    file.write_text(json.dumps(SAVED | {"segments": 1, "tokens": 2}) + "\n")
    right = {"ids": [1, 2], "kinds": [0, 1], "log_probs": [0.0, -1.0], "lengths": [2]}
    np.savez(tmp_path / "step-000001.npz", **right)
    assert len(list(read_rollouts(file))) == 1
    np.savez(tmp_path / "step-000001.npz", **right | arrays)
    with pytest.raises(UserError, match=r"step-000001\.npz holds no tokens"):
        list(read_rollouts(file))


def test_an_archive_of_arrays_whose_parts_lie_outside_it(tmp_path):
    file = tmp_path / "step-000001.jsonl"
    file.write_text("")
    np.savez(tmp_path / "step-000001.npz", ids=[1])
    data = (tmp_path / "step-000001.npz").read_bytes()
    (tmp_path / "step-000001.npz").write_bytes(data[20:])
    with pytest.raises(UserError, match=r"step-000001\.npz holds no tokens"):
        list(read_rollouts(file))


BANK = {"id": "a", "prompt": "Hi", "ground_truth": [{"name": "set_card", "arguments": {}}],
        "accounts": [{"account_id": "1", "name": "Ann", "pin": "1", "balance": 5}]}  # fmt: skip


@pytest.mark.parametrize("change", [
    {"accounts": True}, {"accounts": [5]}, {"accounts": [{"account_id": "1"}]}, {"ground_truth": True},
    {"ground_truth": [{"name": "set_card"}]}, {"prompt": True},
])  # fmt: skip
def test_a_row_of_banking_that_is_none(change):
    with pytest.raises(UserError, match=r"environment banking, row 1: (accounts is|ground_truth is|a turn of)"):
        load_environment("banking", rows=[BANK | change])


@pytest.mark.parametrize("change", [{"office": None}, {"office": "x"}, {"ground_truth": True}, {"ground_truth": [5]}])
def test_a_row_of_the_workplace_that_is_none(change):
    row = {"prompt": "Hi", "ground_truth": [{"name": "delete_email", "arguments": {"email_id": 1}}]}
    with pytest.raises(UserError, match=r"workplace_assistant, row 1: (office|ground_truth) is"):
        load_environment("workplace_assistant", rows=[row | change])


@pytest.mark.parametrize("change", [{"bytes": None}, {"documents": [1]}, {"shards": ["x"]}, {"tokens": -1},
                                    {"dtype": "object"}, {"skipped": {"a": None}}, {"named": [1]}])  # fmt: skip
def test_a_prepared_folder_whose_manifest_has_values_of_another_type(tmp_path, change):
    right = Manifest("key", 0, 1, 2, 3, "uint16", 300)
    write_manifest(tmp_path, right)
    assert read_manifest(tmp_path) == right
    (tmp_path / "manifest.json").write_text(json.dumps(asdict(right) | change))
    with pytest.raises(UserError, match=r"manifest\.json is damaged \(it is not what was written\): delete it"):
        read_manifest(tmp_path)
