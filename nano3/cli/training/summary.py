"""What a finished training run prints on stdout."""

from __future__ import annotations

from typing import Any

from nano3.cli.output import plain_table, print_json, print_table, results, speed_text


def show_summary(verb: str, summary: dict[str, Any], as_json: bool) -> None:
    """Print the result of the training stage `nano3 VERB`, as tables or as one JSON object."""
    if as_json:
        print_json(summary)
        return
    console = results()
    for sample in summary["samples"]:
        console.print("\n[bold]Sample[/]")
        console.print(sample["prompt"], style="cyan", end="", markup=False)
        console.print(sample["text"], markup=False)
    console.print()
    if summary["heldout_bits_per_byte"] is not None:
        print_table(console, _score_table(summary))
        if not summary["compressors_bits_per_byte"]:
            n_bytes = summary["heldout_bytes"] or 0
            console.print(f"Not compared with gzip and xz: {n_bytes:,} bytes are too few.\n", style="dim")
    print_table(console, _run_table(verb, summary))


def _score_table(summary: dict[str, Any]) -> Any:
    table = plain_table("Held-out text, bits per byte (lower is better)", "", "")
    scores = summary["heldout_by_length"]
    for score in scores:
        name = "this model" if len(scores) == 1 else f"this model, in sequences of {score['seq_len']:,}"
        table.add_row(name, f"{score['bits_per_byte']:.3f}", style="bold")
    for name, bits in summary["compressors_bits_per_byte"].items():
        table.add_row(name, f"{bits:.3f}")
    return table


def _run_table(verb: str, summary: dict[str, Any]) -> Any:
    from nano3.data.texts.readings import times_text

    table = plain_table("Stopped early" if summary["interrupted"] else "Run", "", "")
    table.add_row("tokens", f"{summary['tokens']:,} in {summary['steps']:,} steps{speed_text(summary)}")
    if summary.get("readings"):
        read = ", ".join(f"{name} {times_text(times)}" for name, times in summary["readings"].items())
        table.add_row("texts were read", read)
    table.add_row("folder", summary["run"])
    if summary["interrupted"]:
        table.add_row("continue", f"nano3 {verb} --resume --out {summary['run']}")
    else:
        table.add_row("model", f"{summary['model']} (a Hugging Face folder)")
        table.add_row("charts", f"{summary['run']}/charts")
    return table
