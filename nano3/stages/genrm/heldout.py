"""A model's judgements of the held-out pairs, given the way that it gives them as a judge.

RUN/judgements/NAME.jsonl, a line for each pair: its id, the true judgement, the model's (null: it cannot be read), and
what it wrote.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from nano3.config.genrm import GenrmConfig
from nano3.data.preferences.pair import PreferencePair
from nano3.files import write_atomic
from nano3.report import read_lines
from nano3.rl.environments.base import Task
from nano3.rl.feedback.comparison import Comparison
from nano3.rl.feedback.local import LocalSettings, open_local_judge
from nano3.rl.genrm import Judgement
from nano3.stages.genrm.figures import Judged

FOLDER = "judgements"
ENVIRONMENT = "preferences"


def judgements_file(run_dir: Path, name: str) -> Path:
    """Where the judgements of a stage are kept."""
    return run_dir / FOLDER / f"{name}.jsonl"


def stage_name(step: int) -> str:
    """Of the judgements after so many steps of GRPO."""
    return f"step-{step:06d}"


def forget_later(run_dir: Path, step: int) -> None:
    """Remove the judgements of later steps: the run goes back to `step` and comes to other ones."""
    for file in (run_dir / FOLDER).glob("step-*.jsonl"):
        if file.stem > stage_name(step):
            file.unlink()


def judge_pairs(
    model: Path,
    pairs: Sequence[PreferencePair],
    cfg: GenrmConfig,
    file: Path,
    say: Callable[[str], None],
    device: torch.device | None = None,
) -> None:
    """Have the model in a folder judge the pairs, and keep what it says.

    Raises:
        UserError: memory for not even one pair, or none that leaves room for a judgement.
    """
    own, rollout = cfg.judging, cfg.rollout
    settings = LocalSettings(
        rollout.max_tokens, own.temperature, cfg.data.seed, rollout.thinking, rollout.thinking_budget or None,
        own.memory, own.sequences,
    )  # fmt: skip
    judge, sizes = open_local_judge(model, settings, device)
    say(sizes)
    verdicts = judge.compare([_comparison(pair) for pair in pairs])
    lines = [
        {
            "id": pair.id,
            "truth": [pair.score_1, pair.score_2, pair.ranking],
            "judgement": list(verdict.judgement) if verdict.judgement else None,
            "text": verdict.text,
        }
        for pair, verdict in zip(pairs, verdicts, strict=True)
    ]
    write_atomic(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_judged(file: Path) -> list[Judged]:
    """What `judge_pairs` kept."""
    return [
        Judged(Judgement(*line["truth"]), Judgement(*line["judgement"]) if line["judgement"] else None)
        for line in read_lines(file)
    ]


def _comparison(pair: PreferencePair) -> Comparison:
    return Comparison(ENVIRONMENT, Task(pair.id, tuple(pair.prompt)), pair.response_1, pair.response_2)
