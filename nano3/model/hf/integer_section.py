"""How `quantization_config` names matrices of integers, in the words of compressed-tensors. Without torch, since
commands read a folder's configuration that need no model."""

from __future__ import annotations

from typing import Any

from nano3.config.errors import UserError

METHOD = "compressed-tensors"
INT8, INT4 = "INT8", "INT4"
FORMATS = {"int-quantized": INT8, "pack-quantized": INT4}
"""Format of a folder -> what nano3 calls it."""
GROUP = 32
"""Numbers of 4 bits with one scale; nano3.kernels.integers.GROUP."""
EIGHT_BITS = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None}
FOUR_BITS = {"num_bits": 4, "type": "int", "symmetric": True, "group_size": GROUP}


def section(kind: str, excluded: list[str], cache: dict[str, Any] | None, head: bool) -> dict[str, Any]:
    """`quantization_config` of a folder whose matrices are of this kind.

    Args:
        kind: INT8 or INT4.
        excluded: published names of the modules that stay as they are.
        cache: what is said of keys and values.
        head: whether the output projection is quantized, which loaders do not count among linear layers.
    """
    weights = {**EIGHT_BITS, "strategy": "channel"} if kind == INT8 else {**FOUR_BITS, "strategy": "group"}
    activations = {**EIGHT_BITS, "strategy": "token", "dynamic": True} if kind == INT8 else None
    targets = ["Linear", "lm_head"] if head else ["Linear"]
    group = {"targets": targets, "weights": {**weights, "dynamic": False}, "input_activations": activations}
    name = next(name for name, each in FORMATS.items() if each == kind)
    return {
        "quant_method": METHOD,
        "format": name,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": excluded,
        "kv_cache_scheme": cache,
    }


def algorithm(section: dict[str, Any], where: str) -> str:
    """INT8 or INT4, of a `quantization_config`.

    Raises:
        UserError: another format, or other bits, groups or activations than nano3 computes with.
    """
    if section.get("format") not in FORMATS:
        raise UserError(f"{where}: is {METHOD} {section.get('format')}; nano3 reads {', '.join(FORMATS)}: take such a "
                        "folder, or the unquantized one")  # fmt: skip
    kind = FORMATS[section["format"]]
    groups = section.get("config_groups")
    expected = EIGHT_BITS if kind == INT8 else FOUR_BITS
    for group in groups.values() if isinstance(groups, dict) else ():
        weights = group.get("weights") if isinstance(group, dict) else None
        found = {key: weights.get(key) for key in expected} if isinstance(weights, dict) else {}
        if kind == INT8 and isinstance(weights, dict):
            found["group_size"] = None if weights.get("strategy", "channel") == "channel" else weights.get("strategy")
        if found != expected:
            wrong = ", ".join(f"{key} {found.get(key)}" for key in expected if found.get(key) != expected[key])
            of = "groups of 32" if kind == INT4 else "one scale a row"
            raise UserError(f"{where}: its weights have {wrong}; nano3 reads {expected['num_bits']} bits, symmetric, "
                            f"with {of}")  # fmt: skip
    return kind
