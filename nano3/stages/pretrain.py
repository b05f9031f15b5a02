"""`nano3 pretrain`: packed text to a trained model (report sections 2.3 and 2.4)."""

from __future__ import annotations

from pathlib import Path

from nano3.config.schema import PretrainConfig
from nano3.stages.outcome import TrainingResult
from nano3.stages.training import train_on_text
from nano3.train.tracking.progress import Progress


def main(
    cfg: PretrainConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> TrainingResult:
    """Train a model; arguments, results and errors are those of nano3.stages.training.train_on_text."""
    return train_on_text(cfg, run_dir, from_path, resume, progress, checkpoint)
