"""`nano3 data train-classifier`: a filter of documents from examples, judged on hosts that it has not seen."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nano3.cli.data.curate_report import printable
from nano3.cli.options.common import Json

MOST_GROUPS = 30
"""Hosts and folders that are shown."""


def train_classifier(
    positive: Annotated[
        list[str],
        typer.Option(
            help="File or folder of documents to keep (text, JSON lines, Parquet, WARC). Repeatable.", metavar="PATH"
        ),
    ],
    negative: Annotated[list[str], typer.Option(help="The same of documents to drop. Repeatable.", metavar="PATH")],
    out: Annotated[
        Path, typer.Option(help="File to write; beside it FILE.json and FILE.png.", metavar="FILE", dir_okay=False)
    ],
    html: Annotated[
        bool,
        typer.Option(
            "--html", metavar="", help="They are pages of HTML, for `code-page`; else texts, for `relevance`."
        ),
    ] = False,
    heldout: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the documents to judge by, in whole hosts or folders.")
    ] = 0.25,
    recall: Annotated[
        float,
        typer.Option(min=0.01, max=1.0, help="Share of the positive documents that the recommended threshold keeps."),
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="Draws the hosts and folders that are held out.")] = 0,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace a classifier that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Train a fast classifier of documents (fastText) from examples, and judge it on hosts and folders it has not seen.

    A document's host is that of its URL; without one, its folder below PATH counts. Use the classifier in a pipeline as
    `relevance` (texts) or `code-page` (HTML), with the threshold that is recommended.
    """
    from nano3.config.errors import UserError
    from nano3.curate.catalog import check_frame, is_importable
    from nano3.curate.classifier.model import PACKAGE
    from nano3.installation import install_command

    check_frame()
    if not is_importable(PACKAGE):
        raise UserError(f"nano3 data train-classifier needs {PACKAGE}: {install_command('curate')}")
    from nano3.cli.output import print_json
    from nano3.curate.classifier.training import TrainingOptions, train_classifier
    from nano3.files import check_writable

    if out.exists() and not force:
        raise UserError(f"--out {out} exists already: give another name, or --force to replace it")
    check_writable(out.parent, "--out")
    out.parent.mkdir(parents=True, exist_ok=True)
    found = train_classifier(TrainingOptions(positive, negative, html, heldout, recall, seed), out)
    _say(found)
    if as_json:
        print_json(found | {"file": str(out)})
        return
    _show(found, out)


def _say(found: dict[str, Any]) -> None:
    """What was left out, and documents that are examples of both kinds."""
    from nano3.cli.output import counted

    for line in found["left_out"]:
        print(printable(f"left out: {line}"), file=sys.stderr)
    if found["in_both"]:
        print(
            f"warning: {counted(found['in_both'], 'document')} in both --positive and --negative: no classifier can "
            "tell them apart",
            file=sys.stderr,
        )


def _show(found: dict[str, Any], out: Path) -> None:
    from nano3.cli.output import plain_table, print_table, results

    held = found["examples"]["heldout"]
    where = f"{len(held['groups']):,} hosts and folders that training has not seen"
    if not found["split_by_group"]:
        print(
            "warning: one kind comes from a single host or folder: documents were held out instead, which flatters the "
            "classifier. Give documents of several hosts, or of several folders below PATH",
            file=sys.stderr,
        )
        where = "drawn among all"
    print(f"judged on {held['positive']:,} positive and {held['negative']:,} negative documents, {where}")
    columns = ("threshold", "precision", "recall", "kept")
    table = plain_table(f"average precision {found['average_precision']:.3f}", *columns, right=columns)
    best = found["recommended"]
    for one in sorted([*found["table"][1::2], best], key=lambda one: one["threshold"]):
        mark = " *" if one is best else ""
        table.add_row(f"{one['threshold']:.4f}{mark}", *(f"{one[name]:.3f}" for name in columns[1:]))
    if found["rule"]:
        table.add_row("rule of code-page", *(f"{found['rule'][name]:.3f}" for name in columns[1:]))
    print_table(results(), table)
    table = plain_table(
        "at the threshold marked * (recall as wanted)", "host or folder", "positive kept", "negative kept"
    )
    groups = sorted(found["groups"], key=lambda one: -one["positive"] - one["negative"])
    for one in groups[:MOST_GROUPS]:
        table.add_row(one["group"], *(f"{one[f'{kind} kept']:,} of {one[kind]:,}" for kind in ("positive", "negative")))
    print_table(results(), table)
    if groups[MOST_GROUPS:]:
        print(f"and {len(groups) - MOST_GROUPS:,} smaller ones, in {out}.json")
    use = "code-page" if found["html"] else "relevance"
    threshold = math.floor(best["threshold"] * 1e4) / 1e4
    print(f'in a pipeline:\n[[step]]\nuse = "{use}"\nmodel = "{out}"\nthreshold = {threshold}')
    print(f"all numbers: {out}.json; chart: {out}.png")
