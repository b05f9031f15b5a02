"""Reinforcement learning in small: rollouts, rewards, group advantages, updates, and weights back to the engine."""

from dataclasses import dataclass, field

import numpy as np
import torch

from nano3.config.schema import (
    BalanceConfig,
    CheckpointConfig,
    LogConfig,
    OptimizerConfig,
    ParallelConfig,
    ScheduleConfig,
    TrainConfig,
)
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.head import log_probs
from nano3.rl.sync import WeightSync
from nano3.train.loss import LossParts
from nano3.train.progress import Silent
from nano3.train.trainer import Trainer

STEPS, PROMPTS, GROUP, LENGTH = 12, 4, 8, 12
TEMPERATURE = 0.9
SHARED = tuple(range(20, 60))
"""Five pages with which all prompts begin."""


@dataclass(frozen=True)
class Config:
    """Settings of the updates."""

    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(steps=STEPS, dtype="float32", freeze=["*.gate.weight"])
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    schedule: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(peak_lr=1e-2, warmup_steps=2, decay="none"))
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_tokens=0))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True)
class Rollouts:
    """One group a prompt, all of one length."""

    tokens: torch.Tensor
    targets: torch.Tensor
    """-100 in the prompt."""
    sampled: torch.Tensor
    """Log-probabilities that the engine reported for the targets."""
    advantages: torch.Tensor
    """(B, 1)."""
    documents: tuple[str, ...] = ()

    @property
    def n_tokens(self):
        return self.tokens.numel()

    @property
    def n_targets(self):
        return int((self.targets >= 0).sum())


class OnPolicy:
    """Rollouts of the weights as they are when a step is asked for, rewarded for tokens of small ids."""

    ahead = False

    def __init__(self, model, tokenizer):
        self.engine = Engine(model, tokenizer, memory=32 << 20, page_size=8)
        self.sampling = Sampling(temperature=TEMPERATURE, max_tokens=LENGTH, ignore_eos=True)
        self.sync = WeightSync(model, self.engine, sampling=self.sampling, temperature=TEMPERATURE)
        self.wanted = tokenizer.vocab_size // 4
        self.rewards, self.reports, self.outputs = [], [], []

    def step(self, n):
        self.reports.append(self.sync.sync())
        prompts = [(*SHARED, 100 + i) for i in range(PROMPTS)]
        sampling = [Sampling(**{**vars(self.sampling), "seed": 1000 * n + i}) for i in range(PROMPTS)]
        requests = [Request(f"{n}-{i}", p, s, GROUP) for i, (p, s) in enumerate(zip(prompts, sampling, strict=True))]
        groups = run(self.engine, requests)
        self.outputs = [output for group in groups for output in group]
        ids = torch.from_numpy(np.stack([o.token_ids for o in self.outputs])).long()
        rewards = (ids < self.wanted).float().mean(1).view(PROMPTS, GROUP)
        self.rewards.append(float(rewards.mean()))
        others = (rewards.sum(1, keepdim=True) - rewards) / (GROUP - 1)
        return [self._batch(prompts, ids, (rewards - others).flatten())]

    def _batch(self, prompts, ids, advantages):
        rows = torch.cat([torch.tensor(prompts).repeat_interleave(GROUP, 0), ids], dim=1)
        targets = rows[:, 1:].clone()
        targets[:, : len(prompts[0]) - 1] = -100
        sampled = torch.zeros(targets.shape)
        sampled[:, len(prompts[0]) - 1 :] = torch.from_numpy(np.stack([o.sampled_log_probs for o in self.outputs]))
        return Rollouts(rows[:, :-1], targets, sampled, advantages.unsqueeze(1))

    def state(self):
        return {}

    def restore(self, state):
        pass

    def close(self):
        self.engine.close()


class PolicyGradient:
    """Importance weights between 0.5 and 2, others masked; the token-level mean of weight x advantage."""

    shown = "policy_loss"

    def __init__(self):
        self.mismatches = []

    def __call__(self, model, batch, scale):
        hidden = model.hidden(batch.tokens)
        found = log_probs(model.lm_head, hidden.x, batch.targets, TEMPERATURE)
        trained = batch.targets >= 0
        difference = (found.detach() - batch.sampled)[trained].abs()
        self.mismatches.append((float(difference.mean()), float(difference.max())))
        ratio = (found - batch.sampled).exp()
        kept = trained & (ratio > 0.5) & (ratio < 2)
        loss = -(ratio * batch.advantages)[kept].sum() / scale.targets
        metrics = {
            "policy_loss": (loss.detach() * scale.targets, trained.sum()),
            "mismatch": (difference.sum(), trained.sum()),
        }
        return LossParts(loss, metrics, hidden.loads)


def test_the_reward_of_a_trivial_task_rises_on_rollouts_of_the_present_weights(model, tokenizer, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source, loss = OnPolicy(model, tokenizer), PolicyGradient()
    Trainer(Config(), model, source, tmp_path, loss=loss, progress=Silent()).fit()
    assert len(source.rewards) == STEPS
    assert sum(source.rewards[-4:]) / 4 > sum(source.rewards[:4]) / 4 + 0.1
    for mean, largest in loss.mismatches:
        assert mean < 1e-5
        assert largest < 1e-4
    assert [report.version for report in source.reports] == list(range(1, STEPS + 1))
    assert {output.weights_version for output in source.outputs} == {STEPS}
    assert all(output.cached_tokens == len(SHARED) for output in source.outputs if output.index > 0)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.endswith("gate.weight")}
    assert frozen
    assert moved == before.keys() - frozen
