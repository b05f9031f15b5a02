"""What `--dry-run --world N` tells of one of many processes."""

from __future__ import annotations

from typing import Any

from nano3.cli.output import bytes_text, plain_table
from nano3.config.model import MOE
from nano3.config.schema import PretrainConfig
from nano3.config.sft import SftConfig
from nano3.model.count import rank_bytes
from nano3.stages.settings import check_parallel, check_settings


def process_facts(cfg: PretrainConfig | SftConfig, world: int, rank: int, dtype: str) -> dict[str, Any]:
    """The place of process `rank` of `world`, and what it would hold; sizes in parameters and bytes.

    Raises:
        UserError: so many processes cannot be arranged as the settings say, or cannot share the batch.
    """
    from nano3.parallel.context import slices_of
    from nano3.parallel.layout import layout_of
    from nano3.parallel.shards import share_of

    check_parallel(cfg, world)
    layout = layout_of(cfg.parallel, cfg.model, world)
    readers = layout.replicate * layout.shard
    check_settings(cfg, readers)
    share = share_of(cfg.model, layout, rank, cfg.parallel.fsdp)
    each = cfg.model.n_experts // layout.expert if cfg.model.blocks(MOE) else 0
    first = rank % layout.expert * each
    return {
        "world": world,
        "rank": rank,
        "replicate": layout.replicate,
        "shard": layout.shard,
        "context": layout.context,
        "expert": layout.expert,
        "sequences_per_step": cfg.train.batch_size // readers,
        "slices": slices_of(layout.context, rank % layout.context) if layout.context > 1 else [],
        "experts": [first, first + each],
        "parameters": share.parameters,
        "expert_parameters": share.expert_parameters,
        "state_bytes": share.state_bytes,
        "memory_bytes": rank_bytes(cfg, dtype, ranks=world),
    }


def process_table(facts: dict[str, Any]) -> Any:
    """The same for people."""
    table = plain_table(f"Process {facts['rank']} of {facts['world']}", "", "", "")
    kinds = ("replicate", "shard", "context")
    table.add_row("arrangement", " x ".join(str(facts[kind]) for kind in kinds), " x ".join(kinds))
    table.add_row("sequences a step", f"{facts['sequences_per_step']:,}", "")
    if facts["slices"]:
        early, late = facts["slices"]
        table.add_row("slices of each", f"{early} and {late}", f"of {2 * facts['context']}, from 0")
    if facts["experts"][1]:
        first, end = facts["experts"]
        table.add_row("experts of a block", f"{first} to {end - 1}", f"divided among {facts['expert']}")
    table.add_row("parameters", f"{facts['parameters']:,}", f"{facts['expert_parameters']:,} of them of experts")
    table.add_row("weights, gradients, moments", bytes_text(facts["state_bytes"]), "float32, in shards")
    table.add_row("memory while training", bytes_text(facts["memory_bytes"]), "estimated, with all that comes and goes")
    return table
