"""The generation engine: continuous batching over one pool of states (DESIGN.md, section 3)."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nano3.config.errors import UserError
from nano3.config.model import MOE
from nano3.data.tokens.tokenizer import Tokenizer
from nano3.engine.detokenize import TextStream
from nano3.engine.grammar.masks import GrammarCompiler, GrammarMatcher
from nano3.engine.passes import Passed, Passes, rows_of
from nano3.engine.prefix_cache import PrefixCache
from nano3.engine.protocol import MixedWeightsError, Stats, ends_of_text, require_idle
from nano3.engine.request import Request, Sampling, Token, Update
from nano3.engine.sampler import score
from nano3.engine.scheduler import Limits, Scheduler, Work
from nano3.engine.sequence import Sequence
from nano3.engine.sequence_sampler import SequenceSampler, derive_seed, penalized_ids
from nano3.engine.sizing import Sizes, fit, free_memory
from nano3.engine.thinking import thinking_tracker
from nano3.model.head import log_probs, logits
from nano3.model.hf.read import check_stored, fill
from nano3.model.lm import LM
from nano3.model.state.pool import StatePool
from nano3.model.step import check_environment, release
from nano3.openmp import watch_cores

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

SCORED_ROWS = 256
"""Prompt positions whose logits exist at a time."""


class Engine:
    """Runs requests together on one model; see nano3.engine.protocol.GenerationEngine.

    A request's result does not depend on what runs beside it, on chunk sizes, on the prefix cache, on preemption or on
    memory that was another's before: but for rounding, and with `exact` to the last bit.

    Without `exact`, decoding is equal to the last bit where it is one C++ call (`nano3.model.step.why_not`), bfloat16
    with AMX apart, whose tiles take over from four rows on. A prompt is not: products of up to 64 rows are C++'s and
    larger ones PyTorch's, whose rounding depends on the number of rows too; pieces and kept states begin where chunks
    ended; and a token computed among a prompt's (after preemption, or as a later turn's beginning) rounds otherwise
    than one that was decoded. In float32 log-probabilities differ by some 1e-6. In bfloat16 hidden states are rounded,
    logits never: with logits of up to 30 some 1e-2 to 1e-1 on average, up to 0.3, and far more where a router is near a
    tie. So a seed reproduces a bfloat16 output only among the same requests.

    With `exact`, tokens and log-probabilities hang on the request, the weights, `snapshot_every`, and the machine with
    its number of threads alone. Prompts go through the model one piece of one prompt at a time, cut at multiples of
    `snapshot_every` and before the last token; states are kept, and found, at those ends only; what was decoded is
    computed anew by decoding. Many short prompts take longer for it. Where decoding is not one C++ call, on GPUs for
    one, every sequence decodes alone, which is many times slower.
    """

    def __init__(
        self,
        model: LM,
        tokenizer: Tokenizer,
        *,
        memory: int | None = None,
        max_sequences: int = 64,
        max_context: int | None = None,
        page_size: int = 64,
        snapshot_every: int = 256,
        step_tokens: int = 2048,
        mixed_step_tokens: int = 256,
        prefix_cache: bool = True,
        speculate: int = 0,
        exact: bool = False,
        eos_ids: frozenset[int] | None = None,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Reserve memory.

        Args:
            model: on its device; it stays as it is, training mode included, which changes nothing here.
            tokenizer: of the model.
            memory: bytes for states, keys and values; None: a part of what is free (`sizing.SHARE_OF_FREE`), so give it
                where a trainer or a second engine is in the same process.
            max_sequences: sequences that run at once; lowered when memory is short (see `sizes.notes`).
            max_context: most tokens of prompt and output; None: the model's max_position_embeddings.
            page_size: tokens a page of keys and values.
            snapshot_every: tokens between kept states of a prompt.
            step_tokens: most prompt tokens of a step while nothing decodes.
            mixed_step_tokens: the same beside decoding sequences.
            prefix_cache: keep states of prompts for others that begin alike.
            speculate: tokens guessed ahead from what was already said; outputs stay the same.
            exact: results are equal to the last bit whatever happens beside a request; see the class. Not with
                speculate.
            eos_ids: tokens that end a text; None: the tokenizer's end of text and <|im_end|>.
            kv_dtype: type of keys and values in their pages, such as bfloat16 beside float32 activations for half the
                memory; None: that of the activations.

        Raises:
            UserError: memory for not even one sequence, a setting below 1, or exact with speculate.
        """
        _check_settings(max_sequences, page_size, snapshot_every, step_tokens, mixed_step_tokens)
        _check_exact(exact, speculate)
        self.model, self.tokenizer = model, tokenizer
        self.device = model.device
        check_environment(self.device)
        self.eos_ids = ends_of_text(tokenizer) if eos_ids is None else eos_ids
        wanted = max_sequences, max_context, page_size, snapshot_every, kv_dtype
        self.sizes = _fit(model, memory, *wanted, kept=prefix_cache or speculate > 0)
        self.max_context, self.page_size = self.sizes.max_context, page_size
        sizes = self.sizes.max_sequences, self.max_context
        limits = Limits(*sizes, step_tokens, mixed_step_tokens, snapshot_every, prefix_cache, speculate, exact)
        self._scheduler = Scheduler(self._new_pool(kv_dtype), limits)
        self.ids_limit = min(tokenizer.vocab_size, model.cfg.vocab_size)
        self._passes = Passes(model, self._scheduler.pool, self.ids_limit, exact)
        self._sequences: dict[str, list[Sequence]] = {}
        self._arrivals = self._weights_version = 0
        self._grammars = GrammarCompiler(tokenizer, self.ids_limit, self.eos_ids)
        self._prompt_tokens = self._outputs = self._drafted = self._accepted = 0

    def _new_pool(self, kv_dtype: torch.dtype | None) -> StatePool:
        if kv_dtype == torch.float8_e4m3fn and not self.model.fp8_cache:
            raise ValueError("kv_dtype float8_e4m3fn needs a model that rounds keys and values: model.use_fp8_cache()")
        counts = self.sizes.n_slots, self.sizes.n_pages, self.page_size
        dtype = self.model.compute_dtype
        return StatePool(self.model.cfg, *counts, dtype=dtype, kv_dtype=kv_dtype, device=self.device)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._scheduler.running or self._scheduler.waiting)

    @property
    def reports_experts(self) -> bool:
        """Whether requests may ask for the experts of their tokens."""
        return bool(self.model.cfg.blocks(MOE))

    @property
    def cache(self) -> PrefixCache:
        """The kept prefixes."""
        return self._scheduler.cache

    def prepare(self, request: Request) -> None:
        """Compile the request's grammar, from any thread; see GenerationEngine.prepare."""
        self._matcher(request.sampling)

    def add(self, request: Request) -> None:
        """Take a request in; see GenerationEngine.add."""
        self._check(request)
        seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        ids = penalized_ids(request.sampling, request.prompt)
        sequences = [self._new_sequence(request, index, derive_seed(seed, index), ids) for index in range(request.n)]
        self._sequences[request.id] = sequences
        for sequence in sequences:
            self._scheduler.add(sequence)
        self._prompt_tokens += len(request.prompt)

    def abort(self, request_id: str) -> None:
        """Drop a request with all it holds."""
        for sequence in self._sequences.pop(request_id, []):
            self._scheduler.remove(sequence)

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """One pass of the model over some tokens of some requests."""
        watch_cores()
        works = self._scheduler.schedule()
        if not works:
            return []
        updates: list[Update] = []
        right: dict[int, int] = {}
        for done in self._passes.run(works):
            for work, start in zip(done.works, done.starts, strict=True):
                if done.hidden is not None and work.sequence.scores_prompt:
                    self._score(work, done.hidden[start : start + work.length])
            updates += self._choose(done, right)
            self._log_experts(done, right)
        updates = _with_experts(updates, works)
        for work in works:
            self._settle(work, right.get(id(work), 0))
        self._finish(updates)
        return updates

    def progress(self, request_id: str) -> tuple[int, int] | None:
        """(prompt tokens computed, prompt tokens) of a request, the first of its outputs."""
        sequences = self._sequences.get(request_id)
        if not sequences:
            return None
        return min(sequences[0].computed, sequences[0].prompt_length), sequences[0].prompt_length

    def stats(self) -> Stats:
        """Counters and use."""
        s = self._scheduler
        return Stats(
            running=len(s.running),
            max_running=self.sizes.max_sequences,
            waiting=len(s.waiting),
            prompt_tokens=self._prompt_tokens,
            cached_tokens=s.cached_tokens,
            computed_tokens=self._passes.computed,
            output_tokens=self._outputs,
            preemptions=s.preemptions,
            cache_queries=s.cache_queries,
            cache_hits=s.cache_hits,
            cached_prefixes=len(s.cache),
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            pages_used=s.pages.used,
            pages=s.pages.total,
            slots_used=s.slots.used,
            slots=s.slots.total,
        )

    def load_weights(self, folder: Path) -> int:
        """Weights of a folder in place of the model's; see GenerationEngine.load_weights."""
        require_idle(self._scheduler.under_way)
        check_stored(self.model, folder)
        try:
            fill(self.model, folder)
        except Exception as error:
            self.weights_changed()
            raise MixedWeightsError(error) from error
        return self.weights_changed()

    def weights_changed(self) -> int:
        """Drop the prefix cache; see GenerationEngine.weights_changed."""
        require_idle(self._scheduler.under_way)
        self._scheduler.cache.clear()
        self._weights_version += 1
        for sequence in (s for sequences in self._sequences.values() for s in sequences):
            sequence.weights_version = self._weights_version
        return self._weights_version

    def close(self) -> None:
        """Drop all requests and free the pool."""
        for request_id in list(self._sequences):
            self.abort(request_id)
        self._scheduler.cache.clear()
        self._scheduler.pool.free()
        release(self.model)

    def _check(self, request: Request) -> None:
        if request.id in self._sequences:
            raise ValueError(f"request id {request.id!r} is in use")
        length, least = len(request.prompt), 0 if request.sampling.max_tokens == 0 else 1
        if length + least > self.max_context:
            raise ValueError(
                f"prompt of {length} tokens is too long: the context holds {self.max_context} with the output"
            )
        if request.return_experts and not self.reports_experts:
            raise ValueError("return_experts: the model has no mixture of experts")
        wrong = next((i for i in request.prompt if not 0 <= i < self.model.cfg.vocab_size), None)
        if wrong is not None:
            raise ValueError(f"prompt: no token has the id {wrong}; ids go from 0 to {self.model.cfg.vocab_size - 1}")

    def _new_sequence(self, request: Request, index: int, seed: int, prompt_ids: np.ndarray) -> Sequence:
        sampling = request.sampling
        sampler = SequenceSampler(
            sampling,
            prompt_ids,
            seed=seed,
            eos_ids=self.eos_ids,
            vocab_size=self.ids_limit,
            grammar=self._matcher(sampling),
            thinking=thinking_tracker(sampling, self.tokenizer),
        )
        text = TextStream(self.tokenizer, sampling.stop, sampling.include_stop)
        self._arrivals += 1
        every = self._scheduler.limits.snapshot_every
        sequence = Sequence(request, index, self._arrivals, sampler, text, every)
        sequence.weights_version = self._weights_version
        return sequence

    def _matcher(self, sampling: Sampling) -> GrammarMatcher | None:
        return None if sampling.grammar is None else self._grammars.compile(sampling.grammar)

    def _score(self, work: Work, hidden: Tensor) -> None:
        """Log-probabilities of the prompt tokens that follow those of the pass; the first one has none."""
        sequence = work.sequence
        top = sequence.request.sampling.prompt_log_probs or 0
        if not sequence.prompt_scores:
            sequence.prompt_scores.append(Token(sequence.tokens[0], float("nan"), float("nan")))
        first = sequence.computed + 1
        last = min(first + work.length, sequence.prompt_length)
        targets = torch.tensor(sequence.tokens[first:last], device=self.device)
        if not top and len(targets) > 1:
            found = log_probs(self.model.lm_head, hidden[: len(targets)], targets).tolist()
            sequence.prompt_scores += [Token(i, p, p) for i, p in zip(targets.tolist(), found, strict=True)]
            return
        for start in range(0, len(targets), SCORED_ROWS):
            part = slice(start, min(start + SCORED_ROWS, len(targets)))
            rows = logits(self.model.lm_head, hidden[part])
            sequence.prompt_scores += score(rows, targets[part], top, self.ids_limit)

    def _choose(self, done: Passed, right: dict[int, int]) -> list[Update]:
        """Next tokens; how many guesses of each work were right is put into `right`."""
        updates: list[Update] = []
        if done.chosen is not None:
            pairs = zip(done.works, done.chosen, strict=True)
            return [work.sequence.accept(token, self.eos_ids, self.max_context) for work, token in pairs]
        rows: list[int] = []
        open_works: list[tuple[Work, int]] = []
        for work, start in zip(done.works, done.starts, strict=True):
            if not work.completes:
                continue
            if work.sequence.only_scores:
                updates.append(work.sequence.end_of_scoring())
                continue
            open_works.append((work, len(rows)))
            rows += range(start + work.length - 1, start + work.length + len(work.drafts))
        if not open_works:
            return updates
        logits = self._passes.logits(done, rows)
        for guess in range(1 + max(len(work.drafts) for work, _ in open_works)):
            at = [row + guess for _, row in open_works]
            chosen = self._passes.sample(rows_of(logits, at), [work.sequence.sampler for work, _ in open_works])
            still_open = []
            for (work, row), token in zip(open_works, chosen, strict=True):
                update = work.sequence.accept(token, self.eos_ids, self.max_context)
                updates.append(update)
                if guess < len(work.drafts) and token.id == work.drafts[guess] and update.finish is None:
                    right[id(work)] = guess + 1
                    still_open.append((work, row))
            open_works = still_open
            if not open_works:
                break
        return updates

    def _log_experts(self, done: Passed, right: dict[int, int]) -> None:
        if done.experts is None:
            return
        for work, start in zip(done.works, done.starts, strict=True):
            if work.sequence.experts is not None:
                tokens = slice(start, start + work.length + right.get(id(work), 0))
                work.sequence.experts.add(work.sequence.computed, done.experts[:, tokens])

    def _settle(self, work: Work, right: int) -> None:
        """Enter what the pass computed."""
        if work.drafts:
            self._drafted += len(work.drafts)
            self._accepted += right
            self._scheduler.take_back(work, right)
        work.sequence.computed += work.length + right
        self._scheduler.keep_states(work)

    def _finish(self, updates: list[Update]) -> None:
        for update in updates:
            self._outputs += len(update.tokens)
            if update.finish is None:
                continue
            sequences = self._sequences[update.request_id]
            (done,) = (s for s in sequences if s.index == update.index)
            sequences.remove(done)
            if not sequences:
                del self._sequences[update.request_id]
            self._scheduler.remove(done, keep=update.finish != "error")


