"""Names of models to engines."""

import pytest

from nano3.config.errors import UserError
from nano3.config.lora import LoraConfig
from nano3.engine.launch import find_device, is_base_model, open_engine, small_tokenizer
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.eval.lm.text import stage_of
from nano3.model.hf.folder import load, save
from nano3.model.lm import LM
from nano3.model.lora.apply import apply_lora
from nano3.model.lora.folder import save_adapter

pytestmark = pytest.mark.any_isa


def greedy(engine, prompt):
    (outputs,) = run(engine, [Request("a", tuple(prompt), Sampling(temperature=0, max_tokens=8))])
    return outputs[0].ids


def test_a_preset_gets_random_weights_and_a_tokenizer_and_says_so(capsys):
    engine, name = open_engine("tiny", memory=64 << 20, max_sequences=2, max_context=100)
    assert name == "tiny"
    assert engine.max_context == 100
    assert "random weights" in capsys.readouterr().err
    again, _ = open_engine("tiny", memory=64 << 20)
    prompt = engine.tokenizer.encode("Hello")
    assert greedy(engine, prompt) == greedy(again, prompt)


def test_a_folder_and_its_run_folder_are_the_same_model(tmp_path, small_config, capsys):
    import dataclasses

    tokenizer = small_tokenizer(300)
    model = LM(dataclasses.replace(small_config, vocab_size=tokenizer.vocab_size)).init_weights(1).eval()
    folder = tmp_path / "run" / "model"
    save(model, folder)
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        open_engine(str(folder))
    tokenizer.save(folder)
    found = [open_engine(str(path), memory=16 << 20, dtype="float32") for path in (folder, tmp_path / "run")]
    assert [name for _, name in found] == ["run", "run"]
    assert greedy(found[0][0], [9, 8, 7]) == greedy(found[1][0], [9, 8, 7])
    assert "random" not in capsys.readouterr().err


def test_what_had_to_be_lowered_is_said(capsys):
    engine, _ = open_engine("tiny", memory=2 << 20)
    assert "context lowered" in capsys.readouterr().err
    assert engine.max_context < 8192


def test_the_small_tokenizer_is_always_the_same_and_reads_everything():
    first, second = small_tokenizer(4096), small_tokenizer(4096)
    assert first.fingerprint() == second.fingerprint()
    text = "Grüße, 世界 🦊\n\t\x00"
    assert first.decode(first.encode(text)) == text
    assert small_tokenizer(300).vocab_size <= 300
    with pytest.raises(UserError, match="too small"):
        small_tokenizer(100)


@pytest.mark.parametrize("name", ["tpu", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_told(name):
    with pytest.raises(UserError, match=f"--device {name}"):
        find_device(name)


def test_vllm_takes_no_options_of_the_native_engine():
    with pytest.raises(UserError, match="native"):
        open_engine("tiny", engine="vllm", speculate=3)


def test_a_model_that_cannot_fit_is_refused_before_anything_is_allocated(monkeypatch, tmp_path, small_config):
    monkeypatch.setattr("nano3.engine.sizing.available_memory", lambda device: 22 * 10**9)
    with pytest.raises(UserError, match=r"nano3-30b-a3b needs 126 GB in float32; 22 GB are free") as refusal:
        open_engine("nano3-30b-a3b", dtype="float32", device="cpu")
    assert "\n" not in str(refusal.value)
    folder = tmp_path / "model"
    save(LM(small_config).init_weights(1), folder)
    small_tokenizer(300).save(folder)
    monkeypatch.setattr("nano3.engine.sizing.available_memory", lambda device: 1000)
    with pytest.raises(UserError, match="are free"):
        open_engine(str(folder))


def test_a_run_of_pretraining_is_a_base_model_and_stays_one_when_saved_again(tmp_path, small_config):
    model = LM(small_config).init_weights(1)
    save(model, tmp_path / "from-elsewhere")
    model.stage = "pretrain"
    save(model, tmp_path / "run" / "model")
    save(load(tmp_path / "run" / "model"), tmp_path / "again")
    assert [is_base_model(str(tmp_path / name)) for name in ("from-elsewhere", "run", "again")] == [False, True, True]
    assert not is_base_model("tiny")


def test_an_adapter_that_does_not_say_what_trained_it_is_of_its_models_stage(tmp_path, small_config):
    model = LM(small_config).init_weights(1)
    model.stage = "pretrain"
    save(model, tmp_path / "base")
    apply_lora(model, LoraConfig(rank=2))
    save_adapter(model, tmp_path / "adapter", str(tmp_path / "base"))
    assert is_base_model(str(tmp_path / "adapter"))
    (tmp_path / "adapter" / "nano3.json").unlink()
    assert is_base_model(str(tmp_path / "adapter"))
    assert stage_of(str(tmp_path / "adapter")) == "pretrain"
