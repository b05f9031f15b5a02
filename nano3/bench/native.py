"""nano3's side of `nano3 bench train`, `prefill` and `decode`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from nano3.bench.costs import bytes_each
from nano3.bench.device.weights import random_model
from nano3.bench.versions import device_name
from nano3.bench.workload import SEED, Case, Job, prompts
from nano3.config.errors import UserError
from nano3.config.presets import load_model as load_model_config
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.engine import Engine
from nano3.engine.launch import find_device, small_tokenizer
from nano3.engine.request import Request, Sampling
from nano3.kernels import explain
from nano3.kernels.scaled import INTEGERS
from nano3.model import step
from nano3.model.dtype import compute_dtype, inference_dtypes
from nano3.model.head import nll_sum
from nano3.model.lm import LM
from nano3.model.load import load_model

BALANCE_COEF = 1e-4
WARM_STEPS = 4
"""Tokens of each sequence before the clock starts, the prompt's own one among them."""
CPU = torch.device("cpu")
INFERENCE = ("prefill", "decode", "throughput")
"""Kinds of measurements without a training step."""


class Native:
    """One model and its runs; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        self.device = find_device(job.device)
        self.model = open_model(job.model, job.pattern, job.experts, self.device, drawn_dtype(job, self.device))
        self.set_types(job)
        self.model.to(self.device)
        self.tokenizer = None if job.kind == "train" else full_tokenizer(self.model.cfg.vocab_size)
        self._runs = {"train": self._train, "prefill": self._prefill, "decode": self._decode}

    def set_types(self, job: Job) -> None:
        """Weights and arithmetic as the trainer, or the server, would have them."""
        if job.kind == "train":
            self.model.to_dtype(torch.float32, compute_dtype(job.dtype, self.device))
        else:
            self.model.to_dtype(*inference_dtypes(job.dtype, self.device, self.model.dtype))

    def about(self) -> dict[str, Any]:
        """Types, sizes and the backend of each op, and of the decoding step as a whole."""
        choices = [*explain(self.model.device), ("decoding step", *step.explain(self.model))]
        return {
            "device": device_name(self.device),
            "weights": _name(self.model.dtype),
            "activations": _name(self.model.compute_dtype),
            "bytes_each": bytes_each(self.model),
            "integers": any(tensor.dtype in INTEGERS for tensor in self.model.state_dict().values()),
            "config": dataclasses.asdict(self.model.cfg),
            "backends": {op: {"backend": backend, "reason": reason} for op, backend, reason in choices},
        }

    def run(self, case: Case) -> dict[str, Any]:
        """Seconds of one timed run; on a GPU also the most bytes that were allocated there."""
        if self.device.type == "cpu":
            return {"seconds": self._runs[case.kind](case, nullcontext())}
        torch.cuda.reset_peak_memory_stats(self.device)
        seconds = self._runs[case.kind](case, nullcontext())
        return {"seconds": seconds, "peak_memory": torch.cuda.max_memory_allocated(self.device)}

    def profile(self, case: Case) -> dict[str, Any]:
        """Where the time of the timed part goes; see nano3.bench.profile."""
        from nano3.bench.profile import Profile

        profile = Profile()
        self._runs[case.kind](case, profile)
        return profile.tables()

    def _train(self, case: Case, around: AbstractContextManager) -> float:
        self.model.train(not case.forward_only)
        tokens = torch.tensor(prompts(case, self.model.cfg.vocab_size), device=self.device)
        step = forward if case.forward_only else train_step
        return self._seconds(lambda: step(self.model, tokens), around)

    def _prefill(self, case: Case, around: AbstractContextManager) -> float:
        engine = self._engine(case)
        _add(engine, case, max_tokens=1)

        def until_first_token() -> None:
            while not any(update.tokens for update in engine.step()):
                pass

        return self._seconds(until_first_token, around)

    def _decode(self, case: Case, around: AbstractContextManager) -> float:
        engine = self._engine(case)
        _add(engine, case, max_tokens=WARM_STEPS + case.output)
        warm = 0
        while warm < WARM_STEPS * case.batch:
            warm += _tokens(engine)
        assert warm == WARM_STEPS * case.batch, "the sequences do not advance together"

        def all_steps() -> None:
            made = sum(_tokens(engine) for _ in range(case.output))
            assert made == case.tokens, f"{made} tokens in {case.output} steps of {case.batch} sequences"

        return self._seconds(all_steps, around)

    def _seconds(self, run: Callable[[], object], around: AbstractContextManager) -> float:
        """How long one run takes within `around`, until the device has done it."""
        self._wait()
        with around:
            start = time.perf_counter()
            run()
            self._wait()
            return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _engine(self, case: Case) -> Engine:
        """An engine that takes all prompts in one pass when decoding, so that the sequences advance together."""
        room = case.length + WARM_STEPS + case.output
        assert self.tokenizer is not None
        step_tokens = 2048 if case.kind == "prefill" else max(2048, case.batch * case.length)
        return Engine(
            self.model,
            self.tokenizer,
            max_sequences=case.batch,
            max_context=room,
            prefix_cache=False,
            step_tokens=step_tokens,
        )


def drawn_dtype(job: Job, device: torch.device) -> torch.dtype:
    """Of random weights that are drawn on a GPU, which need not hold them in float32 where nothing trains them."""
    return inference_dtypes(job.dtype, device, torch.float32)[0] if job.kind in INFERENCE else torch.float32


def open_model(
    name: str, pattern: str = "", experts: int = 0, device: torch.device = CPU, drawn: torch.dtype = torch.float32
) -> LM:
    """The model of a run folder or Hugging Face folder, or of a preset or TOML file of sizes (random weights, seed 0;
    on a GPU these are made there, in the type `drawn`).

    Raises:
        UserError: no such model, or `pattern` or `experts` for one whose weights are given.
    """
    if Path(name).is_dir():
        if pattern:
            raise UserError(f"--pattern: the blocks of {name} are those of its weights; name a preset instead")
        if experts:
            raise UserError(f"--axis experts: the experts of {name} are those of its weights; name a preset instead")
        return load_model(name)
    cfg = load_model_config(name)
    try:
        cfg = dataclasses.replace(cfg, n_experts=experts) if experts else cfg
    except ValueError as error:
        raise UserError(f"--experts {experts}: {error}") from error
    try:
        cfg = dataclasses.replace(cfg, pattern=pattern) if pattern else cfg
    except ValueError as error:
        raise UserError(f"--pattern: {error}") from error
    return LM(cfg).init_weights(SEED).eval() if device.type == "cpu" else random_model(cfg, device, drawn)


def full_tokenizer(vocab_size: int) -> Tokenizer:
    """A tokenizer with an entry for every id of the model, so that no logit is left out of the choice of tokens."""
    tokenizer = small_tokenizer(vocab_size)
    tokenizer.inner.add_tokens([f"<|{i}|>" for i in range(tokenizer.vocab_size, vocab_size)])
    return tokenizer


def train_step(model: LM, tokens: torch.Tensor) -> None:
    """Forward and backward on tokens (B, T), each predicting the next; gradients are dropped afterwards."""
    hidden = model.hidden(tokens)
    x = hidden.x[:, :-1].flatten(0, 1)
    loss = nll_sum(model.lm_head, x, tokens[:, 1:]) / x.shape[0]
    (loss + BALANCE_COEF * hidden.balance_loss).backward()
    model.zero_grad()


@torch.inference_mode()
def forward(model: LM, tokens: torch.Tensor) -> None:
    """Blocks and final norm on tokens (B, T), and the logits of the last position."""
    model.lm_head(model.hidden(tokens).x[:, -1])


def _add(engine: Engine, case: Case, max_tokens: int) -> None:
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    for index, prompt in enumerate(prompts(case, engine.model.cfg.vocab_size)):
        engine.add(Request(str(index), tuple(prompt), sampling))


def _tokens(engine: Engine) -> int:
    return sum(len(update.tokens) for update in engine.step())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
