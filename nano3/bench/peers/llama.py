"""llama.cpp on the CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from typing import Any

from nano3.bench.peers.timing import WARM_TOKENS, lockstep, seconds_of, timed
from nano3.bench.peers.types import is_converted
from nano3.bench.serving_client import Sample
from nano3.bench.workload import Case, Job, prompts
from nano3.config.errors import UserError


class LlamaCpp:
    """llama.cpp through llama-cpp-python, from a GGUF file of the model; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        import llama_cpp

        self.lib, self.threads, self.dtype = llama_cpp, job.threads, job.dtype
        # Kept: the library calls it for as long as the process lives.
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        file = self._converted(job.model, job.dtype) if is_converted(job.dtype) and not job.own else job.model
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise UserError(f"{'--gguf' if job.own else 'GGUF file'} {job.model}: llama.cpp cannot load it")
        vocab: Any = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)

    def _converted(self, file: str, kind: str) -> str:
        """A GGUF file of bf16 in another type, by llama.cpp's own quantization, beside it."""
        number = getattr(self.lib, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}", None)
        if number is None:
            raise UserError(f"--against llama.cpp:{kind}: this llama.cpp knows no such type")
        params = self.lib.llama_model_quantize_default_params()
        params.ftype, params.nthread = number, self.threads
        out = f"{file.removesuffix('.gguf')}-{kind}.gguf"
        if self.lib.llama_model_quantize(file.encode(), out.encode(), ctypes.byref(params)):
            raise UserError(f"--against llama.cpp:{kind}: llama.cpp cannot bring this model into that type")
        return out

    def about(self) -> dict[str, Any]:
        """Version."""
        return {"version": self.lib.__version__, "weights": self.dtype, "activations": "its own choice"}

    def run(self, case: Case) -> dict[str, Any]:
        """Seconds of one timed run, in a context of its own."""
        rows = prompts(case, self.vocab_size)
        context = self._context(case)
        try:
            if case.kind == "throughput":
                return self._throughput(context, rows, case)
            return {"seconds": (self._prefill if case.kind == "prefill" else self._decode)(context, rows, case)}
        finally:
            self.lib.llama_free(context)

    def _context(self, case: Case) -> Any:
        params = self.lib.llama_context_default_params()
        room = case.batch * (case.length + WARM_TOKENS + case.output)
        params.n_ctx, params.n_seq_max = max(4096, room + 8), case.batch
        params.n_batch, params.n_ubatch = max(4096, case.length), 512
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = True
        return self.lib.llama_init_from_model(self.model, params)

    def _prefill(self, context: Any, rows: list[list[int]], case: Case) -> float:
        return seconds_of(lambda: self._pass(context, rows[0], range(case.length), [0] * case.length, last_only=True))

    def _decode(self, context: Any, rows: list[list[int]], case: Case) -> float:
        for sequence, row in enumerate(rows):
            self._pass(context, row, range(case.length), [sequence] * case.length, last_only=True)

        def steps(first: int, count: int) -> None:
            # The time of a step does not depend on which tokens come.
            for step in range(first, first + count):
                tokens = [row[step % len(row)] for row in rows]
                self._pass(context, tokens, [case.length + step] * case.batch, range(case.batch))

        steps(0, WARM_TOKENS - 1)
        return seconds_of(lambda: steps(WARM_TOKENS - 1, case.output))

    def _throughput(self, context: Any, rows: list[list[int]], case: Case) -> dict[str, Any]:
        """Batch after batch: the prompts one by one, then all sequences a token at a time."""
        samples: list[Sample] = []
        start = time.perf_counter()
        for first in range(0, len(rows), case.batch):
            given = rows[first : first + case.batch]
            self.lib.llama_memory_clear(self.lib.llama_get_memory(context), True)
            own: list[list[float]] = []
            began = time.perf_counter()
            for sequence, row in enumerate(given):
                self._pass(context, row, range(case.length), [sequence] * case.length, last_only=True)
                own.append([time.perf_counter()])
            for step in range(case.output - 1):
                tokens = [row[step % len(row)] for row in given]
                self._pass(context, tokens, [case.length + step] * len(given), range(len(given)))
                now = time.perf_counter()
                for times in own:
                    times.append(now)
            samples += [sample for times in own for sample in lockstep(began, times, case, 1)]
        return timed(samples, time.perf_counter() - start)

    def _pass(
        self, context: Any, tokens: list[int], positions: Sequence[int], sequences: Sequence[int], last_only=False
    ) -> None:
        """One pass over tokens; logits of all, or of the last one."""
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, (token, position, sequence) in enumerate(zip(tokens, positions, sequences, strict=True)):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, position, 1, sequence
            batch.logits[i] = not last_only or i == len(tokens) - 1
        failed = self.lib.llama_decode(context, batch)
        self.lib.llama_synchronize(context)
        self.lib.llama_batch_free(batch)
        if failed:
            raise RuntimeError(f"llama_decode answered {failed}")
