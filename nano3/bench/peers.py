"""Other programs on the same work: Hugging Face transformers and llama.cpp, on CPU, with the same weights."""

from __future__ import annotations

import ctypes
import functools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from nano3.bench.workload import RL_ROWS, Case, Job, Kind, advantages, prompts
from nano3.config.errors import UserError

WARM_TOKENS = 4
"""Tokens of each sequence before the clock starts."""
WRITES_MODEL = "gguf"
"""The package that writes llama.cpp's model; not needed where there is a file of it."""


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

    def run(self, case: Case) -> dict[str, float]:
        """Seconds of one timed run."""
        import torch

        tokens = torch.tensor(prompts(case, self.vocab_size))
        if case.kind == "rl":
            return self._rl(tokens, case)
        return {"seconds": self._runs[case.kind](tokens, case)}

    def _train(self, tokens: Any, case: Case) -> float:
        if case.forward_only:
            self.model.eval()
            return self._prefill(tokens, case)

        def step() -> None:
            self.model(tokens, labels=tokens, use_cache=False).loss.backward()
            self.model.zero_grad()

        return _seconds(step)

    def _prefill(self, tokens: Any, case: Case) -> float:
        import torch

        with torch.inference_mode():
            return _seconds(lambda: self.model(tokens, use_cache=case.kind == "prefill", logits_to_keep=1))

    def _decode(self, tokens: Any, case: Case) -> float:
        """The time of a long output less that of a short one: prompt and start cancel out."""
        import torch

        def generate(n: int) -> float:
            return _seconds(lambda: self.model.generate(tokens, max_new_tokens=n, min_new_tokens=n, do_sample=False))

        with torch.inference_mode():
            short = generate(WARM_TOKENS)
            return generate(WARM_TOKENS + case.output) - short

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


class LlamaCpp:
    """llama.cpp through llama-cpp-python, from a GGUF file of the model; see nano3.bench.worker."""

    def __init__(self, job: Job) -> None:
        import llama_cpp

        self.lib, self.threads, self.dtype = llama_cpp, job.threads, job.dtype
        # Kept: the library calls it for as long as the process lives.
        self._quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        file = self._converted(job.model, job.dtype) if OTHER_TYPES.fullmatch(job.dtype) and not job.own else job.model
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

    def run(self, case: Case) -> dict[str, float]:
        """Seconds of one timed run, in a context of its own."""
        rows = prompts(case, self.vocab_size)
        context = self._context(case)
        try:
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
        return _seconds(lambda: self._pass(context, rows[0], range(case.length), [0] * case.length, last_only=True))

    def _decode(self, context: Any, rows: list[list[int]], case: Case) -> float:
        for sequence, row in enumerate(rows):
            self._pass(context, row, range(case.length), [sequence] * case.length, last_only=True)

        def steps(first: int, count: int) -> None:
            # The time of a step does not depend on which tokens come.
            for step in range(first, first + count):
                tokens = [row[step % len(row)] for row in rows]
                self._pass(context, tokens, [case.length + step] * case.batch, range(case.batch))

        steps(0, WARM_TOKENS - 1)
        return _seconds(lambda: steps(WARM_TOKENS - 1, case.output))

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


@dataclass(frozen=True)
class Peer:
    """A program to compare with."""

    side: Callable[[Job], Any]
    packages: dict[str, str]
    """What it needs: what Python imports -> what pip installs."""
    kinds: tuple[Kind, ...]
    """What it can do."""


PEERS = {
    "transformers": Peer(Transformers, {"transformers": "transformers"}, ("train", "prefill", "decode", "rl")),
    "llama.cpp": Peer(LlamaCpp, {"llama_cpp": "llama-cpp-python", WRITES_MODEL: WRITES_MODEL}, ("prefill", "decode")),
}
GGUF_TYPES = {"float32": "f32", "bfloat16": "bf16"}
DTYPES = tuple(GGUF_TYPES)
OTHER_TYPES = re.compile(r"(i?q|tq)\d\w*|f16|mxfp4_moe", re.IGNORECASE)
"""Types of GGUF files that nano3 does not write: llama.cpp makes them of a file of bf16."""


@dataclass(frozen=True)
class Chosen:
    """A peer as --against names it."""

    name: str
    dtype: str
    """float32 or bfloat16; of llama.cpp any type of a GGUF file."""

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.name} {self.dtype}"


def choose_peers(texts: Sequence[str], dtypes: Sequence[str]) -> list[Chosen]:
    """The peers of `--against NAME[:TYPE]`; those without a type are taken in each of `dtypes`.

    Raises:
        UserError: an unknown peer or type.
    """
    found: list[Chosen] = []
    for text in texts:
        name, colon, kind = text.partition(":")
        if name not in PEERS:
            raise UserError(f"--against {name}: not known; use one or both of {','.join(PEERS)}")
        kinds = [_check_dtype(name, kind)] if colon else list(dtypes)
        found += [Chosen(name, each) for each in kinds]
    return list(dict.fromkeys(found))


def _check_dtype(name: str, kind: str) -> str:
    kind = kind.lower()
    if name == "llama.cpp":
        from nano3.model.gguf.write import TYPES

        kind = {short: long for long, short in GGUF_TYPES.items()}.get(kind, kind)
        if kind not in (*DTYPES, *TYPES) and not OTHER_TYPES.fullmatch(kind):
            known = ", ".join(TYPES)
            raise UserError(f"--against llama.cpp:{kind}: not a type of GGUF files, such as {known} or q4_k_m")
    elif kind not in DTYPES:
        raise UserError(f"--against {name}:{kind}: not known; use {' or '.join(DTYPES)}")
    return kind


def check_peers(names: Sequence[str], kind: Kind, gguf: str) -> None:
    """Raise UserError for a peer that is unknown, not installed, unable to do this, or lacks its model file."""
    for chosen in choose_peers(names, DTYPES):
        name = chosen.name
        peer = PEERS[name]
        if kind not in peer.kinds:
            able = [other for other, one in PEERS.items() if kind in one.kinds]
            raise UserError(
                f"--against {name}: nano3 bench {kind} cannot compare with it, only with {' and '.join(able)}; "
                f"{name} takes part in {' and '.join(peer.kinds)}"
            )
        needed = {module: pip for module, pip in peer.packages.items() if not (gguf and module == WRITES_MODEL)}
        if missing := [pip for module, pip in needed.items() if find_spec(module) is None]:
            raise UserError(f"--against {name}: {' and '.join(missing)} not installed; pip install {' '.join(missing)}")


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
