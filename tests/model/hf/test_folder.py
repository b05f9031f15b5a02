"""Hugging Face folders: round trips, both namings, shards, and damage that is named."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import nano3
from nano3.config.errors import UserError
from nano3.model.hf.config import FIXED, KEYS, ONLY_IN, OPTIONAL, from_hf, read_config, to_hf
from nano3.model.hf.folder import load, named_tensors, save

from ...forked import run_forked

pytestmark = pytest.mark.any_isa


def assert_same(first, second) -> None:
    expected = dict(named_tensors(second))
    for name, tensor in named_tensors(first):
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 20_000])
def test_round_trip_is_exact(small_model, tmp_path, shard_bytes):
    save(small_model, tmp_path / "m", max_shard_bytes=shard_bytes)
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == (shard_bytes == 20_000)
    assert read_config(tmp_path / "m") == small_model.cfg
    assert_same(load(tmp_path / "m"), small_model)
    assert load(tmp_path / "m").expert_biases()[1].abs().sum() > 0


def test_bfloat16_folder_loads_as_stored_or_as_asked(small_model, tmp_path):
    save(small_model, tmp_path / "m", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "m" / "model.safetensors")
    assert stored["lm_head.weight"].dtype == torch.bfloat16
    assert stored["backbone.layers.0.mixer.A_log"].dtype == torch.float32
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    model = load(tmp_path / "m")
    assert model.compute_dtype == torch.bfloat16
    assert_same(model, small_model.to_dtype(torch.bfloat16))
    assert load(tmp_path / "m", dtype=torch.float32).lm_head.weight.dtype == torch.float32


def test_published_names(small_model, tmp_path):
    save(small_model, tmp_path / "m")
    names = set(load_file(tmp_path / "m" / "model.safetensors"))
    assert {
        "backbone.embeddings.weight",
        "backbone.layers.0.mixer.conv1d.weight",
        "backbone.layers.1.mixer.gate.e_score_correction_bias",
        "backbone.layers.1.mixer.experts.4.down_proj.weight",
        "backbone.layers.1.mixer.shared_experts.up_proj.weight",
        "backbone.layers.2.mixer.o_proj.weight",
        "backbone.layers.3.mixer.up_proj.weight",
        "backbone.norm_f.weight",
        "lm_head.weight",
    } <= names


def test_stacked_experts_and_model_prefix_are_read_too(small_model, tmp_path):
    save(small_model, tmp_path / "m")
    tensors = {
        (
            "lm_head.weight" if n.startswith("lm_head") else "model." + n.replace("blocks.", "layers.")
        ): t.detach().clone()
        for n, t in named_tensors(small_model)
    }
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    assert_same(load(tmp_path / "m"), small_model)


def rewrite(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("backbone.layers.1.mixer.experts.3.up_proj.weight"), "1 tensor missing.*experts.3.up_proj"),
        (lambda t: t.update({"backbone.layers.0.mixer.extra": torch.ones(1)}), "no place for.*mixer.extra"),
        (lambda t: t.update({"lm_head.weight": torch.ones(3, 2)}), r"lm_head.weight has shape \(3, 2\)"),
    ],
)
def test_a_wrong_tensor_is_named(small_model, tmp_path, change, message):
    save(small_model, tmp_path / "m")
    rewrite(tmp_path / "m", change)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "m")


def test_truncated_weights_are_named(small_model, tmp_path):
    save(small_model, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model.safetensors: cannot be read"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"hybrid_override_pattern": "ME*-MM"}, "contradicts"),
        ({"layers_block_type": None, "hybrid_override_pattern": "ME*?"}, r"unknown symbol '\?' at position 3"),
        ({"num_experts_per_tok": 9}, "top_k is 9"),
        ({"n_groups": 4}, "not divisible"),
        ({"moe_latent_size": 64}, "moe_latent_size"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"time_step_limit": [0.001, 0.1]}, "time_step_limit"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(small_model, tmp_path, change, message):
    save(small_model, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=message):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", "128", "hidden_size is '128'; it must be a whole number"),
        ("hidden_size", 128.5, "hidden_size is 128.5; it must be a whole number"),
        ("hidden_size", float("nan"), "hidden_size is nan; it must be a whole number"),
        ("hidden_size", 10**400, "hidden_size is 1000.*…; it must be a whole number below"),
        ("n_groups", True, "n_groups is True; it must be a whole number"),
        ("eos_token_id", [], r"eos_token_id is \[\]; it must be a whole number"),
        ("eos_token_id", [[2]], r"eos_token_id is \[2\]; it must be a whole number"),
        ("layer_norm_epsilon", "1e-5", "layer_norm_epsilon is '1e-5'; it must be a number"),
        ("rms_norm_eps", {}, "layer_norm_epsilon 1e-05 contradicts rms_norm_eps {}"),
        ("attention_head_dim", 9, "head_dim 8 contradicts attention_head_dim 9"),
        ("rescale_prenorm_residual", "yes", "rescale_prenorm_residual is 'yes'; it must be true or false"),
        ("max_position_embeddings", {}, "max_position_embeddings is {}; it must be a whole number"),
        ("layers_block_type", [["moe"], ["mlp"]], "layers_block_type is .* it must be a list of names"),
        ("layers_block_type", 5, "layers_block_type is 5; it must be a list of names"),
        ("layers_block_type", {"moe": 1}, "layers_block_type is .* it must be a list of names"),
        ("hybrid_override_pattern", ["M"], "hybrid_override_pattern is .* it must be a text"),
        ("num_hidden_layers", 7, "num_hidden_layers is 7 beside 6 blocks"),
        ("num_hidden_layers", "6", "num_hidden_layers is '6'; it must be a whole number"),
        ("time_step_limit", [0.0], r"time_step_limit is \[0.0\]; nano3 supports"),
        ("time_step_limit", "none", "time_step_limit is 'none'; nano3 supports"),
        ("time_step_limit", [0.0, []], "time_step_limit is .* nano3 supports"),
        ("norm_topk_prob", [1], "norm_topk_prob is .*; nano3 supports True only"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_line_with_file_key_and_value(small_config, key, value, message):
    with pytest.raises(UserError, match=f"^here.json: {message}") as told:
        from_hf(to_hf(small_config) | {key: value}, "here.json")
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 250


def test_whole_floats_are_integers_and_integers_are_numbers(small_config):
    keys = to_hf(small_config)
    rewritten = {k: float(v) if type(v) is int else v for k, v in keys.items()}
    assert from_hf(rewritten | {"eos_token_id": [2.0, 11]}) == small_config
    assert type(from_hf(rewritten).d_model) is int
    assert type(from_hf(keys | {"time_step_max": 1}).dt_max) is float


def test_names_of_older_members_of_the_family_are_read(small_config):
    keys = to_hf(small_config)
    older = {k: v for k, v in keys.items() if k not in ("head_dim", "layer_norm_epsilon")}
    for name in ("rms_norm_eps", "norm_eps"):
        found = from_hf(older | {"attention_head_dim": small_config.head_dim, name: 2e-5})
        assert (found.head_dim, found.norm_eps) == (small_config.head_dim, 2e-5)
    assert from_hf(keys | {"attention_head_dim": 8, "rms_norm_eps": 1e-5, "norm_eps": None}) == small_config
    with pytest.raises(UserError, match="head_dim is missing"):
        from_hf(older | {"norm_eps": 1e-5})


@pytest.mark.parametrize(
    ("pattern", "stale"),
    [
        ("M*-", {"norm_topk_prob": False, "n_group": 8, "n_routed_experts": "many", "moe_latent_size": 64}),
        ("E*", {"mamba_hidden_act": "gelu", "use_conv_bias": False, "n_groups": [], "time_step_limit": [0.0]}),
        ("M", {"attention_bias": True, "sliding_window": 512, "mlp_hidden_act": "silu", "intermediate_size": None}),
    ],
)
def test_what_only_other_blocks_would_heed_may_be_anything(small_config, pattern, stale):
    keys = to_hf(replace(small_config, pattern=pattern))
    assert from_hf(keys | stale).pattern == pattern
    for key in set(stale) & set(FIXED):
        with pytest.raises(UserError, match=f"{key} is"):
            from_hf(to_hf(small_config) | {key: stale[key]})


@pytest.mark.parametrize("file", [5, None, ["model.safetensors"], "", "../model.safetensors", "/etc/passwd"])
def test_an_index_that_names_no_file_is_one_line(small_model, tmp_path, file):
    save(small_model, tmp_path / "m")
    index = tmp_path / "m" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": file}}))
    with pytest.raises(UserError, match=r"index.json: weight_map has .* for lm_head.weight: it must be a file's name"):
        load(tmp_path / "m")


def test_a_missing_size_is_named_and_not_guessed(small_config):
    keys = to_hf(small_config)
    optional = {KEYS[field] for field in OPTIONAL}
    for key in set(KEYS.values()) - optional:
        with pytest.raises(UserError, match=f"{key} is missing"):
            from_hf({k: v for k, v in keys.items() if k != key})
        with pytest.raises(UserError, match=f"{key} is missing"):
            from_hf(keys | {key: None})
    defaults = from_hf({k: v for k, v in keys.items() if k not in optional})
    assert (defaults.bos_id, defaults.eos_id, defaults.d_model) == (1, 2, small_config.d_model)


@pytest.mark.parametrize(
    ("pattern", "needed"),
    [("M", "ssm_state_size"), ("E", "routed_scaling_factor"), ("*", "head_dim"), ("-", "intermediate_size")],
)
def test_sizes_of_blocks_that_a_model_lacks_may_be_missing(small_config, pattern, needed):
    absent = {KEYS[field] for symbol, fields in ONLY_IN.items() if symbol != pattern for field in fields}
    keys = {k: v for k, v in to_hf(replace(small_config, pattern=pattern)).items() if k not in absent}
    assert from_hf(keys).pattern == pattern
    with pytest.raises(UserError, match=f"{needed} is missing"):
        from_hf({k: v for k, v in keys.items() if k != needed})


def test_no_shared_expert_needs_no_width(small_config):
    keys = to_hf(replace(small_config, d_shared=0))
    del keys["moe_shared_expert_intermediate_size"]
    assert from_hf(keys).d_shared == 0


def test_pattern_alone_and_block_types_alone_mean_the_same(small_model, tmp_path):
    save(small_model, tmp_path / "m")
    file = tmp_path / "m" / "config.json"
    keys = json.loads(file.read_text())
    for dropped in ("layers_block_type", "hybrid_override_pattern"):
        file.write_text(json.dumps({k: v for k, v in keys.items() if k != dropped}))
        assert read_config(tmp_path / "m") == small_model.cfg


def test_a_failed_save_leaves_the_old_folder(small_model, tmp_path):
    save(small_model, tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full_disk(_):
        raise OSError(errno.ENOSPC, "no space left")

    with pytest.raises(OSError, match="no space left"):
        save(small_model.to_dtype(torch.bfloat16), tmp_path / "m", extra=full_disk)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert os.listdir(tmp_path) == ["m"]


def test_load_takes_runs_folders_and_presets(small_model, tmp_path):
    nano3.save(small_model, tmp_path / "run" / "model")
    for path in (tmp_path / "run", tmp_path / "run" / "model"):
        assert_same(nano3.load(path), small_model)
    assert nano3.load("tiny").cfg.n_blocks > 3
    with pytest.raises(UserError, match="no such folder, and no model preset"):
        nano3.load("tinny")
    with pytest.raises(UserError, match=r"x\.gguf: no such file; .*--gguf q8_0"):
        nano3.load("x.gguf")
    with pytest.raises(UserError, match=r"no config.json"):
        nano3.load(tmp_path)


def test_loading_needs_little_more_memory_than_the_model(tmp_path):
    code = """
