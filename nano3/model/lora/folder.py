"""Adapters in PEFT's folders: adapter_config.json and adapter_model.safetensors, with the names of transformers' model.

Routed experts are one tensor a projection there too, and so is an adapter of all of them (`target_parameters`): A of
all experts one below the other, B with the rank before the experts in its columns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.lora import LoraConfig
from nano3.files import atomic_folder, usual_mode
from nano3.model.find import ADAPTER_CONFIG, check_adapter_folder
from nano3.model.hf.names import A, B
from nano3.model.lm import LM
from nano3.model.lora.apply import LoraReport, adapted, apply_lora, projections
from nano3.model.lora.modules import Adapter, LoraExperts
from nano3.model.lora.targets import HEAD
from nano3.model.shards import is_sharded, local_part
from nano3.model.stage import adapter_stage, write_adapter_stage
from nano3.reading import read_json

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
MAMBA_OUT = ".out_proj"
"""Transformers' fused Mamba-2 reads this weight itself, so its adapter must be one of the parameter, not the module."""


def save_adapter(model: LM, folder: str | Path, base: str, extra: Callable[[Path], None] | None = None) -> None:
    """Write the adapters of `model` and what trained them (`model.stage`); the folder appears whole or not at all, in
    the place of an older adapter.

    Under torch.distributed every rank must call; rank 0 writes, and a failure of it is raised on every rank.

    Args:
        model: with adapters; they may be sharded.
        folder: holds nothing else but an adapter.
        base: folder or hub id of the model that they belong to.
        extra: writes what else belongs in the folder.

    Raises:
        UserError: `folder` holds anything else, or the model has no adapters.
        OSError: the disk is full or not writable.
    """
    modules = list(adapted(model))
    if not modules:
        raise UserError("the model has no adapters to save")
    tensors: dict[str, Tensor] = {}
    for name, module in modules:
        for adapter in module.adapters():
            stem = _stored_stem(name, adapter.name, [a.name for a in module.adapters()])
            a, b = _whole(adapter.A), _whole(adapter.B)
            tensors[f"{stem}.{A}.weight"] = a.flatten(0, -2).contiguous()
            tensors[f"{stem}.{B}.weight"] = (b.permute(1, 2, 0).flatten(1) if b.dim() == 3 else b).contiguous()

    def rest(temporary: Path) -> None:
        write_adapter_stage(temporary, model.stage)
        if extra is not None:
            extra(temporary)

    _on_main(lambda: _write(Path(folder), tensors, _config(model, base), rest))


def load_adapter(model: LM, folder: str | Path) -> LoraReport:
    """Put the adapters of a folder into `model`, which has none yet and then is of their stage.

    Raises:
        UserError: the folder holds no LoRA adapter, one of another kind or of another model, or is damaged.
    """
    folder = Path(folder)
    config = _read_config(folder)
    stored = _read_tensors(folder / WEIGHTS)
    places = {place.stem: place for name in projections(model) for place in _places(name, config)}
    found: dict[str, _Place] = {}
    for key in stored:
        stem = _normal(key).rpartition(".lora_")[0]
        if stem not in places:
            raise UserError(f"{folder}: holds {key}, which this model has no projection for")
        found[places[stem].name] = places[stem]
    ranks = {name: _rank(model, place, stored, folder) for name, place in found.items()}
    if len(set(ranks.values())) != 1:
        raise UserError(f"{folder}: its adapters have different ranks, {sorted(set(ranks.values()))}")
    rank = next(iter(ranks.values()))
    alpha = float(config["lora_alpha"])
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)
    report = apply_lora(model, LoraConfig(rank=rank, alpha=alpha, targets=list(found)))
    for name, module in adapted(model):
        for adapter in module.adapters():
            own = name if adapter.name == "weight" else f"{name}.{adapter.name}"
            _fill(adapter, *_matrices(found[own], stored, adapter, folder))
    model.stage = adapter_stage(folder) or model.stage
    return report


class _Place(NamedTuple):
    """Where a folder keeps a projection's adapter."""

    name: str
    """nano3's name of the projection."""
    stem: str
    """Normal name before .lora_A.weight."""


def _transformers_name(name: str) -> str:
    return name if name == HEAD else "model.layers." + name.removeprefix("blocks.")


def _stored_stem(module: str, projection: str, beside: list[str]) -> str:
    """As PEFT nests them: of two parameters of one module the first lies inside the second."""
    inner = len(beside) > 1 and projection == beside[0]
    return PREFIX + _transformers_name(module) + (".base_layer" if inner else "")


def _places(name: str, config: dict[str, Any]) -> Iterator[_Place]:
    """The stems that a projection's adapter may have."""
    owner, _, projection = name.rpartition(".")
    if not owner.endswith(".experts"):
        yield _Place(name, _transformers_name(name))
        return
    targets = config.get("target_parameters") or []
    both = all(any(t.endswith(f"experts.{p}_proj") for t in targets) for p in ("up", "down"))
    if not any(t.endswith(f"experts.{projection}") for t in targets):
        return
    inner = both and projection == "up_proj"
    yield _Place(name, _transformers_name(owner) + (".base_layer" if inner else ""))


def _normal(key: str) -> str:
    """A stored name as transformers' own model has it, whatever wrapped it when it was saved."""
    key = key.removeprefix(PREFIX)
    return "model." + key.removeprefix("backbone.") if key.startswith("backbone.") else key


