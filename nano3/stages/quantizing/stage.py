"""`nano3 quantize`: a trained model to an FP8 folder, calibrated on conversations (report section 4)."""

from __future__ import annotations

from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.presets import MODELS, preset_names
from nano3.files import check_writable
from nano3.model.hf.folder import read_config
from nano3.quantize.int_folder import plain_folder
from nano3.quantize.policy import Policy, Selection, select
from nano3.quantize.run import Quantized, quantize_folder
from nano3.stages.quantizing.rows import Calibration, calibration_rows
from nano3.stages.run_folder import say


def main(source: str | Path, out: Path, policy: Policy, calibration: Calibration) -> Quantized:
    """Write `out` as the quantized form of the model in `source`.

    Args:
        source: run folder or Hugging Face folder.
        out: a Hugging Face folder, which appears whole or not at all.
        policy: what becomes FP8.
        calibration: what activations are looked at with.

    Raises:
        UserError: a model, policy or rows that cannot be used.
    """
    folder, selection = prepare(source, policy)
    check_writable(out, "--out")
    rows = calibration_rows(Path(source), folder, calibration)
    try:
        return quantize_folder(folder, out, selection, rows, say)
    except KeyboardInterrupt:
        say(f"blocks that are done are kept: the same command goes on, with --out {out}")
        raise


def prepare(source: str | Path, policy: Policy) -> tuple[Path, Selection]:
    """The Hugging Face folder of a model, and what the policy comes to for it.

    Raises:
        UserError: no such model, a preset, one that is quantized already, an adapter, or a policy that does not fit.
    """
    if not Path(source).exists() and str(source) in preset_names(MODELS):
        raise UserError(
            f"{source}: a model preset, which has no weights to calibrate FP8 with; give a trained model, or take "
            "nano3 quantize --int8 or --int4, which fill one with random weights"
        )
    folder = plain_folder(source)
    return folder, select(read_config(folder), policy)
