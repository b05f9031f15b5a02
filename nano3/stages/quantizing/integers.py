"""`nano3 quantize --int8` and `--int4`: a trained model's matrices as integers, or random ones in a preset's shape."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.presets import MODELS, load_model, preset_names
from nano3.engine.launch import small_tokenizer
from nano3.model.hf.files import weight_files
from nano3.quantize.int_folder import plain_folder, quantize_folder
from nano3.quantize.int_formats import Bits
from nano3.quantize.random_folder import write_random
from nano3.stages.quantizing.rows import Calibration, calibration_rows
from nano3.stages.run_folder import say


@dataclass(frozen=True)
class Integers:
    """What was made."""

    source: str
    bytes: int
    """Of the new files with tensors."""
    bytes_stored: int | None
    """Of those before; None where there were none."""
    calibration_rows: int | None = None
    """Conversations that the numbers were chosen for; None: each was rounded by itself."""


def main(source: str | Path, out: Path, bits: Bits, calibration: Calibration | None = None) -> Integers:
    """Write `out`.

    Args:
        source: run folder, Hugging Face folder or GGUF file; or a model preset, whose weights are random.
        out: a Hugging Face folder, which appears whole or not at all.
        bits: of a weight.
        calibration: the conversations that 4 bits are chosen for; None: each number is rounded by itself.

    Raises:
        UserError: a model that cannot be quantized so, conversations that cannot be used, or a place that must not be
            written.
    """
    if Path(source).exists() or str(source) not in preset_names(MODELS):
        rows = None if calibration is None else calibration_rows(Path(source), plain_folder(source), calibration)
        folder = quantize_folder(source, out, bits, rows)
        return Integers(str(folder), _size(out), _size(folder), None if rows is None else len(rows))
    if calibration is not None:
        raise UserError(f"{source}: a preset has no training behind it, and random weights are not calibrated: leave "
                        "--calibrate, --samples and --length out, or give a model")  # fmt: skip
    cfg = load_model(str(source))
    tokenizer = small_tokenizer(cfg.vocab_size)
    say(f"{source}: a preset has no training behind it: random weights, to measure with, and a tokenizer of "
        f"{tokenizer.vocab_size} tokens")  # fmt: skip
    write_random(cfg, out, bits, extra=tokenizer.save)
    return Integers(str(source), _size(out), None)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in weight_files(folder))
