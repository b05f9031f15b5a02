"""`nano3 extend-context`: a trained model to one that reads longer texts (report section 2.5)."""

from __future__ import annotations

from pathlib import Path

from nano3.config.errors import UserError
from nano3.config.extend_context import ExtendContextConfig
from nano3.stages.outcome import TrainingResult
from nano3.stages.training import train_on_text
from nano3.train.tracking.progress import Progress


def main(
    cfg: ExtendContextConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> TrainingResult:
    """Go on training the model at `from_path` with sequences of several lengths.

    Its position-free architecture stays as it is; the result's config.json advertises the longest length, if that is
    more than before. Arguments, results and errors are those of nano3.stages.training.train_on_text.

    Raises:
        UserError: neither `from_path` nor `resume` is given.
    """
    if from_path is None and not resume:
        raise UserError("extend-context goes on from a trained model: name a run or Hugging Face folder with --from")
    return train_on_text(cfg, run_dir, from_path, resume, progress, checkpoint)
