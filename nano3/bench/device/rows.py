"""A session of measurements as rows: `python -m nano3.bench.device.rows`; what .ci/h200.sh collects and prints.

Each stage leaves the JSON of a bench, or none where it is a test. `add` appends its rows to a file of JSON lines as
soon as it has ended, so that nothing is lost when a later one fails; `table` prints all that is there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENDS = {124: "ran out of time", 137: "was killed: out of time or memory"}
"""Exit codes of `timeout`."""
TAIL = 200
"""Characters of a stage's last words that are kept."""
COLUMNS = ("stage", "what", "by", "ms", "TFLOP/s", "GB/s", "of best", "tokens/s", "GiB", "")
WORDS = {0, 1, 2, len(COLUMNS) - 1}
"""Columns of words."""


def rows_of(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of one result: `what` was measured, `by` which side, and figures by name.

    `share` is of the least time that the device's ceilings allow: of the roofline for an op, of copying for a block of
    a decoding step and for a whole one, of the rate of products for training and prefill.
    """
    kinds = {"kernels": _ops, "blocks": _blocks}
    if result.get("ceilings_measured", True):
        yield from _ceilings(result)
    for case in result.get("cases", ()):  # that of `nano3 info` has none
        yield from kinds.get(result["kind"], _runs)(case)


def _ceilings(result: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, rate in result.get("ceilings", {}).items():
        key = "flops_per_second" if rate["unit"] == "FLOP/s" else "bytes_per_second"
        yield {"what": "ceiling", "by": name, key: rate["max"]}


def _ops(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, side in case["sides"].items():
        yield {
            "what": f"{case['name']}, {case['shapes']}",
            "by": name,
            "seconds": side["seconds"]["median"],
            "flops_per_second": side["flops_per_second"],
            "bytes_per_second": side["bytes_per_second"],
            "share": side["share_of_roofline"],
        }
    for name, why in case["failed"].items():
        yield {"what": f"{case['name']}, {case['shapes']}", "by": name, "failed": why}


def _blocks(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    row = {"what": f"{case['name']}, context {case['context']:,}", "by": "nano3", "seconds": case["seconds"]}
    if case["share_of_copy"] is None:
        yield row | {"failed": "the deeper model was no slower: too small to measure here"}
        return
    yield row | {"bytes_per_second": case["bytes"] / case["seconds"], "share": case["share_of_copy"]}


def _runs(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, side in case["sides"].items():
        if "seconds" not in side:
            yield {"what": case["name"], "by": name, "failed": side["failed"]}
            continue
        row = {
            "what": case["name"],
            "by": name,
            "seconds": side.get("seconds_per_step", side["seconds"]["median"]),
            "flops_per_second": side.get("flops_per_second"),
            "bytes_per_second": side.get("read_bytes_per_second"),
            "share": side.get("share_of_read", side.get("share_of_matmul")),
            "tokens_per_second": side["tokens_per_second"]["median"],
            "peak_memory_bytes": side["peak_memory_bytes"],
        }
        yield {key: value for key, value in row.items() if value is not None}


def stage_rows(stage: str, code: int, seconds: float, result: Path, log: Path) -> list[dict[str, Any]]:
    """The rows of a stage that ended: its measurements, and one on the stage itself, with what it said last where it
    failed."""
    found: list[dict[str, Any]] = []
    failed = "" if code == 0 else ENDS.get(code, f"exit code {code}")
    try:
        found = list(rows_of(json.loads(result.read_text("utf-8")))) if result.is_file() else []
    except (ValueError, KeyError, TypeError) as error:
        failed = failed or f"its result cannot be read: {type(error).__name__}: {error}"
    said = log.read_text("utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    last = said[-1][-TAIL:] if said else ""
    own = {"what": "the stage itself", "by": "", "seconds": seconds, "code": code}
    if failed:
        own["failed"] = f"{failed}: {last}" if last else failed
    elif not found and last:
        own["note"] = last
    return [{"stage": stage, **row} for row in (*found, own)]


def add(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append to a file of JSON lines."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read(path: Path) -> list[dict[str, Any]]:
    """All rows; a last line that was cut off is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table."""

    def number(key: str, factor: float, digits: int) -> str:
        return f"{row[key] * factor:,.{digits}f}" if key in row else ""

    took = number("seconds", 1e3, 3 if row.get("seconds", 0) < 1 else 0)
    share = f"{row['share']:.1%}" if "share" in row else ""
    words = f"FAILED: {row['failed']}" if "failed" in row else row.get("note", "")
    return (
        row["stage"], row["what"], row["by"], took, number("flops_per_second", 1e-12, 1),
        number("bytes_per_second", 1e-9, 0), share, number("tokens_per_second", 1, 1),
        number("peak_memory_bytes", 2**-30, 1), words,
    )  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """All rows, in columns as wide as they need; a stage is named in its first row only."""
    lines: list[tuple[str, ...]] = [COLUMNS]
    before = None
    for row in rows:
        line = cells(row)
        lines.append(("" if line[0] == before else line[0], *line[1:]))
        before = line[0]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_padded(line, widths) for line in lines)


def _padded(line: tuple[str, ...], widths: list[int]) -> str:
    sides = (text.ljust if i in WORDS else text.rjust for i, text in enumerate(line))
    return "  ".join(pad(width) for pad, width in zip(sides, widths, strict=True)).rstrip()


def main() -> None:
    """`add` the rows of a stage, or print the `table`."""
    parser = argparse.ArgumentParser(prog="python -m nano3.bench.device.rows", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    adds, tables = verbs.add_parser("add"), verbs.add_parser("table")
    for one in (adds, tables):
        one.add_argument("rows", type=Path, help="a file of JSON lines")
    adds.add_argument("stage")
    adds.add_argument("code", type=int, help="its exit code")
    adds.add_argument("seconds", type=float, help="that it took")
    adds.add_argument("result", type=Path, help="its JSON; may be missing")
    adds.add_argument("log", type=Path, help="what it printed")
    given = parser.parse_args()
    if given.verb == "table":
        print(table(read(given.rows)))
        return
    found = stage_rows(given.stage, given.code, given.seconds, given.result, given.log)
    add(given.rows, found)
    print(table(found))


if __name__ == "__main__":
    main()