import resource, sys, torch, dataclasses
from nano3.config.model import ModelConfig
from nano3.model.lm import LM
from nano3.model.hf.folder import load, save
rss = lambda: int(next(l for l in open('/proc/self/status') if l.startswith('RssAnon')).split()[1]) * 1024
cfg = ModelConfig(pattern='E', vocab_size=100000, d_model=256, bos_id=1)
if sys.argv[1] == 'save':
    save(LM(cfg).init_weights(0), sys.argv[2])
else:
    import threading, time
    before, peak, done = rss(), [0], threading.Event()
    def watch():
        while not done.is_set():
            peak[0] = max(peak[0], rss()); time.sleep(0.002)
    thread = threading.Thread(target=watch); thread.start()
    model = load(sys.argv[2]); done.set(); thread.join()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    print((peak[0] - before) / size)
"""

    def run(what):
        done = run_forked("-c", code, what, tmp_path / "m")
        assert done.returncode == 0, done.stderr
        return done

    run("save")
    assert float(run("load").stdout) < 1.2


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "model.safetensors", "thesis.tex"], "m: holds thesis.tex"),
        (["config.json", "checkpoints/step-1"], "m: holds checkpoints"),
        (["README.md"], "m: holds README.md but no model"),
    ],
)
def test_a_folder_with_anything_else_in_it_is_not_replaced(small_model, tmp_path, names, message):
    for name in names:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text("precious")
    with pytest.raises(UserError, match=message):
        nano3.save(small_model, tmp_path / "m")
    assert all((tmp_path / "m" / name).read_text() == "precious" for name in names)


def test_a_file_is_not_replaced_and_an_older_model_is(small_model, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="is a file"):
        nano3.save(small_model, tmp_path / "file")
    for folder in ("m", "empty"):
        (tmp_path / folder).mkdir()
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja", "model-00001-of-00009.safetensors"):
        (tmp_path / "m" / name).write_text("old")
    for folder in ("m", "empty"):
        nano3.save(small_model, tmp_path / folder)
        assert sorted(os.listdir(tmp_path / folder)) == ["config.json", "generation_config.json", "model.safetensors"]
