"""`nano3 rlhf`: a model learns from a judge that compares its answers, and to be brief (report section 3.3).

The run folder:

    config.toml, start.json, tokenizer/, checkpoints/, charts/, model/      as of every stage; with lora.rank adapter/
    metrics.jsonl                   nano3.rl.training.steps names its figures
    heldout.json                    nano3.stages.policy.scores
    rollouts/step-N.jsonl, .npz     nano3.rl.rollout_files; each reward with its terms and a judgement
    judge.jsonl                     answers of a judge behind a URL
"""

from __future__ import annotations

from pathlib import Path

from nano3.config.rlhf import RlhfConfig
from nano3.engine.protocol import ServersGoneError
from nano3.rl.feedback.comparison import JudgeStoppedError
from nano3.rl.feedback.open import check_judges, check_prompts, judge_bytes
from nano3.rl.feedback.scoring import UNREAD
from nano3.rl.training.stops import TrainingStoppedError
from nano3.stages.policy.judges import Judges
from nano3.stages.policy.outcome import RlhfResult
from nano3.stages.policy.quality import HeldoutQuality
from nano3.stages.policy.run import open_run
from nano3.train.feed import PausedError
from nano3.train.tracking.progress import Progress

STAGE = "rlhf"


def main(
    cfg: RlhfConfig,
    run_dir: str | Path,
    from_path: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    checkpoint: int | None = None,
) -> RlhfResult:
    """Train the model at `from_path` on a judge's comparisons of its own answers and leave a run folder.

    Args:
        cfg: all settings.
        run_dir: the run folder; with `resume`, one that holds this run.
        from_path: run folder or Hugging Face folder to start from; its architecture replaces cfg's. A resume knows it
            from the run folder.
        resume: continue from the newest checkpoint of `run_dir`, or begin as it began if there is none yet.
        progress: where training reports; the terminal by default.
        checkpoint: with `resume`, continue from that of this step instead.

    Returns:
        Also where a stop rule ended the run, or judge or servers do not answer any more: `stopped` says why. In the
        second case all is saved, and a resume is the run that was not stopped.

    Raises:
        UserError: prompts, judge, model or settings that cannot be used, or neither `from_path` nor `resume` is given.
        NonFiniteError: the loss became NaN or infinite.
    """
    run_dir = Path(run_dir)
    check_prompts(cfg.prompts)
    check_judges(cfg)
    judges = Judges(run_dir)
    beside = judge_bytes(cfg)
    with open_run(STAGE, cfg, run_dir, from_path, resume, progress, checkpoint, judges.open, beside) as run:
        heldout = HeldoutQuality(run, judges.heldout, judges.heldout_spec, judges.heldout_spec == cfg.judge.spec)
        try:
            if run.begun:
                heldout.check_same()
            else:
                run.sampling.sync.sync()
                run.steps.begin(None)
                heldout.before()
            training = run.trainer.fit()
            if training.interrupted:
                return RlhfResult(run_dir, training)
            run.steps.judge_update()
            run.export()
            return RlhfResult(run_dir, training, heldout.after(), heldout_judge=heldout.judge)
        except (PausedError, JudgeStoppedError, ServersGoneError) as stop:
            good = run.last_good()
            return RlhfResult(run_dir, run.stopped_at(), stopped=str(stop), last_good=good, paused=True)
        except TrainingStoppedError as stop:
            good = run.last_good(stop.since)
            unread = stop.fault == UNREAD
            return RlhfResult(run_dir, run.stopped_at(), stopped=str(stop), last_good=good, unread=unread)
