"""nano3's side: models by name, a tokenizer for all ids, profiles."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from nano3.bench.device.weights import random_model
from nano3.bench.native import Native, drawn_dtype, full_tokenizer, open_model
from nano3.bench.workload import Case, Job
from nano3.config.errors import UserError
from nano3.config.presets import load_model
from nano3.model.hf.folder import save
from nano3.model.lm import LM


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


class Wide(TorchDispatchMode):
    """Notes how large tensors of float32 become that hold memory."""

    def __init__(self):
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.dtype == torch.float32 and not made.is_meta:
            self.largest = max(self.largest, made.numel())
        return made


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_drawn_on_a_device_never_take_more_room_than_they_need(small_sizes, dtype):
    with Wide() as wide:
        model = random_model(load_model(small_sizes), torch.device("cpu"), dtype)
    largest = model.embeddings.weight
    assert largest.dtype == dtype
    assert (wide.largest < largest.numel()) == (dtype == torch.bfloat16)
    assert 0.5 < largest.float().std() / LM(model.cfg).init_weights(0).embeddings.weight.std() < 2
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["prefill", "decode", "throughput", "train", "rl"])
def test_weights_are_drawn_in_the_type_in_which_they_are_measured(kind):
    """The 30B model's in float32 fill a GPU that holds them in bfloat16 with much to spare."""
    for name, served in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        drawn = drawn_dtype(Job("nano3", kind, "tiny", dtype=name), torch.device("cuda"))
        assert drawn == (torch.float32 if kind in ("train", "rl") else served)


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
