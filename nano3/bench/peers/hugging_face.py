"""Hugging Face transformers on the CPU."""

from __future__ import annotations

import functools
import time
from typing import Any

from nano3.bench.peers.timing import WARM_TOKENS, lockstep, seconds_of, timed
from nano3.bench.serving_client import Sample
from nano3.bench.workload import RL_ROWS, Case, Job, advantages, prompts


class Transformers:
    """transformers' own `nemotron_h` from a Hugging Face folder; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        self.version = transformers.__version__
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(job.model)
        self.model = model.to(getattr(torch, job.dtype))
        self.model.train(job.kind == "train")
        self.dtype, self.vocab_size = job.dtype, self.model.config.vocab_size
        self._runs = {"train": self._train, "prefill": self._prefill, "decode": self._decode}

    def about(self) -> dict[str, Any]:
        """Version and types."""
        return {"version": self.version, "weights": self.dtype, "activations": self.dtype}

    def run(self, case: Case) -> dict[str, Any]:
        """Seconds of one timed run."""
        import torch

        tokens = torch.tensor(prompts(case, self.vocab_size))
        if case.kind == "rl":
            return self._rl(tokens, case)
        if case.kind == "throughput":
            return self._throughput(tokens, case)
        return {"seconds": self._runs[case.kind](tokens, case)}

    def _train(self, tokens: Any, case: Case) -> float:
        if case.forward_only:
            self.model.eval()
            return self._prefill(tokens, case)

        def step() -> None:
            self.model(tokens, labels=tokens, use_cache=False).loss.backward()
            self.model.zero_grad()

        return seconds_of(step)

    def _prefill(self, tokens: Any, case: Case) -> float:
        import torch

        with torch.inference_mode():
            return seconds_of(lambda: self.model(tokens, use_cache=case.kind == "prefill", logits_to_keep=1))

    def _decode(self, tokens: Any, case: Case) -> float:
        """The time of a long output less that of a short one: prompt and start cancel out."""
        import torch

        def generate(n: int) -> float:
            return seconds_of(lambda: self.model.generate(tokens, max_new_tokens=n, min_new_tokens=n, do_sample=False))

        with torch.inference_mode():
            short = generate(WARM_TOKENS)
            return generate(WARM_TOKENS + case.output) - short

    def _throughput(self, tokens: Any, case: Case) -> dict[str, Any]:
        """Batch after batch by `generate`; a token's time is that of its logits."""
        import torch

        samples: list[Sample] = []
        start = time.perf_counter()
        for rows in tokens.split(case.batch):
            times: list[float] = []

            def note(_ids: Any, logits: Any, times: list[float] = times) -> Any:
                times.append(time.perf_counter())
                return logits

            began = time.perf_counter()
            with torch.inference_mode():
                self.model.generate(
                    rows, max_new_tokens=case.output, min_new_tokens=case.output, do_sample=False,
                    logits_processor=[note],
                )  # fmt: skip
            samples += lockstep(began, times, case, len(rows))
        return timed(samples, time.perf_counter() - start)

    def _rl(self, tokens: Any, case: Case) -> dict[str, float]:
        """Samples by `generate`, then the policy gradient's forward and backward passes and AdamW's step."""
        import torch

        start = time.perf_counter()
        self.model.eval()
        with torch.inference_mode():
            drawn = self.model.generate(
                tokens, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=case.output,
                min_new_tokens=case.output, num_return_sequences=case.group,
            )  # fmt: skip
        generated = time.perf_counter()
        self.model.train()
        worth = torch.tensor(advantages(case))
        for rows, weights in zip(drawn.clone().split(RL_ROWS), worth.split(RL_ROWS), strict=True):
            logits = self.model(rows, use_cache=False).logits[:, case.length - 1 : -1]
            targets = rows[:, case.length :]
            nll = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
            (weights.repeat_interleave(case.output) * nll).sum().div(case.tokens).backward()
        self._optimizer().step()
        self._optimizer().zero_grad()
        end = time.perf_counter()
        return {"seconds": end - start, "generate_seconds": generated - start, "update_seconds": end - generated}

    @functools.cache  # noqa: B019 (one side a process)
    def _optimizer(self) -> Any:
        import torch

        return torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)
