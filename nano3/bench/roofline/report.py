"""The bounds as one JSON object and as files, with the formula and what the report measured beside them."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nano3.bench.roofline.bounds import FORMULA, FORMULA_NOTES, Load, bounds
from nano3.bench.roofline.chart import draw
from nano3.bench.roofline.gpus import Gpu
from nano3.config.model import ModelConfig
from nano3.config.presets import load_model
from nano3.report import write_result

REPORTS_MODEL = "nano3-30b-a3b"
MEASURED = (
    "one H200, 8K in, 16K out, FP8: 3.3 times the output tokens/s of Qwen3-30B-A3B-Thinking-2507, 2.2 times those of "
    "GPT-OSS-20B",
    "one H100, selective FP8 against bf16, each at the largest batch that fits: roughly 3 to 3.5 times the tokens/s",
)
"""Of the report's own model, by its authors (section 4 and its headline); nothing that nano3 measured."""
INT4_NOTE = "int4 is left out: its rows do not all divide into groups of 32"


def figures(name: str, cfg: ModelConfig, gpu: Gpu, load: Load) -> dict[str, Any]:
    """All bounds, each with its ratio to bf16 weights and a bf16 cache, 0 where one of the two does not fit.

    Args:
        name: of the model, for people.
        cfg: its sizes.
        gpu: on which device.
        load: what each request asks for.
    """
    rows = [asdict(bound) for bound in bounds(cfg, gpu, load)]
    plain = rows[0]["output_rate"]
    for row in rows:
        row["ratio"] = row["output_rate"] / plain if plain else 0.0
    return {
        "kind": "roofline",
        "model": name,
        "gpu": asdict(gpu),
        "load": asdict(load),
        "formula": list(FORMULA),
        "formula_notes": FORMULA_NOTES,
        "bounds": rows,
        "notes": [] if any(row["policy"] == "int4" for row in rows) else [INT4_NOTE],
        "report_measured": list(MEASURED) if _is_the_reports(cfg) else [],
    }


def write(found: dict[str, Any], folder: Path) -> list[Path]:
    """result.json and roofline.png in a folder, which is made."""
    return [write_result(found, folder), draw(found, folder / "roofline.png")]


def _is_the_reports(cfg: ModelConfig) -> bool:
    return replace(cfg, quantization=None) == load_model(REPORTS_MODEL)