def _fit(
    model: LM,
    memory: int | None,
    max_sequences: int,
    max_context: int | None,
    page_size: int,
    snapshot_every: int,
    kv_dtype: torch.dtype | None,
    kept: bool,
) -> Sizes:
    """`sizing.fit`, by default for the model's own context and a part of the free memory; raises UserError."""
    room = free_memory(model.device, model.mapped_bytes) if memory is None else memory
    wanted = max_sequences, max_context or model.cfg.max_position_embeddings, page_size, snapshot_every, kv_dtype
    return fit(model.cfg, model.compute_dtype, room, *wanted, kept=kept)


def _with_experts(updates: list[Update], works: list[Work]) -> list[Update]:
    wanted = {(w.sequence.id, w.sequence.index): log for w in works if (log := w.sequence.experts) is not None}
    if not wanted:
        return updates
    logs = [wanted.get((update.request_id, update.index)) for update in updates]
    return [u if log is None else u._replace(experts=log.take_new()) for u, log in zip(updates, logs, strict=True)]


def _check_exact(exact: bool, speculate: int) -> None:
    if exact and speculate:
        raise UserError("engine: exact and speculate exclude each other: guesses are computed several at a time")


def _check_settings(*values: int) -> None:
    names = ("max_sequences", "page_size", "snapshot_every", "step_tokens", "mixed_step_tokens")
    for name, value in zip(names, values, strict=True):
        if value < 1:
            raise UserError(f"engine: {name} is {value}; it must be at least 1")
