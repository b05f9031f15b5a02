"""What `--dry-run` shows: the resolved settings, the run's size, and how it differs from the report."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from nano3.cli.hardware import detect
from nano3.cli.output import bytes_text, count_text, plain_table, print_json, print_table, results, value_text
from nano3.config.model import ATTENTION, MAMBA, MOE, ModelConfig
from nano3.config.presets import to_toml
from nano3.config.report import diff_from_report, report_phase
from nano3.config.schema import PretrainConfig
from nano3.config.sft import SftConfig
from nano3.memory import main_memory_free
from nano3.model.count import count_parameters, flops_per_token, largest_seq_len, memory, most_ranks, rank_bytes
from nano3.parallel.estimate import process_bytes

if TYPE_CHECKING:
    from nano3.parallel.layout import Layout

TRAVELS = {
    "weights": "shards of weights",
    "gradients": "shards of gradients",
    "experts": "tokens for experts",
    "slices": "states, keys and values",
    "heads": "tokens of divided heads",
    "stages": "between stages",
}
"""What processes send each other (nano3.parallel.traffic), for people."""


def show_dry_run(
    cfg: PretrainConfig | SftConfig, preset: str, as_json: bool, world: int | None = None, rank: int = 0
) -> None:
    """Print what the run would be, as tables or as one JSON object; `world`: of so many processes, and `rank` of them.

    Raises:
        UserError: a path that the settings name is not there, or the processes cannot be arranged as the settings say.
    """
    from nano3.data.texts.readings import reading_warning

    _check_data(cfg)
    facts = dry_run_facts(cfg)
    if world is not None:
        facts["process"] = process_facts(cfg, world, rank, facts["compute_dtype"])
        facts["process"]["step"] = step_facts(cfg, world, rank)
    if warning := reading_warning(facts["readings"]):
        print(warning, file=sys.stderr)
    if as_json:
        print_json(facts)
    else:
        _print_tables(cfg, preset, facts)


def dry_run_facts(cfg: PretrainConfig | SftConfig) -> dict[str, Any]:
    """Everything that a dry run tells; sizes in parameters, bytes, tokens and floating-point operations."""
    from nano3.parallel.layout import check_heads, check_whole
    from nano3.stages.settings import fit_micro_batch

    check_whole(cfg.parallel)
    check_heads(cfg.parallel, cfg.model)
    hardware = detect()
    dtype = hardware.compute_dtype if cfg.train.dtype == "auto" else cfg.train.dtype
    counts, held, ranks = count_parameters(cfg.model), memory(cfg, dtype), most_ranks(cfg)
    readers = ranks // cfg.parallel.readers_of_one
    free = _free_memory()
    tokens_per_step = cfg.train.batch_size * cfg.data.seq_len
    steps = cfg.train.steps or math.ceil(cfg.train.tokens / tokens_per_step)
    tokens = steps * tokens_per_step if cfg.train.steps else cfg.train.tokens
    readings = _readings(cfg, steps * tokens_per_step)
    shares = {length: weight / sum(cfg.lengths.values()) for length, weight in cfg.lengths.items()}
    return {
        "config": asdict(cfg),
        "total_parameters": counts.total,
        "active_parameters": counts.active,
        "active_parameters_without_embedding": counts.active_without_embedding,
        "compute_dtype": dtype,
        "memory_bytes": asdict(held) | {"total": held.total},
        "machine_memory_bytes": hardware.memory,
        "free_memory_bytes": free,
        "largest_seq_len": largest_seq_len(cfg, free, partial(rank_bytes, cfg, dtype)),
        "most_ranks": ranks,
        "rank_memory_bytes": _most_bytes(fit_micro_batch(cfg, readers), dtype, ranks),
        "tokens": tokens,
        "tokens_per_step": tokens_per_step,
        "steps": steps,
        "readings": readings,
        "lengths": [
            {"seq_len": length, "share": share, "sequences_per_step": tokens_per_step // length}
            for length, share in shares.items()
        ],
        "training_flops": tokens * sum(flops_per_token(cfg.model, length) * share for length, share in shares.items()),
        "report_phase": report_phase(cfg),
        "differences": [asdict(row) for row in diff_from_report(cfg)],
    }


def _most_bytes(cfg: PretrainConfig | SftConfig, dtype: str, ranks: int) -> int:
    """Of a process in the stage that takes most."""
    return max(process_bytes(cfg, dtype, ranks=ranks, stage=stage) for stage in range(cfg.parallel.pipeline))


def process_facts(cfg: PretrainConfig | SftConfig, world: int, rank: int, dtype: str) -> dict[str, Any]:
    """The place of process `rank` of `world`, and what it would hold; sizes in parameters and bytes.

    Raises:
        UserError: so many processes cannot be arranged as the settings say, or cannot share the batch.
    """
    from nano3.parallel.context import slices_of
    from nano3.parallel.layout import layout_of
    from nano3.parallel.shards import replica_parameters, share_of
    from nano3.parallel.stages import evenness, stages_for
    from nano3.stages.settings import check_parallel, check_settings, fit_micro_batch

    check_parallel(cfg, world)
    layout = layout_of(cfg.parallel, cfg.model, world)
    readers = layout.replicate * layout.shard
    check_settings(cfg, readers)
    fitted = fit_micro_batch(cfg, readers)
    stages = _stages_of(cfg, layout, rank)
    blocks = [number for stage in stages for number in stage]
    share = share_of(cfg.model, layout, rank, cfg.parallel.fsdp, blocks)
    each = cfg.model.n_experts // layout.expert if cfg.model.blocks(MOE) else 0
    first = rank % layout.expert * each
    return {
        "world": world,
        "rank": rank,
        "replicate": layout.replicate,
        "shard": layout.shard,
        "context": layout.context,
        "tensor": layout.tensor,
        "expert": layout.expert,
        "pipeline": layout.pipeline,
        "stages": [[stage.start, stage.stop] for stage in stages],
        "evenness": evenness(cfg.model, stages_for(cfg.parallel, cfg.model, cfg.data.seq_len), cfg.data.seq_len),
        "sequences_per_step": cfg.train.batch_size // readers,
        "micro_batch_size": fitted.train.micro_batch_size,
        "seq_len": cfg.data.seq_len,
        "sharded": cfg.parallel.fsdp and layout.stage > 1,
        "slices": slices_of(layout.context, rank // layout.tensor % layout.context) if layout.context > 1 else [],
        "heads": _heads(cfg.model, layout, rank) if layout.tensor > 1 else {},
        "experts": [first, first + each],
        "parameters": share.parameters,
        "expert_parameters": share.expert_parameters,
        "replica_parameters": replica_parameters(cfg.model, layout),
        "state_bytes": share.state_bytes,
        "memory_bytes": process_bytes(fitted, dtype, ranks=world, stage=rank // layout.stage),
    }


def step_facts(cfg: PretrainConfig | SftConfig, world: int, rank: int) -> dict[str, Any]:
    """What a step without numbers of process `rank` of `world` went through.

    Raises:
        UserError: sizes that do not fit together.
    """
    from nano3.parallel.fake_step import fake_step
    from nano3.parallel.layout import layout_of
    from nano3.parallel.traffic import received_bytes
    from nano3.stages.settings import fit_micro_batch

    layout = layout_of(cfg.parallel, cfg.model, world)
    stages = _stages_of(cfg, layout, rank)
    recompute = cfg.train.checkpoint_activations == "block"
    step = fake_step(cfg.model, cfg.parallel, layout, rank, recompute, [n for stage in stages for n in stage])
    readers = layout.replicate * layout.shard
    rows = fit_micro_batch(cfg, readers).train.micro_batch_size
    passes = cfg.train.batch_size // readers // rows
    return {
        "blocks": step.blocks,
        "parameters": step.parameters,
        "collectives": step.collectives,
        "seconds": step.seconds,
        "received_bytes": received_bytes(
            cfg.model, cfg.parallel, layout, rank, stages, rows, cfg.data.seq_len, passes, recompute
        ),
    }


def _heads(model: ModelConfig, layout: Layout, rank: int) -> dict[str, list[int]]:
    """First head of a block that a process computes, and one past the last, by kind of block."""
    counts = {"attention": (ATTENTION, model.n_heads), "Mamba-2": (MAMBA, model.mamba_n_heads)}
    n, part = layout.tensor, rank % layout.tensor
    return {
        name: [part * heads // n, (part + 1) * heads // n]
        for name, (symbol, heads) in counts.items()
        if model.blocks(symbol)
    }


def _stages_of(cfg: PretrainConfig | SftConfig, layout: Layout, rank: int) -> list[range]:
    """The stages of the pipeline that a process holds: numbers of their blocks."""
    from nano3.parallel.stages import stages_for

    return stages_for(cfg.parallel, cfg.model, cfg.data.seq_len)[rank // layout.stage :: layout.pipeline]


def process_table(facts: dict[str, Any]) -> Any:
    """The same for people."""
    table = plain_table(f"Process {facts['rank']} of {facts['world']}", "", "", "")
    kinds = ["replicate", "shard", "context"]
    kinds = ["pipeline"] * (facts["pipeline"] > 1) + kinds + ["tensor"] * (facts["tensor"] > 1)
    table.add_row("arrangement", " x ".join(str(facts[kind]) for kind in kinds), " x ".join(kinds))
    table.add_row("sequences a step", f"{facts['sequences_per_step']:,}", f"{facts['micro_batch_size']:,} a pass")
    if facts["slices"]:
        early, late = facts["slices"]
        table.add_row("slices of each", f"{early} and {late}", f"of {2 * facts['context']}, from 0")
    if facts["tensor"] > 1:
        ranges = ", ".join(f"{first} to {end - 1} of {name}" for name, (first, end) in facts["heads"].items())
        table.add_row("heads of a block", ranges, f"divided among {facts['tensor']}")
    if facts["pipeline"] > 1:
        ranges = ", ".join(f"{start} to {stop - 1}" for start, stop in facts["stages"])
        table.add_row("blocks", ranges, f"a stage costs {facts['evenness']:.0%} of the costliest, on average")
    if facts["experts"][1]:
        first, end = facts["experts"]
        table.add_row("experts of a block", f"{first} to {end - 1}", f"divided among {facts['expert']}")
    table.add_row("parameters", f"{facts['parameters']:,}", f"{facts['expert_parameters']:,} of them of experts")
    held = "float32, in shards" if facts["sharded"] else "float32, all of them"
    table.add_row("  of all processes", f"{facts['replica_parameters']:,}", "once in each replica")
    table.add_row("weights, gradients, moments", bytes_text(facts["state_bytes"]), held)
    table.add_row("memory while training", bytes_text(facts["memory_bytes"]), "estimated, with all that comes and goes")
    step = facts["step"]
    kinds = f"through blocks {', '.join(step['blocks'])}: {step['collectives']} collectives"
    table.add_row("a step without numbers", "sizes fit together", kinds)
    received = step["received_bytes"]
    table.add_row(
        "received a step", bytes_text(sum(received.values())), f"estimated, at {facts['seq_len']:,} tokens a row"
    )
    for purpose, count in received.items():
        if count:
            table.add_row(f"  {TRAVELS[purpose]}", bytes_text(count), "")
    return table


def _check_data(cfg: PretrainConfig | SftConfig) -> None:
    """Raise UserError for a path that the settings name and that is not there, and for too little text."""
    if isinstance(cfg, SftConfig):
        from nano3.data.chat.sets import check_data

        return check_data(cfg.data)
    from nano3.data.texts.readings import check_fills, most_tokens
    from nano3.data.texts.sources import check_paths

    check_paths(cfg.data)
    if math.isfinite(most := most_tokens(cfg.data)):
        check_fills(int(most), cfg, "at most ")


def _readings(cfg: PretrainConfig | SftConfig, tokens: int) -> dict[str, float]:
    """How often each text is read, from the sizes of files; of conversations nobody knows before they are encoded."""
    if isinstance(cfg, SftConfig):
        return {}
    from nano3.data.texts.readings import estimated_readings

    return estimated_readings(cfg.data, tokens)


def _free_memory() -> int:
    """Bytes that are free on the device that would train. PyTorch, slow to import, is asked where a GPU may be."""
    if not detect().gpus:
        return main_memory_free()
    from nano3.engine.launch import find_device
    from nano3.engine.sizing import available_memory

    return available_memory(find_device("auto"))


def _print_tables(cfg: PretrainConfig | SftConfig, preset: str, facts: dict[str, Any]) -> None:
    from rich.syntax import Syntax

    console = results()
    console.print(f"[bold]Settings[/] of preset {preset}, resolved\n")
    console.print(Syntax(to_toml(cfg), "toml", theme="ansi_dark", background_color="default", word_wrap=True))
    print_table(console, _difference_table(facts))
    print_table(console, _size_table(cfg, facts))
    print_table(console, _memory_table(cfg, facts))
    if "process" in facts:
        print_table(console, process_table(facts["process"]))
    console.print("Dry run: nothing was run. Drop [bold]--dry-run[/] to start.")


def _difference_table(facts: dict[str, Any]) -> Any:
    rows, phase = facts["differences"], facts["report_phase"]
    title = f"Difference from the report (nano3-30b-a3b, {phase})"
    if not rows:
        return plain_table(f"{title}: none\n")
    table = plain_table(title, "setting", "here", "report", "section")
    for row in rows:
        table.add_row(row["key"], value_text(row["here"]), value_text(row["report"]), row["section"])
    return table


def _size_table(cfg: PretrainConfig | SftConfig, facts: dict[str, Any]) -> Any:
    from nano3.data.texts.readings import times_text

    table = plain_table("Run", "", "", "")
    table.add_row("parameters", f"{facts['total_parameters']:,}", count_text(facts["total_parameters"]))
    table.add_row("  active per token", f"{facts['active_parameters']:,}", count_text(facts["active_parameters"]))
    without = facts["active_parameters_without_embedding"]
    table.add_row("  without the input embedding", f"{without:,}", count_text(without))
    table.add_row("tokens", f"{facts['tokens']:,}", count_text(facts["tokens"]))
    step, *others = (
        f"{row['sequences_per_step']:,} sequences of {row['seq_len']:,} tokens" for row in facts["lengths"]
    )
    table.add_row("optimizer steps", f"{facts['steps']:,}", f"{count_text(facts['tokens_per_step'])} a step: {step}")
    for other in others:
        table.add_row("", "", f"or {other}")
    if others:
        shares = ", ".join(f"{row['seq_len']:,}: {row['share']:.3g}" for row in facts["lengths"])
        table.add_row("share of each length", "", shares)
    for number, (name, times) in enumerate(facts["readings"].items()):
        table.add_row("" if number else "each text is read", times_text(times), f"{name}, estimated")
    table.add_row("training operations", f"{facts['training_flops']:.3g}", "floating-point operations in all")
    return table


def _memory_table(cfg: PretrainConfig | SftConfig, facts: dict[str, Any]) -> Any:
    held = facts["memory_bytes"]
    table = plain_table("Memory while training, estimated", "", "", "")
    checkpointing = "recomputed" if cfg.train.checkpoint_activations == "block" else "kept"
    sequences = (
        f"{cfg.train.micro_batch_size:,} x {cfg.data.seq_len:,} tokens a pass, block activations {checkpointing}"
    )
    if cfg.train.sequence_chunk:
        sequences += f" in pieces of {cfg.train.sequence_chunk:,}"
    notes = {
        "weights": "float32",
        "compute_copy": f"weights in {facts['compute_dtype']}",
        "gradients": "float32",
        "optimizer": "AdamW, two moments in float32",
        "activations": sequences,
        "working": "gradients of activations, logits, one piece of a block at a time",
        "total": "in one process; under torchrun the ranks share all but activations and working",
    }
    for part, note in notes.items():
        if held[part]:
            table.add_row(part.replace("_", " "), bytes_text(held[part]), note)
    ranks, each = facts["most_ranks"], facts["rank_memory_bytes"]
    if ranks > 1:
        table.add_row("each of many ranks", bytes_text(each), f"at {ranks:,}, the most that can share a batch")
    table.add_row("this machine", bytes_text(facts["machine_memory_bytes"]), _room(cfg, facts))
    return table


def _room(cfg: PretrainConfig | SftConfig, facts: dict[str, Any]) -> str:
    """What one process here has room for."""
    largest = facts["largest_seq_len"]
    free = f"{bytes_text(facts['free_memory_bytes'])} free where it would train"
    if largest == cfg.data.seq_len:
        return f"{free}: enough for one process"
    if largest:
        return f"{free}: one process has room for sequences of {largest:,} tokens"
    return f"{free}: too little for one process, at any length"
