"""A toy reinforcement-learning run: its source samples from the weights as they are when a step is asked for.

Started as a process of its own by tests on two ranks.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

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
from nano3.model.lm import LM
from nano3.train.loss import LossParts
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer
from nano3.train.world import World, init_world

PROMPT = 3
"""Every rollout begins with this token; it is rewarded for even ones."""


@dataclass(frozen=True)
class RlConfig:
    """A stage's settings without any of pretraining's data, lengths or held-out text."""

    train: TrainConfig = field(default_factory=lambda: TrainConfig(steps=4, dtype="float32", freeze=["*.gate.weight"]))
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(weight_decay=0.0))
    schedule: ScheduleConfig = field(
        default_factory=lambda: ScheduleConfig(peak_lr=1e-2, start_lr=1e-3, warmup_steps=2, decay="none")
    )
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    checkpoint: CheckpointConfig = field(default_factory=lambda: CheckpointConfig(every_tokens=0, every_steps=2))
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    log: LogConfig = field(default_factory=LogConfig)


@dataclass(frozen=True)
class Rollouts:
    """One micro-batch of rollouts, of one length."""

    tokens: torch.Tensor
    targets: torch.Tensor
    advantages: torch.Tensor
    documents: list[str]

    @property
    def n_tokens(self) -> int:
        return self.tokens.numel()

    @property
    def n_targets(self) -> int:
        return int((self.targets >= 0).sum())


class OnPolicy:
    """Two micro-batches of rollouts a step, their lengths and numbers different from step to step and rank to rank."""

    ahead = False

    def __init__(self, model: LM, world: World) -> None:
        self.model, self.world = model, world
        self.generator = torch.Generator().manual_seed(world.data.rank)
        self.seen: list[torch.Tensor] = []
        self.closed = False

    def step(self, n: int) -> list[Rollouts]:
        """Sample from the present weights."""
        self.seen.append(self.model.norm_f.weight.detach().clone())
        return [self._sample(2 + n % 2, 3 + n + m + self.world.data.rank) for m in range(2)]

    def state(self) -> dict:
        return {"steps": len(self.seen), "generator": self.generator.get_state()}

    def restore(self, state: dict) -> None:
        self.seen = [torch.empty(0)] * state["steps"]
        self.generator.set_state(state["generator"])

    def close(self) -> None:
        self.closed = True

    @torch.no_grad()
    def _sample(self, count: int, length: int) -> Rollouts:
        self.model.eval()
        tokens = torch.full((count, 1), PROMPT)
        for _ in range(length):
            logits = self.model(tokens)[:, -1]
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=self.generator)
            tokens = torch.cat([tokens, drawn], dim=1)
        self.model.train()
        rewards = (tokens[:, 1:] % 2 == 0).float()
        return Rollouts(tokens[:, :-1], tokens[:, 1:], rewards - rewards.mean(), [f"prompt of {length}"])


class PolicyGradient:
    """REINFORCE, with metrics by name, one of which only some micro-batches have."""

    shown = "policy_loss"

    def __call__(self, model, batch, scale) -> LossParts:
        hidden = model.hidden(batch.tokens)
        log_probs = model.lm_head(hidden.x).log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
        loss = -(log_probs * batch.advantages).sum()
        metrics = {
            "policy_loss": (loss.detach(), torch.tensor(batch.n_targets)),
            "reward": ((batch.targets % 2 == 0).sum(), torch.tensor(batch.n_targets)),
            "rollouts": (torch.tensor(len(batch.tokens)), None),
        }
        if batch.tokens.shape[1] == 3:
            metrics["short_length"] = (torch.tensor(3.0 * len(batch.tokens)), torch.tensor(len(batch.tokens)))
        return LossParts(loss / scale.targets, metrics, hidden.loads)


def trainer(run_dir: Path, model_config, cfg: RlConfig | None = None, world: World | None = None) -> Trainer:
    """A run on rollouts of its own model."""
    cfg, world = cfg or RlConfig(), world or init_world()
    model = LM(model_config).init_weights(0)
    return Trainer(cfg, model, OnPolicy(model, world), run_dir, loss=PolicyGradient(), progress=Silent(), world=world)


def main() -> None:
    """Train in RUN/whole, and in RUN/parts with a resume in the middle; print what this rank's sources saw and kept."""
    sys.path.insert(0, str(Path(__file__).parent))
    from tiny_run import MODEL

    folder, cfg, world = Path(sys.argv[1]), RlConfig(parallel=ParallelConfig(fsdp=False)), init_world()
    whole = trainer(folder / "whole", MODEL, cfg, world)
    trainer(folder / "parts", MODEL, replace(cfg, train=replace(cfg.train, steps=2)), world).fit()
    parts = trainer(folder / "parts", MODEL, cfg, world)
    parts.resume()
    for run in (whole, parts):
        run.fit()
        kept = run.feed.source.generator.get_state().sum().item()
        print(json.dumps({"steps": len(run.feed.source.seen), "generator": kept}), flush=True)
    world.close()


if __name__ == "__main__":
    main()
