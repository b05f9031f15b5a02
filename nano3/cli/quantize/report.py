"""What `nano3 quantize` prints: what is to be quantized, and what has become of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from nano3.cli.output import bytes_text, plain_table, print_json, print_table, results
from nano3.quantize.account import folder_bytes, shares
from nano3.quantize.policy import Policy, Selection
from nano3.quantize.run import Quantized

MOST_SHOWN = 12
"""Experts that are named one by one."""


def show_plan(folder: Path, selection: Selection, policy: Policy, as_json: bool) -> None:
    """What would become FP8, as tables or as one JSON object."""
    stored, before, after = folder_bytes(folder, selection)
    if as_json:
        print_json(_plan(folder, selection, policy) | {"bytes_stored": stored, "bytes_bf16": before, "bytes": after})
        return
    console = results()
    print_table(console, _by_kind(selection))
    table = plain_table("", "", "")
    table.add_row("model", f"{folder} ({bytes_text(stored)} stored, {bytes_text(before)} in bf16)")
    table.add_row("policy", str(policy))
    table.add_row("quantized", f"{bytes_text(after)}, {after / before:.2f} of bf16")
    table.add_row("FP8 modules", f"{len(selection.modules):,}")
    table.add_row("stay as they are", ", ".join(_folded(selection.excluded)))
    print_table(console, table)


def show_result(folder: Path, made: Quantized, policy: Policy, as_json: bool) -> None:
    """What has been written, as tables or as one JSON object."""
    stored, before, _ = folder_bytes(folder, made.selection)
    if as_json:
        facts = {"out": str(made.folder), "bytes_stored": stored, "bytes_bf16": before, "bytes": made.bytes}
        experts = {"experts_without_tokens": made.silent, "inputs_always_0": made.unused}
        print_json(_plan(folder, made.selection, policy) | facts | experts | {"relative_errors": made.errors})
        return
    console = results()
    print_table(console, _by_kind(made.selection, made.errors))
    table = plain_table("", "", "")
    table.add_row("model", f"{made.folder} (a Hugging Face folder)")
    table.add_row("policy", str(policy))
    table.add_row("size", f"{bytes_text(made.bytes)}, {made.bytes / before:.2f} of bf16")
    if made.silent:
        table.add_row("experts without tokens", "; ".join(f"block {b}: {_some(e)}" for b, e in made.silent.items()))
        table.add_row("", "(they have the input scales of their block; more rows would reach more experts)")
    if made.unused:
        table.add_row("inputs always 0", ", ".join(made.unused[:MOST_SHOWN]))
    table.add_row("talk to it", f"nano3 chat --model {made.folder}")
    table.add_row("evaluate", f"nano3 eval lm --from {made.folder}")
    print_table(console, table)


def _plan(folder: Path, selection: Selection, policy: Policy) -> dict[str, Any]:
    return {
        "model": str(folder),
        "policy": asdict(policy),
        "modules": selection.modules,
        "excluded": selection.excluded,
        "cached_blocks": list(selection.cached),
        "kinds": [asdict(share) for share in shares(selection)],
    }


def _by_kind(selection: Selection, errors: dict[str, float] | None = None) -> Table:
    heads = ("kind", "modules", "FP8", "bf16 bytes", "new bytes")
    columns = (*heads, "error") if errors else heads
    table = plain_table("Matrices", *columns, right=columns[1:])
    kinds = {matrix.name: matrix.kind for matrix in selection.matrices}
    for share in shares(selection):
        row = [share.kind, f"{share.modules:,}", f"{share.quantized:,}"]
        row += [bytes_text(share.bytes_before), bytes_text(share.bytes_after)]
        if errors:
            names = [name for matrix in selection.matrices if kinds[matrix.name] == share.kind
                     for name in matrix.modules if name in errors]  # fmt: skip
            row.append(f"{sum(errors[name] for name in names) / len(names):.2%}" if names else "")
        table.add_row(*row)
    return table


def _folded(names: list[str]) -> list[str]:
    """Names of modules that differ in the block alone as one: `conv1d of 0, 2`."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".", 4)
        leaf, block = (parts[4], parts[2]) if len(parts) > 4 else (name, "")
        blocks.setdefault(leaf, []).append(block)
    folded: dict[str, list[str]] = {}
    for leaf, where in blocks.items():
        folded.setdefault(", ".join(dict.fromkeys(filter(None, where))), []).append(leaf)
    return [f"{', '.join(leaves)} of {where}" if where else ", ".join(leaves) for where, leaves in folded.items()]


def _some(experts: list[int]) -> str:
    shown = ", ".join(map(str, experts[:MOST_SHOWN]))
    return shown + (f" and {len(experts) - MOST_SHOWN} more" if len(experts) > MOST_SHOWN else "")
