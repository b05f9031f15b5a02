"""What a Hugging Face folder says about quantization, as NVIDIA ModelOpt writes it (report section 4), or for integers
compressed-tensors.

`quantization_config` of config.json, or the same in hf_quant_config.json. Readers of tensors do not go by the list of
excluded modules, which ModelOpt 0.47 writes with broken names, but by the stored types and scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nano3.config.errors import UserError
from nano3.config.model import Quantization
from nano3.model.hf import integer_section as integers
from nano3.reading import read_json

FILE = "hf_quant_config.json"
METHOD, FP8 = "modelopt", "FP8"
FLOATS = "float-quantized"
"""What compressed-tensors calls the format whose tensors lie as ModelOpt's do."""
KNOWN = ("", FP8, *integers.FORMATS.values())
EIGHT_BIT_FLOAT = {"dynamic": False, "num_bits": 8, "type": "float"}


def read_quantization(folder: Path, keys: dict[str, Any]) -> Quantization | None:
    """How the weights of a folder are quantized; None where it says nothing.

    Args:
        folder: holds config.json, and perhaps hf_quant_config.json.
        keys: those of config.json.

    Raises:
        UserError: a method or algorithm that nano3 does not read, or a section that is no JSON object.
    """
    where, section = f"{folder / 'config.json'}: quantization_config", keys.get("quantization_config")
    if section is None and (folder / FILE).is_file():
        where = str(folder / FILE)
        section = read_json(folder / FILE)
    return None if section is None else _quantization(section, where)


def _quantization(section: Any, where: str) -> Quantization:
    if not isinstance(section, dict) or not isinstance(inner := section.get("quantization", section), dict):
        raise UserError(f"{where}: expected a JSON object")
    method, algorithm = section.get("quant_method", METHOD), inner.get("quant_algo") or ""
    if method == integers.METHOD and section.get("format") == FLOATS:
        algorithm = _of_floats(section, where)
    elif method == integers.METHOD:
        algorithm = integers.algorithm(section, where)
    cache = inner.get("kv_cache_quant_algo") or (FP8 if _is_fp8(inner.get("kv_cache_scheme")) else "")
    if method not in (METHOD, integers.METHOD) or algorithm not in KNOWN or cache not in ("", FP8):
        found = " ".join(str(part) for part in (method, algorithm, cache and f"with a cache of {cache}") if part)
        known = f"{METHOD} {FP8}, and {integers.METHOD} of integers"
        raise UserError(f"{where}: is {found}; nano3 reads {known}: take such a folder, or the unquantized one")
    listed = inner.get("ignore", inner.get("exclude_modules")) or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{where}: its list of excluded modules must hold names")
    return Quantization(algorithm, cache, tuple(map(_clean, listed)))


def _of_floats(section: dict[str, Any], where: str) -> str:
    """FP8, of a `quantization_config` of compressed-tensors that lies as ModelOpt's tensors do.

    Raises:
        UserError: more than one scale a matrix, or other bits.
    """
    groups = section.get("config_groups")
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        if not _is_fp8(weights):
            raise UserError(f"{where}: its weights are {weights}; nano3 reads FP8 with one static scale a matrix")
    return FP8


def _is_fp8(scheme: Any) -> bool:
    """Whether numbers are e4m3 with one static scale a tensor."""
    if not isinstance(scheme, dict) or (scheme.get("num_bits"), scheme.get("type")) != (8, "float"):
        return False
    return not scheme.get("dynamic") and scheme.get("strategy") in (None, "tensor")


def _clean(name: str) -> str:
    """A module's name without what ModelOpt 0.47 puts behind it by mistake, from `.\\x00` on."""
    kept, mistake, _ = name.partition(".\x00")
    return f"{kept}.*" if mistake and name.endswith("*") else kept
