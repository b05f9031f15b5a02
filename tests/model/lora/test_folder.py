from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import nano3
from nano3.config.errors import UserError
from nano3.config.lora import LoraConfig
from nano3.model.hf.folder import load, save
from nano3.model.layers import Linear
from nano3.model.lora.apply import adapted, apply_lora
from nano3.model.lora.folder import load_adapter, save_adapter
from nano3.model.lora.merge import merge, merged
from nano3.model.lora.modules import LoraExperts

CFG = LoraConfig(rank=4, alpha=6.0)
ALL_BUT_OUT = [
    *("q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "experts.up_proj", "experts.down_proj"),
    *("mixer.up_proj", "mixer.down_proj"),
]


@pytest.fixture
def base(small_model, tmp_path):
    save(small_model, tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(small_model, base, tmp_path, filled):
    save_adapter(filled(small_model), tmp_path / "adapter", str(base))
    return tmp_path / "adapter"


@pytest.mark.parametrize("targets", [[], ["experts.up_proj"], ["experts.down_proj", "lm_head"], ["q_proj", "out_proj"]])
def test_an_adapter_comes_back_as_it_was(small_model, base, tmp_path, tokens, filled, targets):
    save_adapter(filled(small_model, replace(CFG, targets=targets)), tmp_path / "adapter", str(base))
    again = load(base)
    report = load_adapter(again, tmp_path / "adapter")
    assert (report.rank, report.alpha) == (4, 6.0)
    for (name, a), (other, b) in zip(adapted(small_model), adapted(again), strict=True):
        assert name == other
        for one, two in zip(a.adapters(), b.adapters(), strict=True):
            assert torch.equal(one.A, two.A)
            assert torch.equal(one.B, two.B)
    assert torch.equal(again(tokens), small_model(tokens))


def test_a_folder_of_an_adapter_loads_as_its_model_with_it(small_model, adapter, tokens):
    model = nano3.load(adapter)
    assert any(isinstance(module, LoraExperts) for module in model.modules())
    assert torch.equal(model(tokens), small_model(tokens))


def test_the_files_say_in_pefts_words_what_to_add_to_which_weight(small_model, base, adapter):
    """By formula: W + alpha / r * B A of each module, and of stacked experts as PEFT lays them out."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 6.0)
    assert config["base_model_name_or_path"] == str(base)
    stored, scale, E = load_file(adapter / "adapter_model.safetensors"), 6.0 / 4, 5
    plain = load(base)
    merge(small_model)
    wanted = dict(small_model.named_parameters())
    checked = set()
    for name, module in plain.named_modules():
        stem = "base_model.model.model.layers." + name.removeprefix("blocks.")
        if isinstance(module, Linear) and name != "lm_head":
            delta = scale * stored[f"{stem}.lora_B.weight"] @ stored[f"{stem}.lora_A.weight"]
            torch.testing.assert_close(module.weight + delta, wanted[f"{name}.weight"])
            checked |= {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
        if name.endswith(".experts"):
            for projection, inner in (("up_proj", ".base_layer"), ("down_proj", "")):
                keys = [f"{stem}{inner}.lora_{which}.weight" for which in "AB"]
                a, b = stored[keys[0]].reshape(E, 4, -1), stored[keys[1]].reshape(-1, 4, E)
                weight = module.get_parameter(projection) + scale * torch.einsum("ore,eri->eoi", b, a)
                torch.testing.assert_close(weight, wanted[f"{name}.{projection}"])
                checked |= set(keys)
    assert checked == set(stored)


def transformers_model(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def as_peft(base, adapter):
    peft = pytest.importorskip("peft")
    return peft.PeftModel.from_pretrained(transformers_model(base), adapter).eval()


def assert_same(found, ours, tokens, folder):
    """`found` computes what transformers does with our merged weights, and so what we do within its own rounding."""
    logits = found(tokens).logits
    torch.testing.assert_close(logits, ours(tokens), rtol=2e-2, atol=2e-2)
    with merged(ours):
        save(ours, folder)
    torch.testing.assert_close(logits, transformers_model(folder)(tokens).logits, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_peft_computes_the_same_with_a_folder_of_ours(small_model, base, tmp_path, tokens, filled):
    save_adapter(filled(small_model, replace(CFG, targets=ALL_BUT_OUT)), tmp_path / "adapter", str(base))
    assert_same(as_peft(base, tmp_path / "adapter"), small_model, tokens, tmp_path / "merged")
    assert (load(base)(tokens) - small_model(tokens)).abs().max() > 0.1


@torch.no_grad()
def test_mambas_out_projection_is_one_of_pefts_parameters(small_model, base, adapter, tmp_path, tokens, monkeypatch):
    """PEFT refuses an adapter of this module by its name, in every form; without that check it computes the same."""
    tuners_utils = pytest.importorskip("peft.tuners.tuners_utils")
    with pytest.raises(ValueError, match="out_proj"):
        as_peft(base, adapter)
    monkeypatch.setattr(tuners_utils, "_check_lora_target_modules_mamba", lambda *_: None)
    assert_same(as_peft(base, adapter), small_model, tokens, tmp_path / "merged")


@torch.no_grad()
def test_we_compute_the_same_with_a_folder_of_pefts(base, tmp_path, tokens):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "in_proj", "shared_experts.up_proj"],
        target_parameters=["experts.up_proj", "experts.down_proj"],
        use_rslora=True,
        init_lora_weights=False,
    )
    torch.manual_seed(0)  # for the values that PEFT draws
    model = peft.get_peft_model(transformers_model(base), config)
    model.save_pretrained(tmp_path / "theirs")
    ours = load(base)
    load_adapter(ours, tmp_path / "theirs")
    assert_same(model.eval(), ours, tokens, tmp_path / "merged")


def test_names_and_layouts_of_others_are_read(small_model, base, adapter, tmp_path, tokens):
    """`backbone.` of the published models; and experts as older PEFT took them, input and output exchanged."""
    stored = load_file(adapter / "adapter_model.safetensors")
    other = {}
    for key, value in stored.items():
        key = key.replace("base_model.model.model.", "base_model.model.backbone.")
        if ".experts." in key and "shared" not in key:
            other_key = key.replace("lora_A", "lora_B") if "lora_A" in key else key.replace("lora_B", "lora_A")
            if "lora_A" in key:
                value = value.reshape(5, 4, -1).permute(2, 1, 0).flatten(1)
            else:
                value = value.reshape(-1, 4, 5).permute(2, 1, 0).flatten(0, 1)
            other[other_key] = value.contiguous()
        else:
            other[key] = value
    save_file(other, adapter / "adapter_model.safetensors")
    again = load(base)
    load_adapter(again, adapter)
    torch.testing.assert_close(again(tokens), small_model(tokens), rtol=1e-5, atol=1e-5)


def change(adapter, **values):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"use_dora": True}, "has use_dora = True"),
        ({"rank_pattern": {"q_proj": 2}}, "has rank_pattern"),
        ({"peft_type": "IA3"}, "no LoRA adapter's configuration"),
        ({"target_parameters": ["experts.up_proj"]}, "which this model has no projection for"),
    ],
)
def test_adapters_of_other_kinds_are_refused_in_a_line(base, adapter, values, words):
    change(adapter, **values)
    model = load(base)
    with pytest.raises(UserError, match=words) as refusal:
        load_adapter(model, adapter)
    assert "\n" not in str(refusal.value)
    assert not list(adapted(model))


def test_damaged_folders_are_refused(base, adapter, tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_adapter(load(base), tmp_path)
    stored = load_file(adapter / "adapter_model.safetensors")
    lost = next(key for key in stored if "lora_B" in key)
    save_file({k: v for k, v in stored.items() if k != lost}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="has no lora_B"):
        load_adapter(load(base), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="is damaged"):
        load_adapter(load(base), adapter)


def test_a_base_that_is_not_here_is_named(adapter):
    change(adapter, base_model_name_or_path="/nowhere/base")
    with pytest.raises(UserError, match="belongs to /nowhere/base, which is not here"):
        nano3.load(adapter)
    change(adapter, base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not say which model"):
        nano3.load(adapter)


def test_whoever_may_read_the_settings_may_read_the_weights(base, adapter):
    for folder in (base, adapter):
        assert len({file.stat().st_mode for file in folder.iterdir()}) == 1


def test_only_adapters_are_replaced(small_model, base, adapter):
    save_adapter(small_model, adapter, str(base))
    with pytest.raises(UserError, match="something else than an adapter"):
        save_adapter(small_model, base, str(base))


def test_a_model_without_adapters_has_none_to_save(small_model, tmp_path):
    with pytest.raises(UserError, match="no adapters"):
        save_adapter(small_model, tmp_path / "adapter", "")
    assert not (tmp_path / "adapter").exists()
    apply_lora(small_model, CFG)
    save_adapter(small_model, tmp_path / "adapter", "")
