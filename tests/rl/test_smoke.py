"""Reinforcement learning in small: rollouts, rewards, group advantages, updates, and weights back to the engine."""

import json
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
from nano3.rl.advantage import group_advantages
from nano3.rl.batch import TrainingSample, pack_samples
from nano3.rl.grpo import GRPOLoss, Objective
from nano3.rl.sync import WeightSync
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer

STEPS, PROMPTS, GROUP, LENGTH = 12, 4, 8, 12
TEMPERATURE = 0.9
PACKED = 256
"""Places of a row: four samples."""
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
        return pack_samples(self._samples(prompts, group_advantages(rewards).flatten()), PACKED, 4)

    def _samples(self, prompts, advantages):
        samples = []
        for i, (output, advantage) in enumerate(zip(self.outputs, advantages.tolist(), strict=True)):
            prompt = prompts[i // GROUP]
            drawn = np.arange(len(prompt) + LENGTH) >= len(prompt)
            log_probs = np.append(np.zeros(len(prompt)), output.sampled_log_probs).astype(np.float32)
            samples.append(TrainingSample(np.append(prompt, output.token_ids), drawn, log_probs, advantage))
        return samples

    def state(self):
        return {}

    def restore(self, state):
        pass

    def close(self):
        self.engine.close()


class Noting(GRPOLoss):
    """Keeps the largest mismatch of each micro-batch."""

    def __init__(self):
        super().__init__(Objective(temperature=TEMPERATURE))
        self.largest = []

    def __call__(self, model, batch, scale):
        parts = super().__call__(model, batch, scale)
        self.largest.append(self.take_largest_mismatch())
        return parts


def test_the_reward_of_a_trivial_task_rises_on_rollouts_of_the_present_weights(model, tokenizer, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    source, loss = OnPolicy(model, tokenizer), Noting()
    Trainer(Config(), model, source, tmp_path, loss=loss, progress=Silent()).fit()
    assert len(source.rewards) == STEPS
    assert sum(source.rewards[-4:]) / 4 > sum(source.rewards[:4]) / 4 + 0.1
    assert 0 < max(loss.largest) < 1e-4
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "policy_loss" in line]
    assert len(steps) == STEPS
    for line in steps:
        assert line["mismatch"] < 1e-5
        assert line["masked_tokens"] == line["clipped_tokens"] == 0
        assert line["entropy"] > 0
    assert [report.version for report in source.reports] == list(range(1, STEPS + 1))
    assert {output.weights_version for output in source.outputs} == {STEPS}
    assert all(output.cached_tokens == len(SHARED) for output in source.outputs if output.index > 0)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.endswith("gate.weight")}
    assert frozen
    assert moved == before.keys() - frozen
