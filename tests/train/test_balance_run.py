"""The expert bias at work: a real run on skewed data, with it and without it (report section 2.4).

`python tests/train/test_balance_run.py docs/balance.png` draws the curves.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from nano3.config.model import ModelConfig
from nano3.config.schema import PretrainConfig
from nano3.data.tokens.batch import Batch
from nano3.data.tokens.steps import TextSteps, make_plans
from nano3.model.lm import LM
from nano3.train.loss import NextTokenLoss
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer

STEPS, ROWS, SEQ_LEN = 240, 16, 64
DOMAINS, TOKENS = 8, 48
MODEL = ModelConfig(
    pattern="MEME",
    vocab_size=DOMAINS * TOKENS,
    d_model=64,
    init_std=0.02,
    mamba_n_heads=4,
    mamba_head_dim=32,
    d_state=16,
    n_groups=1,
    n_experts=16,
    top_k=2,
    d_expert=32,
    d_shared=64,
)


class SkewedSource:
    """Rows of eight languages with words of their own; 7 rows in 10 are in the first."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.grammar = torch.softmax(2 * torch.randn(DOMAINS, TOKENS, TOKENS, generator=generator), dim=-1)

    def batch(self, start: int, count: int) -> Batch:
        """Rows start ... start + count - 1, each a walk through its language's grammar."""
        generator = torch.Generator().manual_seed(start)
        shares = torch.tensor([0.7] + [0.3 / (DOMAINS - 1)] * (DOMAINS - 1))
        domain = torch.multinomial(shares, count, replacement=True, generator=generator)
        words = [torch.randint(TOKENS, (count,), generator=generator)]
        for _ in range(SEQ_LEN):
            words.append(torch.multinomial(self.grammar[domain, words[-1]], 1, generator=generator)[:, 0])
        text = torch.stack(words, dim=1) + TOKENS * domain[:, None]
        return Batch(text[:, :-1], text[:, 1:], torch.zeros(count, SEQ_LEN, dtype=torch.int32), [])


class Recorder(NextTokenLoss):
    """The usual loss, with no balancing loss beside it, that keeps the loads of every step."""

    def __init__(self) -> None:
        super().__init__(balance_coef=0.0)
        self.loads: list[torch.Tensor] = []

    def __call__(self, model, batch, scale):
        """As `NextTokenLoss`."""
        parts = super().__call__(model, batch, scale)
        self.loads.append(parts.loads.float())
        return parts


@cache
def largest_share(bias_rate: float, steps: int = STEPS) -> torch.Tensor:
    """(steps - 19, number of MoE blocks): the busiest expert's share over the mean, in windows of 20 steps."""
    cfg = PretrainConfig(model=MODEL)
    cfg = replace(
        cfg,
        data=replace(cfg.data, seq_len=SEQ_LEN),
        train=replace(cfg.train, tokens=steps * ROWS * SEQ_LEN, batch_size=ROWS, micro_batch_size=ROWS),
        schedule=replace(cfg.schedule, peak_lr=2e-3, warmup_tokens=10_000),
        balance=replace(cfg.balance, bias_rate=bias_rate),
        checkpoint=replace(cfg.checkpoint, every_tokens=0, asynchronous=False),
    )
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        model = LM(MODEL).init_weights(0)
        source = TextSteps({SEQ_LEN: SkewedSource()}, make_plans(cfg, 0, 1))
        Trainer(cfg, model, source, Path(folder), loss=recorder, progress=Silent()).fit()
    windows = torch.stack(recorder.loads).unfold(0, 20, 1).sum(-1)
    return windows.amax(-1) / windows.mean(-1)


@pytest.mark.slow
def test_the_bias_evens_out_a_skewed_load_and_nothing_else_does():
    # 0.005: a hundred times fewer steps than a real run has, so each may move the bias further than the report's 0.001
    with_bias, without = (largest_share(rate, steps=STEPS // 2)[-60:] for rate in (0.005, 0.0))
    assert with_bias.max() < 2.0
    assert without.min() > 2.0


def draw(path: Path) -> None:
    """Both runs in one chart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for rate, colour, name in ((0.0, "tab:red", "bias off"), (0.005, "tab:blue", "bias on, rate 0.005")):
        for block, (style, curve) in enumerate(zip("-:", largest_share(rate).T.tolist(), strict=False)):
            label = f"{name}, MoE block {block + 1}"
            axis.plot(range(20, 20 + len(curve)), curve, style, color=colour, label=label)
    axis.axhline(2, color="grey", linewidth=0.8)
    axis.set(xlabel="optimizer step", ylabel="busiest expert's share / mean", ylim=(1, None))
    axis.set_title("16 experts, top-2, 70 % of the text in one of 8 languages; windows of 20 steps", fontsize=10)
    axis.legend(frameon=False, ncol=2, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
