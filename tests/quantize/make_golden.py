"""Make the golden folders of tests/golden/modelopt with NVIDIA ModelOpt, whose files nano3 has to match.

    python -m venv v && v/bin/pip install -e . nvidia-modelopt==0.47.0 transformers
    v/bin/python tests/quantize/make_golden.py

Each case has `source/` (the model before, written by nano3), `exported/` (ModelOpt's folder), `rows.json` (calibration)
and `simulated.safetensors`: of some tokens, logits before (`plain`) and by ModelOpt's own quantizers of what was
exported (`simulated`), and there what enters each block and leaves the last (`hidden`).
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import modelopt.torch.quantization as mtq
import torch
import transformers
from modelopt.torch.export import export_hf_checkpoint
from safetensors.torch import load_file, save_file

from nano3.config.model import ModelConfig
from nano3.model.hf.folder import save
from nano3.model.lm import LM

OUT = Path(__file__).parents[1] / "golden" / "modelopt"
SIZES = {"vocab_size": 48, "d_model": 32, "init_std": 0.08, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8}
SIZES |= {"mamba_n_heads": 4, "mamba_head_dim": 8, "d_state": 8, "n_groups": 2, "chunk_size": 16, "n_experts": 4}
SIZES |= {"top_k": 2, "d_expert": 8, "d_shared": 16, "d_ff": 40}
CASES = {"selective": ("MEMEM*EME", True, 8), "everything": ("*E-MM*", False, 8)}
"""Pattern, whether attention and the Mamba blocks before it stay in bf16, and the seed of the norms."""
ROWS, LENGTH, SHOWN = 8, 32, 16
E4M3 = {"num_bits": (4, 3), "axis": None}


def source(pattern: str, seed: int, folder: Path) -> None:
    """A model whose channels differ in size, as a trained one's do."""
    model = LM(ModelConfig(pattern=pattern, **SIZES)).init_weights(seed=len(pattern))
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.mul_(torch.exp(0.5 * torch.randn(parameter.shape, generator=draw)))
        parameter.data.copy_(parameter.data.bfloat16())  # also what ModelOpt's loader rounds and nano3 does not
    for i, bias in enumerate(model.expert_biases()):
        bias.copy_(torch.linspace(-0.05, 0.05, bias.numel()).roll(i))
    save(model, folder, dtype=torch.bfloat16)


def quantizers(kinds: list[str], selective: bool) -> list[dict]:
    """ModelOpt's rules, later ones win."""
    rules = [{"quantizer_name": "*", "enable": False}]
    rules += [{"quantizer_name": f"*{name}_quantizer*", "cfg": E4M3, "enable": True} for name in ("weight", "input")]
    kept = ["*lm_head*", "*conv1d*", "*gate.*", "*router*", "*embed*", "*output_quantizer*"]
    if selective:
        kept += [f"*{letter}_proj*" for letter in "qkvo"]
        kept += [f"*layers.{i}.mixer.*" for i, kind in enumerate(kinds[:-1])
                 if (kind, kinds[i + 1]) == ("linear_attention", "full_attention")]  # fmt: skip
    rules += [{"quantizer_name": name, "enable": False} for name in kept]
    return [*rules, {"quantizer_name": "*[kv]_bmm_quantizer", "cfg": E4M3, "enable": True}]


def logits_of(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """(rows, T, V) of each row alone, as calibration runs them."""
    with torch.no_grad():
        return torch.cat([model(row[None], use_cache=False).logits.float() for row in rows])


def calibrate(model: torch.nn.Module, rows: torch.Tensor, selective: bool) -> torch.nn.Module:
    """The model with quantizers that have seen the rows."""
    config = {"quant_cfg": quantizers(model.config.layers_block_type, selective), "algorithm": "max"}
    return mtq.quantize(model, config, forward_loop=lambda quantized: logits_of(quantized, rows))


def exact(folder: Path, calibrated: torch.nn.Module) -> torch.nn.Module:
    """A calibrated model with the weights that were exported in place of quantizers of weights.

    ModelOpt's own simulation has other weights: it multiplies in float32 where its exporter divides in bf16, so 3 % of
    the numbers are one step apart, which moves the logits half as far as quantizing does.
    """
    stored = load_file(folder / "exported" / "model.safetensors")
    plain = load_file(folder / "source" / "model.safetensors")
    for name in plain:
        if f"{name}_scale" in stored:
            plain[name] = (stored[name].float() * stored[f"{name}_scale"]).bfloat16()
    shutil.copytree(folder / "source", folder / "temporary")
    save_file(plain, folder / "temporary" / "model.safetensors", metadata={"format": "pt"})
    weights = dict(load(folder / "temporary").named_parameters())
    shutil.rmtree(folder / "temporary")
    mtq.disable_quantizer(calibrated, "*weight_quantizer*")
    for name, parameter in calibrated.named_parameters():
        parameter.data.copy_(weights[name])
    return calibrated


def load(folder: Path) -> torch.nn.Module:
    """transformers' model, step sizes as the report has them: its chunked path clamps at time_step_min otherwise."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    for module in model.modules():
        if hasattr(module, "time_step_limit"):
            module.time_step_limit = (0.0, math.inf)
    return model


def make(name: str, pattern: str, selective: bool, seed: int) -> None:
    """Write one case."""
    folder, draw = OUT / name, torch.Generator().manual_seed(11)
    shutil.rmtree(folder, ignore_errors=True)
    source(pattern, seed, folder / "source")
    model, rows = load(folder / "source"), torch.randint(0, SIZES["vocab_size"], (ROWS, LENGTH), generator=draw)
    shown = rows[:1, :SHOWN]
    plain = logits_of(model, shown)
    export_hf_checkpoint(calibrate(model, rows, selective), export_dir=folder / "exported")
    quantized = exact(folder, calibrate(load(folder / "source"), rows, selective))
    hidden: list[torch.Tensor] = []
    for layer in quantized.model.layers:
        layer.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0].detach()))
    quantized.model.norm_f.register_forward_pre_hook(lambda _, inputs: hidden.append(inputs[0].detach()))
    simulated = logits_of(quantized, shown)
    tensors = {"plain": plain.half(), "simulated": simulated.half(), "hidden": torch.stack(hidden)}
    (folder / "rows.json").write_text(json.dumps(rows.tolist()) + "\n", encoding="utf-8")
    save_file(tensors, folder / "simulated.safetensors")
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)
    stored = load_file(folder / "exported" / "model.safetensors")
    print(name, sum(t.dtype == torch.float8_e4m3fn for t in stored.values()), "fp8 tensors")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for case, chosen in CASES.items():
        make(case, *chosen)
