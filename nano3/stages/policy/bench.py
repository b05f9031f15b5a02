"""nano3's side of `nano3 bench rl`: one step of reinforcement learning, samples drawn and the policy's update on them.

`python -m nano3.stages.policy.bench` is a worker as nano3.bench.worker is one: nano3.bench lies below nano3.rl and
nano3.stages, and so is given the module's name.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import numpy as np
import torch

from nano3.bench.native import Native
from nano3.bench.worker import serve
from nano3.bench.workload import RL_ROWS, Case, Job, advantages, prompts
from nano3.config.schema import OptimizerConfig
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.protocol import run
from nano3.engine.request import Request, Sampling
from nano3.model.dtype import compute_dtype
from nano3.model.lm import LM
from nano3.rl.batch import TrainingSample, pack_samples
from nano3.rl.grpo import GRPOLoss
from nano3.train.loss import Scale
from nano3.train.optimizer import build_optimizer, set_lr

RATE = 1e-6
"""So small that the model of the last run is that of the first, but for rounding."""


class Policy:
    """A model that is trained and the engine that draws from it, as `nano3 rlvr` has them on one machine."""

    def __init__(self, model: LM, tokenizer: Tokenizer, case: Case) -> None:
        self.model, self.case = model.requires_grad_(True), case
        self.engine = Engine(
            model, tokenizer, max_sequences=case.sequences, max_context=case.length + case.output, prefix_cache=False
        )
        self.optimizer = build_optimizer(model, OptimizerConfig())
        set_lr(self.optimizer, RATE)
        self.loss, self.steps = GRPOLoss(), 0

    def step(self) -> dict[str, float]:
        """Draw, then update: `generate_seconds` and `update_seconds`."""
        self.model.eval()
        start = time.perf_counter()
        samples = self.draw()
        drawn = time.perf_counter()
        self.model.train()
        self.update(samples)
        self.engine.weights_changed()
        end = time.perf_counter()
        return {"seconds": end - start, "generate_seconds": drawn - start, "update_seconds": end - drawn}

    def draw(self) -> list[TrainingSample]:
        """All samples of the step, of `case.output` tokens each."""
        self.steps += 1
        sampling = Sampling(max_tokens=self.case.output, ignore_eos=True, seed=self.steps)
        given = prompts(self.case, self.model.cfg.vocab_size)
        requests = [Request(str(i), tuple(ids), sampling, self.case.group) for i, ids in enumerate(given)]
        samples, worth = [], iter(advantages(self.case))
        for ids, outputs in zip(given, run(self.engine, requests), strict=True):
            before = np.zeros(len(ids), np.float32)
            for output in outputs:
                trained = np.concatenate([before.astype(bool), np.ones(output.n_tokens, bool)])
                log_probs = np.concatenate([before, output.sampled_log_probs])
                whole = np.concatenate([np.array(ids, np.int32), output.token_ids])
                samples.append(TrainingSample(whole, trained, log_probs, next(worth)))
        return samples

    def update(self, samples: list[TrainingSample]) -> None:
        """The loss's gradients over all micro-batches, and a step of the optimizer."""
        batches = pack_samples(samples, samples[0].n_inputs, RL_ROWS, ids_limit=self.engine.ids_limit)
        scale = Scale(sum(batch.n_targets for batch in batches), len(batches))
        for batch in batches:
            self.loss(self.model, batch, scale).total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def close(self) -> None:
        """Free the engine's memory."""
        self.engine.close()


class PolicySide(Native):
    """A model in training types, whose runs are steps of reinforcement learning; see nano3.bench.worker."""

    def set_types(self, job: Job) -> None:
        """Float32 weights, as `nano3 rlvr` has them."""
        self.model.to_dtype(torch.float32, compute_dtype(job.dtype, self.device))

    def run(self, case: Case) -> dict[str, float]:
        """Seconds of one step, and of its two parts."""
        return self.policy(case).step()

    def profile(self, case: Case) -> dict[str, Any]:
        """Where the time of a step goes; see nano3.bench.profile."""
        from nano3.bench.profile import Profile

        profile = Profile()
        with profile:
            self.policy(case).step()
        return profile.tables()

    @cache  # noqa: B019 (one side a process)
    def policy(self, case: Case) -> Policy:
        """The policy of a case, the same for all its runs."""
        assert self.tokenizer is not None
        return Policy(self.model, self.tokenizer, case)


def main() -> None:
    """The process of this side."""
    serve(PolicySide)


if __name__ == "__main__":
    main()
