"""`nano3 data`: prepare token shards and look into them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nano3.cli.data import curate as data_curate
from nano3.cli.data import generate as data_generate
from nano3.cli.data import train_classifier as data_train_classifier
from nano3.cli.options.common import complete_setting

if TYPE_CHECKING:
    from nano3.data.tokens.inspection import Inspection

app = typer.Typer(no_args_is_help=True, help="Prepare text for training and look into prepared data.")
ANY_SIZE = 1 << 31

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

app.command("curate")(data_curate.curate)
app.command("report")(data_curate.report)
app.command("train-classifier")(data_train_classifier.train_classifier)
app.command("generate")(data_generate.generate)


@app.command("prepare")
def prepare_command(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Files and folders (PATH::FIELD for another text field). None: the blend of the preset.",
            metavar="PATH",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="Pretrain preset whose data settings apply.")] = "tiny",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting.", autocompletion=complete_setting),
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="`train`, `mistral`, a tokenizer.json, or a folder that holds one; empty: the preset's.")
    ] = "",
    vocab_size: Annotated[int, typer.Option(help="Entries of a trained vocabulary; 0: the preset's.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder to write; without it the cache that training reads.")] = None,
    as_json: Json = False,
) -> None:
    """Read texts, train or load a tokenizer, and write token shards; a killed run goes on where it stopped."""
    from nano3.cache import cache_root
    from nano3.cli.options.common import named_as_typed
    from nano3.config.presets import load_pretrain
    from nano3.data.progress import progress_bar
    from nano3.data.tokens.prepare import prepare, prepare_out
    from nano3.data.tokens.shards import check_out
    from nano3.files import check_writable
    from nano3.splits import SPLITS

    cfg = load_pretrain(preset, overrides or [])
    if out is not None:
        check_out(out)
    check_writable(out or cache_root(cfg.data.cache_dir), "--out" if out else "data.cache_dir")
    data = replace(cfg.data, tokenizer=tokenizer or cfg.data.tokenizer)
    if paths:
        data = replace(data, blend={"text": 100.0}, sources={"text": list(paths)}, sources_file="", whole_documents=[])
    size = vocab_size or (cfg.model.vocab_size if data.tokenizer in SPLITS else ANY_SIZE)
    names = {"model.vocab_size": "--vocab-size"} if vocab_size else {}
    with named_as_typed(names), progress_bar() as progress:
        if out is None:
            prepared = prepare(data, size, progress)
            folders, notes = prepared.folders, prepared.notes
        else:
            folders, notes = prepare_out(data, size, out, progress)
    for note in notes:
        print(note, file=sys.stderr)
    _report_prepared(folders, as_json)


@app.command("inspect")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="A prepared folder.", metavar="FOLDER")],
    samples: Annotated[int, typer.Option(min=0, help="Stretches of packed text to show.")] = 2,
    as_json: Json = False,
) -> None:
    """Verify a prepared folder; show its size, bytes per token, held-out share, and some packed text."""
    from nano3.cli.output import print_json
    from nano3.data.tokens.inspection import inspect

    found = inspect(path, samples=samples)
    if as_json:
        print_json(asdict(found))
        return
    _print_facts(found)
    for number, sample in enumerate(found.samples, start=1):
        print(f"\npacked text, stretch {number} of {len(found.samples)}")
        for piece in sample:
            place = f"from token {piece.first_token}" if piece.first_token else "begins"
            print(f"──── {piece.document} · {place} ────\n{piece.text}")


def _report_prepared(folders: dict[str, list[Path]], as_json: bool) -> None:
    from nano3.cli.output import plain_table, print_json, results
    from nano3.data.tokens.shards import read_manifest

    rows: list[dict[str, Any]] = []
    for name, listed in folders.items():
        for folder in listed:
            manifest = read_manifest(folder)
            rows.append({"category": name, "path": str(folder), **asdict(manifest)})
    if as_json:
        print_json({"prepared": rows})
        return
    numbers = ("documents", "tokens", "bytes/token")
    table = plain_table("prepared", "category", *numbers, right=numbers)
    for row in rows:
        density = row["bytes"] / max(1, row["tokens"])
        table.add_row(row["category"], f"{row['documents']:,}", f"{row['tokens']:,}", f"{density:.3f}")
    results().print(table)
    for row in rows:
        print(row["path"])


def _print_facts(found: Inspection) -> None:
    from nano3.cli.output import plain_table, results
    from nano3.data.texts.skipped import Skipped

    table = plain_table(found.path, "", "")
    table.show_header = False
    facts = {
        "documents": f"{found.documents:,}",
        "tokens": f"{found.tokens:,} ({found.dtype}, vocabulary {found.vocab_size:,})",
        "bytes": f"{found.bytes:,}",
        "bytes per token": f"{found.bytes_per_token:.3f}",
        "held out": f"{found.heldout_documents:,} documents, {found.heldout_bytes:,} bytes ({found.heldout_share:.1%})",
        "longest document": f"{found.longest_document} ({found.longest_tokens:,} tokens)",
        "skipped": Skipped(Counter(found.skipped), found.skipped_names).line() or "none",
        "sources": ", ".join(found.sources),
    }
    for name, fact in facts.items():
        table.add_row(name, fact)
    results().print(table)