def _rank(model: LM, place: _Place, stored: dict[str, Tensor], folder: Path) -> int:
    a = _tensor(place, A, stored, folder)
    experts = model.cfg.n_experts if place.name.rpartition(".")[0].endswith(".experts") else 1
    if a.dim() != 2 or a.shape[0] % experts or not a.shape[0]:
        raise UserError(f"{folder}: the adapter of {place.name} has an A of shape {tuple(a.shape)}, which fits no rank")
    return a.shape[0] // experts


def _tensor(place: _Place, which: str, stored: dict[str, Tensor], folder: Path) -> Tensor:
    for key, tensor in stored.items():
        if _normal(key) == f"{place.stem}.{which}.weight":
            return tensor
    raise UserError(f"{folder}: the adapter of {place.name} has no {which}; copy the folder again")


def _matrices(place: _Place, stored: dict[str, Tensor], adapter: Adapter, folder: Path) -> tuple[Tensor, Tensor]:
    """A and B as nano3 holds them."""
    a, b = (_tensor(place, which, stored, folder) for which in (A, B))
    if adapter.A.dim() == 3:
        n_experts, rank, n_in = adapter.A.shape
        a, b = a.unflatten(0, (n_experts, rank)), b.unflatten(1, (rank, n_experts))
        if a.shape[-1] == n_in:
            b = b.permute(2, 0, 1)
        else:  # Older PEFT took all stacked weights for (experts, in, out).
            a, b = b.permute(2, 1, 0), a.mT
    for which, value, wanted in ((A, a, adapter.A), (B, b, adapter.B)):
        if value.shape != wanted.shape:
            shapes = f"has shape {tuple(value.shape)}, the model's is {tuple(wanted.shape)}"
            raise UserError(f"{folder}: {which} of {place.name} {shapes}")
    return a, b


def _fill(adapter: Adapter, a: Tensor, b: Tensor) -> None:
    with torch.no_grad():
        for parameter, value in ((adapter.A, a), (adapter.B, b)):
            local, where = local_part(parameter)
            local.copy_(value[where])


def _config(model: LM, base: str) -> dict[str, Any]:
    modules, parameters, ranks, alphas, dropouts = [], [], set(), set(), set()
    for name, module in adapted(model):
        for adapter in module.adapters():
            rank = adapter.A.shape[-2]
            ranks.add(rank)
            alphas.add(module.scale * rank)
            dropouts.add(module.dropout)
            if isinstance(module, LoraExperts) or name.endswith(MAMBA_OUT):
                parameters.append(f"{_transformers_name(name)}.{adapter.name}")
            else:
                modules.append(_transformers_name(name))
    assert len(ranks) == len(alphas) == 1, "apply_lora gives all adapters one rank and scale"
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": ranks.pop(),
        "lora_alpha": alphas.pop(),
        # PEFT has no dropout before parameters; it matters in training alone.
        "lora_dropout": 0.0 if parameters else dropouts.pop(),
        "target_modules": modules,
        "target_parameters": parameters or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


# What else an adapter may have that changes what it computes, with the value that means it has not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layer_replication": (None,),
    "alora_invocation_tokens": (None,),
}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    check_adapter_folder(folder)
    config = read_json(path)
    if not isinstance(config, dict) or config.get("peft_type") != "LORA" or "lora_alpha" not in config:
        raise UserError(f"{path}: is no LoRA adapter's configuration (peft_type LORA with lora_alpha)")
    alpha, targets = config["lora_alpha"], config.get("target_parameters") or []
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 <= alpha < math.inf:
        raise UserError(f"{path}: lora_alpha is no number that scales an adapter")
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise UserError(f"{path}: target_parameters is no list of names")
    odd = [key for key, plain in _PLAIN.items() if config.get(key) not in plain]
    if odd:
        raise UserError(f"{path}: has {odd[0]} = {config[odd[0]]!r}; nano3 reads plain LoRA without it")
    return config


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: is missing; nano3 reads adapters in safetensors only")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: is damaged ({error}); copy it again") from error
    if not tensors:
        raise UserError(f"{path}: holds no tensors; copy it again")
    return tensors


def _write(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any], rest: Callable[[Path], None]) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a folder to save the adapter in")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / ADAPTER_CONFIG).is_file():
        raise UserError(f"{folder}: holds something else than an adapter; give another folder")
    with atomic_folder(folder) as temporary:
        with usual_mode(temporary / WEIGHTS):
            save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        rest(temporary)


def _whole(tensor: Tensor) -> Tensor:
    """In main memory, from all ranks."""
    return (tensor.full_tensor() if is_sharded(tensor) else tensor).detach().cpu()  # pyright: ignore


def _on_main(action: Callable[[], None]) -> None:
    """Do something on rank 0; its failure is raised on every rank."""
    if not dist.is_initialized():
        action()
        return
    error: Exception | None = None
    if dist.get_rank() == 0:
        try:
            action()
        except Exception as failure:
            error = failure
    told = [None if error is None else f"rank 0 could not save the adapter: {error}"]
    dist.broadcast_object_list(told, src=0)
    if error is not None:
        raise error
    if told[0] is not None:
        raise UserError(told[0])
