"""nano3's side: models by name, a tokenizer for all ids, profiles."""

import pytest
import torch

from nano3.bench.native import Native, full_tokenizer, open_model
from nano3.bench.workload import Case, Job
from nano3.config.errors import UserError
from nano3.model.hf.folder import save


@pytest.mark.parametrize(
    "case",
    [Case("train", 2, 9), Case("train", 1, 9, forward_only=True), Case("prefill", 1, 40), Case("decode", 3, 10, 4)],
)
def test_every_kind_of_run_takes_time(small_sizes, case):
    side = Native(Job("nano3", case.kind, small_sizes))
    assert 0 < side.run(case)["seconds"] < 60
    assert side.about()["config"]["d_state"] == 16
    assert side.about()["backends"]["linear"]["backend"]


def test_training_gradients_do_not_pile_up(small_sizes):
    side = Native(Job("nano3", "train", small_sizes))
    side.run(Case("train", 1, 9))
    assert all(parameter.grad is None for parameter in side.model.parameters())


def test_training_has_wide_weights_whatever_the_arithmetic(small_sizes):
    about = Native(Job("nano3", "train", small_sizes, dtype="bfloat16")).about()
    assert (about["weights"], about["activations"]) == ("float32", "bfloat16")


def test_a_folder_is_opened_with_its_weights(small_sizes, tmp_path):
    model = open_model(small_sizes)
    save(model, tmp_path / "model")
    again = open_model(str(tmp_path / "model"))
    assert torch.equal(again.embeddings.weight, model.embeddings.weight)
    with pytest.raises(UserError, match="--pattern"):
        open_model(str(tmp_path / "model"), "ME")


def test_a_pattern_replaces_the_presets_blocks(small_sizes):
    assert open_model(small_sizes, "MM").cfg.pattern == "MM"
    with pytest.raises(UserError, match=r"--pattern: .*unknown symbol 'X'"):
        open_model(small_sizes, "MX")


def test_the_tokenizer_has_every_id_of_the_model():
    tokenizer = full_tokenizer(3000)
    assert tokenizer.vocab_size == 3000
    assert tokenizer.decode([2999]) == "<|2999|>"


def test_a_profile_names_ops_and_their_backward_passes(small_sizes):
    found = Native(Job("nano3", "train", small_sizes)).profile(Case("train", 2, 70))
    names = {row["name"].split(" (")[0]: row for row in found["ops"]}
    assert names["ssd_scan"]["calls"] == 1
    assert names["Python, outside of ops"]["seconds"] > 0
    assert any(name.startswith("backward: ") for name in names)
    assert "aten::mm" in {row["name"] for row in found["torch"]}
    for rows in found.values():
        assert sum(row["share"] for row in rows) == pytest.approx(1)
        seconds = [row["seconds"] for row in rows if not row["name"].endswith(" others")]
        assert seconds == sorted(seconds, reverse=True)


def test_a_profile_is_of_the_timed_part_only(small_sizes):
    found = Native(Job("nano3", "decode", small_sizes)).profile(Case("decode", 3, 10, 5))
    calls = {row["name"].split(" (")[0]: row["calls"] for row in found["ops"]}
    # One Mamba-2 block, a step each for five tokens, or five whole steps; the prompt's pass is not among them.
    assert calls.get("decoding step", calls.get("mamba_step")) == 5
    assert "ssd_scan" not in calls
