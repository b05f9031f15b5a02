"""A very small real run: shared by the tests of the trainer, and started as a process of its own by some of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from nano3.config.model import ModelConfig
from nano3.config.schema import PretrainConfig
from nano3.data.tokens.steps import TextSteps, make_plans
from nano3.model.lm import LM
from nano3.parallel.layout import axes_of
from nano3.parallel.tensor import sharing
from nano3.rl.batch import PolicyBatch, TrainingSample, pack_samples
from nano3.rl.grpo import GRPOLoss, Objective
from nano3.train.heldout import Heldout
from nano3.train.tracking.progress import Silent
from nano3.train.trainer import Trainer
from nano3.train.world import World, init_world

SEQ_LEN, VOCAB = 16, 48
MODEL = ModelConfig(
    pattern="ME*-E",
    vocab_size=VOCAB,
    d_model=16,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    mamba_n_heads=3,
    mamba_head_dim=8,
    d_state=8,
    n_groups=1,
    chunk_size=8,
    n_experts=4,
    top_k=2,
    d_expert=8,
    d_shared=8,
    d_ff=16,
)


@dataclass(frozen=True)
class TinyBatch:
    tokens: torch.Tensor
    targets: torch.Tensor
    document_ids: torch.Tensor
    documents: list[str]
    valid: torch.Tensor | None = None

    @property
    def n_tokens(self) -> int:
        return self.tokens.numel() if self.valid is None else int(self.valid.sum())

    @property
    def n_targets(self) -> int:
        return int((self.targets >= 0).sum())


class TinySource:
    """Two documents a sequence, of uneven length, drawn from the sequence's index alone."""

    def __init__(self, length: int = 10_000, offset: int = 0) -> None:
        self.length, self.offset = length, offset

    def __len__(self) -> int:
        return self.length

    def bytes_of(self, start: int, count: int) -> int:
        return 3 * sum(self.batch(start + i, 1).n_targets for i in range(count))

    def batch(self, start: int, count: int) -> TinyBatch:
        rows = [self._row(self.offset + start + i) for i in range(count)]
        tokens, targets, ids = (torch.stack(column) for column in zip(*rows, strict=True))
        return TinyBatch(tokens, targets, ids, [f"doc-{self.offset + start + i}" for i in range(count)])

    def _row(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        text = torch.randint(3, VOCAB // 2, (SEQ_LEN + 1,), generator=generator)
        split = int(torch.randint(2, SEQ_LEN - 1, (1,), generator=generator))
        targets = text[1:].clone()
        targets[split - 1] = -100
        ids = (torch.arange(SEQ_LEN) >= split).int()
        return text[:-1], targets, ids


def config(**sections: dict) -> PretrainConfig:
    """Settings of a run of six steps, each section changed by the keyword of its name."""
    base = {
        "data": {"seq_len": SEQ_LEN},
        "train": {"tokens": 6 * 4 * SEQ_LEN, "batch_size": 4, "micro_batch_size": 2, "dtype": "float32"},
        "schedule": {"warmup_tokens": 64, "peak_lr": 1e-2, "min_lr": 1e-3},
        "heldout": {"every_tokens": 2 * 4 * SEQ_LEN, "tokens": 3 * SEQ_LEN, "final_tokens": 5 * SEQ_LEN},
        "checkpoint": {"every_tokens": 4 * SEQ_LEN, "keep": 2},
    }
    cfg = PretrainConfig(model=MODEL)
    for name in base.keys() | sections.keys():
        cfg = replace(cfg, **{name: replace(getattr(cfg, name), **{**base.get(name, {}), **sections.get(name, {})})})
    return cfg


class Answers:
    """Random answers with advantages, experts to replay, and log-probabilities of a sampler that is far off at some
    tokens: the same whatever rank is given them."""

    ahead = False
    shared_state = True

    def __init__(self, cfg: PretrainConfig, world: World, objective: Objective) -> None:
        self.cfg, self.world, self.objective = cfg, world, objective

    def step(self, n: int) -> list[PolicyBatch]:
        """Those of this rank among the eight of a step."""
        mine, kl_coef = range(self.world.data.rank, 8, self.world.data.size), self.objective.kl_coef
        samples = [self._answer(8 * n + i) for i in mine]
        batches = pack_samples(samples, 2 * SEQ_LEN, 1, micro_batches=6, kl_coef=kl_coef, ids_limit=VOCAB - 2)
        shift = 0.3
        return [replace(batch, reference=batch.sampled - shift) for batch in batches]

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass

    def close(self) -> None:
        pass

    def _answer(self, number: int) -> TrainingSample:
        rng = np.random.default_rng(number)
        length, model = int(rng.integers(4, 2 * SEQ_LEN)), self.cfg.model
        ids, drawn = rng.integers(3, VOCAB - 2, length), np.arange(length) > 2
        log_probs = -3.6 + rng.normal(0, 0.2 + 0.3 * (number % 4), length)
        experts = rng.permuted(np.tile(np.arange(model.n_experts), (2, length - 1, 1)), axis=2)[..., : model.top_k]
        advantage = float(number % 3 - 1)
        return TrainingSample(ids, drawn, log_probs.astype(np.float32), advantage, f"answer {number}", experts)


def policy(cfg: PretrainConfig, world: World) -> dict[str, object]:
    """Options of `trainer` with which it trains a policy on `Answers`."""
    objective = Objective(kl_coef=0.05 if cfg.train.seed else 0.0, temperature=0.9)
    shared = sharing(world.sequence.handle, world.context.handle, world.tensor.handle)
    return {"source": Answers(cfg, world, objective), "loss": GRPOLoss(objective, shared), "world": world}


def text(cfg: PretrainConfig, world: World | None = None, rows: object = None) -> TextSteps:
    """The tiny text by optimizer step."""
    data = (world or World()).data
    return TextSteps({SEQ_LEN: rows or TinySource()}, make_plans(cfg, data.rank, data.size))


def trainer(run_dir: Path, cfg: PretrainConfig | None = None, source: object = None, **options: object) -> Trainer:
    """A trainer of a freshly initialised tiny model, by default on the tiny text; `source`: rows, or a step source."""
    cfg, world = cfg or config(), options.pop("world", None) or init_world()
    model = LM(cfg.model)
    model.init_weights(cfg.train.seed)
    heldout = Heldout(cfg.heldout, {SEQ_LEN: TinySource(8, offset=50_000)}, cfg.train.micro_batch_size * SEQ_LEN)
    options = {"progress": Silent(), "heldout": heldout, "world": world, **options}
    steps = source if hasattr(source, "step") else text(cfg, world, source)
    return Trainer(cfg, model, steps, run_dir, **options)


class SlowSource(TinySource):
    """Takes a while for each batch, so that a signal can arrive in the middle of a run."""

    def batch(self, start: int, count: int) -> TinyBatch:
        time.sleep(0.1)
        return super().batch(start, count)


class PaddedSource(TinySource):
    """Every other sequence is padding and nothing else."""

    def batch(self, start: int, count: int) -> TinyBatch:
        batch = super().batch(start, count)
        valid = (torch.arange(start, start + count) % 2 == 0).unsqueeze(1).expand(-1, SEQ_LEN).contiguous()
        return replace(batch, valid=valid, targets=batch.targets.masked_fill(~valid, -100))


class RaggedSource(TinySource):
    """Rows of different lengths with padding behind them."""

    def batch(self, start: int, count: int) -> TinyBatch:
        batch = super().batch(start, count)
        lengths = torch.tensor([[3 + 5 * (i // 2 % 3)] for i in range(start, start + count)])
        valid = torch.arange(SEQ_LEN) < lengths
        targets, ids = batch.targets.masked_fill(~valid, -100), batch.document_ids.masked_fill(~valid, 2)
        return replace(batch, targets=targets, document_ids=ids, valid=valid)


SOURCES = {"ragged": RaggedSource, "plain": TinySource, "slow": SlowSource, "padded": PaddedSource}


class Printing(Silent):
    """Messages and steps on stdout."""

    def show(self, status) -> None:
        print(f"step {status.step}", flush=True)

    def say(self, message: str) -> None:
        print(message, flush=True)


def keep_gradients(run: Trainer, file: Path) -> None:
    """Write the gradients of each step, whole and as they are when the weights move, to FILE-1, FILE-2, ..."""

    def keep(optimizer, *rest) -> None:
        own = {name: whole(p.grad) for name, p in run.model.named_parameters() if p.grad is not None}
        gradients = {name: value for stage in run.world.pipeline.gather(own) for name, value in stage.items()}
        if run.world.is_main:
            torch.save(gradients, file.with_name(f"{file.name}-{run.position.step + 1}"))

    run.optimizer.register_step_pre_hook(keep)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All values of a tensor that may be sharded; every process must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def stall(run: Trainer, step: int) -> None:
    """Let the last rank hang in a step."""

    def wait(optimizer, *rest) -> None:
        if run.position.step + 1 == step and run.world.rank == run.world.size - 1:
            time.sleep(600)

    run.optimizer.register_step_pre_hook(wait)


def poison(run: Trainer, step: int) -> None:
    """Let the loss of the last rank be no number in a step."""
    loss = run.recipe.loss

    class Poisoned:
        shown, shared = loss.shown, loss.shared

        def __call__(self, model, batch, scale):
            parts = loss(model, batch, scale)
            last = run.world.rank == run.world.size - 1
            return replace(parts, total=parts.total * torch.nan) if last and run.position.step + 1 == step else parts

    run.recipe = replace(run.recipe, loss=Poisoned())


class SlowLoss:
    """Takes a while on the last rank."""

    def __init__(self, run: Trainer) -> None:
        self.loss, self.world = run.recipe.loss, run.world
        self.shown, self.shared = self.loss.shown, self.loss.shared

    def __call__(self, model, batch, scale):
        if self.world.rank == self.world.size - 1:
            time.sleep(0.2)
        return self.loss(model, batch, scale)


def crowd(model: LM) -> None:
    """Let every token choose the first experts, whatever the router says."""
    for bias in model.expert_biases():
        whole(bias)[: model.cfg.top_k] = 100.0


def main() -> None:
    """Train in RUN with the settings of a JSON object {section: {key: value}}; print the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--settings", type=json.loads, default={})
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--source", choices=SOURCES, default="plain")
    parser.add_argument("--policy", action="store_true", help="reinforcement learning on given answers")
    parser.add_argument("--axes", type=json.loads, default={}, help="processes along axes beside data")
    parser.add_argument("--gradients", type=Path, help="keep them in files of this name")
    parser.add_argument("--crowd", action="store_true", help="all tokens choose the first experts")
    parser.add_argument("--poison", type=int, help="the step in which the loss of the last rank is no number")
    parser.add_argument("--slow", action="store_true", help="the last rank is slow")
    parser.add_argument("--stall", type=int, help="the step in which the last rank hangs")
    args = parser.parse_args()
    cfg = config(**args.settings)
    world = init_world({**axes_of(cfg.parallel), **args.axes})
    options = policy(cfg, world) if args.policy else {"source": SOURCES[args.source](), "world": world}
    run = trainer(args.run_dir, cfg, progress=Printing(), **options)
    if args.gradients:
        keep_gradients(run, args.gradients)
    if args.poison:
        poison(run, args.poison)
    if args.slow:
        run.recipe = replace(run.recipe, loss=SlowLoss(run))
    if args.stall:
        stall(run, args.stall)
    if args.crowd:
        crowd(run.model)
    try:
        if args.resume:
            run.resume()
        result = run.fit()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        run.world.close()
    if run.world.is_main:
        print(f"done {result.step} interrupted {result.interrupted}", flush=True)


if __name__ == "__main__":
    main()
