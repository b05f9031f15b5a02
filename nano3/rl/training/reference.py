"""The model that a KL term compares with: the weights that the run started from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from nano3.config.rlhf import AnyPolicyConfig
from nano3.model.count import MASTER_BYTES, count_parameters
from nano3.model.head import log_probs
from nano3.model.hf.folder import fill, load, stored_dtype, weight_bytes
from nano3.model.lm import LM
from nano3.parallel.sharing import Sharing, around
from nano3.parallel.tensor import divide_heads
from nano3.rl.batch import PolicyBatch
from nano3.train.feed import to_device
from nano3.train.parallel import place, release
from nano3.train.world import World


def open_reference(cfg: AnyPolicyConfig, folder: Path, compute: torch.dtype, world: World) -> Any:
    """The model in `folder`, to be asked alone: sharded as the trainer's is, else whole in the type that it is stored
    in; its heads are divided as the trainer's. Every rank must call.

    Args:
        cfg: of the run.
        folder: Hugging Face folder.
        compute: the trainer's compute type.
        world: the ranks.
    """
    if is_sharded(cfg, world):
        with torch.device("meta"):
            empty = LM(cfg.model)
        frozen = replace(cfg, train=replace(cfg.train, freeze=[]))
        reference, _ = place(empty, cast(Any, frozen), world)
        fill(reference, folder)
    else:
        reference = load(folder, device=world.device)
        if world.tensor.size > 1:
            divide_heads(reference, world.tensor.handle)
    reference.compute_dtype = compute
    return reference.requires_grad_(False)


def reference_bytes(cfg: AnyPolicyConfig, folder: Path, world: World) -> int:
    """Bytes of its weights on one rank; 0 where there is no KL term."""
    if not cfg.objective.kl_coef:
        return 0
    if is_sharded(cfg, world):
        return MASTER_BYTES * count_parameters(cfg.model).total * cfg.parallel.replicate // world.loss.size
    return weight_bytes(folder, stored_dtype(folder))


def is_sharded(cfg: AnyPolicyConfig, world: World) -> bool:
    """Whether each rank holds a part of the weights."""
    return world.loss.size > 1 and cfg.parallel.fsdp


@torch.no_grad()
def with_reference(batch: PolicyBatch, reference: Any, temperature: float, shared: Sharing | None) -> PolicyBatch:
    """A batch of whole rows with the reference's log-probabilities of its targets.

    Args:
        batch: of whole rows.
        reference: of `open_reference`; where it is sharded every rank must call.
        temperature: by which logits are divided.
        shared: the processes that share out the rows, all with this batch; None: this one has them alone.
    """
    own = to_device(batch if shared is None else batch.cut(shared), reference.device)
    hidden = reference.hidden(own.tokens, own.document_ids, **around(own, shared), statistics=())
    found = log_probs(reference.lm_head, hidden.x, own.targets, temperature, ids_limit=batch.ids_limit).float()
    if shared is not None:
        found = shared.join(found)
    release(reference)
    return replace(batch, reference=found.cpu())
